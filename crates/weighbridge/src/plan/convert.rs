//! Casts between dtypes: one function a pair, chosen once a tile.
//!
//! A value passes through one of four types that holds it exactly: `f32` (for all floats but `F64`), `f64`,
//! `i64` and `u64`. Each source says which one that is, each target how it is made of all four, so that nothing
//! is rounded twice.

use std::mem::MaybeUninit;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::buffer::map_elements;
use crate::dtype::Dtype;

/// A value has no place in the target's dtype.
#[derive(Debug)]
pub(super) struct OutOfRange;

/// Turns elements as the file has them (little-endian) into elements as the machine has them.
pub(super) type Kernel =
    for<'t> fn(&[u8], &'t mut [MaybeUninit<u8>]) -> std::result::Result<&'t mut [u8], OutOfRange>;

/// The cast from one dtype to another, if there is one.
pub(super) fn kernel(from: Dtype, to: Dtype) -> Option<Kernel> {
    match from {
        Dtype::Bool | Dtype::U8 => kernel_to::<u8>(to),
        Dtype::I8 => kernel_to::<i8>(to),
        Dtype::F8_E5M2 => kernel_to::<E5M2>(to),
        Dtype::F8_E4M3 => kernel_to::<E4M3>(to),
        Dtype::F8_E8M0 => kernel_to::<E8M0>(to),
        Dtype::F8_E4M3FNUZ => kernel_to::<E4M3Fnuz>(to),
        Dtype::F8_E5M2FNUZ => kernel_to::<E5M2Fnuz>(to),
        Dtype::I16 => kernel_to::<i16>(to),
        Dtype::U16 => kernel_to::<u16>(to),
        Dtype::F16 if to == Dtype::F32 => Some(f16_to_f32),
        Dtype::F16 => kernel_to::<f16>(to),
        Dtype::BF16 => kernel_to::<bf16>(to),
        Dtype::I32 => kernel_to::<i32>(to),
        Dtype::U32 => kernel_to::<u32>(to),
        Dtype::F32 if to == Dtype::F16 => Some(f32_to_f16),
        Dtype::F32 => kernel_to::<f32>(to),
        Dtype::F64 => kernel_to::<f64>(to),
        Dtype::I64 => kernel_to::<i64>(to),
        Dtype::U64 => kernel_to::<u64>(to),
        // Sub-byte floats have no agreed packing to unpack, and a complex number is no real one.
        Dtype::F4 | Dtype::F6_E2M3 | Dtype::F6_E3M2 | Dtype::C64 => None,
    }
}

fn kernel_to<S: Stored>(to: Dtype) -> Option<Kernel> {
    Some(match to {
        Dtype::U8 => S::kernel::<u8, 1>(),
        Dtype::I8 => S::kernel::<i8, 1>(),
        Dtype::F8_E4M3 => S::kernel::<E4M3, 1>(),
        Dtype::I16 => S::kernel::<i16, 2>(),
        Dtype::U16 => S::kernel::<u16, 2>(),
        Dtype::F16 => S::kernel::<f16, 2>(),
        Dtype::BF16 => S::kernel::<bf16, 2>(),
        Dtype::I32 => S::kernel::<i32, 4>(),
        Dtype::U32 => S::kernel::<u32, 4>(),
        Dtype::F32 => S::kernel::<f32, 4>(),
        Dtype::F64 => S::kernel::<f64, 8>(),
        Dtype::I64 => S::kernel::<i64, 8>(),
        Dtype::U64 => S::kernel::<u64, 8>(),
        _ => return None,
    })
}

/// A type as the file stores it.
trait Stored: Copy {
    fn kernel<T: Made<N>, const N: usize>() -> Kernel;
}

/// A type that values are cast to; `N` is its size.
trait Made<const N: usize>: Sized {
    fn from_f32(value: f32) -> Option<Self>;
    fn from_f64(value: f64) -> Option<Self>;
    fn from_i64(value: i64) -> Option<Self>;
    fn from_u64(value: u64) -> Option<Self>;
    fn to_bytes(self) -> [u8; N];
}

