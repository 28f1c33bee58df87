//! How dense weights are made, and which stored bytes some of them need.

use std::ops::Range;
use std::sync::Arc;

use super::codes::{Codes, Packing, STRIP};
use super::companion::{Companion, Numbers, Patch};
use crate::dtype::Dtype;
use crate::plan::Piece;

/// How dense weights are made: `(value - zero) * (scale * second) * last + bias - shift`, times the factor of the column, in
/// `F32` in this order.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    /// The weights as matrices, which the output is whatever its shape.
    pub(crate) matrices: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Of the first input.
    pub(crate) codes: Codes,
    /// Whether rows of codes are columns of weights.
    pub(crate) across: bool,
    pub(crate) value: Value,
    pub(crate) zero: Option<Companion>,
    pub(crate) scale: Option<Companion>,
    /// Times the scale, or its divisor, before that is used.
    pub(crate) second: Option<(Companion, Second)>,
    /// Times the result.
    pub(crate) last: Option<f32>,
    pub(crate) bias: Option<Companion>,
    /// The same, but it is subtracted.
    pub(crate) shift: Option<Companion>,
    /// The dtype in which the library that made it computes, and rounds after each step: if that is what is asked for, so
    /// it is done here.
    pub(crate) rounded: Option<Dtype>,
    /// One for each column: times the result.
    pub(crate) factor: Option<Companion>,
    /// The group of each column, where they are in no order.
    pub(crate) groups: Option<Groups>,
}

/// What a code stands for.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// Itself, and this.
    Number(i16),
    /// A number of two's complement, of so many bits as codes have.
    Signed,
    /// What a table says.
    Table(Arc<[f32; 256]>),
    /// An `F8_E4M3`.
    E4M3,
    /// An `E2M1`.
    E2M1,
}

/// The group of each column.
#[derive(Clone, Debug)]
pub(crate) struct Groups {
    pub(crate) of_column: Arc<[u32]>,
    pub(crate) count: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Second {
    Factor,
    Divisor,
}

/// Rows of one matrix, of which the first and last may be cut, and only some columns.
#[derive(Clone, Debug)]
pub(super) struct Band {
    pub(super) matrix: usize,
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
    /// Columns that are left out of the first row, and of the last one.
    pub(super) head: usize,
    pub(super) tail: usize,
}

/// What is gathered for a band.
pub(super) struct Gathered<'r> {
    pub(super) recipe: &'r Recipe,
    pub(super) band: Band,
    pub(super) codes: Patch,
    pub(super) companions: Vec<(&'r Companion, Patch)>,
}

/// So many bytes of codes that are stored across rows are gathered together, so that tiles next to each other find theirs
/// gathered already: less where rows of words are long, so that they stay in the second-level cache.
const BLOCK: usize = 4 << 20;
const BLOCK_DOWN: usize = 2 << 20;

impl Recipe {
    /// Weights `[rows, columns]`, several of them behind one another, that are what their codes stand for.
    pub(crate) fn new([matrices, rows, columns]: [usize; 3], codes: Codes, value: Value) -> Self {
        Self {
            matrices,
            rows,
            columns,
            codes,
            across: false,
            value,
            zero: None,
            scale: None,
            second: None,
            last: None,
            bias: None,
            shift: None,
            rounded: None,
            factor: None,
            groups: None,
        }
    }

    /// Whether all that it reads is in inputs of these lengths.
    pub(super) fn is_sound(&self, lens: &[u64]) -> bool {
        let Self { matrices, rows, columns, ref codes, .. } = *self;
        let (code_rows, code_columns) = if self.across { (columns, rows) } else { (rows, columns) };
        let has = |input: usize, len: Option<usize>| {
            len.is_some_and(|len| lens.get(input).is_some_and(|&there| len as u64 <= there))
        };
        let groups = self.groups.as_ref();
        let in_order = groups.is_none_or(|groups| {
            groups.of_column.len() == columns
                && groups.of_column.iter().all(|&group| (group as usize) < groups.count)
        });
        let has_companion = |companion: &Companion| {
            let Companion { input, numbers, grid } = companion;
            let across = match groups {
                Some(groups) if grid.across != usize::MAX => groups.count,
                _ => columns.div_ceil(grid.across.max(1)),
            };
            let down = rows.div_ceil(grid.down.max(1));
            match numbers {
                Numbers::Packed { codes, across: by_column, .. } => {
                    let (rows, columns) = if *by_column { (across, down) } else { (down, across) };
                    let len = codes.matrix_len().checked_mul(matrices);
                    codes.is_sound() && codes.rows >= rows && codes.columns >= columns && has(*input, len)
                }
                numbers => {
                    let last = grid.last(matrices, rows, across);
                    let len = last.and_then(|last| last.checked_add(1)?.checked_mul(numbers.size()));
                    let nested = match numbers {
                        Numbers::Nested { scales, block, .. } => {
                            *block > 0 && last.is_some_and(|last| last / block < scales.len())
                        }
                        Numbers::Stored(dtype) => dtype.bits() % 8 == 0,
                        _ => true,
                    };
                    nested && has(*input, len)
                }
            }
        };
        codes.is_sound()
            && codes.rows >= code_rows
            && codes.columns >= code_columns
            && has(0, codes.matrix_len().checked_mul(matrices))
            && matrices.checked_mul(rows).and_then(|all| all.checked_mul(columns)).is_some()
            && in_order
            && self.companions().all(has_companion)
    }

