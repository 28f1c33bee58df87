//! Making one tile: read what it needs, compute what is to be computed.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use super::crew::WHOLE;
use super::job::Run;
use super::options::PageCache;
use super::spans::{Arrived, Spans};
use super::stopping::Stopping;
use crate::buffer::{self, Fault, Filler, copied};
use crate::cast::swap_bytes;
use crate::checkpoint::Shard;
use crate::error::{Error, ErrorKind, Result};
use crate::panics::caught;
use crate::plan::{Entry, Piece};
use crate::source::Hints;

/// Makes tiles; each thread has one, with memory that it uses again and again.
pub(super) struct TileMaker {
    /// Bytes to read at a time; `None` leaves it to the sources.
    chunk: Option<usize>,
    reads: Arc<Reads>,
    pieces: Vec<Piece>,
    gathered: Vec<u8>,
    /// Where that is from: the numbers of the shards, and bytes of them.
    gathered_from: Vec<(u64, Range<u64>)>,
    /// What was read for several tiles, and where it is from: the number of the shard, and an offset.
    together: Vec<u8>,
    from: Option<(u64, u64)>,
    /// What was read of a far source for the next steps.
    spans: Spans,
}

/// How sources are read.
pub(super) struct Reads {
    page_cache: PageCache,
    stopping: Arc<Stopping>,
}

impl TileMaker {
    /// A tile maker that reads `chunk` bytes at a time, or as many as sources prefer, until it is
    /// time to stop.
    pub(super) fn new(chunk: Option<usize>, page_cache: PageCache, stopping: Arc<Stopping>) -> Self {
        Self {
            chunk,
            reads: Arc::new(Reads { page_cache, stopping }),
            pieces: Vec::new(),
            gathered: Vec::new(),
            gathered_from: Vec::new(),
            together: Vec::new(),
            from: None,
            spans: Spans::default(),
        }
    }

    /// Reads bytes that several tiles will need; returns how many. If they cannot be read, each tile is left to find
    /// out for itself.
    pub(super) fn read_together(&mut self, Run { shard, bytes }: &Run) -> u64 {
        self.from = None;
        let len = bytes.end - bytes.start;
        self.together.resize(len as usize, 0);
        let Self { together, reads, .. } = self;
        if caught("it was read", || reads.read(shard, bytes.start, together)).is_err() {
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
        let (mut filler, mut read) = (Filler::of(memory), 0);
        let mut spans = std::mem::take(&mut self.spans);
        let made = self.steps(entry, tile, &mut spans, &mut filler, &mut read);
        self.spans = spans;
        let memory = made.and_then(|()| filler.done().ok_or_else(|| internal("a tile was not filled")));
        memory.map(|memory| (memory, read)).map_err(|error| error.in_tensor(entry.name()))
    }

    /// Makes a tile step by step.
    fn steps(
        &mut self,
        entry: &Entry,
        tile: Range<u64>,
        spans: &mut Spans,
        filler: &mut Filler<'_>,
        read: &mut u64,
    ) -> Result<()> {
        let is_direct = entry.tiles().is_direct();
        let far = Spans::hints(entry);
        // What is one request anyway is read straight to where it belongs.
        let together = far.filter(|_| self.from.is_none() && !(is_direct && entry.run_of(&tile).is_some()));
        spans.clear();
        // What is read into its destination is read in the chunks that the source prefers, and, where a request costs more than
        // its bytes, as it was cut.
        let most = if is_direct && far.is_none() { read_size(entry, self.chunk) } else { u64::MAX };
        let step = entry.tiles().step().min(most).max(1);
        while !filler.is_full() {
            let start = tile.start + filler.filled() as u64;
            let mut end = tile.end.min(start.saturating_add(step));
            if let Some(hints) = together {
                if !spans.are_for(start) {
                    *read += self.read_spans(entry, start..tile.end, step, &hints, spans, filler)?;
                    // Some steps may have been made meanwhile.
                    if start < tile.start + filler.filled() as u64 {
                        continue;
                    }
                }
                end = end.min(spans.end());
            }
            self.pieces.clear();
            entry.tiles().gather(start..end, &mut self.pieces);
            *read += self.step(entry, start..end, spans.arrived(), filler)?;
        }
        Ok(())
    }

    /// Reads what the next steps of a tile need, and makes those of which everything is there while the rest is on its
    /// way. Returns how many bytes were read.
    fn read_spans(
        &mut self,
        entry: &Entry,
        tile: Range<u64>,
        step: u64,
        hints: &Hints,
        spans: &mut Spans,
        filler: &mut Filler<'_>,
    ) -> Result<u64> {
        let reads = Arc::clone(&self.reads);
        let (first, mut failed) = (filler.filled(), None);
        // The next step, and how much has to be there for it.
        let (mut next, mut needed) = (0..0, 0);
        let mut make = |arrived: Arrived<'_>, spans_end: u64| -> Result<()> {
            loop {
                let start = tile.start + (filler.filled() - first) as u64;
                if start >= spans_end {
                    return Ok(());
                }
                if next.is_empty() || next.start != start {
                    next = start..spans_end.min(start.saturating_add(step));
                    self.pieces.clear();
                    entry.tiles().gather(next.clone(), &mut self.pieces);
                    needed = 0;
                    for piece in &self.pieces {
                        let (shard, offset) = find(entry, piece.input, &piece.bytes)?;
                        let bytes = offset..offset + (piece.bytes.end - piece.bytes.start);
                        needed =
                            needed.max(arrived.find(shard.number(), &bytes).map_or(usize::MAX, |at| at.end));
                    }
                }
                if arrived.len() < needed {
                    return Ok(());
                }
                self.step(entry, next.clone(), arrived, filler)?;
            }
        };
        let is_direct = entry.tiles().is_direct();
        let read = spans.read(entry, tile.clone(), step, hints, &reads, |arrived, end| {
            if !is_direct && failed.is_none() {
                failed = make(arrived, end).err();
            }
        })?;
        failed.map_or(Ok(read), Err)
    }

