//! bitsandbytes' NormalFloat of 4 bits: blocks of 64 values of the flattened matrix.

use super::scale::largest;
use super::symmetric::{each, put_pairs};
use crate::cast::{Convert, Instructions};
use crate::error::Result;
use crate::plan::operation::Encode;

/// The values that share a scale.
pub(super) const BLOCK: usize = 64;

/// What the codes mean: quantiles of the normal distribution, of arXiv:2305.14314.
pub(super) const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// A value above one of them is nearer to the next level.
const MIDDLES: [f32; 15] = {
    let mut middles = [0.0; 15];
    let mut at = 0;
    while at < 15 {
        middles[at] = (LEVELS[at] + LEVELS[at + 1]) / 2.0;
        at += 1;
    }
    middles
};

/// Nothing is divided by less.
const LEAST: f32 = 1e-38;

#[derive(Debug)]
pub(super) struct Codes;

#[derive(Debug)]
pub(super) struct Scales;

impl Encode for Scales {
    fn values(&self) -> usize {
        BLOCK
    }

    fn bytes(&self, _: usize) -> usize {
        4
    }

    fn encode(&self, values: &[f32], out: &mut [u8]) -> Result<()> {
        let largest = largest(values)?;
        // Of a block that is not full bitsandbytes stores what it divides by.
        let scale = if values.len() < BLOCK { largest.max(LEAST) } else { largest };
        out.copy_from_slice(&scale.to_le_bytes());
        Ok(())
    }
}

impl Encode for Codes {
    fn values(&self) -> usize {
        BLOCK
    }

    fn bytes(&self, values: usize) -> usize {
        values.div_ceil(2)
    }

    fn encode(&self, values: &[f32], out: &mut [u8]) -> Result<()> {
        let scale = largest(values)?.max(LEAST);
        let instructions = Instructions::detect();
        // So does bitsandbytes: whole blocks are multiplied, a rest is divided.
        match values.len() {
            BLOCK => each(instructions, Multiplied { factor: 1.0 / scale }, values, out, pack),
            _ => each(instructions, Divided { scale }, values, out, pack),
        }
        Ok(())
    }
}

/// Two codes a byte, the first in the high four bits; zero behind the last one.
fn pack(codes: &[u8], first: usize, out: &mut [u8]) {
    put_pairs(codes, first, out, 7, |one, other| one << 4 | other);
}

#[inline(always)]
fn code(scaled: f32) -> u8 {
    MIDDLES.iter().map(|middle| u8::from(scaled > *middle)).sum()
}

#[derive(Clone, Copy)]
struct Multiplied {
    factor: f32,
}

impl Convert for Multiplied {
    type From = f32;
    type To = u8;

    #[inline(always)]
    fn convert(self, value: f32) -> (u8, bool) {
        (code(value * self.factor), false)
    }
}

#[derive(Clone, Copy)]
struct Divided {
    scale: f32,
}

impl Convert for Divided {
    type From = f32;
    type To = u8;

    #[inline(always)]
    fn convert(self, value: f32) -> (u8, bool) {
        (code(value / self.scale), false)
    }
}
