//! Scales, zero points and biases: which of them belongs to a row and a column.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use super::codes::{Codes, Window};
use crate::cast::{Kernel, Overflow};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};

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
                for (first, count, _) in self.runs(patch) {
                    out((first * size) as u64..((first + count) * size) as u64);
                }
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
            numbers => self.runs(patch).map(|(_, count, _)| count * numbers.size()).sum(),
        }
    }

    /// Runs of numbers that are stored side by side: the first, how many, and the places of the first and the next in the
    /// patch.
    fn runs(&self, patch: &Patch) -> impl Iterator<Item = (usize, usize, (usize, usize))> + use<> {
        let Patch { matrix, rows, columns } = patch.clone();
        let (grid, width) = (self.grid, columns.len());
        let is_whole = grid.column == 1 && (grid.row == width || rows.len() == 1);
        let by_column = grid.row == 1 && rows.len() > 1 && width > 0;
        let count = match (is_whole, by_column) {
            (true, _) => 1,
            (_, true) => width,
            _ if grid.column == 1 => rows.len(),
            _ => rows.len() * width,
        };
        (0..count).map(move |number| {
            let at = |row: usize, column: usize| grid.at(matrix, rows.start + row, columns.start + column);
            match (is_whole, by_column) {
                (true, _) => (at(0, 0), rows.len() * width, (0, 1)),
                (_, true) => (at(0, number), rows.len(), (number, width)),
                _ if grid.column == 1 => (at(number, 0), width, (number * width, 1)),
                _ => (at(number / width.max(1), number % width.max(1)), 1, (number, 1)),
            }
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
                let mut stored = Vec::new();
                let mut rest = gathered;
                for (first, count, (place, step)) in self.runs(patch) {
                    let (bytes, behind) =
                        rest.split_at_checked(count * numbers.size()).ok_or_else(missing)?;
                    rest = behind;
                    numbers.read(bytes, first, &mut stored)?;
                    for (at, &value) in stored.iter().enumerate() {
                        *values.get_mut(place + at * step).ok_or_else(missing)? = value;
                    }
                }
            }
        }
        Ok(Values { values, first_row: patch.rows.start, columns: width, down: self.grid.down })
    }
}

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

    /// Numbers that lie side by side, of which the first is number `first`.
    fn read(&self, bytes: &[u8], first: usize, out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        match self {
            Self::Stored(dtype) => {
                let count = bytes.len() / self.size().max(1);
                let kernel = Kernel::of(*dtype, Dtype::F32, Overflow::Infinity).ok_or_else(missing)?;
                let mut room = vec![MaybeUninit::uninit(); count * 4];
                let made = kernel.run(bytes, &mut room)?;
                let values = made.chunks_exact(4);
                out.extend(values.map(|value| f32::from_ne_bytes([value[0], value[1], value[2], value[3]])));
            }
            Self::Bytes(map) => out.extend(bytes.iter().map(|&byte| map[usize::from(byte)])),
            Self::Nested { map, scales, block, offset } => {
                for (number, &byte) in (first..).zip(bytes) {
                    let scale = scales.get(number / (*block).max(1)).copied().ok_or_else(missing)?;
                    out.push(map[usize::from(byte)] * scale + offset);
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
