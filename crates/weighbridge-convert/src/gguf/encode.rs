//! Blocks of quantised values as ggml's reference makes them: the block formats of 32 values.
//!
//! What each does is the arithmetic of llama.cpp's reference, operation by operation in single precision, so
//! that the blocks are the same bit for bit.

mod k;

use half::f16;
use weighbridge::plan::Encode;
use weighbridge::{Error, ErrorKind, Result};

pub(super) use k::{q4_k, q5_k, q6_k};

/// How blocks of a format are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Encoder {
    /// Values in a block.
    pub(super) values: usize,
    /// Bytes of a block.
    pub(super) bytes: usize,
    /// Makes a block, whose bytes are zero before. Values are finite.
    pub(super) encode: fn(&[f32], &mut [u8]) -> Option<()>,
}

impl Encode for Encoder {
    fn values(&self) -> usize {
        self.values
    }

    fn bytes(&self, _: usize) -> usize {
        self.bytes
    }

    fn encode(&self, values: &[f32], out: &mut [u8]) -> Result<()> {
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            let message = format!("{value} cannot be quantised");
            return Err(Error::new(ErrorKind::Value, message));
        }
        (self.encode)(values, out).ok_or_else(|| {
            let message = "its values are too large: the scale of a block does not fit F16";
            Error::new(ErrorKind::Value, message)
        })
    }
}

/// Stores a scale; `None` if it becomes infinite.
fn half(scale: f32, out: &mut [u8]) -> Option<f32> {
    let half = f16::from_f32(scale);
    out.copy_from_slice(&half.to_le_bytes());
    half.is_finite().then(|| half.to_f32())
}

/// One divided by a scale, or zero for none.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The first value of the largest magnitude.
fn extreme(values: &[f32]) -> f32 {
    values
        .iter()
        .copied()
        .fold(0.0, |extreme, value| if value.abs() > f32::abs(extreme) { value } else { extreme })
}

/// The least and the largest value.
fn bounds(values: &[f32]) -> (f32, f32) {
    values.iter().fold((f32::MAX, f32::MIN), |(least, largest), &value| {
        (if value < least { value } else { least }, if value > largest { value } else { largest })
    })
}

/// Puts codes of 4 bits: those of the first half are the low ones.
fn nibbles(codes: &[u8; 32], out: &mut [u8]) {
    let (low, high) = codes.split_at(16);
    out.iter_mut().zip(low.iter().zip(high)).for_each(|(out, (low, high))| *out = low & 15 | high << 4);
}

/// Puts the fifth bits of codes, one behind the other.
fn fifths(codes: &[u8; 32], out: &mut [u8]) {
    for (at, code) in codes.iter().enumerate() {
        out[at / 8] |= (code >> 4 & 1) << (at % 8);
    }
}

/// The codes of 32 values.
fn codes(values: &[f32], code: impl Fn(f32) -> u8) -> [u8; 32] {
    let mut codes = [0; 32];
    codes.iter_mut().zip(values).for_each(|(out, &value)| *out = code(value));
    codes
}

pub(super) fn q8_0(values: &[f32], out: &mut [u8]) -> Option<()> {
    let scale = extreme(values).abs() / 127.0;
    let factor = inverse(scale);
    half(scale, &mut out[..2])?;
    let codes = codes(values, |value| ((value * factor).round() as i8).cast_unsigned());
    out[2..].copy_from_slice(&codes);
    Some(())
}

/// Codes around a middle, one more below than above; the largest magnitude is on the longer side.
fn around(values: &[f32], middle: f32) -> (f32, [u8; 32]) {
    let scale = extreme(values) / -middle;
    let (factor, most) = (inverse(scale), (2.0 * middle) as u8 - 1);
    (scale, codes(values, |value| ((value * factor + (middle + 0.5)) as u8).min(most)))
}

pub(super) fn q4_0(values: &[f32], out: &mut [u8]) -> Option<()> {
    let (scale, codes) = around(values, 8.0);
    half(scale, &mut out[..2])?;
    nibbles(&codes, &mut out[2..]);
    Some(())
}

pub(super) fn q5_0(values: &[f32], out: &mut [u8]) -> Option<()> {
    let (scale, codes) = around(values, 16.0);
    half(scale, &mut out[..2])?;
    fifths(&codes, &mut out[2..6]);
    nibbles(&codes, &mut out[6..]);
    Some(())
}

/// Codes from the least value upwards.
fn above(values: &[f32], most: u8) -> (f32, f32, [u8; 32]) {
    let (least, largest) = bounds(values);
    let scale = (largest - least) / f32::from(most);
    let factor = inverse(scale);
    (scale, least, codes(values, |value| (((value - least) * factor + 0.5) as u8).min(most)))
}

pub(super) fn q4_1(values: &[f32], out: &mut [u8]) -> Option<()> {
    let (scale, least, codes) = above(values, 15);
    half(scale, &mut out[..2])?;
    half(least, &mut out[2..4])?;
    nibbles(&codes, &mut out[4..]);
    Some(())
}

pub(super) fn q5_1(values: &[f32], out: &mut [u8]) -> Option<()> {
    let (scale, least, codes) = above(values, 31);
    half(scale, &mut out[..2])?;
    half(least, &mut out[2..4])?;
    fifths(&codes, &mut out[4..8]);
    nibbles(&codes, &mut out[8..]);
    Some(())
}
