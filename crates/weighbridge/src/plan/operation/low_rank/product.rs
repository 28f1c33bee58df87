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

/// Columns that are made at a time: their sums stay in registers.
const COLUMNS: usize = 16;

impl Work for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { values, start, width, first, factors } = self;
        let (mut rest, mut row, mut column) = (values, first, start);
        while !rest.is_empty() {
            let count = (width - column).min(rest.len());
            let (values, behind) = std::mem::take(&mut rest).split_at_mut(count);
            for Factors { start, count, rank, left, right, scale } in factors {
                let Some(own) = row.checked_sub(*start).filter(|own| own < count) else { continue };
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
