//! What has to be known of whole tensors before the first tile is made: read in passes, in constant memory.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::BlendMethod;
use super::loops::{Products, magnitude};
use super::mask::Mask;
use super::tiles::Blending;
use crate::cast::{Instructions, swap_bytes};
use crate::dtype::Dtype;
use crate::engine::Streamed;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::operation::Read;
use crate::plan::{Entry, Input, Plan};
use crate::write::Ranges;

/// All that makes tiles.
#[derive(Debug)]
pub(super) enum Measured {
    /// The sum of the inputs times these weights.
    Sum { weights: Vec<f32>, divisor: Option<f32> },
    /// The sum of differences from the first input.
    Differences { terms: Vec<Term>, divisor: Option<f32> },
}

/// One model.
#[derive(Debug)]
pub(super) struct Term {
    pub(super) weight: f32,
    pub(super) keep: Keep,
}

/// Which differences are kept.
#[derive(Debug)]
pub(super) enum Keep {
    All,
    /// Those whose magnitude has at least these bits.
    From(u32),
    /// Those that are chosen, multiplied by a factor.
    Random {
        mask: Mask,
        factor: f32,
    },
}

pub(super) fn measure(of: &Blending) -> Result<Measured> {
    /// One tensor is measured at a time, by several threads, so that its inputs are read in order and memory
    /// is bounded.
    static MEASURING: Mutex<()> = Mutex::new(());
    /// More threads would not read faster, and each has counters.
    const MOST_THREADS: usize = 8;
    let blend = &of.blend;
    let passes = || {
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MOST_THREADS);
        Passes::new(&of.inputs, of.instructions, threads)
    };
    let weights: Vec<_> = blend.weights.iter().map(|&weight| weight as f32).collect();
    match blend.method {
        BlendMethod::Linear => {
            let divisor = blend.normalize.then(|| blend.weight_sum());
            Ok(Measured::Sum { weights, divisor })
        }
        BlendMethod::Slerp => {
            let _one = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
            let weights = along_the_arc(passes()?.products()?, blend.share())?;
            Ok(Measured::Sum { weights: weights.map(|weight| weight as f32).to_vec(), divisor: None })
        }
        _ => {
            let is_trimmed = |model: usize| blend.method == BlendMethod::Ties && blend.density(model) < 1.0;
            let least = if (0..weights.len()).any(is_trimmed) {
                let _one = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
                let densities: Vec<_> = (0..weights.len()).map(|model| blend.density(model)).collect();
                passes()?.least(&densities)?
            } else {
                Vec::new()
            };
            let sum = blend.weight_sum();
            let divides = blend.normalize && !blend.method.elects() && sum.abs() >= 1e-8;
            let terms = weights.into_iter().enumerate().map(|(model, weight)| {
                let density = blend.density(model);
                let keep = match least.get(model) {
                    Some(&least) if is_trimmed(model) => Keep::From(least),
                    _ if blend.method.is_random() && density < 1.0 => Keep::Random {
                        mask: Mask::new(blend.seed, &blend.name, model, density),
                        factor: if blend.rescale { (1.0 / density) as f32 } else { 1.0 },
                    },
                    _ => Keep::All,
                };
                Term { weight, keep }
            });
            Ok(Measured::Differences { terms: terms.collect(), divisor: divides.then_some(sum) })
        }
    }
}

/// The weights of two tensors, of whose elements these are the sums of squares and of products.
pub(super) fn along_the_arc([first, second, both]: [f64; 3], share: f64) -> Result<[f64; 2]> {
    /// A shorter vector has no direction.
    const SHORT: f64 = 1e-8;
    /// Beyond it vectors have one direction, or opposite ones.
    const STRAIGHT: f64 = 0.9995;
    let line = [1.0 - share, share];
    let length = |squares: f64| Some(squares.sqrt()).filter(|&length| length > SHORT).unwrap_or(1.0);
    let cosine = both / length(first) / length(second);
    if !(first.is_finite() && second.is_finite() && cosine.is_finite()) {
        let message = "slerp has no angle between values that are not finite; linear blends them";
        return Err(Error::new(ErrorKind::Value, message));
    }
    if cosine.abs() > STRAIGHT {
        return Ok(line);
    }
    let angle = cosine.acos();
    Ok(line.map(|share| (share * angle).sin() / angle.sin()))
}

/// The inputs as `F32`, to be read piece by piece.
pub(super) struct Passes {
    inputs: Vec<Streamed>,
    elements: u64,
    instructions: Instructions,
    threads: usize,
}

/// Elements of a piece.
const PIECE: u64 = 64 << 10;

/// Counters of what magnitudes begin with, and of what they end with.
const UPPER: usize = 1 << 16;
const LOWER: usize = 1 << 15;

impl Passes {
    pub(super) fn new(inputs: &[Input], instructions: Instructions, threads: usize) -> Result<Self> {
        let entry = |(number, input): (usize, &Input)| {
            Entry::new(&number.to_string(), vec![input.clone()], Arc::new(Read))?.recast(Dtype::F32)
        };
        let entries: Vec<_> = inputs.iter().enumerate().map(entry).collect::<Result<_>>()?;
        let elements = entries.first().map_or(0, |entry| entry.byte_len() / 4);
        let inputs = Plan::new(entries).tensors().map(|(_, streamed)| streamed).collect();
        Ok(Self { inputs, elements, instructions, threads: threads.max(1) })
    }

