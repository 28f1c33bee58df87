//! The loops that casts are made of, as functions, and which one is for which dtypes.

use crate::newer_std::{as_chunks, signed};
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use bytemuck::Pod;

use super::Unfilled;
use super::e8m0::E8M0;
use super::element::{Made, Stored, Wide};
use super::number::{Real, Unlimited};
use super::overflow::Overflow;
use super::packed::Unpack;
use super::simd::{Convert, Instructions, Work};
use super::small_float::{BF16, BF16_BEYOND, E4M3, E4M3Fnuz, E5M2, E5M2Fnuz, F16};
use crate::buffer;
use crate::dtype::Dtype;

/// `None` when a value is refused.
pub(super) type Step = for<'t> fn(How, &[u8], &'t mut [MaybeUninit<u8>]) -> Option<&'t mut [u8]>;

/// What a loop has to know.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    pub(super) overflow: Overflow,
    pub(super) instructions: Instructions,
}

/// How a dtype is read, and as what, to become `to`.
pub(super) fn widen(from: Dtype, to: Dtype) -> Option<(Dtype, Step)> {
    fn by<S: Stored>() -> Option<(Dtype, Step)> {
        Some((S::Wide::DTYPE, |how, stored, made| {
            how.instructions.map(Widen::<S>(PhantomData), stored, made)
        }))
    }
    let float = to.is_float();
    match from {
        Dtype::Bool | Dtype::U8 if float => by::<Real<u8>>(),
        Dtype::Bool | Dtype::U8 => by::<u8>(),
        Dtype::I8 if float => by::<Real<i8>>(),
        Dtype::I8 => by::<i8>(),
        Dtype::F8_E5M2 => by::<E5M2>(),
        Dtype::F8_E4M3 => by::<E4M3>(),
        Dtype::F8_E8M0 => by::<E8M0>(),
        Dtype::F8_E4M3FNUZ => by::<E4M3Fnuz>(),
        Dtype::F8_E5M2FNUZ => by::<E5M2Fnuz>(),
        Dtype::I16 if float => by::<Real<i16>>(),
        Dtype::I16 => by::<i16>(),
        Dtype::U16 if float => by::<Real<u16>>(),
        Dtype::U16 => by::<u16>(),
        Dtype::F16 => by::<F16>(),
        Dtype::BF16 => by::<BF16>(),
        // A processor turns them into `F32` by itself.
        Dtype::I32 if float && to != Dtype::F32 => by::<Real<i32>>(),
        Dtype::I32 => by::<i32>(),
        Dtype::U32 if float => by::<Real<u32>>(),
        Dtype::U32 => by::<u32>(),
        Dtype::F32 => by::<f32>(),
        Dtype::F64 => by::<f64>(),
        Dtype::I64 => by::<i64>(),
        Dtype::U64 => by::<u64>(),
        Dtype::F4 => Some((Dtype::F32, |how, stored, made| how.instructions.map(Unpack, stored, made))),
        // Values of 6 bits have no agreed packing to unpack, and a complex number is no real one.
        Dtype::F6_E2M3 | Dtype::F6_E3M2 | Dtype::C64 => None,
    }
}

/// How a dtype is made of `wide`, one of the five.
pub(super) fn narrow(wide: Dtype, to: Dtype, overflow: Overflow) -> Option<Step> {
    match wide {
        Dtype::F32 if to == Dtype::BF16 => Some(to_bf16),
        Dtype::F32 => narrow_from::<f32>(to, overflow),
        Dtype::F64 => narrow_from::<f64>(to, overflow),
        Dtype::I32 => narrow_from::<i32>(to, overflow),
        Dtype::I64 => narrow_from::<i64>(to, overflow),
        Dtype::U64 => narrow_from::<u64>(to, overflow),
        _ => None,
    }
}

fn narrow_from<W: Wide>(to: Dtype, overflow: Overflow) -> Option<Step> {
    fn by<W: Pod, T: Made<W>>() -> Option<Step> {
        Some(|how, wide, made| {
            how.instructions.map(Narrow::<W, T>(T::limits(how.overflow), PhantomData), wide, made)
        })
    }
    match to {
        Dtype::U8 => by::<W, u8>(),
        Dtype::I8 => by::<W, i8>(),
        Dtype::F8_E5M2 => by::<W, E5M2>(),
        Dtype::F8_E4M3 => by::<W, E4M3>(),
        Dtype::F8_E8M0 => by::<W, E8M0>(),
        Dtype::F8_E4M3FNUZ => by::<W, E4M3Fnuz>(),
        Dtype::F8_E5M2FNUZ => by::<W, E5M2Fnuz>(),
        Dtype::I16 => by::<W, i16>(),
        Dtype::U16 => by::<W, u16>(),
        Dtype::F16 => by::<W, F16>(),
        Dtype::BF16 => by::<W, BF16>(),
        Dtype::I32 => by::<W, i32>(),
        Dtype::U32 => by::<W, u32>(),
        Dtype::F32 if overflow == Overflow::Infinity => by::<W, Unlimited<f32>>(),
        Dtype::F32 => by::<W, f32>(),
        Dtype::F64 if overflow == Overflow::Infinity => by::<W, Unlimited<f64>>(),
        Dtype::F64 => by::<W, f64>(),
        Dtype::I64 => by::<W, i64>(),
        Dtype::U64 => by::<W, u64>(),
        _ => None,
    }
}

