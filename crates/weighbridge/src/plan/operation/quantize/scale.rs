//! The largest magnitude of a group, and scales as they are stored.

use crate::newer_std::{signed, unsigned};
use half::{bf16, f16};

use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};

/// The largest magnitude.
pub(super) fn largest(values: &[f32]) -> Result<f32> {
    // Magnitudes are in the order of their bits, NaN above all; comparisons of signed integers are what
    // vectors have.
    let magnitude = |value: &f32| signed(value.to_bits() & !SIGN);
    let largest = values.iter().map(magnitude).fold(0, Ord::max);
    let largest = f32::from_bits(unsigned(largest));
    if largest.is_finite() {
        return Ok(largest);
    }
    let message = format!("{largest} cannot be quantised");
    Err(Error::new(ErrorKind::Value, message))
}

const SIGN: u32 = 1 << 31;

/// The dtype of scales that have the dtype of the weight where that is one of the usual three.
pub(super) fn dtype(weight: Dtype) -> Dtype {
    match weight {
        Dtype::F16 | Dtype::BF16 => weight,
        _ => Dtype::F32,
    }
}

/// A scale rounded to the dtype in which it is stored. Zero becomes the distance from one to the next number,
/// as in compressed-tensors, so that nothing is divided by zero.
pub(super) fn rounded(scale: f32, dtype: Dtype) -> f32 {
    let (rounded, least) = match dtype {
        Dtype::F16 => (f16::from_f32(scale).to_f32(), f16::EPSILON.to_f32()),
        Dtype::BF16 => (bf16::from_f32(scale).to_f32(), bf16::EPSILON.to_f32()),
        _ => (scale, f32::EPSILON),
    };
    if rounded == 0.0 { least } else { rounded }
}

/// The number of bytes of a scale.
pub(super) fn size(dtype: Dtype) -> usize {
    dtype.bits() as usize / 8
}

/// Stores a scale that [`rounded`] made.
pub(super) fn store(scale: f32, dtype: Dtype, out: &mut [u8]) {
    match dtype {
        Dtype::F16 => out.copy_from_slice(&f16::from_f32(scale).to_le_bytes()),
        Dtype::BF16 => out.copy_from_slice(&bf16::from_f32(scale).to_le_bytes()),
        _ => out.copy_from_slice(&scale.to_le_bytes()),
    }
}
