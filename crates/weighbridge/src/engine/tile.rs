//! Making one tile: read what it needs, compute what is to be computed.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::job::Run;
use super::options::PageCache;
use crate::buffer::{self, Fault};
use crate::cast::swap_bytes;
use crate::checkpoint::Shard;
use crate::error::{Error, ErrorKind, Result};
use crate::panics::caught;
use crate::plan::{Entry, Piece};

/// Makes tiles; each thread has one, with memory that it uses again and again.
pub(super) struct TileMaker {
    /// Bytes to read at a time; `None` leaves it to the sources.
    chunk: Option<usize>,
    page_cache: PageCache,
    pieces: Vec<Piece>,
    gathered: Vec<u8>,
    /// Where that is from: the numbers of the shards, and bytes of them.
    gathered_from: Vec<(u64, Range<u64>)>,
    /// What was read for several tiles, and where it is from: the number of the shard, and an offset.
    together: Vec<u8>,
    from: Option<(u64, u64)>,
}

impl TileMaker {
    pub(super) fn new(chunk: Option<usize>, page_cache: PageCache) -> Self {
        Self {
            chunk,
            page_cache,
            pieces: Vec::new(),
            gathered: Vec::new(),
            gathered_from: Vec::new(),
            together: Vec::new(),
            from: None,
        }
    }

    /// Reads bytes that several tiles will need; returns how many. If they cannot be read, each tile is left to find
    /// out for itself.
    pub(super) fn read_together(&mut self, Run { shard, bytes }: &Run) -> u64 {
        self.from = None;
        let len = bytes.end - bytes.start;
        self.together.resize(len as usize, 0);
        let source = shard.source_for(self.page_cache);
        let read = || source.read_at(bytes.start, &mut self.together).map_err(unreadable);
        if caught("it was read", read).is_err() {
            return 0;
        }
        self.from = Some((shard.number(), bytes.start));
        len
    }

    /// Ends what [`read_together`](Self::read_together) began.
    pub(super) fn forget(&mut self) {
        self.from = None;
    }

    /// Fills `memory` with the bytes `tile` of the entry's output. Returns it, and how many bytes were read.
    pub(super) fn make<'m>(
        &mut self,
        entry: &Entry,
        tile: Range<u64>,
        memory: &'m mut [MaybeUninit<u8>],
    ) -> Result<(&'m mut [u8], u64)> {
        let mut read = 0;
        let tiles = entry.tiles();
        let is_direct = tiles.is_direct();
        // What is read into its destination is read in the chunks that the source prefers.
        let most = if is_direct { read_size(entry, self.chunk) } else { u64::MAX };
        let step = tiles.step().min(most).max(1);
        let memory = buffer::fill::<Fault>(memory, |done, rest| {
            let start = tile.start + done as u64;
            let part = start..tile.end.min(start.saturating_add(step));
            self.pieces.clear();
            tiles.gather(part.clone(), &mut self.pieces);
            let rest = &mut rest[..(part.end - part.start) as usize];
            let len: u64 = self.pieces.iter().map(|piece| piece.bytes.end - piece.bytes.start).sum();
            let known = self.known(entry, len as usize);
            let made = if let Some(known) = known {
                match is_direct {
                    true if known.len() == rest.len() => rest.write_copy_of_slice(known),
                    true => return Err(internal("an operation asked for too many bytes").into()),
                    false => tiles.compute(part, known, rest)?,
                }
            } else if is_direct {
                read += len;
                read_pieces(entry, &self.pieces, self.page_cache, rest)?
            } else {
                read += self.gather(entry, len as usize)?;
                tiles.compute(part, &self.gathered[..len as usize], rest)?
            };
            if cfg!(target_endian = "big") && !tiles.is_native() {
                swap_bytes(entry.dtype(), made);
            }
            Ok(Some(made))
        });
        memory.map(|memory| (memory, read)).map_err(|Fault(error)| error.in_tensor(entry.name()))
    }

    /// The only piece, if it was read together with others.
    fn known(&self, entry: &Entry, len: usize) -> Option<&[u8]> {
        let (number, start) = self.from?;
        let ([piece], [input]) = (&*self.pieces, entry.inputs()) else { return None };
        let offset = input.bytes(&piece.bytes).filter(|_| input.shard().number() == number)?.start;
        let at = usize::try_from(offset.checked_sub(start)?).ok()?;
        self.together.get(at..at.checked_add(len)?)
    }

    /// Reads what a tile needs, but not what was gathered for the tile before in the same place. Returns how many bytes
    /// were read.
    fn gather(&mut self, entry: &Entry, len: usize) -> Result<u64> {
        if self.gathered.len() < len {
            self.gathered.resize(len, 0);
        }
        // Only tiles of weights with codes in common need the same bytes again; what others are asked for again is read
        // again.
        if !entry.is_derived() {
            self.gathered_from.clear();
        }
        let (mut rest, mut read) = (&mut *self.gathered, 0);
        for (number, piece) in self.pieces.iter().enumerate() {
            let (into, behind) = rest.split_at_mut((piece.bytes.end - piece.bytes.start) as usize);
            rest = behind;
            let (shard, offset) = find(entry, piece)?;
            let from = (shard.number(), offset..offset + into.len() as u64);
            match self.gathered_from.get_mut(number) {
                Some(was) if *was == from => continue,
                // Until it is read, nothing is known of it.
                Some(was) if was.1.end - was.1.start == into.len() as u64 => was.0 = u64::MAX,
                // What is behind it is not where it was.
                _ => self.gathered_from.truncate(number),
            }
            let done = shard.source_for(self.page_cache).read_at(offset, into);
            done.map_err(|error| shard.blame(unreadable(error)))?;
            read += into.len() as u64;
            match self.gathered_from.get_mut(number) {
                Some(was) => *was = from,
                None => self.gathered_from.push(from),
            }
        }
        self.gathered_from.truncate(self.pieces.len());
        Ok(read)
    }
}

/// The bytes to read at a time: `chunk`, or what the entry's source prefers.
pub(super) fn read_size(entry: &Entry, chunk: Option<usize>) -> u64 {
    let hint = || entry.inputs().first().map_or(0, |input| input.shard().hints().chunk);
    // A multiple of every element's size, those of 6 bits included.
    (chunk.unwrap_or_else(hint).clamp(LEAST_READ, MOST_READ) / 48 * 48) as u64
}

/// Less than a page is asked for only where a tensor has less.
const LEAST_READ: usize = 4 << 10;

/// The most that Linux reads at a time, less its last page.
const MOST_READ: usize = 1 << 30;

fn read_pieces<'m>(
    entry: &Entry,
    pieces: &[Piece],
    page_cache: PageCache,
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
        let (shard, offset) = find(entry, piece)?;
        let into = rest.get_mut(..len).ok_or_else(|| internal("an operation asked for too many bytes"))?;
        let read = shard.source_for(page_cache).read_uninit_at(offset, into);
        Ok(Some(read.map_err(|error| shard.blame(unreadable(error)))?))
    });
    memory.map_err(|Fault(error)| error)
}

/// The shard that holds a piece, and the offset in it.
fn find<'e>(entry: &'e Entry, piece: &Piece) -> Result<(&'e Shard, u64)> {
    let found = entry.inputs().get(piece.input).and_then(|input| {
        let bytes = input.bytes(&piece.bytes)?;
        Some((&**input.shard(), bytes.start))
    });
    found.ok_or_else(|| internal("an operation asked for bytes that its inputs do not have"))
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
