//! Floats of 16 and of 8 bits with a sign, an exponent and a mantissa: one algorithm for all of them.
//!
//! IEEE 754 has `F16`; `BF16` is the upper half of an `F32`. Of the floats of 8 bits, `F8_E4M3` and `F8_E5M2`
//! are those of the Open Compute Project's OFP8 specification, and the FNUZ variants those of
//! arXiv:2206.02915, which ONNX has, too.
//!
//! Everything is done with the bits of an `f32`, and without branches, so that the compiler can make vector
//! code of it.

use crate::newer_std::{signed, unsigned};
use bytemuck::Pod;

use super::element::{Made, Stored, Wide};
use super::overflow::Overflow;

/// What the exponent of all ones means.
pub(super) enum Top {
    /// As in IEEE 754: infinities and NaN.
    Ieee,
    /// Numbers, and NaN where the mantissa is all ones, too.
    Numbers,
    /// Numbers; the only NaN is what would be negative zero ("finite, NaN, unsigned zero").
    Fnuz,
}

pub(super) trait SmallFloat {
    type Bits: Bits;
    /// Bits of the mantissa.
    const MANTISSA: u32;
    const BIAS: u32;
    const TOP: Top;
}

macro_rules! small_floats {
    ($($name:ident, $bits:ty, $mantissa:literal, $bias:literal, $top:ident;)*) => {$(
        pub(super) struct $name;

        impl SmallFloat for $name {
            type Bits = $bits;
            const MANTISSA: u32 = $mantissa;
            const BIAS: u32 = $bias;
            const TOP: Top = Top::$top;
        }
    )*};
}

small_floats! {
    F16, u16, 10, 15, Ieee;
    BF16, u16, 7, 127, Ieee;
    E5M2, u8, 2, 15, Ieee;
    E4M3, u8, 3, 7, Numbers;
    E5M2Fnuz, u8, 2, 16, Fnuz;
    E4M3Fnuz, u8, 3, 8, Fnuz;
}

/// The integer that holds the bits of a float.
pub(super) trait Bits: Pod {
    const COUNT: u32;

    /// From an element in the byte order of the file.
    fn widen(self) -> u32;

    /// From the lower bits of another integer.
    fn narrow(bits: u32) -> Self;
}

macro_rules! bits {
    ($($type:ty)*) => {$(
        impl Bits for $type {
            const COUNT: u32 = <$type>::BITS;

            #[inline(always)]
            fn widen(self) -> u32 {
                u32::from(<$type>::from_le(self))
            }

            #[inline(always)]
            fn narrow(bits: u32) -> Self {
                bits as $type
            }
        }
    )*};
}

bits! { u8 u16 }

/// The mantissa of an `f32`.
const SINGLE: u32 = 23;
/// The lowest bit of its exponent.
const ONE: u32 = 1 << SINGLE;
const SIGN: u32 = 1 << 31;
const INFINITY: u32 = 0xFF << SINGLE;
const NAN: u32 = INFINITY | ONE >> 1;

/// What follows from the definition of a format.
struct Derived<F>(F);

impl<F: SmallFloat> Derived<F> {
    /// The bit of the sign.
    const SIGN: u32 = 1 << (F::Bits::COUNT - 1);
    /// The exponent of all ones.
    const TOP: u32 = (Self::SIGN - 1) >> F::MANTISSA << F::MANTISSA;
    const LARGEST: u32 = match F::TOP {
        Top::Ieee => Self::TOP - 1,
        Top::Numbers => Self::SIGN - 2,
        Top::Fnuz => Self::SIGN - 1,
    };
    const NAN: u32 = match F::TOP {
        Top::Ieee => Self::TOP | 1 << (F::MANTISSA - 1),
        Top::Numbers => Self::SIGN - 1,
        Top::Fnuz => Self::SIGN,
    };
    /// By how much the mantissa is shorter than that of an `f32`.
    const SHIFT: u32 = SINGLE - F::MANTISSA;
    /// The difference of the exponents' biases, at its place in an `f32`.
    const REBIAS: u32 = (127 - F::BIAS) << SINGLE;
    /// The least normal value, as an `f32`.
    const NORMAL: u32 = Self::REBIAS + ONE;
    /// The first value beyond the largest after rounding: half a step behind it, or just behind that if half
    /// a step is rounded down to it, being even.
    const BEYOND: u32 =
        (Self::LARGEST << Self::SHIFT) + Self::REBIAS + (1 << (Self::SHIFT - 1)) + (Self::LARGEST + 1) % 2;
    /// Added to what is below the least normal value, this leaves its steps in the lower bits of the sum,
    /// rounded to nearest, ties to even: the last bit of this `f32` is one step.
    const STEPS: u32 = Self::NORMAL + (Self::SHIFT << SINGLE);
}

