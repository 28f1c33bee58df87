//! Products of low rank: that of what training changed, and that of an adapter at another rank.

use std::sync::Arc;

use super::AdapterModule;
use super::norm::floats;
use crate::buffer::HostBuffer;
use crate::checkpoint::TensorRef;
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::linear::{self, Cholesky, Limit, Matrix, eigen, gram, product, transpose};
use crate::plan::{Delta, Entry, Input, LowRank, Plan};
use crate::text::brief;

/// How much of a matrix a product keeps.
///
/// ```
/// use weighbridge::Truncation;
///
/// let most = Truncation::rank(32);
/// let fewer = Truncation::rank(32).energy(0.99); // as few as hold 99 % of it, 32 at most
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Truncation(Limit);

impl Truncation {
    /// So many of the largest singular values.
    pub fn rank(rank: usize) -> Self {
        Self(Limit { rank, energy: f64::INFINITY })
    }

    /// No more than are needed for this share of the sum of squares of all elements, from 0 to 1.
    #[must_use]
    pub fn energy(self, share: f64) -> Self {
        Self(Limit { energy: share, ..self.0 })
    }
}

/// A product `B A` that is nearly a matrix.
#[derive(Clone, Debug)]
pub struct LowRankProduct {
    pub(super) up: Vec<f32>,
    pub(super) down: Vec<f32>,
    pub(super) up_shape: Vec<usize>,
    pub(super) down_shape: Vec<usize>,
    rank: usize,
    total: f64,
    captured: f64,
}

impl LowRankProduct {
    /// The product that is nearest to what training changed: `tuned - base`.
    ///
    /// Both have shape `[outputs, inputs, ...]`, or `[inputs, outputs]` if they are stored the other way round (`is_transposed`: the
    /// `Conv1D` of GPT-2). The difference is computed in `F32` and kept in memory: 4 bytes an element. Its largest singular values
    /// are found by random projections (arXiv:0909.4061), or exactly where a side is not much longer than the rank. What comes out
    /// has the same bits whatever the number of threads.
    ///
    /// # Errors
    ///
    /// Fails when the two have different shapes, when one is no matrix or has no floats, and when the difference
    /// has numbers that are not finite.
    pub fn of_change(
        base: &TensorRef<'_>,
        tuned: &TensorRef<'_>,
        truncation: Truncation,
        is_transposed: bool,
    ) -> Result<Self> {
        let fail = |kind, message: String| {
            Err(tuned.shard().blame(Error::new(kind, message).in_tensor(tuned.name())))
        };
        let shape = tuned.shape();
        let (&[rows, ref rest @ ..], true) = (shape, shape.len() > 1 && (!is_transposed || shape.len() == 2))
        else {
            return fail(ErrorKind::Shape, format!("its shape {} is not that of a matrix", brief(shape)));
        };
        let change = Change::of(base, tuned)?;
        let columns = rest.iter().product::<usize>();
        let Some(made) = linear::truncate(change.values()?, columns, truncation.0) else {
            let message = "its difference from the base has numbers that are not finite, or too large ones";
            return fail(ErrorKind::Value, message.to_owned());
        };
        let linear::Product { rank, up, down, total, captured } = made;
        let (up, down, outputs, inputs) = match is_transposed {
            true => (transpose(&down, columns), transpose(&up, rank), columns, vec![rows]),
            false => (up, down, rows, rest.to_vec()),
        };
        let mut up_shape = vec![outputs, rank];
        up_shape.resize(inputs.len() + 1, 1);
        let down_shape = [&[rank], &*inputs].concat();
        Ok(Self { up, down, up_shape, down_shape, rank, total, captured })
    }

    /// The product of two factors that are there already, of a training run say: `up` is `B`, of shape `[outputs, rank]`, and `down`
    /// is `A`, of shape `[rank, inputs]`, both row by row.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Shape`] when the rank is zero or does not divide their lengths, and with [`ErrorKind::Value`] when they
    /// have numbers that are not finite, or too large ones.
    pub fn of_factors(up: Vec<f32>, down: Vec<f32>, rank: usize) -> Result<Self> {
        if rank == 0 || up.len() % rank != 0 || down.len() % rank != 0 {
            let message =
                format!("factors of {} and {} numbers cannot have rank {rank}", up.len(), down.len());
            return Err(Error::new(ErrorKind::Shape, message));
        }
        let (outputs, inputs) = (up.len() / rank, down.len() / rank);
        // The squares of a product add up to the trace of (Bᵀ B) (A Aᵀ).
        let of_down = gram(&transpose(&down, inputs), rank);
        let total: f64 = gram(&up, rank).iter().zip(&of_down).map(|(a, b)| a * b).sum();
        if !total.is_finite() {
            let message = "a factor has numbers that are not finite, or too large ones";
            return Err(Error::new(ErrorKind::Value, message));
        }
        let (up_shape, down_shape) = (vec![outputs, rank], vec![rank, inputs]);
        Ok(Self { up, down, up_shape, down_shape, rank, total, captured: total })
    }

