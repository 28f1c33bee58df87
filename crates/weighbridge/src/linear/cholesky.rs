//! A basis out of vectors that may depend on one another.

use std::cmp::Ordering;

/// `G = L Lᵀ` of a symmetric matrix without negative eigenvalues, largest pivots first.
///
/// Of a matrix of products `Vᵀ V` the pivots are columns of `V` that do not depend on those before them; all columns are
/// combinations of them.
pub(crate) struct Cholesky {
    /// The columns that were chosen, in their order.
    pub(crate) pivots: Vec<usize>,
    /// `L`, a row for each row of `G`, as long as there are pivots.
    pub(crate) lower: Vec<f64>,
}

/// A pivot so small beside the largest one is what rounding left.
const SMALL: f64 = 1e-13;

impl Cholesky {
    /// Of a matrix of so many rows and columns. `None` if a number is not finite.
    pub(crate) fn new(gram: &[f64], count: usize) -> Option<Self> {
        let mut lower = vec![0.0; count * count];
        let mut left: Vec<f64> = (0..count).map(|at| gram[at * count + at]).collect();
        if gram.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let least = left.iter().copied().fold(0.0, f64::max) * SMALL;
        let mut pivots = Vec::new();
        let mut free: Vec<_> = (0..count).collect();
        while let Some((place, &pivot)) =
            free.iter().enumerate().max_by(|(_, one), (_, other)| left[**one].total_cmp(&left[**other]))
        {
            if left[pivot].partial_cmp(&least) != Some(Ordering::Greater) {
                break;
            }
            free.remove(place);
            let (step, root) = (pivots.len(), left[pivot].sqrt());
            let own = lower[pivot * count..][..step].to_vec();
            lower[pivot * count + step] = root;
            for &row in &free {
                let line = &mut lower[row * count..][..=step];
                let dot: f64 = line.iter().zip(&own).map(|(one, other)| one * other).sum();
                let value = (gram[row * count + pivot] - dot) / root;
                line[step] = value;
                left[row] -= value * value;
            }
            pivots.push(pivot);
        }
        let rank = pivots.len();
        let lower = lower.chunks_exact(count.max(1)).flat_map(|line| line[..rank].to_vec()).collect();
        Some(Self { pivots, lower })
    }

    /// How many columns are independent.
    pub(crate) fn rank(&self) -> usize {
        self.pivots.len()
    }

    /// The inverse of the rows of `L` that belong to pivots, in their order: lower triangular.
    pub(crate) fn inverse(&self) -> Vec<f64> {
        let rank = self.rank();
        let mut inverse = vec![0.0; rank * rank];
        for row in 0..rank {
            let line = &self.lower[self.pivots[row] * rank..][..rank];
            let (done, rest) = inverse.split_at_mut(row * rank);
            let into = &mut rest[..rank];
            into[row] = 1.0;
            for (factor, above) in line[..row].iter().zip(done.chunks_exact(rank)) {
                into.iter_mut().zip(above).for_each(|(into, above)| *into -= factor * above);
            }
            into.iter_mut().for_each(|value| *value /= line[row]);
        }
        inverse
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependent_columns_are_found() {
        // The third column is the sum of the first two, the fourth is zero.
        let columns = [[1.0, 0.0, 2.0], [0.0, 3.0, 1.0], [1.0, 3.0, 3.0], [0.0; 3]];
        let dot = |a: [f64; 3], b: [f64; 3]| a.iter().zip(&b).map(|(a, b)| a * b).sum::<f64>();
        let gram: Vec<_> = (0..16).map(|at| dot(columns[at / 4], columns[at % 4])).collect();
        let made = Cholesky::new(&gram, 4).unwrap();
        assert_eq!((made.rank(), made.pivots[0]), (2, 2));
        let product = |row: usize, column: usize| -> f64 {
            (0..2).map(|at| made.lower[row * 2 + at] * made.lower[column * 2 + at]).sum()
        };
        for (at, wanted) in gram.iter().enumerate() {
            assert!((product(at / 4, at % 4) - wanted).abs() < 1e-12);
        }
        let inverse = made.inverse();
        for (row, column) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let sum: f64 =
                (0..2).map(|at| inverse[row * 2 + at] * made.lower[made.pivots[at] * 2 + column]).sum();
            assert!((sum - f64::from(u8::from(row == column))).abs() < 1e-12);
        }
        assert!(Cholesky::new(&[f64::NAN], 1).is_none());
        assert_eq!(Cholesky::new(&[0.0], 1).unwrap().rank(), 0);
    }
}