    /// Makes the step whose [pieces](Self::pieces) were gathered. Returns how many bytes were read.
    fn step(
        &mut self,
        entry: &Entry,
        part: Range<u64>,
        arrived: Arrived<'_>,
        filler: &mut Filler<'_>,
    ) -> Result<u64> {
        let tiles = entry.tiles();
        let mut read = 0;
        let made = filler.step(|rest| {
            let rest = &mut rest[..(part.end - part.start) as usize];
            let len: u64 = self.pieces.iter().map(|piece| piece.bytes.end - piece.bytes.start).sum();
            let made = if let Some(known) = self.known(entry, len as usize, arrived) {
                match tiles.is_direct() {
                    true if known.len() == rest.len() => copied(rest, known),
                    true => return Err(internal("an operation asked for too many bytes").into()),
                    false => tiles.compute(part, known, rest)?,
                }
            } else if tiles.is_direct() {
                let (made, from_source) = self.read_pieces(entry, arrived, rest)?;
                read += from_source;
                made
            } else {
                read += self.gather(entry, arrived, len as usize)?;
                tiles.compute(part, &self.gathered[..len as usize], rest)?
            };
            if cfg!(target_endian = "big") && !tiles.is_native() {
                swap_bytes(entry.dtype(), made);
            }
            Ok(Some(&*made))
        });
        made.map(|()| read).map_err(|Fault(error)| error)
    }

    /// The only piece, if it was read together with others.
    fn known<'a>(&'a self, entry: &Entry, len: usize, arrived: Arrived<'a>) -> Option<&'a [u8]> {
        let ([piece], [input]) = (&*self.pieces, entry.inputs()) else { return None };
        let (number, bytes) = (input.shard().number(), input.bytes(&piece.bytes)?);
        let Some((_, start)) = self.from.filter(|&(from, _)| from == number) else {
            return arrived.get(number, &bytes);
        };
        let at = usize::try_from(bytes.start.checked_sub(start)?).ok()?;
        self.together.get(at..at.checked_add(len)?)
    }

