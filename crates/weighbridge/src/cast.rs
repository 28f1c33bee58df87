//! Casts between dtypes: one or two loops a pair, chosen once a tile.
//!
//! A value passes through one of five dtypes that holds it exactly: `F32` (for all floats but `F64`), `F64`,
//! `I32`, `I64` or `U64`. Each source says which one that is, each target how it is made of all five, so that
//! nothing is rounded twice. The first loop makes a block of that dtype, which stays in the first-level
//! cache, the second the target's elements of it; where source or target is that dtype itself, one loop is
//! enough. Of values of 4 bits, which share bytes, both of a byte are cast together.

mod e8m0;
mod element;
mod loops;
mod number;
mod out_of_range;
mod overflow;
mod packed;
mod simd;
mod small_float;
#[cfg(test)]
mod tests;

use std::mem::MaybeUninit;

use bytemuck::Pod;

use crate::buffer;
use crate::dtype::Dtype;
use element::Made;
use loops::{How, Step, fused, narrow, widen};
pub use out_of_range::OutOfRange;
pub use overflow::Overflow;
pub(crate) use simd::{Convert, Instructions, Work};
use small_float::E4M3;
pub(crate) use small_float::{e2m1, e4m3};

/// Turns elements as the file has them (little-endian) into elements as the machine has them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel {
    from: Dtype,
    to: Dtype,
    how: How,
    loops: Loops,
}

#[derive(Clone, Copy, Debug)]
enum Loops {
    One(Step),
    /// With elements of a dtype between them.
    Two(Step, Dtype, Step),
}

impl Kernel {
    /// The cast from one dtype to another, if there is one.
    pub(crate) fn of(from: Dtype, to: Dtype, overflow: Overflow) -> Option<Self> {
        let how = How { overflow, instructions: Instructions::detect() };
        let (wide, widen) = widen(from, to)?;
        let narrow = narrow(wide, to, overflow)?;
        let loops = match fused(from, to) {
            Some(fused) => Loops::One(fused),
            None if to == wide => Loops::One(widen),
            None if from == wide && cfg!(target_endian = "little") => Loops::One(narrow),
            None => Loops::Two(widen, wide, narrow),
        };
        Some(Self { from, to, how, loops })
    }

    /// Makes a tile of the elements in `stored`, of which there are as many.
    pub(crate) fn run<'t>(
        &self,
        stored: &[u8],
        tile: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8], OutOfRange> {
        let made = match self.looks_up(stored.len()) {
            true => self.look_up(stored, tile),
            false => self.steps(stored, tile),
        };
        made.ok_or_else(|| self.blame(stored))
    }

    fn steps<'t>(&self, stored: &[u8], tile: &'t mut [MaybeUninit<u8>]) -> Option<&'t mut [u8]> {
        let (first, wide, second) = match self.loops {
            Loops::One(step) => return step(self.how, stored, tile),
            Loops::Two(first, wide, second) => (first, wide, second),
        };
        let group = group(self.from);
        let [from, wide, to] = [self.from, wide, self.to].map(|dtype| bytes(dtype, group));
        let mut block = [MaybeUninit::uninit(); BLOCK * 8];
        buffer::fill::<Unfilled>(tile, |done, rest| {
            let (start, count) = (done / to, (rest.len() / to).min(BLOCK));
            let stored = stored.get(start * from..(start + count) * from).ok_or(Unfilled)?;
            let block = first(self.how, stored, &mut block[..count * wide]).ok_or(Unfilled)?;
            second(self.how, block, &mut rest[..count * to]).map(|made| Some(&*made)).ok_or(Unfilled)
        })
        .ok()
    }

    /// Whether it is faster to cast each value that a byte can have, and to look the results up. Integers
    /// become integers of whatever size faster than that.
    fn looks_up(&self, count: usize) -> bool {
        let has_bytes = bytes(self.from, group(self.from)) == 1;
        let takes_long = self.from == Dtype::F4
            || matches!(self.loops, Loops::Two(..)) && (self.from.is_float() || self.to.is_float());
        has_bytes && takes_long && count >= 16 * CODES
    }

    fn look_up<'t>(&self, stored: &[u8], tile: &'t mut [MaybeUninit<u8>]) -> Option<&'t mut [u8]> {
        let size = bytes(self.to, group(self.from));
        let (mut results, mut refused) = ([0; CODES * MOST_BYTES], [false; CODES]);
        let mut room = [MaybeUninit::uninit(); CODES * MOST_BYTES];
        let codes: [u8; CODES] = std::array::from_fn(|code| code as u8);
        if let Some(all) = self.steps(&codes, &mut room[..CODES * size]) {
            results[..CODES * size].copy_from_slice(all);
        } else {
            for (code, result) in codes.iter().zip(results.chunks_exact_mut(size)) {
                match self.steps(&[*code], &mut room[..size]) {
                    Some(made) => result.copy_from_slice(made),
                    None => refused[usize::from(*code)] = true,
                }
            }
            if stored.iter().fold(false, |any, code| any | refused[usize::from(*code)]) {
                return None;
            }
        }
        let (results, map) = (&results[..CODES * size], self.how.instructions);
        match size {
            1 => map.map(LookUp::<u8>(&bytemuck::pod_read_unaligned(results)), stored, tile),
            2 => map.map(LookUp::<u16>(&bytemuck::pod_read_unaligned(results)), stored, tile),
            4 => map.map(LookUp::<u32>(&bytemuck::pod_read_unaligned(results)), stored, tile),
            8 => map.map(LookUp::<u64>(&bytemuck::pod_read_unaligned(results)), stored, tile),
            _ => map.map(LookUp::<u128>(&bytemuck::pod_read_unaligned(results)), stored, tile),
        }
    }

    /// The first value that is refused, and what would take it.
    fn blame(&self, stored: &[u8]) -> OutOfRange {
        let group = group(self.from);
        let mut room = [MaybeUninit::uninit(); MOST_BYTES];
        let mut is_taken =
            |kernel: &Self, some: &[u8]| kernel.steps(some, &mut room[..bytes(self.to, group)]).is_some();
        let mut groups = stored.chunks_exact(bytes(self.from, group));
        let Some(element) = groups.find(|some| !is_taken(self, some)) else {
            return self.out_of_range("a value".to_owned(), Vec::new());
        };
        // Of two in a byte, one alone is looked at: a byte that has it twice.
        let twice = |code: u8| [code << 4 | code];
        let (first, second) = match *element {
            [byte] if group == 2 => (twice(byte & 0xF), twice(byte >> 4)),
            _ => ([0], [0]),
        };
        let element = match group {
            1 => element,
            _ if is_taken(self, &first) => &second,
            _ => &first,
        };
        let remedies = [Overflow::Saturate, Overflow::Infinity].into_iter().filter(|&overflow| {
            Self::of(self.from, self.to, overflow).is_some_and(|kernel| is_taken(&kernel, element))
        });
        self.out_of_range(display(self.from, element), remedies.collect())
    }

    fn out_of_range(&self, value: String, remedies: Vec<Overflow>) -> OutOfRange {
        OutOfRange { value, from: self.from, to: self.to, remedies }
    }
}

