//! Tensors whose bytes can be had in any order, written by several threads at a time, each byte to its place.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::data::Ranges;
use super::flush::Flusher;
use super::layout::Planned;
use super::output::OutputFile;
use super::watch::Watch;
use super::writer::Writer;
use crate::error::{Error, ErrorKind, Result};

/// So many bytes a thread writes at a time.
const PIECE: u64 = 4 << 20;

/// Fewer are not worth threads.
const WORTH: u64 = 2 * PIECE;

/// Bytes of a tensor, and where they go to in the file.
struct Piece<'t> {
    tensor: &'t Planned,
    ranges: &'t dyn Ranges,
    bytes: Range<u64>,
    at: u64,
}

/// What the threads share.
struct Shared<'w> {
    file: &'w File,
    told: Mutex<Told<'w>>,
    pieces: Vec<Piece<'w>>,
    /// The index of the piece that is written next; beyond the last one after an error.
    next: AtomicUsize,
    /// Of the piece with the lowest index that failed.
    error: Mutex<Option<(usize, Error)>>,
}

/// Who has to be told of bytes that were written.
struct Told<'w> {
    watch: &'w mut Watch,
    flusher: Option<&'w mut Flusher>,
}

impl Writer<OutputFile> {
    /// Writes as many of the next tensors as `ranges` gives bytes of in any order, if that is worth it. Gives
    /// how many are still to come, because it is not.
    pub(super) fn write_together<'t>(
        &mut self,
        ranges: impl Fn(usize) -> Option<&'t dyn Ranges>,
        watch: &mut Watch,
    ) -> Result<usize> {
        let Self { layout, sink, next, open } = self;
        let start = layout.header().len() as u64;
        let mut pieces = Vec::new();
        let mut tensors = 0;
        for tensor in layout.tensors().iter().skip(*next) {
            let Some(ranges) = ranges(tensor.given()) else { break };
            let place = tensor.data_offsets();
            pieces.extend((0..tensor.byte_len()).step_by(PIECE as usize).map(|first| Piece {
                tensor,
                ranges,
                bytes: first..tensor.byte_len().min(first + PIECE),
                at: start + place.start + first,
            }));
            tensors += 1;
        }
        let bytes: u64 = pieces.iter().map(|piece| piece.bytes.end - piece.bytes.start).sum();
        let end = pieces.last().map_or(0, |piece| piece.at + piece.bytes.end - piece.bytes.start);
        if *open || bytes < WORTH || !sink.has_places() {
            return Ok(tensors);
        }
        // Its own bytes come before.
        let unwritten = |error| Error::io("it cannot be written", error);
        let (mut file, flusher) = sink.raw_and_flusher().map_err(unwritten)?;
        let shared = Shared {
            file,
            told: Mutex::new(Told { watch, flusher }),
            pieces,
            next: AtomicUsize::new(0),
            error: Mutex::new(None),
        };
        shared.write();
        if let Some((_, error)) = shared.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            *open = true;
            return Err(error);
        }
        file.seek(SeekFrom::Start(end)).map_err(unwritten)?;
        *next += tensors;
        Ok(0)
    }
}

impl Shared<'_> {
    /// Writes all pieces, with threads of which this is one.
    fn write(&self) {
        /// As many as it takes to bring bytes of a device to the host.
        const MOST: usize = 16;
        /// As many as wait for a network, with a piece each.
        const MOST_WAITING: usize = 32;
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let wanted = self.pieces.iter().map(|piece| piece.ranges.concurrency()).max().unwrap_or(1);
        let threads = cores.min(MOST).max(wanted.min(MOST_WAITING)).min(self.pieces.len());
        thread::scope(|scope| {
            for _ in 1..threads {
                let builder = thread::Builder::new().name("weighbridge-save".to_owned());
                // Where no threads can be started, this one does it all.
                let _ = builder.spawn_scoped(scope, || self.write_pieces());
            }
            self.write_pieces();
        });
    }

    fn write_pieces(&self) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = self.pieces.get(number) else { return };
            let Err(error) = self.write_piece(piece) else { continue };
            self.next.store(self.pieces.len(), Ordering::Relaxed);
            let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
            if first.as_ref().is_none_or(|(before, _)| number < *before) {
                *first = Some((number, error));
            }
        }
    }

    fn write_piece(&self, piece: &Piece<'_>) -> Result<()> {
        let name = piece.tensor.name();
        let (expected, mut out) = (
            piece.bytes.end - piece.bytes.start,
            Positioned {
                shared: self,
                at: piece.at,
                left: piece.bytes.end - piece.bytes.start,
                excess: false,
            },
        );
        let written = crate::panics::caught("it was written", || {
            let written = piece.ranges.write_range(piece.bytes.clone(), &mut out);
            written.map_err(|error| Error::io("it cannot be written", error))
        });
        if out.excess || (written.is_ok() && out.left > 0) {
            let how =
                if out.excess { "more than".to_owned() } else { format!("only {} of", expected - out.left) };
            let message = format!("{how} the {expected} bytes from offset {} came", piece.bytes.start);
            return Err(Error::new(ErrorKind::TensorSize, message).in_tensor(name));
        }
        written.map_err(|error| error.in_tensor(name))
    }
}

/// Writes to a place in the file, and no further than a piece goes.
struct Positioned<'s, 'w> {
    shared: &'s Shared<'w>,
    at: u64,
    left: u64,
    excess: bool,
}

impl Write for Positioned<'_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.excess || buf.len() as u64 > self.left {
            self.excess = true;
            return Err(io::Error::other("more bytes came than were asked for"));
        }
        let written = write_at(self.shared.file, buf, self.at)?;
        self.at += written as u64;
        self.left -= written as u64;
        let mut told = self.shared.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flusher) = &mut told.flusher {
            flusher.wrote(written);
        }
        told.watch.wrote(written)?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::write_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_write(file, bytes, offset)
}

#[cfg(not(any(unix, windows)))]
fn write_at(_: &File, _: &[u8], _: u64) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}
