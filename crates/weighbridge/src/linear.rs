//! Linear algebra for low-rank products: just what it takes to find the largest singular values of a weight's change.
//!
//! Matrices are stored row by row. Large products are computed in `F32`, in blocks that stay in the cache, by several threads; small
//! matrices, whose sums decide how exact the rest is, in `F64`. Every sum has an order of its own, so that the result has the same
//! bits whatever the number of threads.

mod cholesky;
mod eigen;
mod gram;
mod product;
mod truncate;

pub(crate) use cholesky::Cholesky;
pub(crate) use eigen::eigen;
pub(crate) use gram::gram;
pub(crate) use product::{Matrix, product};
pub(crate) use truncate::{Limit, Product, squares, truncate};

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Does something with each of `jobs`, on as many threads as there are cores, if it is worth it.
fn each<J: Send>(jobs: impl Iterator<Item = J> + Send, operations: usize, work: impl Fn(J) + Sync) {
    /// Fewer operations are done before a thread has started.
    const FEW: usize = 1 << 20;
    let threads = match operations {
        ..FEW => 1,
        _ => thread::available_parallelism().map_or(1, NonZeroUsize::get),
    };
    let jobs = Mutex::new(jobs);
    let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = || {
        while let Some(job) = next() {
            work(job);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
}

/// The transpose of a matrix of so many columns.
pub(crate) fn transpose(values: &[f32], columns: usize) -> Vec<f32> {
    let rows = values.len() / columns.max(1);
    let mut out = vec![0.0; values.len()];
    for (row, values) in values.chunks_exact(columns.max(1)).enumerate() {
        for (column, value) in values.iter().enumerate() {
            out[column * rows + row] = *value;
        }
    }
    out
}
