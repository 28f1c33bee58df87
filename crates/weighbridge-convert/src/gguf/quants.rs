//! The block formats: from the bytes of a block to its values, in the order and with the roundings of single precision that
//! the reference has.

use half::f16;

/// A half-precision number at a place in a block.
pub(super) fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Calls `put` with the two numbers of 4 bits in each byte: the low one belongs to the first half of the values.
fn nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(usize, u8) -> f32) {
    let middle = bytes.len();
    for (at, byte) in bytes.iter().enumerate() {
        out[at] = value(at, byte & 15);
        out[at + middle] = value(at + middle, byte >> 4);
    }
}

/// A fifth bit for each value.
fn fifth(high: &[u8], at: usize) -> u8 {
    (high[at / 8] >> (at % 8) & 1) << 4
}

pub(super) fn q4_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    nibbles(&block[2..18], out, |_, low| scale * (f32::from(low) - 8.0));
}

pub(super) fn q4_1(block: &[u8], out: &mut [f32]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    nibbles(&block[4..20], out, |_, low| scale * f32::from(low) + least);
}

pub(super) fn q5_0(block: &[u8], out: &mut [f32]) {
    let (scale, high) = (half(block, 0), &block[2..6]);
    nibbles(&block[6..22], out, |at, low| scale * (f32::from(low | fifth(high, at)) - 16.0));
}

pub(super) fn q5_1(block: &[u8], out: &mut [f32]) {
    let (scale, least, high) = (half(block, 0), half(block, 2), &block[4..8]);
    nibbles(&block[8..24], out, |at, low| scale * f32::from(low | fifth(high, at)) + least);
}

/// Signed bytes with one scale.
fn bytes(scale: f32, bytes: &[u8], out: &mut [f32]) {
    out.iter_mut().zip(bytes).for_each(|(out, byte)| *out = scale * f32::from(byte.cast_signed()));
}

pub(super) fn q8_0(block: &[u8], out: &mut [f32]) {
    bytes(half(block, 0), &block[2..34], out);
}

/// Behind the scale is the sum of the values, which is for products.
pub(super) fn q8_1(block: &[u8], out: &mut [f32]) {
    bytes(half(block, 0), &block[4..36], out);
}

/// As it was at first: the scale and the sum are of single precision.
pub(super) fn q8_1_long(block: &[u8], out: &mut [f32]) {
    bytes(f32::from_le_bytes([block[0], block[1], block[2], block[3]]), &block[8..40], out);
}

/// A bit for each value: the scale, or its negative.
pub(super) fn q1_0(block: &[u8], out: &mut [f32]) {
    let (scale, bits) = (half(block, 0), &block[2..18]);
    for (at, out) in out.iter_mut().enumerate() {
        *out = if bits[at / 8] >> (at % 8) & 1 == 1 { scale } else { -scale };
    }
}

/// The sums behind the values are for products.
pub(super) fn q8_k(block: &[u8], out: &mut [f32]) {
    bytes(f32::from_le_bytes([block[0], block[1], block[2], block[3]]), &block[4..260], out);
}

/// Where the two bits of a value are: 32 bytes hold 128 values, of which each 32 have the same bits.
fn pair(bytes: &[u8], at: usize) -> u8 {
    bytes[at / 128 * 32 + at % 32] >> (at % 128 / 32 * 2) & 3
}

pub(super) fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, quants) = (&block[..16], &block[16..80]);
    let (scale, least) = (half(block, 80), half(block, 82));
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let scales = scales[group];
        let (scale, least) = (scale * f32::from(scales & 15), least * f32::from(scales >> 4));
        for (at, out) in out.iter_mut().enumerate() {
            *out = scale * f32::from(pair(quants, group * 16 + at)) - least;
        }
    }
}

pub(super) fn q3_k(block: &[u8], out: &mut [f32]) {
    let (high, quants, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let all = half(block, 108);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let low = scales[group % 8] >> (group / 8 * 4) & 15;
        let top = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        let scale = all * (f32::from(low | top << 4) - 32.0);
        for (at, out) in out.iter_mut().enumerate() {
            let at = group * 16 + at;
            let third = high[at % 32] >> (at / 32) & 1;
            *out = scale * (f32::from(pair(quants, at) | third << 2) - 4.0);
        }
    }
}

/// The scale and the least value of a group of 32, of 6 bits each.
pub(super) fn scale_and_least(scales: &[u8], group: usize) -> (f32, f32) {
    let (scale, least) = match group {
        0..4 => (scales[group] & 63, scales[group + 4] & 63),
        _ => (
            scales[group + 4] & 15 | scales[group - 4] >> 6 << 4,
            scales[group + 4] >> 4 | scales[group] >> 6 << 4,
        ),
    };
    (f32::from(scale), f32::from(least))
}

