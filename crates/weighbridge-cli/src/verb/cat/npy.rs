//! The header of a NumPy file, as `numpy.lib.format` describes version 1.0.

use anyhow::{Result, bail};
use weighbridge::Dtype;

use crate::dtype::can_read;

/// NumPy knows no arrays of more dimensions.
pub(super) const MOST_DIMS: usize = 64;

/// Everything in front of the values: the data starts at a multiple of 64 bytes.
pub(super) fn header(dtype: Dtype, shape: &[usize]) -> Result<Vec<u8>> {
    const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";
    const ALIGNMENT: usize = 64;
    if shape.len() > MOST_DIMS {
        bail!("NumPy has at most {MOST_DIMS} dimensions, the tensor has {}; use --format raw", shape.len());
    }
    let comma = if shape.len() == 1 { "," } else { "" };
    let dims: Vec<_> = shape.iter().map(usize::to_string).collect();
    let (descr, dims) = (descr(dtype)?, dims.join(", "));
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}{comma}), }}");
    let start = MAGIC.len() + 2;
    let end = (start + text.len() + 1).next_multiple_of(ALIGNMENT);
    text.extend(std::iter::repeat_n(' ', end - start - text.len() - 1));
    text.push('\n');
    let length = u16::try_from(text.len())?;
    Ok([MAGIC, &length.to_le_bytes(), text.as_bytes()].concat())
}

fn descr(dtype: Dtype) -> Result<&'static str> {
    Ok(match dtype {
        Dtype::Bool => "|b1",
        Dtype::U8 => "|u1",
        Dtype::I8 => "|i1",
        Dtype::I16 => "<i2",
        Dtype::U16 => "<u2",
        Dtype::F16 => "<f2",
        Dtype::I32 => "<i4",
        Dtype::U32 => "<u4",
        Dtype::F32 => "<f4",
        Dtype::C64 => "<c8",
        Dtype::F64 => "<f8",
        Dtype::I64 => "<i8",
        Dtype::U64 => "<u8",
        _ if !can_read(dtype) => {
            bail!("values of {dtype} have no agreed packing; --format raw gives their bytes")
        }
        _ => bail!("NumPy has no {dtype}; cast it with --to f32, or take its bytes with --format raw"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_padded_to_64_bytes() {
        for (shape, tuple) in [(&[][..], "()"), (&[3], "(3,)"), (&[3, 40], "(3, 40)"), (&[1; 64], "(1, 1, ")]
        {
            let header = header(Dtype::F32, shape).unwrap();
            assert!(header.len().is_multiple_of(64) && header.ends_with(b"\n"));
            assert_eq!(usize::from(u16::from_le_bytes([header[8], header[9]])), header.len() - 10);
            let text = String::from_utf8_lossy(&header[10..]).into_owned();
            assert!(
                text.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (")
                    && text.contains(tuple)
            );
        }
        assert!(header(Dtype::BF16, &[1]).unwrap_err().to_string().contains("--to f32"));
        assert!(header(Dtype::F32, &[1; 65]).is_err());
    }
}
