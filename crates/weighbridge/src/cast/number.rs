//! Numbers that Rust has: integers, `f32` and `f64`.

use std::marker::PhantomData;

use super::element::{Integer, Made, Stored, Wide};
use super::overflow::Overflow;
use crate::dtype::Dtype;

/// An integer that is to become a float, and so is read as one that holds it.
pub(super) struct Real<T>(PhantomData<T>);

macro_rules! stored {
    ($($type:ty, $bits:ty, $wide:ty, $widen:expr;)*) => {$(
        impl Stored for $type {
            type Bits = $bits;
            type Wide = $wide;

            #[inline(always)]
            fn widen(stored: $bits) -> $wide {
                $widen(<$bits>::from_le(stored))
            }
        }
    )*};
}

stored! {
    u8, u8, i32, i32::from;
    i8, i8, i32, i32::from;
    u16, u16, i32, i32::from;
    i16, i16, i32, i32::from;
    i32, i32, i32, i32::from;
    u32, u32, i64, i64::from;
    i64, i64, i64, i64::from;
    u64, u64, u64, u64::from;
    f32, u32, f32, f32::from_bits;
    f64, u64, f64, f64::from_bits;
    Real<u8>, u8, f32, f32::from;
    Real<i8>, i8, f32, f32::from;
    Real<u16>, u16, f32, f32::from;
    Real<i16>, i16, f32, f32::from;
    Real<u32>, u32, f64, f64::from;
    Real<i32>, i32, f64, f64::from;
}

macro_rules! wide {
    ($($type:ty, $dtype:ident, $to_integer:ident, $to_odd:expr, $is_nan:expr, $is_finite:expr;)*) => {$(
        impl Wide for $type {
            const DTYPE: Dtype = Dtype::$dtype;

            #[inline(always)]
            fn to_f32(self) -> f32 {
                self as f32
            }

            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }

            #[inline(always)]
            fn to_odd(self) -> f32 {
                $to_odd(self)
            }

            #[inline(always)]
            fn to_integer<I: Integer>(self) -> (I, bool) {
                I::$to_integer(self)
            }

            #[inline(always)]
            fn is_nan(self) -> bool {
                $is_nan(self)
            }

            #[inline(always)]
            fn is_finite(self) -> bool {
                $is_finite(self)
            }
        }
    )*};
}

wide! {
    f32, F32, of_f32, |v| v, f32::is_nan, f32::is_finite;
    f64, F64, of_f64, narrow_to_odd, f64::is_nan, f64::is_finite;
    i32, I32, of_i32, |v| narrow_to_odd(f64::from(v)), |_| false, |_| true;
    i64, I64, of_i64, |v| narrow_to_odd(signed_to_odd(v)), |_| false, |_| true;
    u64, U64, of_u64, |v| narrow_to_odd(to_odd(v)), |_| false, |_| true;
}

#[inline(always)]
fn narrow_to_odd(value: f64) -> f32 {
    let near = value as f32;
    let too_far = f64::from(near).abs() > value.abs();
    let odd = near.to_bits().wrapping_sub(u32::from(too_far)) | 1;
    // What is too large for `f32`, but finite, is cut off to its largest value, which is odd.
    let is_exact = f64::from(near) == value || value.is_nan();
    if is_exact { near } else { f32::from_bits(odd) }
}

/// An integer, cut off likewise: as many bits as an `f64` holds, of which an `f32` needs the first 26 only.
#[inline(always)]
fn to_odd(value: u64) -> f64 {
    const LOST: u64 = (1 << 11) - 1;
    let last = if value & LOST == 0 { 0 } else { LOST + 1 };
    let cut = value & !LOST | last;
    (if value < 1 << 53 { value } else { cut }) as f64
}

#[inline(always)]
fn signed_to_odd(value: i64) -> f64 {
    let magnitude = to_odd(value.unsigned_abs());
    if value < 0 { -magnitude } else { magnitude }
}