macro_rules! stored {
    ($($type:ty, $size:literal, $from:ident, $decode:expr;)*) => {$(
        impl Stored for $type {
            fn kernel<T: Made<N>, const N: usize>() -> Kernel {
                |stored, tile| {
                    map_elements::<$size, N, _>(stored, tile, |bytes| {
                        T::$from($decode(bytes)).map(T::to_bytes).ok_or(OutOfRange)
                    })
                }
            }
        }
    )*};
}

stored! {
    u8, 1, from_u64, |b| u64::from(u8::from_le_bytes(b));
    i8, 1, from_i64, |b| i64::from(i8::from_le_bytes(b));
    u16, 2, from_u64, |b| u64::from(u16::from_le_bytes(b));
    i16, 2, from_i64, |b| i64::from(i16::from_le_bytes(b));
    u32, 4, from_u64, |b| u64::from(u32::from_le_bytes(b));
    i32, 4, from_i64, |b| i64::from(i32::from_le_bytes(b));
    u64, 8, from_u64, u64::from_le_bytes;
    i64, 8, from_i64, i64::from_le_bytes;
    f16, 2, from_f32, |b| f16::from_le_bytes(b).to_f32();
    bf16, 2, from_f32, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16);
    f32, 4, from_f32, f32::from_le_bytes;
    f64, 8, from_f64, f64::from_le_bytes;
    E5M2, 1, from_f32, |[b]: [u8; 1]| E5M2::VALUES[usize::from(b)];
    E4M3, 1, from_f32, |[b]: [u8; 1]| E4M3::VALUES[usize::from(b)];
    E8M0, 1, from_f32, |[b]: [u8; 1]| E8M0::VALUES[usize::from(b)];
    E4M3Fnuz, 1, from_f32, |[b]: [u8; 1]| E4M3Fnuz::VALUES[usize::from(b)];
    E5M2Fnuz, 1, from_f32, |[b]: [u8; 1]| E5M2Fnuz::VALUES[usize::from(b)];
}

macro_rules! made_float {
    ($($type:ty, $size:literal, $from_f32:expr, $from_f64:expr, $from_i64:expr, $from_u64:expr;)*) => {$(
        impl Made<$size> for $type {
            fn from_f32(value: f32) -> Option<Self> { Some($from_f32(value)) }
            fn from_f64(value: f64) -> Option<Self> { Some($from_f64(value)) }
            fn from_i64(value: i64) -> Option<Self> { Some($from_i64(value)) }
            fn from_u64(value: u64) -> Option<Self> { Some($from_u64(value)) }
            fn to_bytes(self) -> [u8; $size] { bytemuck::cast(self) }
        }
    )*};
}

// What passes through a narrower type on its way is rounded to odd there, so that the last rounding is right.
// (`half` has conversions from `f64`, but they drop the lower half of the mantissa before they round.)
made_float! {
    f32, 4, |v| v, |v| v as f32, |v| v as f32, |v| v as f32;
    f64, 8, f64::from, |v| v, |v| v as f64, |v| v as f64;
    f16, 2, f16::from_f32, |v| f16::from_f32(narrow_to_odd(v)),
        |v| f16::from_f32(narrow_to_odd(signed_to_odd(v))), |v| f16::from_f32(narrow_to_odd(to_odd(v)));
    bf16, 2, bf16::from_f32, |v| bf16::from_f32(narrow_to_odd(v)),
        |v| bf16::from_f32(narrow_to_odd(signed_to_odd(v))), |v| bf16::from_f32(narrow_to_odd(to_odd(v)));
}

/// An integer as `f64`, with lost bits remembered in the last one, so that rounding again comes out right.
fn to_odd(value: u64) -> f64 {
    let lost = 64_u32.saturating_sub(value.leading_zeros()).saturating_sub(53);
    let kept = value >> lost << lost;
    (kept | u64::from(kept != value) << lost) as f64
}

fn signed_to_odd(value: i64) -> f64 {
    let magnitude = to_odd(value.unsigned_abs());
    if value < 0 { -magnitude } else { magnitude }
}

/// An `f64` as `f32`, likewise.
fn narrow_to_odd(value: f64) -> f32 {
    let near = value as f32;
    if f64::from(near) == value || near.is_nan() || near.is_infinite() {
        return near;
    }
    let towards_zero = near.to_bits() - u32::from(f64::from(near).abs() > value.abs());
    f32::from_bits(towards_zero | 1)
}