/// One loop for integers that become wider, and no more.
pub(super) fn fused(from: Dtype, to: Dtype) -> Option<Step> {
    fn by<S: Stored, T: Made<S::Wide>>() -> Option<Step> {
        Some(|how, stored, made| {
            how.instructions.map(Fused::<S, T>(T::limits(how.overflow), PhantomData), stored, made)
        })
    }
    match (from, to) {
        (Dtype::Bool, Dtype::U8) => by::<u8, u8>(),
        (Dtype::Bool | Dtype::U8, Dtype::I16 | Dtype::U16) => by::<u8, u16>(),
        (Dtype::I8, Dtype::I16) => by::<i8, i16>(),
        (Dtype::U16, Dtype::U32) => by::<u16, u32>(),
        (Dtype::U32, Dtype::I64 | Dtype::U64) => by::<u32, u64>(),
        _ => None,
    }
}

/// Most values become a `BF16` by one addition: all of those of a block, unless there is one that is too large, infinite or
/// no number.
fn to_bf16<'t>(how: How, wide: &[u8], made: &'t mut [MaybeUninit<u8>]) -> Option<&'t mut [u8]> {
    const BLOCK: usize = 1024;
    let limits = <BF16 as Made<f32>>::limits(how.overflow);
    buffer::fill::<Unfilled>(made, |done, rest| {
        let count = (rest.len() / 2).min(BLOCK);
        let wide = wide.get(done * 2..(done / 2 + count) * 4).ok_or(Unfilled)?;
        let rest = &mut rest[..count * 2];
        let made = match how.instructions.run(AnyBeyond(wide)) {
            true => how.instructions.map(Narrow::<f32, BF16>(limits, PhantomData), wide, rest),
            false => how.instructions.map(Add, wide, rest),
        };
        made.map(|made| Some(&*made)).ok_or(Unfilled)
    })
    .ok()
}

/// Whether any of some `F32` is none that [`Add`] rounds.
struct AnyBeyond<'w>(&'w [u8]);

impl Work for AnyBeyond<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let mut any = false;
        for value in as_chunks::<4, _>(self.0).0 {
            let bits: u32 = bytemuck::cast(*value);
            any |= signed(bits & !(1 << 31)) >= BF16_BEYOND;
        }
        any
    }
}

/// Rounds to a `BF16`.
#[derive(Clone, Copy)]
struct Add;

impl Convert for Add {
    type From = u32;
    type To = u16;

    #[inline(always)]
    fn convert(self, bits: u32) -> (u16, bool) {
        // Half a step less one, and one for what is odd: half a step goes to what is even.
        let half = 0x7FFF + (bits >> 16 & 1);
        ((bits.wrapping_add(half) >> 16) as u16, false)
    }
}

struct Widen<S>(PhantomData<S>);

impl<S: Stored> Convert for Widen<S> {
    type From = S::Bits;
    type To = S::Wide;

    #[inline(always)]
    fn convert(self, stored: S::Bits) -> (S::Wide, bool) {
        (S::widen(stored), false)
    }
}

struct Narrow<W, T: Made<W>>(T::Limits, PhantomData<W>);

impl<W: Pod, T: Made<W>> Convert for Narrow<W, T> {
    type From = W;
    type To = T::Bits;

    #[inline(always)]
    fn convert(self, value: W) -> (T::Bits, bool) {
        T::make(value, self.0)
    }
}

struct Fused<S: Stored, T: Made<S::Wide>>(T::Limits, PhantomData<S>);

impl<S: Stored, T: Made<S::Wide>> Convert for Fused<S, T> {
    type From = S::Bits;
    type To = T::Bits;

    #[inline(always)]
    fn convert(self, stored: S::Bits) -> (T::Bits, bool) {
        T::make(S::widen(stored), self.0)
    }
}

// Derived, they would ask the same of the parameters.
impl<S> Copy for Widen<S> {}
impl<S> Clone for Widen<S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Stored, T: Made<S::Wide>> Copy for Fused<S, T> {}
impl<S: Stored, T: Made<S::Wide>> Clone for Fused<S, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<W: Copy, T: Made<W>> Copy for Narrow<W, T> {}
impl<W: Copy, T: Made<W>> Clone for Narrow<W, T> {
    fn clone(&self) -> Self {
        *self
    }
}
