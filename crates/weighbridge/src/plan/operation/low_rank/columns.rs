//! The lengths of columns, which need the whole weight: measured when the first tile is made, in constant memory.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use super::{Delta, LowRank};
use crate::dtype::Dtype;
use crate::engine::Streamed;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::operation::Read;
use crate::plan::operation::blend::read_values;
use crate::plan::{Entry, Input, Plan};

/// What each column is multiplied with, so that it becomes as long as a magnitude says.
#[derive(Debug)]
pub(super) struct Columns {
    /// Of the weight and the deltas.
    inputs: Vec<Input>,
    deltas: Vec<Delta>,
    magnitude: Input,
    factors: OnceLock<Result<Vec<f32>>>,
}

/// Bytes that are made at a time, as `F32`.
const PIECE: u64 = 4 << 20;

impl Columns {
    /// A magnitude for a weight with deltas.
    pub(super) fn new(inputs: &[Input], deltas: &[Delta], magnitude: &Input) -> Self {
        let (inputs, deltas) = (inputs.to_vec(), deltas.to_vec());
        Self { inputs, deltas, magnitude: magnitude.clone(), factors: OnceLock::new() }
    }

    pub(super) fn factors(&self) -> Result<&[f32]> {
        let measured = self.factors.get_or_init(|| self.measure());
        measured.as_deref().map_err(Clone::clone)
    }

    fn measure(&self) -> Result<Vec<f32>> {
        /// One weight is measured at a time, by several threads.
        static MEASURING: Mutex<()> = Mutex::new(());
        let _one = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = Entry::new("", self.inputs.clone(), Arc::new(LowRank::new(self.deltas.iter().cloned())))?;
        let magnitude = Entry::new("", vec![self.magnitude.clone()], Arc::new(Read))?;
        let [sum, magnitude] = [streamed(&sum)?, streamed(&magnitude)?];
        let (mut lengths, columns) = (Vec::new(), self.magnitude.shape().iter().product::<usize>());
        read_values(&magnitude.1, 0, columns as u64, &mut lengths)?;
        let squares = squares(&sum.1, sum.0, columns)?;
        let factors =
            lengths.iter().zip(&squares).map(|(length, square)| (f64::from(*length) / square.sqrt()) as f32);
        Ok(factors.collect())
    }
}

/// An entry as `F32`, to be read piece by piece, and the number of its elements.
fn streamed(entry: &Entry) -> Result<(u64, Streamed)> {
    let entry = entry.recast(Dtype::F32)?;
    let elements = entry.byte_len() / 4;
    let streamed = Plan::new([entry]).tensors().next().map(|(_, streamed)| streamed);
    Ok((elements, streamed.ok_or_else(|| Error::new(ErrorKind::Internal, "a plan of one entry is empty"))?))
}

/// The sum of squares of each column. Pieces are added up in order, whatever thread they were on.
fn squares(tensor: &Streamed, elements: u64, columns: usize) -> Result<Vec<f64>> {
    let columns = columns.max(1);
    let piece = (PIECE / 4 / columns as u64).max(1) * columns as u64;
    let pieces = elements.div_ceil(piece);
    let next = AtomicU64::new(0);
    let run = || {
        let (mut values, mut all) = (Vec::new(), Vec::new());
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= pieces {
                return Ok(all);
            }
            let start = number * piece;
            read_values(tensor, start, (elements - start).min(piece), &mut values)
                .inspect_err(|_| next.store(pieces, Ordering::Relaxed))?;
            let mut sums = vec![0.0_f64; columns];
            for row in values.chunks(columns) {
                sums.iter_mut()
                    .zip(row)
                    .for_each(|(sum, value)| *sum += f64::from(*value) * f64::from(*value));
            }
            all.push((number, sums));
        }
    };
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get) as u64;
    let mut all = thread::scope(|scope| {
        let spawned: Vec<_> = (1..threads.min(pieces)).map(|_| scope.spawn(run)).collect();
        let mut all: Vec<(u64, Vec<f64>)> = run()?;
        for thread in spawned {
            let fell = |_| Err(Error::new(ErrorKind::Internal, "a thread that measured columns panicked"));
            all.extend(thread.join().unwrap_or_else(fell)?);
        }
        Ok::<_, Error>(all)
    })?;
    all.sort_unstable_by_key(|(number, _)| *number);
    let mut sums = vec![0.0; columns];
    for (_, piece) in all {
        sums.iter_mut().zip(piece).for_each(|(sum, piece)| *sum += piece);
    }
    Ok(sums)
}

/// Multiplies values of rows with the factors of their columns; the first one is in column `start`.
pub(super) fn scale(values: &mut [f32], factors: &[f32], start: usize) {
    let (head, rest) = values.split_at_mut((factors.len() - start).min(values.len()));
    let by = |values: &mut [f32], factors: &[f32]| {
        values.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
    };
    by(head, &factors[start..]);
    rest.chunks_mut(factors.len().max(1)).for_each(|row| by(row, factors));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Checkpoint;
    use crate::write::{Save, Values};

    #[test]
    fn columns_are_as_long_as_the_magnitude_says() {
        for (rows, columns) in [(1, 1), (7, 5), (3000, 33), (5, 70_000)] {
            let numbers = |count: usize, seed: usize| -> Vec<f32> {
                (0..count).map(|at| ((at * 31 + seed * 17) % 97) as f32 / 16.0 + 0.5).collect()
            };
            let (weight, down, up) =
                (numbers(rows * columns, 1), numbers(2 * columns, 2), numbers(rows * 2, 3));
            let lengths = numbers(columns, 4);
            let file = Save::new()
                .bytes([
                    ("w", Values::new(&[rows, columns], &weight).unwrap()),
                    ("a", Values::new(&[2, columns], &down).unwrap()),
                    ("b", Values::new(&[rows, 2], &up).unwrap()),
                    ("m", Values::new(&[columns], &lengths).unwrap()),
                ])
                .unwrap();
            let ckpt = Checkpoint::from_bytes(file).unwrap();
            let inputs = ["w", "a", "b", "m"].map(|name| Input::of(&ckpt.tensor(name).unwrap()));
            let operation = LowRank::new([Delta::new(0.5)]).magnitude_of_columns();
            let entry = Entry::new("w", inputs.to_vec(), Arc::new(operation)).unwrap();
            let made = ckpt.with_entries([entry]).unwrap().read("w").unwrap();
            let made: &[f32] = bytemuck::cast_slice(made.as_bytes());
            let sum = |row: usize, column: usize| {
                let product: f32 = (0..2).map(|at| up[row * 2 + at] * down[at * columns + column]).sum();
                f64::from(weight[row * columns + column]) + 0.5 * f64::from(product)
            };
            for column in (0..columns).step_by(1 + columns / 50) {
                let length = (0..rows).map(|row| sum(row, column).powi(2)).sum::<f64>().sqrt();
                for row in (0..rows).step_by(1 + rows / 50) {
                    let wanted = sum(row, column) * f64::from(lengths[column]) / length;
                    let own = f64::from(made[row * columns + column]);
                    assert!((own - wanted).abs() <= 1e-5 * wanted.abs(), "{rows} {columns}: {own} {wanted}");
                }
            }
        }
    }
}
