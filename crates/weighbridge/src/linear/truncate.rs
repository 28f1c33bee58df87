//! The product of low rank that is nearest to a matrix.
//!
//! A small matrix is taken apart exactly, by the products of its rows. For a large one a few random combinations of its columns, each
//! multiplied by the matrix and its transpose again, span what is large in it (Halko, Martinsson, Tropp, arXiv:0909.4061,
//! algorithms 4.4 and 5.1).

use super::{Cholesky, Matrix, eigen, gram, product, transpose};
use crate::newer_std::as_chunks;

/// How large a product may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    /// The most rank.
    pub(crate) rank: usize,
    /// Of the sum of squares, what is enough.
    pub(crate) energy: f64,
}

/// `B A`, with `B` of shape `[rows, rank]` and `A` of shape `[rank, columns]`, both of the same size.
#[derive(Debug)]
pub(crate) struct Product {
    pub(crate) rank: usize,
    pub(crate) up: Vec<f32>,
    pub(crate) down: Vec<f32>,
    /// Of the matrix and of the product, the sums of the squares of all elements.
    pub(crate) total: f64,
    pub(crate) captured: f64,
}

impl Limit {
    /// How many of the singular values, whose squares these are, largest first, are kept of a matrix with such a sum of squares.
    pub(crate) fn keep(&self, squares: &[f64], total: f64) -> usize {
        /// What is smaller beside the largest is what rounding left.
        const SMALL: f64 = 1e-14;
        let least = squares.first().map_or(0.0, |first| first * SMALL);
        let mut sum = 0.0;
        let needed = squares.iter().take(self.rank).take_while(|square| {
            let is_needed = **square > least && sum < self.energy * total;
            sum += **square;
            is_needed
        });
        needed.count()
    }
}

/// The nearest product to a matrix of so many columns; of rank zero if all is zero. `None` if a number is not finite, or too large
/// for products of `F32`.
pub(crate) fn truncate(values: &[f32], columns: usize, limit: Limit) -> Option<Product> {
    let rows = values.len() / columns.max(1);
    let total = squares(values);
    if !total.is_finite() {
        return None;
    }
    if total == 0.0 || limit.rank == 0 {
        return Some(Product { rank: 0, up: Vec::new(), down: Vec::new(), total, captured: 0.0 });
    }
    let short = rows.min(columns);
    let width = limit.rank.saturating_add(8 + limit.rank / 8);
    let (basis, across) = if short <= width.saturating_add(width / 2) {
        (None, if rows < columns { transpose(values, columns) } else { values.to_vec() })
    } else {
        let (basis, across) = span(values, columns, width, total)?;
        (Some(basis), across)
    };
    // The columns of `across`, times the basis on the other side, are the matrix.
    let count = across.len() / if basis.is_none() { rows.max(columns) } else { columns };
    let (squares, vectors) = eigen(&gram(&across, count), count)?;
    let rank = limit.keep(&squares, total);
    let captured = squares.iter().take(rank).sum();
    let rotation: Vec<f32> = vectors.iter().take(rank * count).map(|value| *value as f32).collect();
    let turned = transpose(&rotation, count);
    let long = product(Matrix::new(&across, count), &turned, rank);
    let other = match &basis {
        Some(basis) => product(Matrix::new(basis, count), &turned, rank),
        None => turned,
    };
    // `long` has the singular values, `other` has columns of length one.
    let is_of_columns = basis.is_some() || rows < columns;
    let (mut up, across) = if is_of_columns { (other, long) } else { (long, other) };
    let mut down = transpose(&across, rank);
    for (number, square) in squares.iter().take(rank).enumerate() {
        let root = square.sqrt().sqrt() as f32;
        let (grow, shrink) = if is_of_columns { (root, 1.0 / root) } else { (1.0 / root, root) };
        up.iter_mut().skip(number).step_by(rank).for_each(|value| *value *= grow);
        down[number * columns..][..columns].iter_mut().for_each(|value| *value *= shrink);
    }
    let is_finite = up.iter().chain(&down).all(|value| value.is_finite());
    is_finite.then_some(Product { rank, up, down, total, captured })
}

/// A basis `Q` of what is large in a matrix, `[rows, count]`, and `Mᵀ Q`, `[columns, count]`.
fn span(values: &[f32], columns: usize, width: usize, total: f64) -> Option<(Vec<f32>, Vec<f32>)> {
    /// More change nothing that could be told apart from rounding.
    const MOST: usize = 4;
    let matrix = Matrix::new(values, columns);
    let mut start = random(columns * width);
    let (mut count, mut before) = (width, 0.0);
    for turn in 1.. {
        let (basis, rank) = orthonormal(product(matrix, &start, count), count)?;
        let across = product(matrix.transposed(), &basis, rank);
        let captured = squares(&across);
        let (left, gained) = (total - captured, captured - before);
        // All of it, or as much as a basis of this size can have.
        let is_enough = left <= 1e-12 * total || (turn > 2 && gained <= 2e-3 * left);
        if is_enough || turn == MOST {
            return Some((basis, across));
        }
        before = captured;
        (start, count) = orthonormal(across, rank)?;
    }
    None
}

