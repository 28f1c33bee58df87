//! The block formats whose values are points of a code book: `IQ1`, `IQ2` and `IQ3`. Roundings are those of the reference.

use super::grids;
use super::quants::half;

/// What the levels of a coordinate mean.
const IQ2: [f32; 4] = [8.0, 25.0, 43.0, 0.0];
const IQ3_XXS: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
const IQ3_S: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
const IQ1: [f32; 4] = [-1.0, 0.0, 1.0, 0.0];
/// `IQ1` moves its points by this, in one direction or the other.
const DELTA: f32 = 0.125;

fn word(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

fn long(block: &[u8], at: usize) -> u32 {
    u32::from(word(block, at)) | u32::from(word(block, at + 2)) << 16
}

/// The two numbers of 4 bits of a byte in turn, the low one first.
fn nibble(bytes: &[u8], at: usize) -> u8 {
    bytes[at / 2] >> (at % 2 * 4) & 15
}

/// The eighth sign makes their number even.
fn signs(seven: u32) -> u8 {
    let seven = (seven & 0x7F) as u8;
    seven | (seven.count_ones() as u8 & 1) << 7
}

/// Coordinates of 2 bits, or of 4, one for each value; a bit that is set in `signs` makes one negative.
fn point(scale: f32, point: u16, levels: &[f32], signs: u8, out: &mut [f32]) {
    let bits = 16 / out.len();
    for (at, out) in out.iter_mut().enumerate() {
        let level = usize::from(point >> (at * bits)) & (levels.len() - 1);
        let sign = if signs >> at & 1 == 0 { 1.0 } else { -1.0 };
        *out = scale * levels[level] * sign;
    }
}

pub(super) fn iq2_xxs(block: &[u8], out: &mut [f32]) {
    let all = half(block, 0);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (points, rest) = (&block[2 + group * 8..][..4], long(block, 6 + group * 8));
        let scale = all * (0.5 + (rest >> 28) as f32) * 0.25;
        for (at, out) in out.chunks_exact_mut(8).enumerate() {
            let chosen = grids::IQ2_XXS[usize::from(points[at])];
            point(scale, chosen, &IQ2, signs(rest >> (at * 7)), out);
        }
    }
}

pub(super) fn iq2_xs(block: &[u8], out: &mut [f32]) {
    let (all, scales) = (half(block, 0), &block[66..74]);
    for (at, out) in out.chunks_exact_mut(8).enumerate() {
        let chosen = word(block, 2 + at * 2);
        let scale = all * (0.5 + f32::from(nibble(scales, at / 2))) * 0.25;
        let signs = signs(u32::from(chosen >> 9));
        point(scale, grids::IQ2_XS[usize::from(chosen & 511)], &IQ2, signs, out);
    }
}

pub(super) fn iq2_s(block: &[u8], out: &mut [f32]) {
    let all = half(block, 0);
    let (low, signs, high, scales) = (&block[2..34], &block[34..66], &block[66..74], &block[74..82]);
    for (at, out) in out.chunks_exact_mut(8).enumerate() {
        let top = usize::from(high[at / 4] >> (at % 4 * 2) & 3);
        let scale = all * (0.5 + f32::from(nibble(scales, at / 2))) * 0.25;
        point(scale, grids::IQ2_S[usize::from(low[at]) | top << 8], &IQ2, signs[at], out);
    }
}

pub(super) fn iq3_xxs(block: &[u8], out: &mut [f32]) {
    let (all, points) = (half(block, 0), &block[2..66]);
    for (at, out) in out.chunks_exact_mut(4).enumerate() {
        let rest = long(block, 66 + at / 8 * 4);
        let scale = all * (0.5 + (rest >> 28) as f32) * 0.5;
        let signs = signs(rest >> (at % 8 / 2 * 7)) >> (at % 2 * 4);
        point(scale, grids::IQ3_XXS[usize::from(points[at])], &IQ3_XXS, signs, out);
    }
}

pub(super) fn iq3_s(block: &[u8], out: &mut [f32]) {
    let all = half(block, 0);
    let (low, high, signs, scales) = (&block[2..66], &block[66..74], &block[74..106], &block[106..110]);
    for (at, out) in out.chunks_exact_mut(4).enumerate() {
        let top = usize::from(high[at / 8] >> (at % 8) & 1);
        let scale = all * f32::from(1 + 2 * nibble(scales, at / 8));
        let signs = signs[at / 2] >> (at % 2 * 4);
        point(scale, grids::IQ3_S[usize::from(low[at]) | top << 8], &IQ3_S, signs, out);
    }
}

/// Eight values around a point that was moved.
fn moved(scale: f32, point: usize, down: bool, out: &mut [f32]) {
    let delta = if down { -DELTA } else { DELTA };
    for (at, out) in out.iter_mut().enumerate() {
        let level = grids::IQ1[point] >> (at * 2) & 3;
        *out = scale * (IQ1[usize::from(level)] + delta);
    }
}

pub(super) fn iq1_s(block: &[u8], out: &mut [f32]) {
    let (all, low) = (half(block, 0), &block[2..34]);
    for (at, out) in out.chunks_exact_mut(8).enumerate() {
        let high = word(block, 34 + at / 4 * 2);
        let scale = all * f32::from(2 * (high >> 12 & 7) + 1);
        let top = usize::from(high >> (at % 4 * 3) & 7);
        moved(scale, usize::from(low[at]) | top << 8, high & 0x8000 != 0, out);
    }
}

pub(super) fn iq1_m(block: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&block[..32], &block[32..48], &block[48..56]);
    // The scale of all is in the high bits of the four words with the others.
    let all = (0..4).fold(0, |all, at| all | word(scales, at * 2) >> 12 << (at * 4));
    let all = half::f16::from_bits(all).to_f32();
    for (at, out) in out.chunks_exact_mut(8).enumerate() {
        let scale = word(scales, at / 8 * 2) >> (at % 8 / 2 * 3) & 7;
        let high = nibble(high, at);
        let point = usize::from(low[at]) | usize::from(high & 7) << 8;
        moved(all * f32::from(2 * scale + 1), point, high & 8 != 0, out);
    }
}
