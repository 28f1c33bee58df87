//! Two neighbouring dimensions exchanged.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::{Operation, Piece, only};
use crate::buffer;
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Input;
use crate::text::brief;

/// A stored tensor with dimension `dim` and the one behind it exchanged.
///
/// A matrix whose rows are the columns of the stored one, for `dim` 0.
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
    /// Exchanges dimension `dim` and the one behind it.
    pub fn of(dim: usize) -> Self {
        Self { dim }
    }

    fn grid(&self, input: &Input) -> Option<Grid> {
        let shape = input.shape();
        let (&rows, &columns) = (shape.get(self.dim)?, shape.get(self.dim + 1)?);
        let inner: u64 = shape[self.dim + 2..].iter().map(|&dim| dim as u64).product();
        Some(Grid {
            rows: rows as u64,
            columns: columns as u64,
            unit: inner * u64::from(input.dtype().bits()) / 8,
        })
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
    fn output(&self, inputs: &[Input]) -> Result<(Dtype, Vec<usize>)> {
        let input = only(inputs)?;
        let mut shape = input.shape().to_vec();
        if self.dim + 1 >= shape.len() {
            let message =
                format!("shape {} has no dimensions {} and {}", brief(&shape), self.dim, self.dim + 1);
            return Err(Error::new(ErrorKind::Shape, message));
        }
        if input.dtype().bits() % 8 != 0 {
            return Err(Error::new(ErrorKind::Dtype, format!("{} cannot be transposed", input.dtype())));
        }
        shape.swap(self.dim, self.dim + 1);
        Ok((input.dtype(), shape))
    }

    fn gather(&self, inputs: &[Input], tile: Range<u64>) -> Vec<Piece> {
        let Some(grid) = inputs.first().and_then(|input| self.grid(input)) else { return Vec::new() };
        let mut pieces = Vec::new();
        for Band { batch, columns } in grid.bands(&tile) {
            let row = |row: u64| {
                let start = (batch * grid.rows + row) * grid.columns;
                (start + columns.start) * grid.unit..(start + columns.end) * grid.unit
            };
            if columns == (0..grid.columns) {
                pieces.push(Piece { input: 0, bytes: row(0).start..row(grid.rows - 1).end });
            } else {
                pieces.extend((0..grid.rows).map(|number| Piece { input: 0, bytes: row(number) }));
            }
        }
        pieces
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
        let wrong = || Error::new(ErrorKind::Internal, "a tile and its input differ in length");
        let grid = self.grid(only(inputs)?).ok_or_else(wrong)?;
        let mut bands = grid.bands(&range).into_iter();
        let mut rest = gathered;
        let mut at = range.start;
        buffer::fill::<std::io::Error>(tile, |_, into| {
            let Some(Band { batch, columns }) = bands.next() else { return Ok(Some(&[])) };
            let width = columns.end - columns.start;
            let Some((band, behind)) = rest.split_at_checked((grid.rows * width * grid.unit) as usize) else {
                return Ok(Some(&[]));
            };
            rest = behind;
            let start = (batch * grid.columns + columns.start) * grid.made_row();
            let end = range.end.min(start + width * grid.made_row());
            let len = (end - at) as usize;
            let Some(into) = into.get_mut(..len) else { return Ok(Some(&[])) };
            let skipped = (at - start) as usize;
            at = end;
            let (rows, width, unit) = (grid.rows as usize, width as usize, grid.unit as usize);
            Ok(buffer::transpose(band, rows, width, unit, skipped, into).map(|made| &*made).or(Some(&[])))
        })
        .map_err(|_| wrong())
    }

    fn step(&self, inputs: &[Input]) -> u64 {
        /// Pieces of this size are read at about the speed of large ones.
        const PIECE: u64 = 4 << 10;
        /// More than this is not gathered at a time.
        const MOST: u64 = 8 << 20;
        let Some(grid) = inputs.first().and_then(|input| self.grid(input)) else { return 1 };
        let row = grid.made_row().max(1);
        let columns = PIECE.div_ceil(grid.unit.max(1)).min(MOST / row).clamp(1, grid.columns.max(1));
        (columns * row).next_multiple_of(16)
    }
}