/// A basis of the columns, and how many it has; `None` if a number is not finite.
fn orthonormal(mut values: Vec<f32>, mut count: usize) -> Option<(Vec<f32>, usize)> {
    // Once more, as the first time rounding leaves them a little off.
    for _ in 0..2 {
        let factors = Cholesky::new(&gram(&values, count), count)?;
        let (inverse, rank) = (factors.inverse(), factors.rank());
        let mut turned = vec![0.0_f32; count * rank];
        for (place, &pivot) in factors.pivots.iter().enumerate() {
            for column in place..rank {
                turned[pivot * rank + column] = inverse[column * rank + place] as f32;
            }
        }
        values = product(Matrix::new(&values, count), &turned, rank);
        count = rank;
    }
    Some((values, count))
}

/// The sum of the squares, in an order of its own.
pub(crate) fn squares(values: &[f32]) -> f64 {
    let square = |value: f32| f64::from(value) * f64::from(value);
    let blocks = values.chunks(4096).map(|values| {
        let mut sums = [0.0_f64; 8];
        let (eights, rest) = as_chunks::<8, _>(values);
        for eight in eights {
            sums.iter_mut().zip(eight).for_each(|(sum, value)| *sum += square(*value));
        }
        sums.iter_mut().zip(rest).for_each(|(sum, value)| *sum += square(*value));
        sums.iter().sum::<f64>()
    });
    blocks.sum()
}

/// Numbers between -1 and 1 that are always the same.
fn random(count: usize) -> Vec<f32> {
    let number = |at: usize| {
        // SplitMix64 (Steele, Lea, Flood 2014).
        let mut state = (at as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((state ^ (state >> 31)) >> 40) as f32 / 8_388_608.0 - 1.0
    };
    (0..count).map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix whose singular values are known but for rounding: products of random bases.
    fn matrix(rows: usize, columns: usize, values: &[f64]) -> Vec<f32> {
        let count = values.len();
        let (left, _) = orthonormal(random(rows * count), count).unwrap();
        let (right, _) = orthonormal(random((columns + 7) * count)[7 * count..].to_vec(), count).unwrap();
        let scaled: Vec<f32> =
            left.iter().enumerate().map(|(at, value)| value * values[at % count] as f32).collect();
        product(Matrix::new(&scaled, count), &transpose(&right, count), columns)
    }

    fn error(values: &[f32], columns: usize, made: &Product) -> f64 {
        let product = product(Matrix::new(&made.up, made.rank), &made.down, columns);
        let left: Vec<_> = values.iter().zip(&product).map(|(one, other)| one - other).collect();
        squares(&left).sqrt()
    }

    #[test]
    fn what_is_left_is_hardly_more_than_it_must_be() {
        let slow = |at: usize| 1.0 / (1.0 + at as f64).sqrt();
        let fast = |at: usize| 0.7_f64.powf(at as f64);
        let flat = |_: usize| 1.0;
        for (name, of) in [("slow", &slow as &dyn Fn(usize) -> f64), ("fast", &fast), ("flat", &flat)] {
            for (rows, columns) in [(150, 90), (90, 150), (120, 20), (20, 120), (300, 200)] {
                let all: Vec<_> = (0..rows.min(columns)).map(of).collect();
                let values = matrix(rows, columns, &all);
                for rank in [1, 4, 16] {
                    let made = truncate(&values, columns, Limit { rank, energy: 1.0 }).unwrap();
                    assert_eq!(made.rank, rank);
                    let best = all[rank..].iter().map(|value| value * value).sum::<f64>().sqrt();
                    let left = error(&values, columns, &made);
                    assert!(left <= 1.02 * best + 1e-5, "{name} {rows} {columns} {rank}: {left} of {best}");
                    let told = (made.total - made.captured).max(0.0).sqrt();
                    assert!((told - left).abs() < 2e-2 * best + 2e-3, "{told} {left}");
                }
            }
        }
    }

    #[test]
    fn a_product_comes_back() {
        let values = matrix(400, 300, &[5.0, 3.0, 1.0]);
        let made = truncate(&values, 300, Limit { rank: 3, energy: 1.0 }).unwrap();
        assert_eq!(made.rank, 3);
        assert!(error(&values, 300, &made) < 1e-5);
        // A larger rank is no worse, and enough of it is enough.
        let more = truncate(&values, 300, Limit { rank: 64, energy: 1.0 }).unwrap();
        assert!(error(&values, 300, &more) < 1e-5);
        let less = truncate(&values, 300, Limit { rank: 64, energy: 0.9 }).unwrap();
        assert_eq!(less.rank, 2);
    }

    #[test]
    fn what_is_odd_has_its_answer() {
        let limit = Limit { rank: 8, energy: 1.0 };
        assert_eq!(truncate(&[0.0; 600], 30, limit).unwrap().rank, 0);
        assert_eq!(truncate(&[], 30, limit).unwrap().rank, 0);
        assert!(truncate(&[f32::NAN; 600], 30, limit).is_none());
        assert!(truncate(&[f32::INFINITY; 600], 30, limit).is_none());
        let one = truncate(&[3.0; 1], 1, limit).unwrap();
        assert_eq!((one.rank, one.up[0] * one.down[0]), (1, 3.0));
        let ones = truncate(&[2.0; 40_000], 200, limit).unwrap();
        assert_eq!(ones.rank, 1);
        assert!((ones.up[7] * ones.down[9] - 2.0).abs() < 1e-5);
        let large = truncate(&[1e37; 40_000], 200, limit);
        assert!(large.is_none_or(|made| made.up.iter().all(|value| value.is_finite())));
    }
}