macro_rules! made_integer {
    ($($type:ty, $size:literal;)*) => {$(
        impl Made<$size> for $type {
            fn from_f32(value: f32) -> Option<Self> { Self::from_f64(f64::from(value)) }
            fn from_f64(value: f64) -> Option<Self> {
                // Both ends are powers of two or 0, which `f64` holds exactly; NaN fails both comparisons.
                let end = 2.0 * ((<$type>::MAX / 2 + 1) as f64);
                let inside = value > <$type>::MIN as f64 - 1.0 || value == <$type>::MIN as f64;
                (inside && value < end).then_some(value as $type)
            }
            fn from_i64(value: i64) -> Option<Self> { value.try_into().ok() }
            fn from_u64(value: u64) -> Option<Self> { value.try_into().ok() }
            fn to_bytes(self) -> [u8; $size] { bytemuck::cast(self) }
        }
    )*};
}

made_integer! { u8, 1; i8, 1; u16, 2; i16, 2; u32, 4; i32, 4; u64, 8; i64, 8; }

/// What the exponent of all ones means in an 8-bit float.
#[derive(Clone, Copy, PartialEq)]
enum Top {
    /// As in IEEE 754: infinities and NaN.
    Ieee,
    /// Numbers, and NaN where the mantissa is all ones too.
    Numbers,
    /// Numbers; the only NaN is what would be negative zero.
    Fnuz,
}

macro_rules! float8 {
    ($($name:ident, $mantissa:literal, $bias:literal, $top:expr;)*) => {$(
        #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        #[repr(transparent)]
        struct $name(u8);

        impl $name {
            const VALUES: [f32; 256] = float8_values($mantissa, $bias, $top);
        }
    )*};
}

float8! {
    E5M2, 2, 15, Top::Ieee;
    E4M3, 3, 7, Top::Numbers;
    E5M2Fnuz, 2, 16, Top::Fnuz;
    E4M3Fnuz, 3, 8, Top::Fnuz;
}

/// The powers of two of the OCP microscaling formats: `2^(b-127)`, and NaN for 255.
#[derive(Clone, Copy)]
struct E8M0;

impl E8M0 {
    const VALUES: [f32; 256] = {
        let mut values = [f32::NAN; 256];
        // 2^-127 is a subnormal `f32`.
        values[0] = f32::from_bits(1 << 22);
        let mut bits = 1_u32;
        while bits < 255 {
            values[bits as usize] = f32::from_bits(bits << 23);
            bits += 1;
        }
        values
    };
}

const fn float8_values(mantissa_bits: u32, bias: i32, top: Top) -> [f32; 256] {
    let mut values = [0.0; 256];
    let mut bits = 0;
    while bits < 256 {
        values[bits] = float8_value(bits as u32, mantissa_bits, bias, top);
        bits += 1;
    }
    values
}

const fn float8_value(bits: u32, mantissa_bits: u32, bias: i32, top: Top) -> f32 {
    let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
    let exponent = (bits & 0x7F) >> mantissa_bits;
    let mantissa = bits & ((1 << mantissa_bits) - 1);
    let full_exponent = exponent == 0x7F >> mantissa_bits;
    let full_mantissa = mantissa == (1 << mantissa_bits) - 1;
    match top {
        Top::Ieee if full_exponent && mantissa == 0 => return sign * f32::INFINITY,
        Top::Ieee if full_exponent => return f32::NAN,
        Top::Numbers if full_exponent && full_mantissa => return f32::NAN,
        Top::Fnuz if bits == 0x80 => return f32::NAN,
        _ => {}
    }
    let (significand, exponent) = match exponent {
        0 => (mantissa, 1),
        _ => (mantissa | 1 << mantissa_bits, exponent.cast_signed()),
    };
    let power = exponent - bias - mantissa_bits.cast_signed();
    sign * significand as f32 * f32::from_bits((power + 127).cast_unsigned() << 23)
}

impl Made<1> for E4M3 {
    fn from_f32(value: f32) -> Option<Self> {
        Some(Self(to_e4m3(value)))
    }

    fn from_f64(value: f64) -> Option<Self> {
        Self::from_f32(narrow_to_odd(value))
    }

