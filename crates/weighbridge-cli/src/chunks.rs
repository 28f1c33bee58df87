//! Reading tensors piece by piece on all cores, in constant memory.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result};
use weighbridge::TensorRef;

use crate::interrupt;
use crate::show::safe;
use crate::term::Bar;

/// Bytes in a piece: a multiple of every element's size, those of 6 bits included.
pub(crate) const CHUNK: u64 = 3 << 20;

/// A piece of a tensor.
#[derive(Clone, Debug)]
pub(crate) struct Chunk<'c> {
    /// Which of the tensors given.
    pub(crate) place: usize,
    pub(crate) tensor: TensorRef<'c>,
    /// Its bytes, counted from the start of the tensor's data; never empty.
    pub(crate) range: Range<u64>,
}

/// Reads all bytes of `tensors`, several pieces at a time; makes a result of each with `map`, on any thread,
/// and hands the results to `fold`, in order: tensor by tensor as given, front to back. Tensors without bytes
/// have no pieces.
///
/// Memory: a few pieces for each thread, whatever the tensors have.
pub(crate) fn map_in_order<'c, R: Send>(
    tensors: &[TensorRef<'c>],
    bar: &Bar,
    map: impl Fn(&Chunk<'c>, &[u8]) -> Result<R> + Sync,
    mut fold: impl FnMut(&Chunk<'c>, R) -> Result<()>,
) -> Result<()> {
    let first: Vec<usize> = starts(tensors);
    let pieces = first.last().copied().unwrap_or(0);
    let chunk_at = |piece: usize| {
        let place = first.partition_point(|&start| start <= piece) - 1;
        let start = (piece - first[place]) as u64 * CHUNK;
        let tensor = tensors[place];
        Chunk { place, tensor, range: start..tensor.byte_len().min(start + CHUNK) }
    };
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(pieces.max(1));
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = |results: mpsc::SyncSender<(usize, Result<R>)>| {
        let mut memory = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                break;
            }
            let chunk = chunk_at(piece);
            let result = read(&chunk, &mut memory).and_then(|bytes| map(&chunk, bytes));
            bar.add(chunk.range.end - chunk.range.start);
            if results.send((piece, result)).is_err() {
                break;
            }
        }
    };
    thread::scope(|scope| {
        // Bounded: who is far ahead waits.
        let (sender, receiver) = mpsc::sync_channel(2 * threads);
        for _ in 0..threads {
            let sender = sender.clone();
            scope.spawn(|| work(sender));
        }
        drop(sender);
        let mut early = BTreeMap::new();
        let mut turn = 0;
        let take = || {
            for (piece, result) in receiver {
                early.insert(piece, result);
                while let Some(result) = early.remove(&turn) {
                    interrupt::check()?;
                    fold(&chunk_at(turn), result?)?;
                    turn += 1;
                }
            }
            Ok(())
        };
        let taken = take();
        stop.store(true, Ordering::Relaxed);
        taken
    })
}

/// The number of the first piece of each tensor, and of all pieces at the end.
fn starts(tensors: &[TensorRef<'_>]) -> Vec<usize> {
    let mut first = Vec::with_capacity(tensors.len() + 1);
    let mut pieces = 0;
    for tensor in tensors {
        first.push(pieces);
        pieces += tensor.byte_len().div_ceil(CHUNK) as usize;
    }
    first.push(pieces);
    first
}

fn read<'m>(chunk: &Chunk<'_>, memory: &'m mut Vec<u8>) -> Result<&'m [u8]> {
    let (tensor, range) = (&chunk.tensor, &chunk.range);
    let len = (range.end - range.start) as usize;
    if memory.len() < len {
        memory.resize(len, 0);
    }
    let offset = tensor.info().file_range().start + range.start;
    let read = tensor.shard().source().read_at(offset, &mut memory[..len]);
    read.with_context(|| {
        let (file, name) = (tensor.shard().name(), safe(tensor.name()));
        format!("{file}: tensor {name:?}: its data cannot be read")
    })?;
    Ok(&memory[..len])
}
