//! The bytes of a tensor into a file, made by several threads.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::thread;

use weighbridge::write::{OutputFile, Ranges, TensorData};
use weighbridge::{Error, ErrorKind, Result};

/// So many bytes a thread makes at a time.
const PIECE: u64 = 1 << 20;

/// More threads than these have nothing to do while their pieces are written.
const MOST_THREADS: usize = 16;

/// Writes a tensor, which must have the bytes that its shape needs.
pub(super) fn write<T: TensorData>(tensor: &T, out: &mut OutputFile) -> Result<()> {
    let len = tensor.dtype().size_of(tensor.shape())?;
    let Some(ranges) = tensor.ranges().filter(|_| len > PIECE) else {
        return tensor.write_to(out).map_err(unwritten);
    };
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MOST_THREADS);
    let pieces: Vec<_> =
        (0..len).step_by(PIECE as usize).map(|start| start..len.min(start + PIECE)).collect();
    for pieces in pieces.chunks(cores) {
        for made in made_together(ranges, pieces) {
            out.write_all(&made?).map_err(unwritten)?;
        }
    }
    Ok(())
}

/// The bytes of each piece, by a thread each.
fn made_together(ranges: &dyn Ranges, pieces: &[Range<u64>]) -> Vec<Result<Vec<u8>>> {
    let make = |piece: &Range<u64>| {
        let mut made = Vec::with_capacity((piece.end - piece.start) as usize);
        ranges.write_range(piece.clone(), &mut made).map_err(unwritten)?;
        match made.len() as u64 == piece.end - piece.start {
            true => Ok(made),
            false => Err(Error::new(ErrorKind::TensorSize, "it has not the bytes that its shape needs")),
        }
    };
    thread::scope(|scope| {
        let Some((last, others)) = pieces.split_last() else { return Vec::new() };
        let spawn = |piece| thread::Builder::new().spawn_scoped(scope, move || make(piece));
        let started: Vec<_> = others.iter().map(|piece| (piece, spawn(piece))).collect();
        let own = make(last);
        let mut made: Vec<_> = started
            .into_iter()
            .map(|(piece, thread)| match thread {
                // A thread that panicked has said so; what it was to make is made here, and fails again.
                Ok(thread) => thread.join().unwrap_or_else(|_| make(piece)),
                Err(_) => make(piece),
            })
            .collect();
        made.push(own);
        made
    })
}

fn unwritten(error: io::Error) -> Error {
    Error::io("it cannot be written", error)
}
