//! What is read of far sources for several steps at once.
//!
//! Where a request costs as much time as a megabyte does, a cast that reads 256 KiB at a time, and a column of a matrix that is
//! thousands of short pieces, would be nothing but requests. So what the next steps need is put together first: pieces that lie
//! near each other become a span, which is one request.

use std::ops::Range;

use super::crew::WHOLE;
use super::tile::{Reads, find};
use crate::error::Result;
use crate::plan::{Entry, Piece};
use crate::source::Hints;

/// Spans of shards that hold what the next steps of a tile need, and their bytes.
#[derive(Default)]
pub(super) struct Spans {
    /// By shard and offset; they do not overlap.
    spans: Vec<Span>,
    bytes: Vec<u8>,
    /// The end of the last step that they are for, in bytes of the entry.
    end: u64,
    pieces: Vec<Piece>,
}

/// Bytes of a shard.
#[derive(Clone, Debug)]
struct Span {
    /// The number of the shard, and an input that is in it.
    shard: u64,
    input: usize,
    bytes: Range<u64>,
    /// Where they are.
    at: usize,
}

impl Span {
    fn len(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }
}

impl Spans {
    /// How the sources of an entry like to be read, if it is worth it to put requests together.
    pub(super) fn hints(entry: &Entry) -> Option<Hints> {
        let hints = entry.inputs().first()?.shard().hints();
        hints.is_far().then_some(hints)
    }

    /// They are for nothing any more.
    pub(super) fn clear(&mut self) {
        self.spans.clear();
        self.end = 0;
    }

    /// Whether a step that begins there is one of those that they are for, though it may need nothing of them.
    pub(super) fn are_for(&self, start: u64) -> bool {
        start < self.end
    }

    /// The end of the last step that they are for, in bytes of the entry.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// What was read.
    pub(super) fn arrived(&self) -> Arrived<'_> {
        Arrived { spans: &self.spans, before: &self.bytes, last: &[] }
    }

    /// Reads what the next steps of a tile need, `step` bytes of the output each: as many as have no more than a chunk
    /// together. What would be one request anyway is left to the step. While it reads, `tell` is told what has arrived.
    /// Returns the number of bytes that were read.
    pub(super) fn read(
        &mut self,
        entry: &Entry,
        tile: Range<u64>,
        step: u64,
        hints: &Hints,
        reads: &Reads,
        mut tell: impl FnMut(Arrived<'_>, u64),
    ) -> Result<u64> {
        self.clear();
        // Tiles may be larger than a chunk by a page or two, and a small rest is not worth a request.
        let most = hints.chunk as u64 + hints.chunk as u64 / 2;
        let mut step = if entry.tiles().is_direct() { step.min(LEAST_STEP) } else { step };
        let (mut at, mut steps) = (tile.start, 0);
        // Requests that there would be without spans, if what is read is what is made: pieces that do not follow the one
        // before.
        let (mut runs, mut run_end) = (0, None);
        while at < tile.end {
            let end = tile.end.min(at.saturating_add(step));
            self.pieces.clear();
            entry.tiles().gather(at..end, &mut self.pieces);
            let mut grown = self.spans.clone();
            let (mut more_runs, mut end_of_run) = (runs, run_end);
            for (input, bytes) in self.pieces.iter().map(|piece| (piece.input, &piece.bytes)) {
                let (shard, offset) = find(entry, input, bytes)?;
                let bytes = offset..offset + (bytes.end - bytes.start);
                more_runs += usize::from(end_of_run != Some((input, bytes.start)));
                end_of_run = Some((input, bytes.end));
                add(
                    &mut grown,
                    Span { shard: shard.number(), input, bytes, at: 0 },
                    hints.read_through as u64,
                );
            }
            join(&mut grown, hints.read_through as u64);
            if grown.iter().map(Span::len).sum::<u64>() > most {
                if steps > 0 {
                    break;
                }
                // Of what is moved, less can be had at a time.
                if entry.tiles().is_direct() && end - at > WHOLE {
                    step = ((end - at) / 2).next_multiple_of(WHOLE);
                    continue;
                }
            }
            self.spans = grown;
            (runs, run_end) = (more_runs, end_of_run);
            (at, steps) = (end, steps + 1);
        }
        self.end = at;
        let is_as_it_is =
            if entry.tiles().is_direct() { runs <= self.spans.len() } else { runs == 1 && steps == 1 };
        if is_as_it_is {
            self.spans.clear();
            return Ok(0);
        }
        let mut len = 0;
        for span in &mut self.spans {
            span.at = len;
            len += span.len() as usize;
        }
        self.bytes.resize(len, 0);
        for span in &self.spans {
            let (before, rest) = self.bytes.split_at_mut(span.at);
            let (shard, into) = (entry.inputs()[span.input].shard(), &mut rest[..span.len() as usize]);
            let (spans, before) = (&self.spans, &*before);
            let mut tell = |last: &[u8]| tell(Arrived { spans, before, last }, self.end);
            reads.read_as_it_comes(shard, span.bytes.start, into, &mut tell)?;
        }
        Ok(len as u64)
    }
}