/// The first magnitude beyond the largest `BF16`, as the bits of an `f32`.
pub(super) const BF16_BEYOND: i32 = signed(Derived::<BF16>::BEYOND);

impl<F: SmallFloat> Stored for F {
    type Bits = F::Bits;
    type Wide = f32;

    #[inline(always)]
    fn widen(stored: F::Bits) -> f32 {
        let code = stored.widen();
        let magnitude = code & (Derived::<F>::SIGN - 1);
        let sign = (code & Derived::<F>::SIGN) << (32 - F::Bits::COUNT);
        let shifted = magnitude << Derived::<F>::SHIFT;
        if Derived::<F>::REBIAS == 0 {
            return f32::from_bits(shifted | sign);
        }
        let mut bits = shifted + Derived::<F>::REBIAS;
        // Subnormal values get an exponent that they do not have, less what it adds.
        let normal = Derived::<F>::NORMAL;
        let below = f32::from_bits(shifted + normal) - f32::from_bits(normal);
        bits = if magnitude < 1 << F::MANTISSA { below.to_bits() } else { bits };
        bits = match F::TOP {
            Top::Ieee if magnitude >= Derived::<F>::TOP => shifted | INFINITY,
            Top::Numbers if magnitude == Derived::<F>::NAN => NAN,
            Top::Fnuz if code == Derived::<F>::NAN => NAN,
            _ => bits,
        };
        f32::from_bits(bits | sign)
    }
}

/// The value of an `F8_E4M3`, without a branch.
#[inline(always)]
pub(crate) fn e4m3(code: u8) -> f32 {
    <E4M3 as Stored>::widen(code)
}

/// The value of an `E2M1` in the low half of a byte, without a branch.
#[inline(always)]
pub(crate) fn e2m1(code: u8) -> f32 {
    const NORMAL: u32 = 127 << SINGLE;
    let magnitude = u32::from(code & 7);
    let shifted = magnitude << (SINGLE - 1);
    let below = f32::from_bits(shifted + NORMAL) - f32::from_bits(NORMAL);
    let bits = if magnitude < 2 { below.to_bits() } else { shifted + NORMAL - ONE };
    f32::from_bits(bits | u32::from(code & 8) << 28)
}

/// What becomes of values that are too large.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// The code that they get; infinities stay what they are where there are any.
    code: u32,
    /// Those below this one, as an `f32`, are refused.
    refused: i32,
}

impl<F: SmallFloat, W: Wide> Made<W> for F {
    type Bits = F::Bits;
    type Limits = Limits;

    fn limits(overflow: Overflow) -> Limits {
        let ieee = matches!(F::TOP, Top::Ieee);
        let code = match overflow {
            Overflow::Saturate => Derived::<F>::LARGEST,
            _ if ieee => Derived::<F>::TOP,
            _ => Derived::<F>::LARGEST,
        };
        let refused = match overflow {
            Overflow::Error if ieee => INFINITY,
            Overflow::Error => INFINITY + 1,
            _ => 0,
        };
        Limits { code, refused: signed(refused) }
    }

    #[inline(always)]
    fn make(value: W, limits: Limits) -> (F::Bits, bool) {
        let bits = value.to_odd().to_bits();
        let magnitude = bits & !SIGN;
        let sign = bits >> (32 - F::Bits::COUNT) & Derived::<F>::SIGN;
        // Half a step less one, and one for what is odd: half a step goes to what is even.
        let half = (1 << (Derived::<F>::SHIFT - 1)) - 1 + (magnitude >> Derived::<F>::SHIFT & 1);
        let mut code = (magnitude + half).wrapping_sub(Derived::<F>::REBIAS) >> Derived::<F>::SHIFT;
        // Comparisons of signed integers are what vectors have everywhere.
        let magnitude = signed(magnitude);
        if Derived::<F>::REBIAS > 0 {
            let steps = f32::from_bits(unsigned(magnitude)) + f32::from_bits(Derived::<F>::STEPS);
            let below = steps.to_bits().wrapping_sub(Derived::<F>::STEPS);
            code = if magnitude < signed(Derived::<F>::NORMAL) { below } else { code };
        }
        let beyond = magnitude >= signed(Derived::<F>::BEYOND);
        code = if beyond { limits.code } else { code };
        if matches!(F::TOP, Top::Ieee) {
            code = if magnitude == signed(INFINITY) { Derived::<F>::TOP } else { code };
        }
        code = if magnitude > signed(INFINITY) { Derived::<F>::NAN } else { code };
        let sign = match F::TOP {
            Top::Fnuz if code == 0 => 0,
            _ => sign,
        };
        (F::Bits::narrow(code | sign), beyond & (magnitude < limits.refused))
    }
}
