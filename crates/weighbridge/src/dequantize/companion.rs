//! Scales, zero points and biases: which of them belongs to a row and a column.

use std::ops::Range;
use std::sync::Arc;

use super::codes::{Codes, Window};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::cast_into;

/// A stored tensor with one number for each group of weights.
#[derive(Clone, Debug)]
pub(crate) struct Companion {
    /// The index of the input.
    pub(crate) input: usize,
    pub(crate) numbers: Numbers,
    pub(crate) grid: Grid,
}

/// How the numbers are stored.
#[derive(Clone, Debug)]
pub(crate) enum Numbers {
    /// As they are.
    Stored(Dtype),
    /// As bytes, each of which stands for a number.
    Bytes(Arc<[f32; 256]>),
    /// Packed as weights are: a row of `codes` for each row of the grid, or, `across`, for each column. A number is its code
    /// and `add`, as an unsigned one of as many bits.
    Packed { codes: Codes, across: bool, add: u8 },
    /// As bytes that are codes of numbers, which have scales of their own: one for each `block` of them, and an offset.
    Nested { map: Arc<[f32; 256]>, scales: Arc<[f32]>, block: usize, offset: f32 },
}

/// Which number belongs to a weight: its place is `matrix * each + row / down * row + column / across * column`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// Rows of weights in a row of the grid; `usize::MAX` for all.
    pub(crate) down: usize,
    /// Columns of weights in a column of the grid; `usize::MAX` for all. Not used where groups have an index.
    pub(crate) across: usize,
    /// How far apart the numbers of the next row, of the next column and of the next matrix are.
    pub(crate) row: usize,
    pub(crate) column: usize,
    pub(crate) matrix: usize,
}

/// Rows and columns of a grid, of one matrix.
#[derive(Clone, Debug)]
pub(super) struct Patch {
    pub(super) matrix: usize,
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
}

impl Grid {
    /// One number for all weights.
    pub(crate) const ONE: Self = Self { down: usize::MAX, across: usize::MAX, row: 0, column: 0, matrix: 0 };

    /// A number for each row, `matrix` to a matrix.
    pub(crate) fn for_rows(matrix: usize) -> Self {
        Self { down: 1, across: usize::MAX, row: 1, column: 0, matrix }
    }

    /// A number for each column, `matrix` to a matrix.
    pub(crate) fn for_columns(matrix: usize) -> Self {
        Self { down: usize::MAX, across: 1, row: 0, column: 1, matrix }
    }

    /// A grid stored row by row, `columns` to a row and `matrix` to a matrix.
    pub(crate) fn rows(down: usize, across: usize, columns: usize, matrix: usize) -> Self {
        Self { down, across, row: columns, column: 1, matrix }
    }

    /// The rows of the grid for rows of weights.
    fn rows_of(&self, rows: &Range<usize>) -> Range<usize> {
        let down = self.down.max(1);
        rows.start / down..(rows.end.max(1) - 1) / down + 1
    }

    fn columns_of(&self, columns: &Range<usize>) -> Range<usize> {
        let across = self.across.max(1);
        columns.start / across..(columns.end.max(1) - 1) / across + 1
    }

    /// Whether the numbers of a column are nearer to each other than those of a row.
    fn is_by_column(&self) -> bool {
        self.row > 0 && self.row <= self.column || self.column == 0
    }

    fn at(&self, matrix: usize, row: usize, column: usize) -> usize {
        matrix * self.matrix + row * self.row + column * self.column
    }

    /// The number of the last weight, if it can be counted.
    pub(crate) fn last(&self, matrices: usize, rows: usize, groups: usize) -> Option<usize> {
        let row = self.rows_of(&(0..rows)).end.checked_sub(1)?.checked_mul(self.row)?;
        let column = groups.checked_sub(1)?.checked_mul(self.column)?;
        matrices.checked_sub(1)?.checked_mul(self.matrix)?.checked_add(row)?.checked_add(column)
    }
}