    /// Its rank; zero if the matrix is.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// `A`, of shape `[rank, inputs, ...]`, row by row.
    pub fn down(&self) -> (&[usize], &[f32]) {
        (&self.down_shape, &self.down)
    }

    /// `B`, of shape `[outputs, rank, ...]`, row by row.
    pub fn up(&self) -> (&[usize], &[f32]) {
        (&self.up_shape, &self.up)
    }

    /// The Frobenius norm of the matrix.
    pub fn norm(&self) -> f64 {
        self.total.sqrt()
    }

    /// The share of the matrix's sum of squares that the product has; 1 if it is zero.
    pub fn energy(&self) -> f64 {
        if self.total > 0.0 { (self.captured / self.total).min(1.0) } else { 1.0 }
    }
}

/// What training changed in a tensor.
struct Change(HostBuffer);

impl Change {
    fn of(base: &TensorRef<'_>, tuned: &TensorRef<'_>) -> Result<Self> {
        let blame = |error: Error| tuned.shard().blame(error.in_tensor(tuned.name()));
        if base.shape() != tuned.shape() {
            let message =
                format!("its shape is {}, and the base has {}", brief(tuned.shape()), brief(base.shape()));
            return Err(blame(Error::new(ErrorKind::Shape, message)));
        }
        let operation = LowRank::new([Delta::full(-1.0)]);
        let entry = Entry::new(tuned.name(), vec![Input::of(tuned), Input::of(base)], Arc::new(operation));
        let entry = entry.and_then(|entry| entry.recast(Dtype::F32)).map_err(blame)?;
        let session = Plan::new([entry]).session().start()?;
        Ok(Self(session.take(tuned.name(), None)?.1))
    }

    fn values(&self) -> Result<&[f32]> {
        let unlike = |_| Error::new(ErrorKind::Internal, "a difference is not in memory as floats");
        bytemuck::try_cast_slice(self.0.as_bytes()).map_err(unlike)
    }
}

/// The Frobenius norm of what training changed in a tensor of floats, `tuned - base`.
///
/// # Errors
///
/// Fails when shapes differ, when a tensor has no floats, and when it cannot be read.
pub fn norm_of_change(base: &TensorRef<'_>, tuned: &TensorRef<'_>) -> Result<f64> {
    Ok(linear::squares(Change::of(base, tuned)?.values()?).sqrt())
}

impl AdapterModule<'_> {
    /// The product of another rank that is nearest to its own, `B A` without its scale, computed from the factors.
    ///
    /// # Errors
    ///
    /// Fails for a full difference, which has no factors, when they cannot be read, and when they have numbers that are not finite.
    pub fn truncated(&self, truncation: Truncation) -> Result<LowRankProduct> {
        let Some([down, up]) = self.factors() else {
            let message = format!("{:?} is a full difference, which has no rank", self.name());
            return Err(Error::new(ErrorKind::Unsupported, message));
        };
        let rank = self.rank();
        let made = nearest(&floats(&up)?, &floats(&down)?, rank, truncation.0).ok_or_else(|| {
            let message = "it has numbers that are not finite";
            down.shard().blame(Error::new(ErrorKind::Value, message).in_tensor(down.name()))
        })?;
        let linear::Product { rank, up: made_up, down: made_down, total, captured } = made;
        let (mut up_shape, mut down_shape) = (up.shape().to_vec(), down.shape().to_vec());
        (up_shape[1], down_shape[0]) = (rank, rank);
        Ok(LowRankProduct { up: made_up, down: made_down, up_shape, down_shape, rank, total, captured })
    }
}

/// The nearest product of a smaller rank: that of `B L`, where `A = L Q` with the rows of `Q` orthonormal, is taken apart.
fn nearest(up: &[f32], down: &[f32], rank: usize, limit: Limit) -> Option<linear::Product> {
    let width = down.len() / rank.max(1);
    // Rows of one length: what is large in one factor and small in the other is no less exact.
    let mut scaled_down = down.to_vec();
    let mut lengths = Vec::with_capacity(rank);
    for line in scaled_down.chunks_exact_mut(width.max(1)) {
        let length = linear::squares(line).sqrt();
        let length = if length > 0.0 { length } else { 1.0 };
        line.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
        lengths.push(length);
    }
    let of_up: Vec<f64> = gram(up, rank);
    let of_up: Vec<f64> =
        of_up.iter().enumerate().map(|(at, value)| value * lengths[at / rank] * lengths[at % rank]).collect();
    let factors = Cholesky::new(&gram(&transpose(&scaled_down, width), rank), rank)?;
    let (lower, inverse, count) = (&factors.lower, factors.inverse(), factors.rank());
    // Lᵀ (Bᵀ B) L
    let half = times(&of_up, lower, rank, count);
    let core = times(&turned(lower, count), &half, rank, count);
    let total: f64 = (0..count).map(|at| core[at * count + at]).sum();
    let (squares, vectors) = eigen(&core, count)?;
    if !total.is_finite() {
        return None;
    }
    let keep = limit.keep(&squares, total);
    let captured = squares.iter().take(keep).sum();
    // B (L W), and (Wᵀ L⁻¹) A, each times the root of its singular value, the second one divided by it.
    let kept = turned(&vectors[..keep * count], count);
    let mut right = times(lower, &kept, count, keep);
    let left = times(&vectors[..keep * count], &inverse, count, count);
    let roots: Vec<f64> = squares.iter().take(keep).map(|square| square.sqrt().sqrt()).collect();
    for (row, line) in right.chunks_exact_mut(keep.max(1)).enumerate() {
        line.iter_mut().zip(&roots).for_each(|(value, root)| *value *= lengths[row] / root);
    }
    let mut spread = vec![0.0_f32; keep * rank];
    for (row, line) in left.chunks_exact(count.max(1)).enumerate() {
        for (value, &pivot) in line.iter().zip(&factors.pivots) {
            spread[row * rank + pivot] = (value * roots[row]) as f32;
        }
    }
    let right: Vec<f32> = right.iter().map(|value| *value as f32).collect();
    let up = product(Matrix::new(up, rank), &right, keep);
    let down = product(Matrix::new(&spread, rank), &scaled_down, width);
    let is_finite = up.iter().chain(&down).all(|value| value.is_finite());
    is_finite.then_some(linear::Product { rank: keep, up, down, total, captured })
}

