//! Values in another dtype.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use super::{Bound, Operation, Piece, Read, Tiles, made_by};
use crate::cast::{self, Kernel};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Derive, Input, Overflow};

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

    /// The tiles `of`, whose values have dtype `from`, in dtype `to`.
    pub(in crate::plan) fn tiles(
        of: &Arc<dyn Tiles>,
        from: Dtype,
        to: Dtype,
        overflow: Overflow,
    ) -> Result<impl Derive + 'static> {
        let kernel = Kernel::of(from, to, overflow)
            .ok_or_else(|| Error::new(ErrorKind::Dtype, cast::no_cast(from, to)))?;
        Ok(CastTiles { of: Arc::clone(of), from, to, kernel })
    }
}

impl Operation for Cast {
    fn bind(&self, inputs: &[Input]) -> Result<Bound> {
        let Bound { dtype: from, shape, tiles } = self.of.bind(inputs)?;
        Ok(Bound::new(self.dtype, shape, Self::tiles(&tiles, from, self.dtype, self.overflow)?))
    }
}

/// Tiles of dtype `from` in dtype `to`.
#[derive(Debug)]
struct CastTiles {
    of: Arc<dyn Tiles>,
    from: Dtype,
    to: Dtype,
    kernel: Kernel,
}

impl CastTiles {
    /// The bytes before the cast of a tile after it.
    fn before(&self, tile: &Range<u64>) -> Range<u64> {
        let stored = |made: u64| made * 8 / u64::from(self.to.bits()) * u64::from(self.from.bits()) / 8;
        stored(tile.start)..stored(tile.end)
    }
}

impl Tiles for CastTiles {
    fn gather(&self, tile: Range<u64>, pieces: &mut Vec<Piece>) {
        self.of.gather(self.before(&tile), pieces);
    }

    fn run(&self, tile: &Range<u64>) -> Option<Range<u64>> {
        self.of.run(&self.before(tile))
    }

    fn compute<'t>(
        &self,
        tile: Range<u64>,
        gathered: &[u8],
        out: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]> {
        let (before, mut scratch) = (self.before(&tile), Vec::new());
        let len = before.end - before.start;
        let stored = made_by(&*self.of, self.from, before, gathered, &mut scratch)?;
        let fits = stored.len() as u64 == len
            && stored.len() as u64 * u64::from(self.to.bits())
                == out.len() as u64 * u64::from(self.from.bits());
        if !fits {
            return Err(Error::new(ErrorKind::Internal, "a tile and its input differ in length"));
        }
        Ok(self.kernel.run(stored, out)?)
    }

    fn step(&self) -> u64 {
        let step = match self.of.is_direct() {
            true => self.of.step().min(256 << 10),
            false => self.of.step(),
        };
        let (from, to) = (u64::from(self.from.bits()), u64::from(self.to.bits()));
        // Whole elements on both sides, those of 6 bits included.
        (step.saturating_mul(to) / from / 48).max(1) * 48
    }

    fn is_native(&self) -> bool {
        true
    }
}

impl Derive for CastTiles {
    fn as_tiles(self: Arc<Self>) -> Arc<dyn Tiles> {
        self
    }

    fn dtype(&self) -> Dtype {
        self.to
    }
}