    /// Reads pieces one behind the other into memory that holds nothing yet. Returns it, and how many bytes were read.
    fn read_pieces<'m>(
        &self,
        entry: &Entry,
        arrived: Arrived<'_>,
        memory: &'m mut [MaybeUninit<u8>],
    ) -> Result<(&'m mut [u8], u64)> {
        let (mut pieces, mut read) = (self.pieces.iter(), 0);
        let memory = buffer::fill::<Fault>(memory, |_, rest| {
            let Some(piece) = pieces.next() else {
                return Ok(Some(&[]));
            };
            let len = (piece.bytes.end - piece.bytes.start) as usize;
            if len == 0 {
                return Ok(None);
            }
            let (shard, offset) = find(entry, piece.input, &piece.bytes)?;
            let into =
                rest.get_mut(..len).ok_or_else(|| internal("an operation asked for too many bytes"))?;
            if let Some(known) = arrived.get(shard.number(), &(offset..offset + len as u64)) {
                return Ok(Some(copied(into, known)));
            }
            read += len as u64;
            Ok(Some(self.reads.read_uninit(shard, offset, into)?))
        });
        memory.map(|memory| (memory, read)).map_err(|Fault(error)| error)
    }

    /// Reads what a tile needs, but not what was gathered for the tile before in the same place. Returns how many bytes
    /// were read.
    fn gather(&mut self, entry: &Entry, arrived: Arrived<'_>, len: usize) -> Result<u64> {
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
            let (shard, offset) = find(entry, piece.input, &piece.bytes)?;
            let from = (shard.number(), offset..offset + into.len() as u64);
            match self.gathered_from.get_mut(number) {
                Some(was) if *was == from => continue,
                // Until it is read, nothing is known of it.
                Some(was) if was.1.end - was.1.start == into.len() as u64 => was.0 = u64::MAX,
                // What is behind it is not where it was.
                _ => self.gathered_from.truncate(number),
            }
            if let Some(known) = arrived.get(from.0, &from.1) {
                into.copy_from_slice(known);
            } else {
                self.reads.read(shard, offset, into)?;
                read += into.len() as u64;
            }
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
    (chunk.unwrap_or_else(hint).clamp(LEAST_READ, MOST_READ) as u64) / WHOLE * WHOLE
}

/// Less than a page is asked for only where a tensor has less.
const LEAST_READ: usize = 4 << 10;

/// The most that Linux reads at a time, less its last page.
const MOST_READ: usize = 1 << 30;

impl Reads {
    /// Fills `into` with bytes of a shard.
    pub(super) fn read(&self, shard: &Shard, offset: u64, into: &mut [u8]) -> Result<()> {
        let source = shard.source_for(self.page_cache);
        let read = match shard.hints().is_far() {
            true => self.stopping.read(|| source.read_at(offset, into)),
            false => source.read_at(offset, into),
        };
        read.map_err(|error| shard.blame(unreadable(error)))
    }

    /// The same of a far source; `arrived` is called with as much as is filled, which is less again after a read that
    /// was interrupted.
    pub(super) fn read_as_it_comes(
        &self,
        shard: &Shard,
        offset: u64,
        into: &mut [u8],
        arrived: &mut dyn FnMut(&[u8]),
    ) -> Result<()> {
        let source = shard.source_for(self.page_cache);
        let read = self.stopping.read(|| source.read_as_it_comes(offset, into, arrived));
        read.map_err(|error| shard.blame(unreadable(error)))
    }

    /// The same, of memory that holds nothing yet.
    fn read_uninit<'m>(
        &self,
        shard: &Shard,
        offset: u64,
        into: &'m mut [MaybeUninit<u8>],
    ) -> Result<&'m mut [u8]> {
        if shard.hints().is_far() {
            // What is read again has to be memory that can be written to twice.
            let into = buffer::zeroed(into);
            self.read(shard, offset, into)?;
            return Ok(into);
        }
        let source = shard.source_for(self.page_cache);
        source.read_uninit_at(offset, into).map_err(|error| shard.blame(unreadable(error)))
    }
}

/// The shard that holds a piece, and the offset in it.
pub(super) fn find<'e>(entry: &'e Entry, input: usize, bytes: &Range<u64>) -> Result<(&'e Shard, u64)> {
    let found = entry.inputs().get(input).and_then(|input| {
        let bytes = input.bytes(bytes)?;
        Some((&**input.shard(), bytes.start))
    });
    found.ok_or_else(|| internal("an operation asked for bytes that its inputs do not have"))
}

fn unreadable(error: std::io::Error) -> Error {
    // A source's own words.
    let error = match error.downcast::<Error>() {
        Ok(own) => return own,
        Err(error) => error,
    };
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
