//! The OCP microscaling format of 4 bits: 32 values of E2M1 with a power of two, as compressed-tensors makes
//! it.

use super::scale::largest;
use super::symmetric::{each, put_pairs};
use crate::cast::{Convert, Instructions};
use crate::error::Result;
use crate::plan::operation::Encode;

/// The values that share a scale.
pub(super) const GROUP: usize = 32;

#[derive(Debug)]
pub(super) struct Codes;

#[derive(Debug)]
pub(super) struct Scales;

/// The scale, as the exponent that is stored: the exponent of the largest magnitude, less the two that 6 has.
/// What would be rounded to more than 6, because its mantissa is nearer to 2 than to 1.5, has the next
/// exponent.
fn exponent(values: &[f32]) -> Result<u8> {
    const MANTISSA: u32 = 23;
    let bits = largest(values)?.to_bits() + (1 << (MANTISSA - 2));
    Ok((bits >> MANTISSA).saturating_sub(2) as u8)
}

/// Two to the power of a stored exponent.
fn power(exponent: u8) -> f32 {
    match exponent {
        // It has no exponent of its own.
        0 => f32::from_bits(1 << 22),
        exponent => f32::from_bits(u32::from(exponent) << 23),
    }
}

impl Encode for Scales {
    fn values(&self) -> usize {
        GROUP
    }

    fn bytes(&self, _: usize) -> usize {
        1
    }

    fn encode(&self, values: &[f32], out: &mut [u8]) -> Result<()> {
        out[0] = exponent(values)?;
        Ok(())
    }
}

impl Encode for Codes {
    fn values(&self) -> usize {
        GROUP
    }

    fn bytes(&self, values: usize) -> usize {
        values.div_ceil(2)
    }

    fn encode(&self, values: &[f32], out: &mut [u8]) -> Result<()> {
        let scale = power(exponent(values)?);
        each(Instructions::detect(), E2M1 { scale }, values, out, pack);
        Ok(())
    }
}

/// Two codes a byte, the first in the low four bits.
fn pack(codes: &[u8], first: usize, out: &mut [u8]) {
    put_pairs(codes, first, out, 0, |one, other| one | other << 4);
}

#[derive(Clone, Copy)]
struct E2M1 {
    scale: f32,
}

impl Convert for E2M1 {
    type From = f32;
    type To = u8;

    #[inline(always)]
    fn convert(self, value: f32) -> (u8, bool) {
        let scaled = value / self.scale;
        let (magnitude, above) = (scaled.abs(), |is_above: bool| u8::from(is_above));
        // Halfway between two codes the even one.
        let code = above(magnitude > 0.25)
            + above(magnitude >= 0.75)
            + above(magnitude > 1.25)
            + above(magnitude >= 1.75)
            + above(magnitude > 2.5)
            + above(magnitude >= 3.5)
            + above(magnitude > 5.0);
        (code | above(scaled < 0.0) << 3, false)
    }
}
