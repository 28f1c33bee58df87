//! The products of all pairs of columns.

use std::ops::Range;

use super::each;
use crate::cast::{Instructions, Work};

/// Columns of a tile on either side, whose sums stay in registers.
const FEW: usize = 4;
const MANY: usize = 8;

/// Rows that are read at a time, so that they stay in the cache.
const BLOCK: usize = 256;

/// `Vᵀ V` of a matrix of so many columns, in `F64`: symmetric, row by row.
pub(crate) fn gram(values: &[f32], columns: usize) -> Vec<f64> {
    let mut out = vec![0.0; columns * columns];
    if columns == 0 {
        return out;
    }
    let instructions = Instructions::detect();
    let bands = out.chunks_mut(FEW * columns).enumerate();
    each(bands, values.len() * columns, |(number, out)| {
        let first = number * FEW;
        let rows = first..first + out.len() / columns;
        for values in values.chunks(BLOCK * columns) {
            instructions.run(Band { values, columns, rows: rows.clone(), out });
        }
    });
    // What was left out.
    for row in 0..columns {
        for column in 0..row {
            out[row * columns + column] = out[column * columns + row];
        }
    }
    out
}

/// A few rows of the result, from the diagonal on.
struct Band<'v> {
    values: &'v [f32],
    columns: usize,
    rows: Range<usize>,
    out: &'v mut [f64],
}

impl Work for Band<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { values, columns, rows, out } = self;
        for start in (rows.start..columns).step_by(MANY) {
            let width = (columns - start).min(MANY);
            let mut sums = [[0.0_f64; MANY]; FEW];
            for line in values.chunks_exact(columns) {
                let (mut few, mut many) = ([0.0_f64; FEW], [0.0_f64; MANY]);
                match line[start..].first_chunk::<MANY>() {
                    Some(line) => many = line.map(f64::from),
                    None => {
                        line[start..].iter().zip(&mut many).for_each(|(from, to)| *to = f64::from(*from));
                    }
                }
                line[rows.clone()].iter().zip(&mut few).for_each(|(from, to)| *to = f64::from(*from));
                for row in 0..FEW {
                    for lane in 0..MANY {
                        sums[row][lane] += few[row] * many[lane];
                    }
                }
            }
            for (sums, out) in sums.iter().zip(out.chunks_exact_mut(columns)) {
                let out = &mut out[start..start + width];
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pair_of_columns_has_its_product() {
        for (rows, columns) in [(1, 1), (7, 3), (300, 13), (600, 21)] {
            let values: Vec<_> = (0..rows * columns).map(|at| ((at * 37 + 11) % 101) as f32 - 50.0).collect();
            let made = gram(&values, columns);
            for one in 0..columns {
                for other in 0..columns {
                    let of = |row: usize, column: usize| f64::from(values[row * columns + column]);
                    let wanted: f64 = (0..rows).map(|row| of(row, one) * of(row, other)).sum();
                    assert!((made[one * columns + other] - wanted).abs() < 1e-6, "{one} {other}");
                }
            }
        }
    }
}