    /// Does something with each piece, on any thread: with its number, and the values of all inputs.
    fn each<S: Send>(
        &self,
        state: impl Fn() -> S + Sync,
        work: impl Fn(&mut S, usize, &[Vec<f32>]) + Sync,
    ) -> Result<Vec<S>> {
        let pieces = self.elements.div_ceil(PIECE);
        let next = AtomicU64::new(0);
        let run = || {
            let mut state = state();
            let mut values = vec![Vec::new(); self.inputs.len()];
            loop {
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= pieces {
                    return Ok(state);
                }
                let start = piece * PIECE;
                for (values, input) in values.iter_mut().zip(&self.inputs) {
                    read_values(input, start, (self.elements - start).min(PIECE), values)
                        .inspect_err(|_| next.store(pieces, Ordering::Relaxed))?;
                }
                work(&mut state, piece as usize, &values);
            }
        };
        let threads = self.threads.min(usize::try_from(pieces).unwrap_or(usize::MAX));
        if threads <= 1 {
            return Ok(vec![run()?]);
        }
        thread::scope(|scope| {
            let spawned: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
            let ended = spawned.into_iter().map(|thread| {
                let fell =
                    |_| Err(Error::new(ErrorKind::Internal, "a thread that measured a tensor panicked"));
                thread.join().unwrap_or_else(fell)
            });
            ended.collect()
        })
    }

    /// The sums of squares of the first and the second input, and of their products. Pieces are added up in
    /// order, whatever thread they were on.
    pub(super) fn products(&self) -> Result<[f64; 3]> {
        let mut all = self
            .each(Vec::new, |sums: &mut Vec<(usize, [f64; 3])>, piece, values| {
                if let [first, second, ..] = values {
                    sums.push((piece, self.instructions.run(Products { first, second })));
                }
            })?
            .concat();
        all.sort_unstable_by_key(|(piece, _)| *piece);
        let add = |sums: [f64; 3], (_, piece): (usize, [f64; 3])| {
            [sums[0] + piece[0], sums[1] + piece[1], sums[2] + piece[2]]
        };
        Ok(all.into_iter().fold([0.0; 3], add))
    }

    /// Of each input behind the first, the bits of the smallest magnitude among its largest differences from
    /// the first: as many as its density says, and at least one.
    pub(super) fn least(&self, densities: &[f64]) -> Result<Vec<u32>> {
        let models = densities.len();
        let upper = self.count(models, UPPER, |_, bits| Some((bits >> 15) as usize))?;
        let found: Vec<_> = upper
            .iter()
            .zip(densities)
            .map(|(counts, density)| {
                let kept = ((density * self.elements as f64) as u64).max(1);
                from_the_top(counts, kept)
            })
            .collect();
        let lower = self.count(models, LOWER, |model, bits| {
            let is_in = found.get(model).is_some_and(|(upper, _)| (bits >> 15) as usize == *upper);
            is_in.then_some((bits & 0x7FFF) as usize)
        })?;
        let least = found.iter().zip(&lower).map(|(&(upper, missing), counts)| {
            let (lower, _) = from_the_top(counts, missing);
            (upper as u32) << 15 | lower as u32
        });
        Ok(least.collect())
    }

    /// How often each counter is named by the bits of a magnitude, for each model.
    fn count(
        &self,
        models: usize,
        counters: usize,
        counter: impl Fn(usize, u32) -> Option<usize> + Sync,
    ) -> Result<Vec<Vec<u64>>> {
        let zeros = || vec![vec![0_u64; counters]; models];
        let counted = self.each(zeros, |counts, _, values| {
            let Some((base, values)) = values.split_first() else { return };
            for (model, (values, counts)) in values.iter().zip(counts).enumerate() {
                for (value, base) in values.iter().zip(base) {
                    let counter = counter(model, magnitude(value - base));
                    if let Some(count) = counter.and_then(|counter| counts.get_mut(counter)) {
                        *count += 1;
                    }
                }
            }
        })?;
        Ok(counted.into_iter().fold(zeros(), |mut sums, counts| {
            for (sum, count) in sums.iter_mut().flatten().zip(counts.iter().flatten()) {
                *sum += count;
            }
            sums
        }))
    }
}

/// The counter that the element with this rank is in, counted from the largest as the first, and its rank
/// there.
fn from_the_top(counts: &[u64], rank: u64) -> (usize, u64) {
    let mut rank = rank;
    for (counter, &count) in counts.iter().enumerate().rev() {
        if rank <= count {
            return (counter, rank);
        }
        rank -= count;
    }
    (0, 1)
}

/// Some elements of a tensor of `F32`.
pub(in crate::plan::operation) fn read_values(
    input: &Streamed,
    start: u64,
    count: u64,
    values: &mut Vec<f32>,
) -> Result<()> {
    values.clear();
    values.resize(count as usize, 0.0);
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
    input.write_range(start * 4..(start + count) * 4, &mut &mut *bytes).map_err(|error| {
        let own = error.get_ref().and_then(|error| error.downcast_ref::<Error>()).cloned();
        own.unwrap_or_else(|| Error::new(ErrorKind::Io, format!("it cannot be measured: {error}")))
    })?;
    if cfg!(target_endian = "big") {
        swap_bytes(Dtype::F32, bytes);
    }
    Ok(())
}
