//! What has to be known of whole tensors before the first tile is made: read in passes, in constant memory.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::BlendMethod;
use super::block::{BLOCK, Block};
use super::loops::{LANES, Products};
use super::mask::Mask;
use super::tiles::Blending;
use crate::cast::{Instructions, Kernel, swap_bytes};
use crate::dtype::Dtype;
use crate::engine::Streamed;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::operation::Read;
use crate::plan::{Entry, Input, Overflow, Plan};
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

/// The inputs, to be read piece by piece.
pub(super) struct Passes {
    inputs: Vec<Values>,
    pub(super) elements: u64,
    pub(super) instructions: Instructions,
    threads: usize,
}

/// The values of an input: as they are stored or, if they are derived, as `F32`.
struct Values {
    from: From,
    kernel: Kernel,
    /// Of an element.
    size: u64,
}

enum From {
    Stored(Input),
    Derived(Streamed),
}

/// Elements of a piece: whole blocks.
const PIECE: u64 = 64 * BLOCK as u64;

impl Passes {
    pub(super) fn new(inputs: &[Input], instructions: Instructions, threads: usize) -> Result<Self> {
        let elements =
            inputs.first().map_or(0, |input| input.shape().iter().map(|&dim| dim as u64).product());
        let inputs = inputs.iter().map(Values::of).collect::<Result<_>>()?;
        Ok(Self { inputs, elements, instructions, threads: threads.max(1) })
    }

    /// Does something with each block, on any thread: with the number of the piece that it is in, the number of an
    /// input behind the first, the values of the first input, and of that one.
    pub(super) fn each<S: Send>(
        &self,
        state: impl Fn() -> S + Sync,
        work: impl Fn(&mut S, u64, usize, &[f32], &[f32]) + Sync,
    ) -> Result<Vec<S>> {
        let pieces = self.elements.div_ceil(PIECE);
        let next = AtomicU64::new(0);
        let run = || {
            let mut state = state();
            let mut memory = self.memory();
            loop {
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= pieces {
                    return Ok(state);
                }
                let elements = piece * PIECE..self.elements.min((piece + 1) * PIECE);
                let mut work = |input: usize, base: &[f32], values: &[f32]| {
                    work(&mut state, piece, input, base, values);
                };
                self.read(elements, &mut memory, &mut work)
                    .inspect_err(|_| next.store(pieces, Ordering::Relaxed))?;
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

    /// Memory to [read](Self::read) into.
    pub(super) fn memory(&self) -> Memory {
        Memory::new(self.inputs.len())
    }

    /// Does something with the blocks of some elements.
    pub(super) fn read(
        &self,
        elements: Range<u64>,
        memory: &mut Memory,
        work: &mut impl FnMut(usize, &[f32], &[f32]),
    ) -> Result<()> {
        for (input, stored) in self.inputs.iter().zip(&mut memory.stored) {
            input.read(elements.clone(), stored)?;
        }
        let unlike = || Error::new(ErrorKind::Internal, "tensors to be blended differ in length");
        let all = usize::try_from(elements.end - elements.start).map_err(|_| unlike())?;
        for start in (0..all).step_by(BLOCK) {
            let count = (all - start).min(BLOCK);
            let mut inputs = self.inputs.iter().zip(&memory.stored);
            let Some((first, bytes)) = inputs.next() else { return Ok(()) };
            let bytes = part(bytes, start, count, first.size).ok_or_else(unlike)?;
            let base = memory.base.cast(&first.kernel, bytes, count)?;
            for (number, (input, bytes)) in inputs.enumerate() {
                let bytes = part(bytes, start, count, input.size).ok_or_else(unlike)?;
                work(number, base, memory.values.cast(&input.kernel, bytes, count)?);
            }
        }
        Ok(())
    }

    /// The sums of squares of the first and the second input, and of their products. Pieces are added up in
    /// order, whatever thread they were on.
    pub(super) fn products(&self) -> Result<[f64; 3]> {
        let zeros = [[0.0; LANES]; 3];
        let mut all = self
            .each(Vec::new, |pieces: &mut Vec<(u64, [[f64; LANES]; 3])>, piece, input, first, second| {
                if input != 0 {
                    return;
                }
                if pieces.last().is_none_or(|(last, _)| *last != piece) {
                    pieces.push((piece, zeros));
                }
                if let Some((_, sums)) = pieces.last_mut() {
                    self.instructions.run(Products { first, second, sums });
                }
            })?
            .concat();
        all.sort_unstable_by_key(|(piece, _)| *piece);
        Ok(all.into_iter().fold([0.0; 3], |sums, (_, lanes)| {
            let piece = lanes.map(|lanes| lanes.iter().sum::<f64>());
            [sums[0] + piece[0], sums[1] + piece[1], sums[2] + piece[2]]
        }))
    }
}

/// Some elements of those that were read.
fn part(stored: &[u8], start: usize, count: usize, size: u64) -> Option<&[u8]> {
    let size = size as usize;
    stored.get(start * size..(start + count) * size)
}

/// What a thread reads into.
pub(super) struct Memory {
    stored: Vec<Vec<u8>>,
    base: Block,
    values: Block,
}

impl Memory {
    fn new(inputs: usize) -> Self {
        Self { stored: vec![Vec::new(); inputs], base: Block::new(), values: Block::new() }
    }
}

impl Values {
    fn of(input: &Input) -> Result<Self> {
        let (from, dtype) = match input.derived() {
            None => (From::Stored(input.clone()), input.dtype()),
            Some(_) => {
                let entry = Entry::new("input", vec![input.clone()], Arc::new(Read))?.recast(Dtype::F32)?;
                let streamed = Plan::new([entry]).tensors().map(|(_, streamed)| streamed).next();
                let none = || Error::new(ErrorKind::Internal, "a plan of one tensor has none");
                (From::Derived(streamed.ok_or_else(none)?), Dtype::F32)
            }
        };
        let kernel = Kernel::of(dtype, Dtype::F32, Overflow::Infinity);
        let kernel =
            kernel.ok_or_else(|| Error::new(ErrorKind::Dtype, format!("{dtype} cannot be blended")))?;
        Ok(Self { from, kernel, size: u64::from(dtype.bits() / 8) })
    }

    /// Reads some elements.
    fn read(&self, elements: Range<u64>, bytes: &mut Vec<u8>) -> Result<()> {
        let range = elements.start * self.size..elements.end * self.size;
        bytes.resize((range.end - range.start) as usize, 0);
        match &self.from {
            From::Stored(input) => {
                let short = || Error::new(ErrorKind::Internal, "a tensor is shorter than its shape");
                let place = input.bytes(&range).ok_or_else(short)?;
                let read = input.shard().source().read_at(place.start, bytes);
                read.map_err(|error| {
                    let message = format!("its data cannot be read: {error}");
                    input.shard().blame(Error::new(ErrorKind::Io, message).with_source(error))
                })
            }
            From::Derived(streamed) => write_into(streamed, range, bytes),
        }
    }
}

fn write_into(input: &Streamed, range: Range<u64>, bytes: &mut [u8]) -> Result<()> {
    input.write_range(range, &mut &mut *bytes).map_err(|error| {
        let own = error.get_ref().and_then(|error| error.downcast_ref::<Error>()).cloned();
        own.unwrap_or_else(|| Error::new(ErrorKind::Io, format!("it cannot be measured: {error}")))
    })
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
    write_into(input, start * 4..(start + count) * 4, bytes)?;
    if cfg!(target_endian = "big") {
        swap_bytes(Dtype::F32, bytes);
    }
    Ok(())
}