/// What has been read of spans so far.
#[derive(Clone, Copy)]
pub(super) struct Arrived<'a> {
    spans: &'a [Span],
    /// Those that were read.
    before: &'a [u8],
    /// The beginning of the one behind them.
    last: &'a [u8],
}

impl<'a> Arrived<'a> {
    /// How many bytes that is.
    pub(super) fn len(&self) -> usize {
        self.before.len() + self.last.len()
    }

    /// Where the bytes of a shard are, or will be, if they are in a span.
    pub(super) fn find(&self, shard: u64, bytes: &Range<u64>) -> Option<Range<usize>> {
        let behind =
            self.spans.partition_point(|span| (span.shard, span.bytes.start) <= (shard, bytes.start));
        let span = self.spans[..behind].last().filter(|span| span.shard == shard)?;
        let within = |byte: u64| usize::try_from(byte.checked_sub(span.bytes.start)?).ok();
        let (start, end) = (within(bytes.start)?, within(bytes.end)?);
        (bytes.end <= span.bytes.end).then_some(span.at + start..span.at + end)
    }

    /// The bytes of a shard, if they are in a span and have arrived.
    pub(super) fn get(&self, shard: u64, bytes: &Range<u64>) -> Option<&'a [u8]> {
        let Range { start, end } = self.find(shard, bytes)?;
        match start.checked_sub(self.before.len()) {
            Some(start) => self.last.get(start..end - self.before.len()),
            None => self.before.get(start..end),
        }
    }
}

/// Steps of what is only moved, in bytes.
const LEAST_STEP: u64 = (256 << 10) / WHOLE * WHOLE;

/// Adds a span, to the last one if it lies behind that and is near.
fn add(spans: &mut Vec<Span>, span: Span, read_through: u64) {
    match spans.last_mut() {
        Some(last) if is_near(last, &span, read_through) => {
            last.bytes.end = last.bytes.end.max(span.bytes.end);
        }
        _ => spans.push(span),
    }
}

/// Whether a span begins in another, or so soon behind it that the gap is read through.
fn is_near(before: &Span, span: &Span, read_through: u64) -> bool {
    before.shard == span.shard
        && before.bytes.start <= span.bytes.start
        && span.bytes.start <= before.bytes.end.saturating_add(read_through)
}

/// Puts spans in order, and those together that are near each other.
fn join(spans: &mut Vec<Span>, read_through: u64) {
    let key = |span: &Span| (span.shard, span.bytes.start);
    spans.sort_by_key(key);
    spans.dedup_by(|span, before| {
        let joins = is_near(before, span, read_through);
        if joins {
            before.bytes.end = before.bytes.end.max(span.bytes.end);
        }
        joins
    });
}
