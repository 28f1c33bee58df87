//! Codes that are values divided by a scale, one scale a row or a group: compressed-tensors' integers and
//! 8-bit floats.
//!
//! The scale is the largest magnitude divided by half the range of the codes, rounded to the dtype in which
//! it is stored; codes are values divided by that in single precision, clamped, and rounded to nearest, ties
//! to even.

use std::mem::MaybeUninit;

use super::scale::{largest, rounded, size, store};
use crate::cast::{Convert, Instructions, to_f8_e4m3};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::newer_std::as_chunks;
use crate::plan::operation::Encode;

/// Rows or groups of `group` values, with scales of a dtype.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symmetric {
    pub(super) kind: Kind,
    pub(super) group: usize,
    pub(super) scales: Dtype,
}

/// What the codes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `F8_E4M3`.
    Fp8,
    Int8,
    /// Two in a byte, the first in the low four bits, 8 being zero.
    Int4,
}

impl Kind {
    /// Half the distance from the least to the largest code.
    fn half_range(self) -> f32 {
        match self {
            Self::Fp8 => 448.0,
            Self::Int8 => 127.5,
            Self::Int4 => 7.5,
        }
    }
}

impl Symmetric {
    pub(super) fn codes(self) -> Codes {
        Codes(self, Instructions::detect())
    }

    pub(super) fn scales(self) -> Scales {
        Scales(self)
    }

    fn scale(&self, values: &[f32]) -> Result<f32> {
        Ok(rounded(largest(values)? / self.kind.half_range(), self.scales))
    }
}

#[derive(Debug)]
pub(super) struct Scales(Symmetric);

impl Encode for Scales {
    fn values(&self) -> usize {
        self.0.group
    }

    fn bytes(&self, _: usize) -> usize {
        size(self.0.scales)
    }

    fn encode(&self, values: &[f32], out: &mut [u8]) -> Result<()> {
        store(self.0.scale(values)?, self.0.scales, out);
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct Codes(Symmetric, Instructions);

impl Encode for Codes {
    fn values(&self) -> usize {
        self.0.group
    }

    fn bytes(&self, values: usize) -> usize {
        match self.0.kind {
            Kind::Int4 => values.div_ceil(2),
            _ => values,
        }
    }

    fn encode(&self, values: &[f32], out: &mut [u8]) -> Result<()> {
        let Self(symmetric, instructions) = self;
        let scale = symmetric.scale(values)?;
        match symmetric.kind {
            Kind::Fp8 => each(*instructions, Fp8 { scale }, values, out, put),
            Kind::Int8 => {
                each(*instructions, Integer { scale, least: -128.0, largest: 127.0 }, values, out, put);
            }
            Kind::Int4 => {
                each(*instructions, Integer { scale, least: -8.0, largest: 7.0 }, values, out, pack);
            }
        }
        Ok(())
    }
}

/// Has codes of a byte made of values, some at a time, and `put` where they belong: codes, the bytes from the
/// place of the first one, and whether there are two in a byte, are its business.
pub(super) fn each<C: Convert<From = f32, To = u8>>(
    instructions: Instructions,
    convert: C,
    values: &[f32],
    out: &mut [u8],
    put: fn(&[u8], usize, &mut [u8]),
) {
    /// An even number.
    const BLOCK: usize = 512;
    let mut room = [MaybeUninit::uninit(); BLOCK];
    for (number, values) in values.chunks(BLOCK).enumerate() {
        let stored = bytemuck::cast_slice(values);
        if let Some(codes) = instructions.map(convert, stored, &mut room[..values.len()]) {
            put(codes, number * BLOCK, out);
        }
    }
}

/// A code a byte.
pub(super) fn put(codes: &[u8], first: usize, out: &mut [u8]) {
    out[first..first + codes.len()].copy_from_slice(codes);
}

/// Two codes a byte, as `join` makes it of them; `last` is beside a code that is alone.
#[inline(always)]
pub(super) fn put_pairs(codes: &[u8], first: usize, out: &mut [u8], last: u8, join: impl Fn(u8, u8) -> u8) {
    let (pairs, rest) = as_chunks::<2, _>(codes);
    let out = &mut out[first / 2..];
    for (out, [one, other]) in out.iter_mut().zip(pairs) {
        *out = join(*one, *other);
    }
    if let (Some(out), [one]) = (out.get_mut(pairs.len()), rest) {
        *out = join(*one, last);
    }
}

/// Two codes a byte, with the first in the low four bits.
fn pack(codes: &[u8], first: usize, out: &mut [u8]) {
    put_pairs(codes, first, out, 8, |one, other| (one ^ 8) & 15 | (other ^ 8) << 4);
}

#[derive(Clone, Copy)]
struct Fp8 {
    scale: f32,
}

impl Convert for Fp8 {
    type From = f32;
    type To = u8;

    #[inline(always)]
    fn convert(self, value: f32) -> (u8, bool) {
        (to_f8_e4m3(value / self.scale), false)
    }
}

#[derive(Clone, Copy)]
struct Integer {
    scale: f32,
    least: f32,
    largest: f32,
}

impl Convert for Integer {
    type From = f32;
    type To = u8;

    #[inline(always)]
    fn convert(self, value: f32) -> (u8, bool) {
        /// Its last bit is one, so that a sum with it is a whole number, rounded to nearest, ties to even, in
        /// the low bits.
        const WHOLE: f32 = 12_582_912.0;
        let scaled = (value / self.scale).max(self.least).min(self.largest);
        ((scaled + WHOLE).to_bits() as u8, false)
    }
}