    /// Rows that have their codes gathered together.
    fn block(&self) -> usize {
        if !self.across {
            return 1;
        }
        let row = (self.codes.matrix_len() / self.rows.max(1)).max(1);
        let block = if self.codes.packing == Packing::Down { BLOCK_DOWN } else { BLOCK };
        (block / row).max(STRIP) / STRIP * STRIP
    }

    /// All companions, in the order in which they are gathered.
    pub(super) fn companions(&self) -> impl Iterator<Item = &Companion> {
        let second = self.second.as_ref().map(|(second, _)| second);
        [
            self.zero.as_ref(),
            self.scale.as_ref(),
            second,
            self.bias.as_ref(),
            self.shift.as_ref(),
            self.factor.as_ref(),
        ]
        .into_iter()
        .flatten()
    }

    /// The groups that companions have, if they are in no order.
    fn group_count(&self) -> Option<usize> {
        self.groups.as_ref().map(|groups| groups.count)
    }

    pub(super) fn gathered(&self, band: Band) -> Gathered<'_> {
        let Band { matrix, ref rows, ref columns, .. } = band;
        let codes = match self.across {
            true => {
                let block = self.block();
                let start = rows.start / block * block;
                let wide = start..rows.end.div_ceil(block).saturating_mul(block).min(self.rows);
                Patch { matrix, rows: columns.clone(), columns: wide }
            }
            false => Patch { matrix, rows: rows.clone(), columns: columns.clone() },
        };
        let companions = self
            .companions()
            .map(|companion| (companion, companion.patch(matrix, rows, columns, self.group_count())));
        Gathered { recipe: self, companions: companions.collect(), codes, band }
    }

    /// The bands that ranges of elements are; those of the same columns in rows that follow each other are one.
    pub(super) fn bands(&self, ranges: impl Iterator<Item = Range<u64>>) -> Vec<Band> {
        let (width, each) = (self.columns as u64, (self.rows * self.columns) as u64);
        let mut bands: Vec<Band> = Vec::new();
        let plane = if self.across { usize::MAX } else { self.codes.plane() };
        for Range { mut start, end } in ranges {
            while start < end && each > 0 {
                let matrix = start / each;
                let (row, column) = ((start % each / width) as usize, (start % width) as usize);
                // As far as the plane and the matrix go.
                let most_rows = (row / plane + 1).saturating_mul(plane).min(self.rows);
                let until = end.min(matrix * each + most_rows as u64 * width);
                let last = (((until - 1) % each) / width) as usize;
                let tail = (width - 1 - (until - 1) % width) as usize;
                let band = match last == row {
                    true => Band {
                        matrix: matrix as usize,
                        rows: row..row + 1,
                        columns: column..self.columns - tail,
                        head: 0,
                        tail: 0,
                    },
                    false => Band {
                        matrix: matrix as usize,
                        rows: row..last + 1,
                        columns: 0..self.columns,
                        head: column,
                        tail,
                    },
                };
                start = until;
                match bands.last_mut() {
                    Some(before)
                        if before.matrix == band.matrix
                            && before.columns == band.columns
                            && before.rows.end == band.rows.start
                            && band.rows.start % plane != 0
                            && before.tail == 0
                            && band.head == 0 =>
                    {
                        before.rows.end = band.rows.end;
                        before.tail = band.tail;
                    }
                    _ => bands.push(band),
                }
            }
        }
        bands
    }
}

impl Gathered<'_> {
    pub(super) fn ranges(&self, pieces: &mut Vec<Piece>) {
        let Self { recipe, codes: Patch { matrix, rows, columns }, .. } = self;
        let place = recipe.codes.place(rows, columns);
        let base = (matrix * recipe.codes.matrix_len()) as u64;
        recipe.codes.ranges(&place, base, &mut |bytes| pieces.push(Piece { input: 0, bytes }));
        for (companion, patch) in &self.companions {
            companion.ranges(patch, |bytes| pieces.push(Piece { input: companion.input, bytes }));
        }
    }
}