    fn from_i64(value: i64) -> Option<Self> {
        Self::from_f64(signed_to_odd(value))
    }

    fn from_u64(value: u64) -> Option<Self> {
        Self::from_f64(to_odd(value))
    }

    fn to_bytes(self) -> [u8; 1] {
        [self.0]
    }
}

/// Nearest, ties to even; beyond the largest, ±448, the largest.
fn to_e4m3(value: f32) -> u8 {
    const LARGEST: u32 = 0x7E;
    let sign = (value.to_bits() >> 24) as u8 & 0x80;
    let magnitude = value.abs();
    if magnitude.is_nan() {
        return sign | 0x7F;
    }
    // Steps of 2^-9 below 2^-6, of 2^(e-3) from 2^e on.
    let exponent = ((magnitude.to_bits() >> 23).cast_signed() - 127).max(-6);
    if exponent > 8 {
        return sign | LARGEST as u8;
    }
    let step = f32::from_bits((exponent - 3 + 127).cast_unsigned() << 23);
    let steps = (magnitude / step).round_ties_even() as u32;
    // `steps` is 8..=16 for normal values: the hidden bit carries into the exponent, and so does a round-up.
    let bits = ((exponent + 6).cast_unsigned() * 8 + steps).min(LARGEST);
    sign | bits as u8
}

/// Turns elements from the byte order of the file to the other one.
pub(crate) fn turn_around(dtype: Dtype, elements: &mut [u8]) {
    let size = match dtype {
        // Two 32-bit numbers.
        Dtype::C64 => 4,
        _ => dtype.bits() as usize / 8,
    };
    if size > 1 {
        elements.chunks_exact_mut(size).for_each(<[u8]>::reverse);
    }
}

/// Values that fit the stack and the first-level cache.
const BLOCK: usize = 512;

/// `half` converts slices with the processor's own instructions.
fn f16_to_f32<'t>(
    stored: &[u8],
    tile: &'t mut [MaybeUninit<u8>],
) -> std::result::Result<&'t mut [u8], OutOfRange> {
    map_blocks(stored, tile, 2, 4, |stored, made| {
        let (mut half, mut single) = ([f16::ZERO; BLOCK], [0.0_f32; BLOCK]);
        let count = stored.len() / 2;
        for (half, bytes) in half.iter_mut().zip(stored.as_chunks::<2>().0) {
            *half = f16::from_le_bytes(*bytes);
        }
        half[..count].convert_to_f32_slice(&mut single[..count]);
        made.write_copy_of_slice(bytemuck::cast_slice(&single[..count]))
    })
}

fn f32_to_f16<'t>(
    stored: &[u8],
    tile: &'t mut [MaybeUninit<u8>],
) -> std::result::Result<&'t mut [u8], OutOfRange> {
    map_blocks(stored, tile, 4, 2, |stored, made| {
        let (mut half, mut single) = ([f16::ZERO; BLOCK], [0.0_f32; BLOCK]);
        let count = stored.len() / 4;
        for (single, bytes) in single.iter_mut().zip(stored.as_chunks::<4>().0) {
            *single = f32::from_le_bytes(*bytes);
        }
        half[..count].convert_from_f32_slice(&single[..count]);
        made.write_copy_of_slice(bytemuck::cast_slice(&half[..count]))
    })
}