/// What becomes of what is too large.
#[derive(Clone, Copy)]
pub(super) struct Limits<T> {
    largest: T,
    /// Whether what is finite and does not stay so is refused.
    strict: bool,
}

/// As the processor does it, with infinities for what is too large.
pub(super) struct Unlimited<T>(PhantomData<T>);

macro_rules! float {
    ($($type:ty, $from:ident;)*) => {$(
        impl<W: Wide> Made<W> for $type {
            type Bits = $type;
            type Limits = Limits<$type>;

            fn limits(overflow: Overflow) -> Limits<$type> {
                let saturate = overflow == Overflow::Saturate;
                let largest = if saturate { <$type>::MAX } else { <$type>::INFINITY };
                Limits { largest, strict: overflow == Overflow::Error }
            }

            #[inline(always)]
            fn make(value: W, limits: Limits<$type>) -> ($type, bool) {
                let near = value.$from();
                let refused = limits.strict & near.is_infinite() & value.is_finite();
                // What was infinite before stays so. Not `clamp`, which may panic: that is a branch.
                let largest = if value.is_finite() { limits.largest } else { <$type>::INFINITY };
                let near = if near > largest { largest } else { near };
                (if near < -largest { -largest } else { near }, refused)
            }
        }

        impl<W: Wide> Made<W> for Unlimited<$type> {
            type Bits = $type;
            type Limits = ();

            fn limits(_: Overflow) {}

            #[inline(always)]
            fn make(value: W, (): ()) -> ($type, bool) {
                (value.$from(), false)
            }
        }
    )*};
}

float! {
    f32, to_f32;
    f64, to_f64;
}

macro_rules! of_float {
    ($($name:ident $float:ty)*) => {$(
        #[inline(always)]
        #[allow(clippy::cast_possible_wrap, reason = "only the ends of what is shorter become an `i64`")]
        fn $name(value: $float) -> (Self, bool) {
            // Both ends are powers of two or 0, which a float holds exactly; NaN fails the comparisons.
            let end = 2.0 * ((Self::MAX / 2 + 1) as $float);
            let inside = (value > Self::MIN as $float - 1.0) | (value == Self::MIN as $float);
            // A vector of NEON's turns an `f64` into 64 bits only, one of AVX2's into 32 only.
            let is_shorter = size_of::<Self>() < size_of::<$float>() && size_of::<$float>() == 8;
            let made = match is_shorter && cfg!(target_arch = "aarch64") {
                true => (value as i64).clamp(Self::MIN as i64, Self::MAX as i64) as Self,
                false => value as Self,
            };
            (made, !(inside & (value < end)))
        }
    )*};
}

macro_rules! of_integer {
    ($($name:ident $integer:ty)*) => {$(
        #[inline(always)]
        #[allow(clippy::cast_possible_wrap, reason = "what is between the ends is a value of both")]
        fn $name(value: $integer) -> (Self, bool) {
            // The ends of the range that both have.
            let least = (Self::MIN as i128).max(<$integer>::MIN as i128) as $integer;
            let most = (Self::MAX as i128).min(<$integer>::MAX as i128) as $integer;
            let nearest = value.clamp(least, most);
            (nearest as Self, nearest != value)
        }
    )*};
}

macro_rules! integer {
    ($($type:ty)*) => {$(
        impl Integer for $type {
            of_float! { of_f32 f32 of_f64 f64 }
            of_integer! { of_i32 i32 of_i64 i64 of_u64 u64 }
        }

        impl<W: Wide> Made<W> for $type {
            type Bits = $type;
            /// Whether what does not fit is refused.
            type Limits = bool;

            fn limits(overflow: Overflow) -> bool {
                overflow != Overflow::Saturate
            }

            #[inline(always)]
            fn make(value: W, refused: bool) -> ($type, bool) {
                let (made, clamped) = value.to_integer();
                (made, refused & clamped | value.is_nan())
            }
        }
    )*};
}

integer! { u8 i8 u16 i16 u32 i32 u64 i64 }