#[derive(Clone, Copy)]
struct LookUp<'r, T>(&'r [T; CODES]);

impl<T: Pod> Convert for LookUp<'_, T> {
    type From = u8;
    type To = T;

    #[inline(always)]
    fn convert(self, code: u8) -> (T, bool) {
        (self.0[usize::from(code)], false)
    }
}

/// A block was not made.
struct Unfilled;

impl From<std::io::Error> for Unfilled {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

/// Elements of a block: at 8 bytes it fills a small part of the first-level cache.
const BLOCK: usize = 512;

/// The values that a byte can have.
const CODES: usize = 256;

/// What becomes of a byte has no more: two `F64` of two values of 4 bits.
const MOST_BYTES: usize = 16;

/// How many elements are cast together: as many as begin and end with a byte.
fn group(dtype: Dtype) -> usize {
    if dtype == Dtype::F4 { 2 } else { 1 }
}

/// The bytes of a number of elements.
fn bytes(dtype: Dtype, elements: usize) -> usize {
    dtype.bits() as usize * elements / 8
}

/// What is said where there is no cast.
pub(crate) fn no_cast(from: Dtype, to: Dtype) -> String {
    let why = match (from, to) {
        (Dtype::F6_E2M3 | Dtype::F6_E3M2, _) => format!(": values of {from} have no agreed packing"),
        (_, Dtype::F6_E2M3 | Dtype::F6_E3M2) => format!(": values of {to} have no agreed packing"),
        (Dtype::C64, _) => ": a complex number is not a real one".to_owned(),
        _ => String::new(),
    };
    format!("there is no cast from {from} to {to}{why}")
}

/// One element for people; of two in a byte, the first.
fn display(dtype: Dtype, element: &[u8]) -> String {
    let mut room = [MaybeUninit::uninit(); 8];
    let how = How { overflow: Overflow::Infinity, instructions: Instructions::detect() };
    let shown = widen(dtype, dtype).and_then(|(wide, widen)| {
        let values = widen(how, element, &mut room[..bytes(wide, group(dtype))])?;
        let value = values.get(..bytes(wide, 1))?;
        Some(match wide {
            Dtype::F32 => bytemuck::pod_read_unaligned::<f32>(value).to_string(),
            Dtype::F64 => bytemuck::pod_read_unaligned::<f64>(value).to_string(),
            Dtype::I32 => bytemuck::pod_read_unaligned::<i32>(value).to_string(),
            Dtype::I64 => bytemuck::pod_read_unaligned::<i64>(value).to_string(),
            _ => bytemuck::pod_read_unaligned::<u64>(value).to_string(),
        })
    });
    shown.unwrap_or_else(|| "a value".to_owned())
}

/// `F8_E4M3`, rounded to nearest, ties to even; what is too large becomes the largest value.
#[inline(always)]
pub(crate) fn to_f8_e4m3(value: f32) -> u8 {
    let limits = <E4M3 as Made<f32>>::limits(Overflow::Saturate);
    <E4M3 as Made<f32>>::make(value, limits).0
}

/// Reverses the bytes of each element: from the byte order of the file to the other one, or back.
pub(crate) fn swap_bytes(dtype: Dtype, elements: &mut [u8]) {
    let size = match dtype {
        // Two 32-bit numbers.
        Dtype::C64 => 4,
        _ => bytes(dtype, 1),
    };
    if size > 1 {
        elements.chunks_exact_mut(size).for_each(<[u8]>::reverse);
    }
}
