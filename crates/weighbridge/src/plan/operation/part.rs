//! A slice of a stored tensor.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::{Bound, MOST_PIECES, Operation, Piece, Tiles, only};
use crate::buffer::{self, copied};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Input;
use crate::slice::{Region, Slice};

/// A part of a stored tensor.
///
/// Only the bytes of the part are read, but where its pieces lie so close together that a further read costs more
/// than the bytes between them: gaps up to [`READ_THROUGH`](Self::READ_THROUGH) are read, and left out afterwards.
#[derive(Clone, Debug)]
pub struct Part {
    slice: Slice,
}

impl Part {
    /// Gaps of this many bytes cost about as much to read as another call of the system does.
    pub const READ_THROUGH: u64 = 2 << 10;

    /// The part that `slice` says.
    pub fn of(slice: Slice) -> Self {
        Self { slice }
    }

    /// The share of rank `rank` of `world` in dimension `dim` of a tensor of that shape: one of `world` equal parts,
    /// in order.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Slice`] when the dimension is not there or has no `world` equal parts, and when the
    /// rank is not below `world`.
    pub fn of_rank(shape: &[usize], dim: usize, rank: usize, world: usize) -> Result<Self> {
        let fail = |message| Err(Error::new(ErrorKind::Slice, message));
        let Some(&size) = shape.get(dim) else {
            return fail(format!("there is no dimension {dim} in a tensor of {}", shape.len()));
        };
        if rank >= world || size % world != 0 {
            return fail(format!("dimension {dim} of {size} has no part {rank} of {world} equal ones"));
        }
        let share = size / world;
        Ok(Self { slice: Slice::along(dim, rank * share..(rank + 1) * share) })
    }

    /// Which part it is.
    pub fn slice(&self) -> &Slice {
        &self.slice
    }
}

/// Which bytes are read for a part, how many are left out again, and whether that is worth it.
fn covered(region: &Region, tile: Range<u64>) -> impl Iterator<Item = (Range<u64>, Vec<Range<u64>>)> {
    let mut pieces = region.byte_ranges_in(tile).collect::<Vec<_>>().into_iter().peekable();
    std::iter::from_fn(move || {
        let first = pieces.next()?;
        let mut whole = first.clone();
        let mut wanted = vec![first];
        while let Some(next) =
            pieces.next_if(|next| next.start >= whole.end && next.start - whole.end <= Part::READ_THROUGH)
        {
            whole.end = next.end;
            wanted.push(next);
        }
        Some((whole, wanted))
    })
}

impl Operation for Part {
    fn bind(&self, inputs: &[Input]) -> Result<Bound> {
        let input = only(inputs)?;
        let region = self.slice.of(input.dtype(), input.shape())?;
        let (dtype, shape) = (region.dtype(), region.shape().to_vec());
        Ok(Bound::new(dtype, shape, PartTiles { region }))
    }
}

#[derive(Debug)]
struct PartTiles {
    region: Region,
}

impl Tiles for PartTiles {
    fn gather(&self, tile: Range<u64>, pieces: &mut Vec<Piece>) {
        let piece = |bytes| Piece { input: 0, bytes };
        match self.is_direct() {
            true => pieces.extend(self.region.byte_ranges_in(tile).map(piece)),
            false => pieces.extend(covered(&self.region, tile).map(|(whole, _)| piece(whole))),
        }
    }

    fn is_direct(&self) -> bool {
        self.region.least_gap() > Part::READ_THROUGH
    }

    fn compute<'t>(
        &self,
        tile: Range<u64>,
        gathered: &[u8],
        out: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]> {
        let mut groups = covered(&self.region, tile);
        let mut group = (0..0, Vec::new().into_iter());
        let mut behind = 0;
        let wrong = || Error::new(ErrorKind::Internal, "a part was not gathered");
        buffer::fill::<std::io::Error>(out, |_, rest| {
            let Some(wanted) = group.1.next() else {
                behind += group.0.end - group.0.start;
                let Some((whole, wanted)) = groups.next() else { return Ok(Some(&[])) };
                group = (whole, wanted.into_iter());
                return Ok(None);
            };
            let start = (behind + wanted.start - group.0.start) as usize;
            let len = (wanted.end - wanted.start) as usize;
            match (gathered.get(start..start + len), rest.get_mut(..len)) {
                (Some(from), Some(into)) => Ok(Some(copied(into, from))),
                _ => Ok(Some(&[])),
            }
        })
        .map_err(|_| wrong())
    }

    fn step(&self) -> u64 {
        // So much output that what is read for it fits the cache, whatever is left out of it.
        const READ: u64 = 1 << 20;
        let (run, gap) = (self.region.run_bytes(), self.region.least_gap());
        let step = match self.is_direct() {
            true => run.saturating_mul(MOST_PIECES),
            false => READ.saturating_mul(run) / (run + gap).max(1),
        };
        (step / 48).max(1) * 48
    }
}