/// The numbers of a patch, as floats: row by row.
#[derive(Debug)]
pub(super) struct Values {
    values: Vec<f32>,
    first_row: usize,
    columns: usize,
    down: usize,
}

impl Values {
    /// Those for a row of weights, one for each column of the patch.
    pub(super) fn row(&self, row: usize) -> &[f32] {
        let start = (row / self.down.max(1)).saturating_sub(self.first_row) * self.columns;
        self.values.get(start..start + self.columns).unwrap_or_default()
    }
}

impl Companion {
    /// The patch for rows and columns of weights; `groups` are the columns of the grid where groups have an index.
    pub(super) fn patch(
        &self,
        matrix: usize,
        rows: &Range<usize>,
        columns: &Range<usize>,
        groups: Option<usize>,
    ) -> Patch {
        let columns = match groups {
            Some(groups) if self.grid.across != usize::MAX => 0..groups,
            _ => self.grid.columns_of(columns),
        };
        Patch { matrix, rows: self.grid.rows_of(rows), columns }
    }

    /// The bytes of a patch.
    pub(super) fn ranges(&self, patch: &Patch, mut out: impl FnMut(Range<u64>)) {
        match &self.numbers {
            Numbers::Packed { codes, across, .. } => {
                let (rows, columns) = packed(patch, *across);
                codes.ranges(
                    &codes.place(rows, columns),
                    (patch.matrix * codes.matrix_len()) as u64,
                    &mut out,
                );
            }
            numbers => {
                let size = numbers.size();
                let bytes = |run: Range<usize>| (run.start * size) as u64..(run.end * size) as u64;
                self.runs(patch).for_each(|run| out(bytes(run)));
            }
        }
    }

    /// How many bytes these are.
    pub(super) fn len(&self, patch: &Patch) -> usize {
        match &self.numbers {
            Numbers::Packed { codes, across, .. } => {
                let (rows, columns) = packed(patch, *across);
                codes.place(rows, columns).len()
            }
            numbers => self.runs(patch).map(|run| run.len() * numbers.size()).sum(),
        }
    }

    /// The numbers of a patch that are gathered: runs of them that are stored side by side. Where gaps are small, they are one
    /// run.
    fn runs(&self, Patch { matrix, rows, columns }: &Patch) -> impl Iterator<Item = Range<usize>> + use<> {
        let grid = self.grid;
        let (matrix, rows, columns) = (*matrix, rows.clone(), columns.clone());
        let first = grid.at(matrix, rows.start, columns.start);
        let (height, width) = (rows.len().max(1), columns.len().max(1));
        let last = first + (height - 1) * grid.row + (width - 1) * grid.column;
        // Numbers that are next to each other in a row, or in a column, are a run.
        let (count, step, len) = match grid.is_by_column() {
            true => (width, grid.column, (height - 1) * grid.row + 1),
            false => (height, grid.row, (width - 1) * grid.column + 1),
        };
        let is_one =
            (last + 1 - first).saturating_sub(count * len) <= count * READ_THROUGH / self.numbers.size();
        let count = if is_one { 1 } else { count };
        (0..count).map(move |number| match is_one {
            true => first..last + 1,
            false => first + number * step..first + number * step + len,
        })
    }