/// The product of a matrix of so many columns and one that has `columns`.
fn times(left: &[f64], right: &[f64], inner: usize, columns: usize) -> Vec<f64> {
    let mut out = vec![0.0; left.len() / inner.max(1) * columns];
    for (left, out) in left.chunks_exact(inner.max(1)).zip(out.chunks_exact_mut(columns.max(1))) {
        for (factor, line) in left.iter().zip(right.chunks_exact(columns.max(1))) {
            out.iter_mut().zip(line).for_each(|(out, value)| *out += factor * value);
        }
    }
    out
}

fn turned(values: &[f64], columns: usize) -> Vec<f64> {
    let rows = values.len() / columns.max(1);
    (0..values.len()).map(|at| values[at % rows.max(1) * columns + at / rows.max(1)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(up: &[f32], down: &[f32], rank: usize) -> Vec<f32> {
        product(Matrix::new(up, rank), down, down.len() / rank)
    }

    #[test]
    fn factors_are_a_product() {
        let made =
            LowRankProduct::of_factors(vec![1.0, 0.0, 2.0, -1.0, 0.0, 3.0], vec![1.0, 2.0, 0.0, 4.0], 2);
        let made = made.unwrap();
        assert_eq!((made.rank(), made.up().0, made.down().0), (2, &[3, 2][..], &[2, 2][..]));
        // [[1, 2], [2, 0], [0, 12]]
        assert!((made.norm() - 153_f64.sqrt()).abs() < 1e-9 && made.energy() == 1.0, "{}", made.norm());
        let kind = |up: &[f32], down: &[f32], rank| {
            LowRankProduct::of_factors(up.to_vec(), down.to_vec(), rank).unwrap_err().kind()
        };
        assert_eq!(kind(&[1.0], &[1.0, 2.0], 2), ErrorKind::Shape);
        assert_eq!(kind(&[1.0], &[1.0], 0), ErrorKind::Shape);
        assert_eq!(kind(&[f32::NAN], &[1.0], 1), ErrorKind::Value);
    }

    #[test]
    fn nearest_products_are_nearest() {
        let numbers = |count: usize, seed: usize| -> Vec<f32> {
            (0..count).map(|at| ((at * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0).collect()
        };
        let (up, mut down) = (numbers(40 * 6, 1), numbers(6 * 30, 2));
        // One row depends on others, one is zero, one is tiny.
        for column in 0..30 {
            down[5 * 30 + column] = down[column] - 2.0 * down[30 + column];
            down[4 * 30 + column] = 0.0;
            down[3 * 30 + column] *= 1e-6;
        }
        let whole = of(&up, &down, 6);
        for rank in 1..=6 {
            let limit = Limit { rank, energy: f64::INFINITY };
            let made = nearest(&up, &down, 6, limit).unwrap();
            let best = linear::truncate(&whole, 30, limit).unwrap();
            let error = |made: &linear::Product| {
                let product = of(&made.up, &made.down, made.rank);
                let left: Vec<_> = whole.iter().zip(&product).map(|(one, other)| one - other).collect();
                linear::squares(&left).sqrt()
            };
            assert!(error(&made) <= error(&best) + 1e-5, "{rank}: {} {}", error(&made), error(&best));
            assert!((made.captured - best.captured).abs() < 1e-4 * best.total);
        }
        assert!(nearest(&[f32::NAN; 40], &[1.0; 30], 1, Limit { rank: 1, energy: 1.0 }).is_none());
        let zero = nearest(&[0.0; 40], &[1.0; 30], 1, Limit { rank: 1, energy: 1.0 }).unwrap();
        assert_eq!(zero.rank, 0);
    }
}
