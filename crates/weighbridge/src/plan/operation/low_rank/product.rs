//! The loops: products of rows of one factor with the other.

use crate::cast::Work;

/// The factors of a term, for some rows: `left` is `[count, rank]`, `right` is `[rank, columns]`; of a rank of zero,
/// `right` is `[count, columns]` and what is added itself.
pub(super) struct Factors {
    /// The row of the tile that its first one is added to.
    pub(super) start: usize,
    pub(super) count: usize,
    pub(super) rank: usize,
    pub(super) left: Vec<f32>,
    pub(super) right: Vec<f32>,
    pub(super) scale: f32,
}

/// Values of rows, which factors are added to.
pub(super) struct Rows<'v> {
    pub(super) values: &'v mut [f32],
    /// The column of the first one.
    pub(super) start: usize,
    pub(super) width: usize,
    /// The row of the tile that it is in.
    pub(super) first: usize,
    pub(super) factors: &'v [Factors],
}

/// Rows that are made at a time.
pub(super) const ROWS: usize = 4;

/// Columns that are made at a time: their sums stay in registers.
const COLUMNS: usize = 16;

impl Work for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { values, start, width, first, factors } = self;
        if start == 0 && values.len() == ROWS * width {
            // A block of whole rows: what is in all of them is read once for all.
            for factors in factors {
                let Factors { start, count, rank, left, right, scale } = factors;
                let own = first.checked_sub(*start).filter(|own| *rank > 0 && own + ROWS <= *count);
                match own.and_then(|own| left.get(own * rank..(own + ROWS) * rank)) {
                    Some(left) => add_to_rows(values, left, right, width, *scale),
                    None => factors.add_row_by_row(values, 0, width, first),
                }
            }
            return;
        }
        factors.iter().for_each(|factors| factors.add_row_by_row(values, start, width, first));
    }
}

impl Factors {
    #[inline(always)]
    fn add_row_by_row(&self, values: &mut [f32], start: usize, width: usize, first: usize) {
        let Self { start: own_start, count, rank, left, right, scale } = self;
        let (mut rest, mut row, mut column) = (values, first, start);
        while !rest.is_empty() {
            let len = (width - column).min(rest.len());
            let (values, behind) = std::mem::take(&mut rest).split_at_mut(len);
            if let Some(own) = row.checked_sub(*own_start).filter(|own| own < count) {
                match rank {
                    0 => {
                        let full = right.get(own * width + column..).unwrap_or_default();
                        values.iter_mut().zip(full).for_each(|(value, full)| *value += scale * full);
                    }
                    _ => {
                        let left = left.get(own * rank..(own + 1) * rank).unwrap_or_default();
                        add(values, left, right, width, column, *scale);
                    }
                }
            }
            (rest, row, column) = (behind, row + 1, 0);
        }
    }
}

/// Adds `scale` times the product of rows and a matrix to whole rows: for each few columns one line of the matrix goes
/// into the sums of all rows.
#[inline(always)]
fn add_to_rows(values: &mut [f32], left: &[f32], right: &[f32], width: usize, scale: f32) {
    let rank = left.len() / ROWS;
    let whole = width / COLUMNS * COLUMNS;
    for column in (0..whole).step_by(COLUMNS) {
        let mut sums = [[0.0_f32; COLUMNS]; ROWS];
        for (number, line) in right.chunks_exact(width).enumerate() {
            let Some(line) = line[column..].first_chunk::<COLUMNS>() else { continue };
            for row in 0..ROWS {
                let factor = left[row * rank + number];
                for lane in 0..COLUMNS {
                    sums[row][lane] += factor * line[lane];
                }
            }
        }
        for row in 0..ROWS {
            let values = &mut values[row * width + column..][..COLUMNS];
            for lane in 0..COLUMNS {
                values[lane] += scale * sums[row][lane];
            }
        }
    }
    for (values, left) in values.chunks_exact_mut(width).zip(left.chunks_exact(rank)) {
        add(&mut values[whole..], left, right, width, whole, scale);
    }
}

/// Adds `scale` times the product of a row and a matrix, from a column on.
#[inline(always)]
fn add(values: &mut [f32], left: &[f32], right: &[f32], width: usize, column: usize, scale: f32) {
    for (values, column) in values.chunks_mut(COLUMNS).zip((column..).step_by(COLUMNS)) {
        let mut sums = [0.0_f32; COLUMNS];
        let lines = right.chunks_exact(width).map(|line| line.get(column..).unwrap_or_default());
        for (factor, line) in left.iter().zip(lines) {
            match line.first_chunk::<COLUMNS>() {
                Some(line) => {
                    for lane in 0..COLUMNS {
                        sums[lane] += factor * line[lane];
                    }
                }
                None => sums.iter_mut().zip(line).for_each(|(sum, value)| *sum += factor * value),
            }
        }
        values.iter_mut().zip(sums).for_each(|(value, sum)| *value += scale * sum);
    }
}

/// Makes a row so long.
pub(super) fn set_length(values: &mut [f32], length: f32) {
    let squares: f64 = values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
    let factor = (f64::from(length) / squares.sqrt()) as f32;
    values.iter_mut().for_each(|value| *value *= factor);
}
