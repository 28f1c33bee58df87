//! Loops over elements, for the processor at hand: the third of the crate's fenced `unsafe` modules.
//!
//! A conversion is written once, without branches, so that the compiler makes vector code of the loop over
//! it. On x86 it does so twice: for what every such processor has, and for AVX2, which is used where it is
//! there. (On AArch64 vectors are part of what every processor has.)

#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use bytemuck::Pod;

use crate::buffer::initialised;

/// A conversion of one element. Implementations are to be `#[inline(always)]`, so that they are compiled for
/// the instructions of the loop around them.
pub(crate) trait Convert: Copy {
    /// What it takes.
    type From: Pod;
    /// What it makes.
    type To: Pod;

    /// The result, and whether the value is refused, which makes the result void.
    fn convert(self, value: Self::From) -> (Self::To, bool);
}

/// Loops over memory that is initialised. Implementations are to be `#[inline(always)]`, as those of [`Convert`].
pub(crate) trait Work {
    /// What comes of it.
    type Output;

    /// Does it.
    fn run(self) -> Self::Output;
}

/// The instructions that a loop may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instructions {
    /// True only where the processor was found to have them.
    avx2: bool,
}

impl Instructions {
    /// Those that the program was compiled for.
    #[cfg(test)]
    pub(crate) const BASELINE: Self = Self { avx2: false };

    /// All that the processor has.
    pub(crate) fn detect() -> Self {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        let avx2 = std::arch::is_x86_feature_detected!("avx2");
        #[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
        let avx2 = false;
        Self { avx2 }
    }

    /// Does work with these instructions.
    pub(crate) fn run<W: Work>(self, work: W) -> W::Output {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        if self.avx2 {
            // SAFETY: `avx2` is set by `detect` only, and only where the processor has it.
            return unsafe { run_avx2(work) };
        }
        debug_assert!(!self.avx2, "only x86 has it");
        work.run()
    }

    /// Makes each element of `to` out of one of `from`, neither of which need be aligned. `None` if one was
    /// refused.
    ///
    /// # Panics
    ///
    /// Panics when the two do not have as many elements.
    pub(crate) fn map<'t, C: Convert>(
        self,
        convert: C,
        from: &[u8],
        to: &'t mut [MaybeUninit<u8>],
    ) -> Option<&'t mut [u8]> {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        if self.avx2 {
            // SAFETY: `avx2` is set by `detect` only, and only where the processor has it.
            return unsafe { map_avx2(convert, from, to) };
        }
        debug_assert!(!self.avx2, "only x86 has it");
        map(convert, from, to)
    }
}

/// # Safety
///
/// The processor has AVX2.
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
#[target_feature(enable = "avx2")]
unsafe fn run_avx2<W: Work>(work: W) -> W::Output {
    work.run()
}

/// # Safety
///
/// The processor has AVX2.
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
#[target_feature(enable = "avx2")]
unsafe fn map_avx2<'t, C: Convert>(
    convert: C,
    from: &[u8],
    to: &'t mut [MaybeUninit<u8>],
) -> Option<&'t mut [u8]> {
    map(convert, from, to)
}

#[inline(always)]
fn map<'t, C: Convert>(convert: C, from: &[u8], to: &'t mut [MaybeUninit<u8>]) -> Option<&'t mut [u8]> {
    let (from_size, to_size) = (size_of::<C::From>(), size_of::<C::To>());
    // Panics for types of no size.
    let count = from.len() / from_size;
    assert!(from.len() == count * from_size && to.len() == count * to_size, "lengths differ");
    let (first, first_made) = (from.as_ptr().cast::<C::From>(), to.as_mut_ptr().cast::<C::To>());
    let mut refused = false;
    for index in 0..count {
        // SAFETY: `from` is `count` elements long (the assertion), so element `index` lies inside of it.
        let element = unsafe { first.add(index) };
        // SAFETY: the element lies inside of `from`, whose bytes are initialised, and every bit pattern is a
        // value of a `Pod`. An unaligned read asks for no alignment.
        let value = unsafe { element.read_unaligned() };
        let (value, is_refused) = convert.convert(value);
        refused |= is_refused;
        // SAFETY: `to` is `count` elements long (the assertion), so element `index` lies inside of it.
        let element = unsafe { first_made.add(index) };
        // SAFETY: the element lies inside of `to`, which is borrowed exclusively and not used otherwise
        // during the loop. An unaligned write asks for no alignment.
        unsafe { element.write_unaligned(value) };
    }
    // SAFETY: the loop wrote every element, the elements are all of `to`, and a `Pod` has no padding, so
    // every byte was initialised.
    let made = unsafe { initialised(to) };
    (!refused).then_some(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Twice the value; even ones are refused.
    #[derive(Clone, Copy)]
    struct Double;

    impl Convert for Double {
        type From = u16;
        type To = u32;

        fn convert(self, value: u16) -> (u32, bool) {
            (2 * u32::from(value), value % 2 == 0)
        }
    }

    #[test]
    fn every_element_is_made_wherever_it_lies() {
        for instructions in [Instructions::BASELINE, Instructions::detect()] {
            for count in [0, 1, 7, 40] {
                let odd: Vec<u16> = (0..count).map(|number| 2 * number + 1).collect();
                let doubled: Vec<u32> = odd.iter().map(|&value| 2 * u32::from(value)).collect();
                // One byte off any alignment.
                let from = [&[0][..], bytemuck::cast_slice(&odd)].concat();
                let mut to = vec![MaybeUninit::uninit(); 1 + 4 * doubled.len()];
                let made = instructions.map(Double, &from[1..], &mut to[1..]);
                assert_eq!(made.as_deref(), Some(bytemuck::cast_slice(&doubled)));
            }
            let mut to = [MaybeUninit::uninit(); 8];
            assert_eq!(instructions.map(Double, &[1, 0, 2, 0], &mut to), None);
        }
    }

    #[test]
    #[should_panic(expected = "lengths differ")]
    fn lengths_that_differ_panic() {
        Instructions::detect().map(Double, &[1, 0], &mut [MaybeUninit::uninit(); 5]);
    }
}