    /// The numbers of a patch whose bytes were gathered.
    pub(super) fn values(&self, patch: &Patch, gathered: &[u8]) -> Result<Values> {
        let width = patch.columns.len();
        let mut values = vec![0.0; patch.rows.len() * width];
        match &self.numbers {
            Numbers::Packed { codes, across, add } => {
                let mask = ((1_u32 << codes.bits) - 1) as u8;
                let (rows, columns) = packed(patch, *across);
                let window = Window::new(codes.place(rows, columns), gathered);
                let places =
                    patch.rows.clone().flat_map(|row| patch.columns.clone().map(move |column| (row, column)));
                for (value, (row, column)) in values.iter_mut().zip(places) {
                    let (row, column) = if *across { (column, row) } else { (row, column) };
                    *value = f32::from(codes.code(&window, row, column).wrapping_add(*add) & mask);
                }
            }
            numbers => {
                let size = numbers.size();
                let runs: Vec<_> = self.runs(patch).collect();
                if gathered.len() < runs.iter().map(|run| run.len() * size).sum() {
                    return Err(missing());
                }
                let is_dense =
                    runs.len() == 1 && self.grid.column == 1 && gathered.len() == values.len() * size;
                if is_dense {
                    let first = runs.first().map_or(0, |run| run.start);
                    numbers.read(gathered, first, &mut values)?;
                } else {
                    self.pick(patch, &runs, gathered, &mut values)?;
                }
            }
        }
        Ok(Values { values, first_row: patch.rows.start, columns: width, down: self.grid.down })
    }

    /// Reads the numbers of a patch out of runs of more, which were gathered one after the other.
    fn pick(&self, patch: &Patch, runs: &[Range<usize>], gathered: &[u8], values: &mut [f32]) -> Result<()> {
        let (grid, width, size) = (self.grid, patch.columns.len().max(1), self.numbers.size());
        let Some((first, each)) = runs.first().map(|run| (run.start, run.len())) else { return Ok(()) };
        let by_column = grid.is_by_column();
        let mut bytes = Vec::with_capacity(width * size);
        for (row, values) in values.chunks_exact_mut(width).enumerate() {
            let index = |column| grid.at(patch.matrix, patch.rows.start + row, patch.columns.start + column);
            bytes.clear();
            for column in 0..values.len() {
                let at = match (runs.len(), by_column) {
                    (1, _) => index(column) - first,
                    (_, true) => column * each + row * grid.row,
                    (_, false) => row * each + column * grid.column,
                };
                bytes.extend_from_slice(gathered.get(at * size..(at + 1) * size).ok_or_else(missing)?);
            }
            match self.numbers {
                // Which of them they are counts.
                Numbers::Nested { .. } => {
                    for (column, (value, byte)) in values.iter_mut().zip(&bytes).enumerate() {
                        self.numbers.read(&[*byte], index(column), std::slice::from_mut(value))?;
                    }
                }
                _ => self.numbers.read(&bytes, 0, values)?,
            }
        }
        Ok(())
    }
}

/// Gaps up to this size in bytes are read with what is around them.
const READ_THROUGH: usize = 2 << 10;

/// The rows and columns of packed codes for a patch.
fn packed(patch: &Patch, across: bool) -> (&Range<usize>, &Range<usize>) {
    if across { (&patch.columns, &patch.rows) } else { (&patch.rows, &patch.columns) }
}

impl Numbers {
    /// The bytes of a number that is not packed.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Stored(dtype) => dtype.bits() as usize / 8,
            _ => 1,
        }
    }

    /// Reads numbers that lie side by side, of which the first is number `first`.
    fn read(&self, bytes: &[u8], first: usize, out: &mut [f32]) -> Result<()> {
        match self {
            Self::Stored(dtype) => cast_into(*dtype, bytes, out)?,
            Self::Bytes(map) => {
                out.iter_mut().zip(bytes).for_each(|(out, &byte)| *out = map[usize::from(byte)]);
            }
            Self::Nested { map, scales, block, offset } => {
                for ((number, &byte), out) in (first..).zip(bytes).zip(out) {
                    let scale = scales.get(number / (*block).max(1)).copied().ok_or_else(missing)?;
                    *out = map[usize::from(byte)] * scale + offset;
                }
            }
            Self::Packed { .. } => return Err(missing()),
        }
        Ok(())
    }
}

fn missing() -> Error {
    Error::new(ErrorKind::Internal, "the scales of a tile were not gathered")
}
