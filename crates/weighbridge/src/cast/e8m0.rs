//! Powers of two without a sign.

use super::element::{Made, Stored, Wide};
use super::overflow::Overflow;
use crate::newer_std::{signed, unsigned};

/// The scales of the Open Compute Project's microscaling (MX) formats: an exponent alone, `2^(b - 127)`, and
/// NaN for
/// 255. There is neither zero nor infinity, and nothing is negative.
///
/// A value becomes the power of two that is nearest to it; halfway between two the larger one, as in PyTorch,
/// and what is below the least the least. (PyTorch 2.15 rounds up everything above the least.) Zero and
/// negative values are refused.
pub(super) struct E8M0;

const NAN: u32 = 255;
/// An `f32` has the same exponent, in front of this many bits.
const MANTISSA: u32 = 23;
const INFINITY: u32 = 255 << MANTISSA;
/// From here on, the power of two that is nearest would be one more than the largest.
const BEYOND: u32 = (254 << MANTISSA) + HALF;
const HALF: u32 = 1 << (MANTISSA - 1);
/// The least one, 2^-127, is a subnormal `f32`, and so is what is halfway to the next.
const LEAST: u32 = HALF;
const LEAST_AND_HALF: u32 = LEAST + LEAST / 2;

impl Stored for E8M0 {
    type Bits = u8;
    type Wide = f32;

    #[inline(always)]
    fn widen(stored: u8) -> f32 {
        let code = u32::from(stored);
        let bits = if code == 0 { LEAST } else { code << MANTISSA };
        f32::from_bits(if code == NAN { bits | HALF } else { bits })
    }
}

impl<W: Wide> Made<W> for E8M0 {
    type Bits = u8;
    /// What is too large and below this is refused.
    type Limits = i32;

    fn limits(overflow: Overflow) -> i32 {
        match overflow {
            Overflow::Error => signed(INFINITY + 1),
            Overflow::Infinity | Overflow::Saturate => 0,
        }
    }

    #[inline(always)]
    fn make(value: W, refused: i32) -> (u8, bool) {
        let bits = signed(value.to_odd().to_bits());
        let magnitude = bits & i32::MAX;
        let nearest = (unsigned(magnitude) + HALF) >> MANTISSA;
        let code = if magnitude < signed(LEAST_AND_HALF) { 0 } else { nearest };
        let beyond = magnitude >= signed(BEYOND);
        let is_nan = magnitude > signed(INFINITY);
        let code = if beyond { NAN - 1 } else { code };
        let code = if is_nan { NAN } else { code };
        (code as u8, (bits <= 0) & !is_nan | beyond & (magnitude < refused))
    }
}
