//! Values in another dtype.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use super::{Operation, Piece, Read};
use crate::cast::{self, Kernel};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Input, Overflow};

/// What another operation makes, its values in another dtype.
///
/// There is a cast from every dtype to every other, but none from or to `F6_E2M3`, `F6_E3M2` and `C64`, and none to `BOOL`
/// and `F4`.
///
/// Floats are rounded once, to nearest, ties to even, as IEEE 754 has it; NaN stays NaN, and subnormal numbers are
/// numbers. In floats that become integers, fractions are cut off. What becomes of values that are too large is the
/// choice of an [`Overflow`]. `F8_E8M0`, the scales of the OCP microscaling formats, takes the nearest power of two, halfway
/// the larger one, and positive values only. In the FNUZ dtypes, which have no negative zero, it becomes zero.
#[derive(Clone, Debug)]
pub struct Cast {
    dtype: Dtype,
    overflow: Overflow,
    of: Arc<dyn Operation>,
}

impl Cast {
    /// A stored tensor in `dtype`.
    pub fn to(dtype: Dtype) -> Self {
        Self::of(Arc::new(Read), dtype)
    }

    /// What `operation` makes, in `dtype`.
    pub fn of(operation: Arc<dyn Operation>, dtype: Dtype) -> Self {
        Self { dtype, overflow: Overflow::default(), of: operation }
    }

    /// Sets what it does with values that are too large.
    #[must_use]
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// Whether values of dtype `from` can be cast to `to`.
    pub fn exists(from: Dtype, to: Dtype) -> bool {
        Kernel::of(from, to, Overflow::default()).is_some()
    }

    fn kernel(&self, from: Dtype) -> Result<Kernel> {
        Kernel::of(from, self.dtype, self.overflow)
            .ok_or_else(|| Error::new(ErrorKind::Dtype, cast::no_cast(from, self.dtype)))
    }

    /// The bytes before the cast of a tile after it; `from` is the dtype before.
    fn before(&self, from: u64, tile: &Range<u64>) -> Range<u64> {
        let stored = |made: u64| made * 8 / u64::from(self.dtype.bits()) * from / 8;
        stored(tile.start)..stored(tile.end)
    }

    /// Bits of an element before the cast.
    fn bits_before(&self, inputs: &[Input]) -> u64 {
        self.of.output(inputs).map_or(0, |(from, _)| u64::from(from.bits()))
    }
}

impl Operation for Cast {
    fn output(&self, inputs: &[Input]) -> Result<(Dtype, Vec<usize>)> {
        let (from, shape) = self.of.output(inputs)?;
        self.kernel(from)?;
        Ok((self.dtype, shape))
    }

    fn gather(&self, inputs: &[Input], tile: Range<u64>) -> Vec<Piece> {
        self.of.gather(inputs, self.before(self.bits_before(inputs), &tile))
    }

    fn is_direct(&self, _: &[Input]) -> bool {
        false
    }

    fn compute<'t>(
        &self,
        inputs: &[Input],
        range: Range<u64>,
        gathered: &[u8],
        tile: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]> {
        let from = self.of.output(inputs)?.0;
        let before = self.before(u64::from(from.bits()), &range);
        let mut scratch = Vec::new();
        let stored: &[u8] = if self.of.is_direct(inputs) {
            gathered
        } else {
            let len = (before.end - before.start) as usize;
            scratch.reserve_exact(len);
            let room = &mut scratch.spare_capacity_mut()[..len];
            let made = self.of.compute(inputs, before.clone(), gathered, room)?;
            if cfg!(target_endian = "big") && self.of.is_native() {
                cast::swap_bytes(from, made);
            }
            made
        };
        let fits = stored.len() as u64 == before.end - before.start
            && stored.len() as u64 * u64::from(self.dtype.bits())
                == tile.len() as u64 * u64::from(from.bits());
        if !fits {
            return Err(Error::new(ErrorKind::Internal, "a tile and its input differ in length"));
        }
        Ok(self.kernel(from)?.run(stored, tile)?)
    }

    fn step(&self, inputs: &[Input]) -> u64 {
        let step = match self.of.is_direct(inputs) {
            true => self.of.step(inputs).min(256 << 10),
            false => self.of.step(inputs),
        };
        let from = self.bits_before(inputs).max(1);
        // Whole elements on both sides, those of 6 bits included.
        (step.saturating_mul(u64::from(self.dtype.bits())) / from / 48).max(1) * 48
    }

    fn is_native(&self) -> bool {
        true
    }
}
