//! Products of a large matrix with a narrow one.

use crate::newer_std::as_chunks;
use std::ops::Range;

use super::each;
use crate::cast::{Instructions, Work};

/// A matrix, or the transpose of one.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'v> {
    values: &'v [f32],
    rows: usize,
    columns: usize,
    is_transposed: bool,
}

/// Rows and columns of a tile, whose sums stay in registers.
const ROWS: usize = 6;
const COLUMNS: usize = 16;

/// Rows of a block that a thread makes at a time, and how many terms of their sums are added at a time.
const BLOCK: usize = 16 * ROWS;
const DEPTH: usize = 256;

impl<'v> Matrix<'v> {
    /// The matrix of so many columns that has these values row by row.
    pub(crate) fn new(values: &'v [f32], columns: usize) -> Self {
        Self { values, rows: values.len() / columns.max(1), columns, is_transposed: false }
    }

    /// Its transpose.
    pub(crate) fn transposed(self) -> Self {
        let Self { values, rows, columns, is_transposed } = self;
        Self { values, rows: columns, columns: rows, is_transposed: !is_transposed }
    }

    /// Some of its values in the order in which tiles need them: of the first `ROWS` rows column by column, then of the next.
    /// Rows beyond the last are zero.
    fn pack(&self, rows: &Range<usize>, columns: &Range<usize>, packed: &mut Vec<f32>) {
        packed.clear();
        packed.resize(rows.len().div_ceil(ROWS) * ROWS * columns.len(), 0.0);
        let tile = ROWS * columns.len();
        if self.is_transposed {
            // Stored as [columns, rows].
            for (depth, column) in columns.clone().enumerate() {
                let line = &self.values[column * self.rows..][rows.clone()];
                for (number, values) in line.chunks(ROWS).enumerate() {
                    packed[number * tile + depth * ROWS..][..values.len()].copy_from_slice(values);
                }
            }
        } else {
            for (number, row) in rows.clone().enumerate() {
                let line = &self.values[row * self.columns..][columns.clone()];
                let into = packed[number / ROWS * tile + number % ROWS..].iter_mut().step_by(ROWS);
                line.iter().zip(into).for_each(|(value, into)| *into = *value);
            }
        }
    }
}

/// The product with a matrix of so many columns, row by row.
pub(crate) fn product(left: Matrix<'_>, right: &[f32], columns: usize) -> Vec<f32> {
    let (rows, depth) = (left.rows, left.columns);
    let mut out = vec![0.0; rows * columns];
    if out.is_empty() || depth == 0 {
        return out;
    }
    let panels = panels(right, depth, columns);
    let instructions = Instructions::detect();
    let blocks = out.chunks_mut(BLOCK * columns).enumerate();
    each(blocks, rows * depth * columns, |(number, out)| {
        let first = number * BLOCK;
        let rows = first..first + out.len() / columns;
        let mut packed = Vec::new();
        for start in (0..depth).step_by(DEPTH) {
            let depths = start..depth.min(start + DEPTH);
            left.pack(&rows, &depths, &mut packed);
            instructions.run(Block { packed: &packed, panels: &panels, depth, depths, out, columns });
        }
    });
    out
}

/// A matrix in panels of `COLUMNS` columns, each row by row; columns beyond the last are zero.
fn panels(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut panels = vec![0.0; columns.div_ceil(COLUMNS) * COLUMNS * rows];
    for (panel, start) in panels.chunks_exact_mut(rows * COLUMNS).zip((0..columns).step_by(COLUMNS)) {
        let len = (columns - start).min(COLUMNS);
        for (into, values) in panel.chunks_exact_mut(COLUMNS).zip(values.chunks_exact(columns)) {
            into[..len].copy_from_slice(&values[start..start + len]);
        }
    }
    panels
}

/// Adds a block of rows times some rows of all panels to `out`.
struct Block<'p> {
    packed: &'p [f32],
    panels: &'p [f32],
    /// Rows of a panel, and those that are wanted.
    depth: usize,
    depths: Range<usize>,
    out: &'p mut [f32],
    columns: usize,
}

impl Work for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { packed, panels, depth, depths, out, columns } = self;
        for (number, panel) in panels.chunks_exact(depth * COLUMNS).enumerate() {
            let panel = &panel[depths.start * COLUMNS..depths.end * COLUMNS];
            let (start, len) = (number * COLUMNS, (columns - number * COLUMNS).min(COLUMNS));
            for (packed, out) in packed.chunks_exact(ROWS * depths.len()).zip(out.chunks_mut(ROWS * columns))
            {
                let sums = tile(packed, panel);
                for (sums, out) in sums.iter().zip(out.chunks_exact_mut(columns)) {
                    let out = &mut out[start..start + len];
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                }
            }
        }
    }
}

#[inline(always)]
fn tile(left: &[f32], right: &[f32]) -> [[f32; COLUMNS]; ROWS] {
    let mut sums = [[0.0_f32; COLUMNS]; ROWS];
    let (left, _) = as_chunks::<ROWS, _>(left);
    let (right, _) = as_chunks::<COLUMNS, _>(right);
    for (left, right) in left.iter().zip(right) {
        for row in 0..ROWS {
            for lane in 0..COLUMNS {
                sums[row][lane] += left[row] * right[lane];
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::transpose;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn products_are_those_of_the_definition() {
        for (rows, depth, columns) in [(1, 1, 1), (5, 3, 2), (97, 300, 17), (200, 515, 33), (6, 256, 16)] {
            let (left, right) = (numbers(rows * depth, 1), numbers(depth * columns, 2));
            let made = product(Matrix::new(&left, depth), &right, columns);
            let turned = transpose(&left, depth);
            let also = product(Matrix::new(&turned, rows).transposed(), &right, columns);
            assert_eq!(made, also);
            for row in 0..rows {
                for column in 0..columns {
                    let terms = (0..depth).map(|at| {
                        f64::from(left[row * depth + at]) * f64::from(right[at * columns + column])
                    });
                    let wanted: f64 = terms.sum();
                    assert!((f64::from(made[row * columns + column]) - wanted).abs() < 1e-4);
                }
            }
        }
    }
}