pub(super) fn q4_k(block: &[u8], out: &mut [f32]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    grouped(scale, least, &block[4..16], &block[16..144], out, |_| 0);
}

pub(super) fn q5_k(block: &[u8], out: &mut [f32]) {
    let (scale, least, high) = (half(block, 0), half(block, 2), &block[16..48]);
    grouped(scale, least, &block[4..16], &block[48..176], out, |at| (high[at % 32] >> (at / 32) & 1) << 4);
}

/// Groups of 32 values of 4 bits and what `high` adds; two groups share 32 bytes.
fn grouped(
    scale: f32,
    least: f32,
    scales: &[u8],
    quants: &[u8],
    out: &mut [f32],
    high: impl Fn(usize) -> u8,
) {
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (own, lowest) = scale_and_least(scales, group);
        let (scale, least) = (scale * own, least * lowest);
        let quants = &quants[group / 2 * 32..][..32];
        for (at, (out, byte)) in out.iter_mut().zip(quants).enumerate() {
            let low = byte >> (group % 2 * 4) & 15;
            *out = scale * f32::from(low | high(group * 32 + at)) - least;
        }
    }
}

pub(super) fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let all = half(block, 208);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = all * f32::from(scales[group].cast_signed());
        for (at, out) in out.iter_mut().enumerate() {
            let at = group * 16 + at;
            let nibble = low[at / 128 * 64 + at % 64] >> (at % 128 / 64 * 4) & 15;
            *out = scale * (f32::from(nibble | pair(high, at) << 4) - 32.0);
        }
    }
}

/// What the 4 bits of IQ4 mean.
const IQ4: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

pub(super) fn iq4_nl(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    nibbles(&block[2..18], out, |_, low| scale * IQ4[usize::from(low)]);
}

pub(super) fn iq4_xs(block: &[u8], out: &mut [f32]) {
    let (all, high) = (half(block, 0), u16::from_le_bytes([block[2], block[3]]));
    let (low, quants) = (&block[4..8], &block[8..136]);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let top = (high >> (group * 2) & 3) as u8;
        let scale = low[group / 2] >> (group % 2 * 4) & 15 | top << 4;
        let scale = all * (f32::from(scale) - 32.0);
        nibbles(&quants[group * 16..][..16], out, |_, low| scale * IQ4[usize::from(low)]);
    }
}

/// Five digits of base 3 to a byte, as a fraction of 256 whose digits come out in front.
pub(super) fn tq1_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 52);
    let mut place = 0;
    for (bytes, digits) in [(&block[..32], 5), (&block[32..48], 5), (&block[48..52], 4)] {
        for digit in 0..digits {
            for byte in bytes {
                let rest = byte.wrapping_mul(3_u8.pow(digit));
                let value = ((u16::from(rest) * 3) >> 8) as u8;
                out[place] = scale * (f32::from(value) - 1.0);
                place += 1;
            }
        }
    }
}

pub(super) fn tq2_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 64);
    for (at, out) in out.iter_mut().enumerate() {
        *out = scale * (f32::from(pair(&block[..64], at)) - 1.0);
    }
}

/// Twice the values of E2M1, to be whole numbers.
const E2M1: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// The scale is a power of two; half of it goes with twice the values.
pub(super) fn mxfp4(block: &[u8], out: &mut [f32]) {
    let bits = match block[0] {
        // Too small to be normal.
        small @ 0..2 => 0x0020_0000 << small,
        exponent => (u32::from(exponent) - 1) << 23,
    };
    let scale = f32::from_bits(bits);
    nibbles(&block[1..17], out, |_, low| scale * E2M1[usize::from(low)]);
}

/// Four groups of 16 values, each with an unsigned E4M3 as its scale, half of which goes with twice the values.
pub(super) fn nvfp4(block: &[u8], out: &mut [f32]) {
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let byte = block[group];
        let (exponent, mantissa) = (byte >> 3 & 15, f32::from(byte & 7));
        let scale = match (byte, exponent) {
            // Not a number, which is taken for nothing.
            (0x7F, _) => 0.0,
            (_, 0) => mantissa * 2.0_f32.powi(-9),
            _ => (1.0 + mantissa / 8.0) * 2.0_f32.powi(i32::from(exponent) - 7),
        };
        nibbles(&block[4 + group * 8..][..8], out, |_, low| scale * 0.5 * E2M1[usize::from(low)]);
    }
}
