//! Two adjacent dimensions swapped.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::{Bound, Operation, Piece, Tiles, only};
use crate::buffer;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Input;
use crate::text::brief;

/// A stored tensor with dimension `dim` and the next one swapped: for `dim` 0, the transposed matrix.
#[derive(Clone, Copy, Debug)]
pub struct Transpose {
    dim: usize,
}

/// The stored tensor as `[batch, rows, columns]` of units that stay together; the output is
/// `[batch, columns, rows]`. All in bytes or counts.
#[derive(Clone, Copy, Debug)]
struct Grid {
    rows: u64,
    columns: u64,
    unit: u64,
}

/// What of the output a tile has: in one batch, some rows of the output, the first and last perhaps cut.
struct Band {
    batch: u64,
    columns: Range<u64>,
}

impl Transpose {
    /// Swaps dimension `dim` and the next one.
    pub fn of(dim: usize) -> Self {
        Self { dim }
    }
}

impl Grid {
    /// The bytes of a row of the output.
    fn made_row(&self) -> u64 {
        self.rows * self.unit
    }

    fn bands(&self, tile: &Range<u64>) -> Vec<Band> {
        let row = self.made_row();
        if row == 0 || tile.is_empty() {
            return Vec::new();
        }
        let (first, end) = (tile.start / row, tile.end.div_ceil(row));
        let mut bands = Vec::new();
        let mut at = first;
        while at < end {
            let batch = at / self.columns;
            let next = end.min((batch + 1) * self.columns);
            let start = batch * self.columns;
            bands.push(Band { batch, columns: at - start..next - start });
            at = next;
        }
        bands
    }
}

impl Operation for Transpose {
    fn bind(&self, inputs: &[Input]) -> Result<Bound> {
        let input = only(inputs)?;
        let mut shape = input.shape().to_vec();
        let (Some(&rows), Some(&columns)) = (shape.get(self.dim), shape.get(self.dim + 1)) else {
            let message =
                format!("shape {} has no dimensions {} and {}", brief(&shape), self.dim, self.dim + 1);
            return Err(Error::new(ErrorKind::Shape, message));
        };
        if input.dtype().bits() % 8 != 0 {
            return Err(Error::new(ErrorKind::Dtype, format!("{} cannot be transposed", input.dtype())));
        }
        let inner: u64 = shape[self.dim + 2..].iter().map(|&dim| dim as u64).product();
        let unit = inner * u64::from(input.dtype().bits()) / 8;
        shape.swap(self.dim, self.dim + 1);
        Ok(Bound::new(input.dtype(), shape, Grid { rows: rows as u64, columns: columns as u64, unit }))
    }
}

impl Tiles for Grid {
    fn gather(&self, tile: Range<u64>, pieces: &mut Vec<Piece>) {
        for Band { batch, columns } in self.bands(&tile) {
            let row = |row: u64| {
                let start = (batch * self.rows + row) * self.columns;
                (start + columns.start) * self.unit..(start + columns.end) * self.unit
            };
            if columns == (0..self.columns) {
                pieces.push(Piece { input: 0, bytes: row(0).start..row(self.rows - 1).end });
            } else {
                pieces.extend((0..self.rows).map(|number| Piece { input: 0, bytes: row(number) }));
            }
        }
    }

    fn compute<'t>(
        &self,
        tile: Range<u64>,
        gathered: &[u8],
        out: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]> {
        let wrong = || Error::new(ErrorKind::Internal, "a tile and its input differ in length");
        let mut bands = self.bands(&tile).into_iter();
        let mut rest = gathered;
        let mut at = tile.start;
        buffer::fill::<std::io::Error>(out, |_, into| {
            let Some(Band { batch, columns }) = bands.next() else { return Ok(Some(&[])) };
            let width = columns.end - columns.start;
            let Some((band, behind)) = rest.split_at_checked((self.rows * width * self.unit) as usize) else {
                return Ok(Some(&[]));
            };
            rest = behind;
            let start = (batch * self.columns + columns.start) * self.made_row();
            let end = tile.end.min(start + width * self.made_row());
            let len = (end - at) as usize;
            let Some(into) = into.get_mut(..len) else { return Ok(Some(&[])) };
            let skipped = (at - start) as usize;
            at = end;
            let (rows, width, unit) = (self.rows as usize, width as usize, self.unit as usize);
            Ok(buffer::transpose(band, rows, width, unit, skipped, into).map(|made| &*made).or(Some(&[])))
        })
        .map_err(|_| wrong())
    }

    fn step(&self) -> u64 {
        /// Pieces of this size are read at about the speed of large ones.
        const PIECE: u64 = 4 << 10;
        /// More than this is not gathered at a time.
        const MOST: u64 = 8 << 20;
        let row = self.made_row().max(1);
        let columns = PIECE.div_ceil(self.unit.max(1)).min(MOST / row).clamp(1, self.columns.max(1));
        (columns * row).next_multiple_of(16)
    }
}
