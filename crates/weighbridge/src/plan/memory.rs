//! Casts of values that are in memory already.

use std::mem::MaybeUninit;

use super::Overflow;
use super::convert::Kernel;
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::view::Element;

/// Turns values as a file has them into Rust's: `stored` has as many elements of `dtype` as `values` has places.
///
/// `T` stands for the first of its [`DTYPES`](Element::DTYPES). What is too large for it becomes infinite, or its largest
/// value where it has no infinities, as in [`Overflow::Infinity`].
///
/// ```
/// use weighbridge::{Dtype, plan::cast_into};
///
/// # fn main() -> weighbridge::Result<()> {
/// let mut values = [0.0_f64; 2];
/// cast_into(Dtype::BF16, &[0x80, 0x3f, 0x00, 0xc0], &mut values)?;
/// assert_eq!(values, [1.0, -2.0]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// Fails with [`ErrorKind::Dtype`] where there is no such cast, which is so for values of 4 and 6 bits and for complex
/// ones, and with [`ErrorKind::TensorSize`] when the numbers of elements differ.
pub fn cast_into<T: Element>(dtype: Dtype, stored: &[u8], values: &mut [T]) -> Result<()> {
    /// Elements at a time; they stay in the first-level cache.
    const BLOCK: usize = 1024;
    let to = T::DTYPES[0];
    let refuse = |kind, message| Err(Error::new(kind, message));
    let Some(kernel) = Kernel::of(dtype, to, Overflow::Infinity) else {
        return refuse(ErrorKind::Dtype, format!("{dtype} cannot be cast to {to}"));
    };
    if dtype.byte_len(values.len() as u64) != Some(stored.len() as u64) {
        let message = format!("{} bytes are not {} elements of {dtype}", stored.len(), values.len());
        return refuse(ErrorKind::TensorSize, message);
    }
    let (from, size) = (dtype.bits() as usize / 8, size_of::<T>());
    let mut block = [MaybeUninit::uninit(); BLOCK * 8];
    for (stored, values) in stored.chunks(BLOCK * from).zip(values.chunks_mut(BLOCK)) {
        let block = block.get_mut(..values.len() * size).unwrap_or_default();
        match kernel.run(stored, block) {
            Ok(made) => bytemuck::cast_slice_mut(values).copy_from_slice(made),
            Err(refused) => {
                return refuse(ErrorKind::Value, format!("{} has no place in {to}", refused.value));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn casts_blocks_and_refuses_the_rest() {
        let stored: Vec<u8> = (0..3000_u16).flat_map(u16::to_le_bytes).collect();
        let mut values = vec![0.0_f32; 3000];
        cast_into(Dtype::U16, &stored, &mut values).unwrap();
        assert!(values.iter().zip(0_u16..).all(|(value, number)| *value == f32::from(number)));
        let kind = |dtype, stored: &[u8]| cast_into(dtype, stored, &mut [0.0_f32; 2]).unwrap_err().kind();
        assert_eq!(kind(Dtype::U16, &[0; 3]), ErrorKind::TensorSize);
        assert_eq!(kind(Dtype::F4, &[0]), ErrorKind::Dtype);
        assert_eq!(kind(Dtype::C64, &[0; 16]), ErrorKind::Dtype);
    }
}
