//! Making one tile: read what it needs, compute what is to be computed.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::placement::caught;
use crate::buffer;
use crate::cast::swap_bytes;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Entry, Piece};

/// Makes tiles; each thread has one, with memory that it uses again and again.
pub(crate) struct TileMaker {
    checkpoint: Checkpoint,
    /// Bytes to read at a time; 0 leaves it to the sources.
    chunk: usize,
    gathered: Vec<u8>,
    /// What was read for several tiles, and where it is from.
    together: Vec<u8>,
    from: Option<(usize, u64)>,
}

impl TileMaker {
    pub(crate) fn new(checkpoint: Checkpoint, chunk: usize) -> Self {
        Self { checkpoint, chunk, gathered: Vec::new(), together: Vec::new(), from: None }
    }

    /// Reads bytes that several tiles will need; returns how many. If they cannot be read, each tile is left to find
    /// out for itself.
    pub(super) fn read_together(&mut self, shard: usize, bytes: Range<u64>) -> u64 {
        self.from = None;
        let len = bytes.end - bytes.start;
        self.together.resize(len as usize, 0);
        let read = caught("it was read", || {
            let there =
                self.checkpoint.shards().get(shard).ok_or_else(|| internal("there is no such shard"))?;
            there.source().read_at(bytes.start, &mut self.together).map_err(unreadable)
        });
        if read.is_err() {
            return 0;
        }
        self.from = Some((shard, bytes.start));
        len
    }

    /// Ends what [`read_together`](Self::read_together) began.
    pub(super) fn forget(&mut self) {
        self.from = None;
    }

    /// The bytes, if they were read together with others.
    fn known(&self, shard: usize, offset: u64, len: usize) -> Option<&[u8]> {
        let (_, start) = self.from.filter(|from| from.0 == shard)?;
        let at = usize::try_from(offset.checked_sub(start)?).ok()?;
        self.together.get(at..at.checked_add(len)?)
    }

    /// Fills `memory` with the bytes `tile` of the entry's output. Returns it, and how many bytes were read.
    pub(crate) fn make<'m>(
        &mut self,
        entry: &Entry,
        tile: Range<u64>,
        memory: &'m mut [MaybeUninit<u8>],
    ) -> Result<(&'m mut [u8], u64)> {
        let mut read = 0;
        let (operation, inputs) = (entry.operation(), entry.inputs());
        let direct = operation.is_direct(inputs);
        // What is read into its place is read in the pieces that the source likes.
        let step = operation
            .step(inputs)
            .min(if direct { read_size(&self.checkpoint, entry, self.chunk) } else { u64::MAX })
            .max(1);
        let memory = buffer::fill::<Fault>(memory, |done, rest| {
            let start = tile.start + done as u64;
            let part = start..tile.end.min(start.saturating_add(step));
            let pieces = operation.gather(inputs, part.clone());
            let rest = &mut rest[..(part.end - part.start) as usize];
            let len: u64 = pieces.iter().map(|piece| piece.bytes.end - piece.bytes.start).sum();
            let known = match (&*pieces, inputs) {
                ([piece], [input]) => {
                    self.known(input.shard(), input.range().start + piece.bytes.start, len as usize)
                }
                _ => None,
            };
            read += if known.is_some() { 0 } else { len };
            let made = if let Some(known) = known {
                match direct {
                    true if known.len() == rest.len() => rest.write_copy_of_slice(known),
                    true => return Err(internal("an operation asked for too many bytes").into()),
                    false => operation.compute(inputs, part, known, rest)?,
                }
            } else if direct {
                read_pieces(&self.checkpoint, entry, &pieces, rest)?
            } else {
                self.gather(entry, &pieces, len as usize)?;
                operation.compute(inputs, part, &self.gathered[..len as usize], rest)?
            };
            if cfg!(target_endian = "big") && !operation.is_native() {
                swap_bytes(entry.dtype(), made);
            }
            Ok(Some(made))
        });
        memory.map(|memory| (memory, read)).map_err(|Fault(error)| error.in_tensor(entry.name()))
    }

    fn gather(&mut self, entry: &Entry, pieces: &[Piece], len: usize) -> Result<()> {
        if self.gathered.len() < len {
            self.gathered.resize(len, 0);
        }
        let mut rest = &mut self.gathered[..len];
        for piece in pieces {
            let (into, behind) = rest.split_at_mut((piece.bytes.end - piece.bytes.start) as usize);
            let (shard, offset) = find(&self.checkpoint, entry, piece)?;
            shard.source().read_at(offset, into).map_err(|error| shard.blame(unreadable(error)))?;
            rest = behind;
        }
        Ok(())
    }
}

/// The bytes to read at a time: `chunk`, or, if that is 0, what the entry's source likes.
pub(super) fn read_size(checkpoint: &Checkpoint, entry: &Entry, chunk: usize) -> u64 {
    let shard = entry.inputs().first().and_then(|input| checkpoint.shards().get(input.shard()));
    let hint = if chunk > 0 { chunk } else { shard.map_or(0, |shard| shard.hints().chunk) };
    // A multiple of every element's size, those of 6 bits included.
    (hint.clamp(LEAST_READ, MOST_READ) / 48 * 48) as u64
}

/// Less than a page is asked for only where a tensor has less.
const LEAST_READ: usize = 4 << 10;

/// The most that Linux reads at a time, less its last page.
const MOST_READ: usize = 1 << 30;

fn read_pieces<'m>(
    checkpoint: &Checkpoint,
    entry: &Entry,
    pieces: &[Piece],
    memory: &'m mut [MaybeUninit<u8>],
) -> Result<&'m mut [u8]> {
    let mut pieces = pieces.iter();
    let memory = buffer::fill::<Fault>(memory, |_, rest| {
        let Some(piece) = pieces.next() else {
            return Ok(Some(&[]));
        };
        let len = (piece.bytes.end - piece.bytes.start) as usize;
        if len == 0 {
            return Ok(None);
        }
        let (shard, offset) = find(checkpoint, entry, piece)?;
        let into = rest.get_mut(..len).ok_or_else(|| internal("an operation asked for too many bytes"))?;
        let read = shard.source().read_uninit_at(offset, into);
        Ok(Some(read.map_err(|error| shard.blame(unreadable(error)))?))
    });
    memory.map_err(|Fault(error)| error)
}

fn find<'c>(
    checkpoint: &'c Checkpoint,
    entry: &Entry,
    piece: &Piece,
) -> Result<(&'c crate::checkpoint::Shard, u64)> {
    let input = entry.inputs().get(piece.input);
    let shard = input.and_then(|input| checkpoint.shards().get(input.shard()));
    match (input, shard) {
        (Some(input), Some(shard)) if piece.bytes.end <= input.range().end - input.range().start => {
            Ok((shard, input.range().start + piece.bytes.start))
        }
        _ => Err(internal("an operation asked for bytes that its inputs do not have")),
    }
}

fn unreadable(error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            Error::new(ErrorKind::Io, "its data ends early: the file has become shorter").with_source(error)
        }
        _ => Error::new(ErrorKind::Io, format!("its data cannot be read: {error}")).with_source(error),
    }
}

fn internal(message: &str) -> Error {
    Error::new(ErrorKind::Internal, message)
}

/// An error, made also of the input and output errors that `buffer::fill` knows.
struct Fault(Error);

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self(Error::new(ErrorKind::Internal, format!("a tile was not filled: {error}")).with_source(error))
    }
}