fn map_blocks<'t>(
    stored: &[u8],
    tile: &'t mut [MaybeUninit<u8>],
    from: usize,
    to: usize,
    convert: impl for<'b> Fn(&[u8], &'b mut [MaybeUninit<u8>]) -> &'b mut [u8],
) -> std::result::Result<&'t mut [u8], OutOfRange> {
    if stored.len() / from * to != tile.len() {
        return Err(OutOfRange);
    }
    let filled = crate::buffer::fill::<std::io::Error>(tile, |done, rest| {
        let count = (rest.len() / to).min(BLOCK);
        let first = done / to * from;
        Ok(Some(convert(&stored[first..first + count * from], &mut rest[..count * to])))
    });
    filled.map_err(|_| OutOfRange)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cast<const S: usize, const D: usize>(
        from: Dtype,
        to: Dtype,
        values: &[[u8; S]],
    ) -> Option<Vec<[u8; D]>> {
        let mut made = vec![[MaybeUninit::uninit(); D]; values.len()];
        let kernel = kernel(from, to).unwrap();
        let made = kernel(values.as_flattened(), made.as_flattened_mut()).ok()?;
        Some(made.as_chunks().0.to_vec())
    }

    fn floats(from: Dtype, to: Dtype, values: &[f32]) -> Vec<f32> {
        let values: Vec<_> = values.iter().map(|v| v.to_le_bytes()).collect();
        match to {
            Dtype::F8_E4M3 => {
                let bits = cast::<4, 1>(from, to, &values).unwrap();
                bits.iter().map(|[b]| E4M3::VALUES[usize::from(*b)]).collect()
            }
            _ => {
                let bits = cast::<4, 2>(from, to, &values).unwrap();
                let bits = bits.into_iter().map(bytemuck::cast::<_, u16>);
                match to {
                    Dtype::F16 => bits.map(|b| f16::from_bits(b).to_f32()).collect(),
                    _ => bits.map(|b| bf16::from_bits(b).to_f32()).collect(),
                }
            }
        }
    }

    #[test]
    fn every_half_widens_exactly() {
        let all: Vec<_> = (0..=u16::MAX).map(u16::to_le_bytes).collect();
        let f16s = cast::<2, 4>(Dtype::F16, Dtype::F32, &all).unwrap();
        let bf16s = cast::<2, 4>(Dtype::BF16, Dtype::F32, &all).unwrap();
        for (place, bits) in (0..=u16::MAX).enumerate() {
            let same = |a: f32, b: f32| a == b || (a.is_nan() && b.is_nan());
            assert!(same(bytemuck::cast(f16s[place]), f16::from_bits(bits).to_f32_const()));
            assert!(same(bytemuck::cast(bf16s[place]), bf16::from_bits(bits).to_f32_const()));
        }
    }

    #[test]
    fn rounds_to_nearest_even_and_overflows_to_infinity() {
        let tie = 1.0 + 2.0_f32.powi(-8);
        let values = [tie, tie + 2.0_f32.powi(-20), 1.0 + 3.0 * 2.0_f32.powi(-8), 3.4e38, -0.0];
        let expected = [1.0, 1.0 + 2.0_f32.powi(-7), 1.0 + 2.0_f32.powi(-6), f32::INFINITY, -0.0];
        assert_eq!(floats(Dtype::F32, Dtype::BF16, &values), expected);
        let tie = 1.0 + 2.0_f32.powi(-11);
        let values = [tie, tie + 2.0_f32.powi(-20), 65_519.0, 65_520.0];
        let expected = [1.0, 1.0 + 2.0_f32.powi(-10), 65_504.0, f32::INFINITY];
        assert_eq!(floats(Dtype::F32, Dtype::F16, &values), expected);
        assert!(floats(Dtype::F32, Dtype::F16, &[f32::NAN])[0].is_nan());
        assert!(floats(Dtype::F32, Dtype::BF16, &[f32::NAN])[0].is_nan());
    }

    #[test]
    fn e4m3_is_the_nearest_of_all_values() {
        let finite: Vec<f32> = E4M3::VALUES.iter().copied().filter(|v| v.is_finite()).collect();
        let samples =
            (0..20_000).map(|i| f32::from_bits(0x3a00_0000 + i * 7919)).chain([0.0, 448.0, 464.0, 1e9]);
        for value in samples.flat_map(|v| [v, -v]) {
            let made = floats(Dtype::F32, Dtype::F8_E4M3, &[value])[0];
            let nearest = finite.iter().map(|v| (v - value).abs()).fold(f32::INFINITY, f32::min);
            assert_eq!((made - value).abs(), nearest, "{value} became {made}");
        }
        // Ties go to the even mantissa: 17 lies between 16 (even) and 18, 19 between 18 and 20 (even).
        assert_eq!(floats(Dtype::F32, Dtype::F8_E4M3, &[17.0, 19.0]), [16.0, 20.0]);
        for (bits, value) in E4M3::VALUES.iter().enumerate().filter(|(_, v)| !v.is_nan()) {
            assert_eq!(usize::from(to_e4m3(*value)), bits);
        }
        assert!(floats(Dtype::F32, Dtype::F8_E4M3, &[f32::NAN])[0].is_nan());
    }

    #[test]
    fn eight_bit_floats_have_the_values_of_their_specifications() {
        assert_eq!(E4M3::VALUES[0x7E], 448.0);
        assert_eq!(E4M3::VALUES[0x01], 2.0_f32.powi(-9));
        assert!(E4M3::VALUES[0xFF].is_nan());
        assert_eq!(E5M2::VALUES[0x7B], 57_344.0);
        assert_eq!(E5M2::VALUES[0xFC], f32::NEG_INFINITY);
        assert!(E5M2::VALUES[0x7D].is_nan());
        assert_eq!(E4M3Fnuz::VALUES[0x7F], 240.0);
        assert!(E4M3Fnuz::VALUES[0x80].is_nan());
        assert_eq!(E5M2Fnuz::VALUES[0x7F], 57_344.0);
        assert_eq!(E5M2Fnuz::VALUES[0x01], 2.0_f32.powi(-17));
        assert_eq!(E8M0::VALUES[127], 1.0);
        assert_eq!(E8M0::VALUES[0], 2.0_f32.powi(-127));
        assert_eq!(E8M0::VALUES[254], 2.0_f32.powi(127));
        // An `F8_E5M2` is the upper half of an `F16`.
        for bits in 0..=255_u8 {
            let (ours, half) =
                (E5M2::VALUES[usize::from(bits)], f16::from_bits(u16::from(bits) << 8).to_f32());
            assert!(ours == half || (ours.is_nan() && half.is_nan()));
        }
    }

    #[test]
    fn integers_must_fit() {
        let cast_u64 = |v: u64| cast::<8, 8>(Dtype::U64, Dtype::I64, &[v.to_le_bytes()]);
        assert_eq!(cast_u64(i64::MAX as u64), Some(vec![bytemuck::cast(i64::MAX)]));
        assert_eq!(cast_u64(1 << 63), None);
        let to_u8 = |v: f32| cast::<4, 1>(Dtype::F32, Dtype::U8, &[v.to_le_bytes()]);
        assert_eq!(to_u8(255.9), Some(vec![[255]]));
        assert_eq!(to_u8(-0.9), Some(vec![[0]]));
        for value in [256.0, -1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(to_u8(value), None, "{value}");
        }
        let to_i64 = |v: f64| cast::<8, 8>(Dtype::F64, Dtype::I64, &[v.to_le_bytes()]);
        assert_eq!(to_i64(-(2.0_f64.powi(63))), Some(vec![bytemuck::cast(i64::MIN)]));
        assert_eq!(to_i64(2.0_f64.powi(63)), None);
    }

    #[test]
    fn large_integers_are_rounded_once() {
        // One above a tie of bf16, in a bit that f64 cannot hold beside the first.
        let above = (1_u64 << 63) + (1 << 55) + 1;
        let made = cast::<8, 2>(Dtype::U64, Dtype::BF16, &[above.to_le_bytes()]).unwrap();
        let made = bf16::from_bits(bytemuck::cast(made[0])).to_f64();
        assert_eq!(made, 2.0_f64.powi(63) + 2.0_f64.powi(56));
    }

    #[test]
    fn doubles_are_rounded_once() {
        let tie = 1.0 + 2.0_f64.powi(-8);
        let values = [tie, tie + 2.0_f64.powi(-50), -tie - 2.0_f64.powi(-50), 1e300, 1e-300];
        let values = values.map(f64::to_le_bytes);
        let made = cast::<8, 2>(Dtype::F64, Dtype::BF16, &values).unwrap();
        let made: Vec<_> = made.into_iter().map(|b| bf16::from_bits(bytemuck::cast(b)).to_f64()).collect();
        let up = 1.0 + 2.0_f64.powi(-7);
        assert_eq!(made, [1.0, up, -up, f64::INFINITY, 0.0]);
    }

    #[test]
    fn what_has_no_real_values_has_no_cast() {
        for from in [Dtype::F4, Dtype::F6_E2M3, Dtype::F6_E3M2, Dtype::C64] {
            assert!(Dtype::all().all(|to| kernel(from, to).is_none()));
        }
    }
}
