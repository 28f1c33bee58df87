//! The element types of the format.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};
use crate::text::brief;

/// The type of a tensor's elements: all 22 that crate `safetensors` 0.8.0 knows.
///
/// The order of the variants is the order in which the official writer sorts tensors (it writes the widest
/// first, so that every tensor is aligned to its element).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[allow(non_camel_case_types)]
pub enum Dtype {
    /// One byte a value, 0 or 1.
    Bool,
    /// 4-bit float (MXFP4 element, E2M1), two to a byte, the first in the low four bits.
    F4,
    /// 6-bit float with 2 exponent and 3 mantissa bits, packed; in which order is not agreed.
    F6_E2M3,
    /// 6-bit float with 3 exponent and 2 mantissa bits, packed as well.
    F6_E3M2,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 8-bit integer.
    I8,
    /// 8-bit float with 5 exponent and 2 mantissa bits, with infinities (OCP FP8).
    F8_E5M2,
    /// 8-bit float with 4 exponent and 3 mantissa bits, no infinities (OCP FP8, "fn").
    F8_E4M3,
    /// 8-bit power of two, the scale of the OCP microscaling formats.
    F8_E8M0,
    /// 8-bit float E4M3 without infinities or a negative zero.
    F8_E4M3FNUZ,
    /// 8-bit float E5M2 without infinities or a negative zero.
    F8_E5M2FNUZ,
    /// Signed 16-bit integer.
    I16,
    /// Unsigned 16-bit integer.
    U16,
    /// IEEE 754 half precision.
    F16,
    /// bfloat16: the upper half of an `F32`.
    BF16,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// IEEE 754 single precision.
    F32,
    /// Complex number: two `F32`, real part first.
    C64,
    /// IEEE 754 double precision.
    F64,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned 64-bit integer.
    U64,
}

/// One row a dtype: variant, name in the file, bits an element.
const TABLE: [(Dtype, &str, u8); 22] = [
    (Dtype::Bool, "BOOL", 8),
    (Dtype::F4, "F4", 4),
    (Dtype::F6_E2M3, "F6_E2M3", 6),
    (Dtype::F6_E3M2, "F6_E3M2", 6),
    (Dtype::U8, "U8", 8),
    (Dtype::I8, "I8", 8),
    (Dtype::F8_E5M2, "F8_E5M2", 8),
    (Dtype::F8_E4M3, "F8_E4M3", 8),
    (Dtype::F8_E8M0, "F8_E8M0", 8),
    (Dtype::F8_E4M3FNUZ, "F8_E4M3FNUZ", 8),
    (Dtype::F8_E5M2FNUZ, "F8_E5M2FNUZ", 8),
    (Dtype::I16, "I16", 16),
    (Dtype::U16, "U16", 16),
    (Dtype::F16, "F16", 16),
    (Dtype::BF16, "BF16", 16),
    (Dtype::I32, "I32", 32),
    (Dtype::U32, "U32", 32),
    (Dtype::F32, "F32", 32),
    (Dtype::C64, "C64", 64),
    (Dtype::F64, "F64", 64),
    (Dtype::I64, "I64", 64),
    (Dtype::U64, "U64", 64),
];

impl Dtype {
    /// Every dtype, in the order of the official writer.
    pub fn all() -> impl ExactSizeIterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    /// The name in the file: `BF16`, `F8_E4M3`.
    pub fn name(self) -> &'static str {
        TABLE[self as usize].1
    }

    /// Bits an element occupies: 4, 6, 8, 16, 32 or 64.
    pub fn bits(self) -> u32 {
        u32::from(TABLE[self as usize].2)
    }

    /// Whether the values are real floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(
            self,
            Self::F4
                | Self::F6_E2M3
                | Self::F6_E3M2
                | Self::F8_E5M2
                | Self::F8_E4M3
                | Self::F8_E8M0
                | Self::F8_E4M3FNUZ
                | Self::F8_E5M2FNUZ
                | Self::F16
                | Self::BF16
                | Self::F32
                | Self::F64
        )
    }

    /// Bytes that `elements` values occupy, or `None` where they do not end on a byte or the number does not
    /// fit 64 bits.
    pub fn byte_len(self, elements: u64) -> Option<u64> {
        let bits = elements.checked_mul(u64::from(self.bits()))?;
        (bits % 8 == 0).then_some(bits / 8)
    }

    /// Bytes that a tensor of this dtype and that shape occupies.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Overflow`] when the bits do not fit 64 bits, which is counted from the first
    /// dimension on as the official crate does, and with [`ErrorKind::SubByte`] when they do not end on a byte.
    pub fn size_of(self, shape: &[usize]) -> Result<u64> {
        let product = shape.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim as u64));
        let Some(bits) = product.and_then(|elements| elements.checked_mul(u64::from(self.bits()))) else {
            let message = format!("the size of shape {} of {self} does not fit 64 bits", brief(shape));
            return Err(Error::new(ErrorKind::Overflow, message));
        };
        if bits % 8 != 0 {
            let message = format!("shape {} of {self} does not end on a byte", brief(shape));
            return Err(Error::new(ErrorKind::SubByte, message));
        }
        Ok(bits / 8)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Dtype {
    type Err = UnknownDtype;

    /// Case-sensitive, as in the file.
    fn from_str(name: &str) -> std::result::Result<Self, UnknownDtype> {
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0).ok_or(UnknownDtype)
    }
}

/// The text is not the name of a dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownDtype;

impl fmt::Display for UnknownDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not the name of a safetensors dtype")
    }
}

impl std::error::Error for UnknownDtype {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_follows_the_enum() {
        for (place, dtype) in Dtype::all().enumerate() {
            assert_eq!(dtype as usize, place);
            assert_eq!(dtype.name().parse(), Ok(dtype));
        }
        assert_eq!("bf16".parse::<Dtype>(), Err(UnknownDtype));
    }

    #[test]
    fn byte_lengths() {
        assert_eq!(Dtype::F4.byte_len(6), Some(3));
        assert_eq!(Dtype::F4.byte_len(3), None);
        assert_eq!(Dtype::F6_E2M3.byte_len(4), Some(3));
        assert_eq!(Dtype::C64.byte_len(2), Some(16));
        assert_eq!(Dtype::F64.byte_len(u64::MAX / 8), None);
    }
}
