//! A whole file into the cache: what is missing of it, by several threads, its checksum computed meanwhile.

use std::collections::VecDeque;
use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::cache::{Lock, Locked, Partial};
use crate::error::{Error, ErrorKind, Result};

/// Reads bytes of the file, from the network: fills the buffer from an offset on. It tells how far it is, with what is filled
/// of the buffer, so that what came before a break is kept.
pub type Read<'a> = dyn Fn(u64, &mut [u8], &mut dyn FnMut(&[u8])) -> Result<()> + Sync + 'a;

/// How a file is downloaded.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// How many pieces are read at the same time, each by a thread with a buffer of a piece's size.
    pub threads: usize,
    /// Bytes of a piece.
    pub piece: usize,
    /// How long another process may keep the file to itself without any of it arriving.
    pub patience: Duration,
    /// Wakes reads that are waiting, so that they fail at once. Called when it ends early.
    pub interrupt: &'a (dyn Fn() + Sync),
}

impl Default for Options<'_> {
    fn default() -> Self {
        let patience = Duration::from_secs(10);
        Self { threads: 8, piece: 8 << 20, patience, interrupt: &|| {} }
    }
}

/// What a download is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// This many bytes are there of so many.
    Fetched(u64, u64),
    /// The same, and another process fetches them: this one, or a program that is not known.
    Waiting(u64, u64, Option<u32>),
}

/// How often progress is told.
const TELL: Duration = Duration::from_millis(100);

/// How often it is looked whether another process is done.
const POLL: Duration = Duration::from_millis(50);

/// How often a part is fetched again that the disk does not keep.
const TRIES: u32 = 3;

/// Fetches all that is missing, and makes it a file of a commit.
///
/// If another process downloads the file, its result is waited for and taken. The last call of `progress` is with all
/// bytes.
///
/// # Errors
///
/// The first error of `read`, or of the cache: what is there stays for the next time. [`ErrorKind::Cancelled`]:
/// `progress` said so. [`ErrorKind::Checksum`] and others: as [`Partial::finish`].
pub fn download(
    partial: &Partial,
    commit: &str,
    path: &str,
    read: &Read<'_>,
    options: Options<'_>,
    progress: &mut dyn FnMut(Step) -> ControlFlow<()>,
) -> Result<PathBuf> {
    // Programs that fetch whole files wait for each other; who only reads parts does not take this lock.
    let mut turn: Option<Option<Lock>> = None;
    let mut last = (partial.recorded(), Instant::now());
    partial.retry();
    while !partial.is_blob() {
        if turn.is_none() {
            turn = match partial.repo().turn(partial.etag()) {
                Locked::Ours(lock) => Some(lock),
                Locked::Taken => None,
            };
            // Whoever had the lock until now has finished it, most likely.
            if turn.is_some() && partial.is_blob() {
                break;
            }
        }
        let ours = partial.is_writer();
        // Another user began it.
        let denied = partial.trouble().is_some_and(|error| error.kind() == ErrorKind::Denied);
        if let Some(error) = partial.trouble().filter(|_| !denied) {
            return Err(error);
        }
        if turn.is_some() && ours {
            fetch(partial, read, options, progress)?;
            return partial.finish_in(turn.flatten(), commit, path);
        }
        let recorded = partial.recorded();
        if recorded != last.0 {
            last = (recorded, Instant::now());
        }
        if turn.is_some() && (denied || last.1.elapsed() >= options.patience) {
            // Somebody loads parts of it and holds on to it. What is there of it is used.
            let second = partial.repo().second_partial(partial.etag(), partial.size());
            let read = |offset: u64, buf: &mut [u8], _: &mut dyn FnMut(&[u8])| {
                read_beside(partial, read, offset, buf)
            };
            if second.is_writer() {
                fetch(&second, &read, options, progress)?;
                return second.finish_in(turn.flatten(), commit, path);
            }
            if let Some(error) = second.trouble() {
                return Err(error);
            }
            last.1 = Instant::now();
        }
        let who = if ours { None } else { partial.writer() };
        if progress(Step::Waiting(recorded, partial.size(), who)).is_break() {
            return Err(cancelled());
        }
        thread::sleep(POLL);
    }
    // It is complete: there is nothing left to stop.
    let _ = progress(Step::Fetched(partial.size(), partial.size()));
    partial.finish_in(turn.flatten(), commit, path)
}

/// Reads what another file has from it, and the rest as before.
fn read_beside(other: &Partial, read: &Read<'_>, offset: u64, buf: &mut [u8]) -> Result<()> {
    let end = offset + buf.len() as u64;
    let gaps = other.missing(offset..end);
    let mut rest = buf;
    let mut at = offset;
    for gap in gaps.into_iter().chain(std::iter::once(end..end)) {
        let (there, later) = rest.split_at_mut((gap.start - at) as usize);
        if !there.is_empty() && !other.read_at(at, there) {
            read(at, there, &mut |_| {})?;
        }
        let (missing, later) = later.split_at_mut((gap.end - gap.start) as usize);
        if !missing.is_empty() {
            read(gap.start, missing, &mut |_| {})?;
        }
        (rest, at) = (later, gap.end);
    }
    Ok(())
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "the download was cancelled; what is there of the file is kept")
}

/// Writes what comes in to the cache, a record at a time.
pub(crate) struct Keep<'p> {
    partial: &'p Partial,
    /// Where the buffer's first byte is in the file.
    offset: u64,
    kept: usize,
    outcome: Result<bool>,
}

impl<'p> Keep<'p> {
    /// Of a read from this offset on.
    pub(crate) fn new(partial: &'p Partial, offset: u64) -> Self {
        Self { partial, offset, kept: 0, outcome: Ok(true) }
    }

    /// So much of the buffer is filled. Returns whether some of it was written.
    pub(crate) fn told(&mut self, filled: &[u8]) -> bool {
        // Records end at multiples of their size.
        let end = (self.offset + filled.len() as u64) / RECORD * RECORD;
        let end = usize::try_from(end.saturating_sub(self.offset)).unwrap_or(0);
        end > self.kept && self.write(&filled[..end])
    }

    /// All of it is filled; whether all of it was written.
    pub(crate) fn all(mut self, buf: &[u8]) -> Result<bool> {
        if self.kept < buf.len() {
            self.write(buf);
        }
        self.outcome
    }

    fn write(&mut self, filled: &[u8]) -> bool {
        if !matches!(self.outcome, Ok(true)) {
            return false;
        }
        self.outcome = self.partial.write_at(self.offset + self.kept as u64, &filled[self.kept..]);
        self.kept = filled.len();
        true
    }
}

/// The bytes of a record in the cache.
const RECORD: u64 = 1 << 20;

/// What the threads of a download share.
struct Work {
    todo: VecDeque<Range<u64>>,
    reading: usize,
    outcome: Option<Result<()>>,
}

struct Shared<'a> {
    partial: &'a Partial,
    work: Mutex<Work>,
    changed: Condvar,
}

fn fetch(
    partial: &Partial,
    read: &Read<'_>,
    options: Options<'_>,
    progress: &mut dyn FnMut(Step) -> ControlFlow<()>,
) -> Result<()> {
    let size = partial.size();
    let piece = options.piece.max(1 << 16);
    let todo = pieces(partial.missing(0..size), piece);
    let needed: u64 = todo.iter().map(|range| range.end - range.start).sum();
    if let Some(room) = partial.room().filter(|room| *room < needed) {
        let message =
            format!("the cache's disk has room for {room} bytes, and {needed} are missing of this file");
        return Err(Error::new(ErrorKind::Io, message));
    }
    let threads = options.threads.clamp(1, todo.len().max(1));
    let work = Mutex::new(Work { todo, reading: 0, outcome: None });
    let shared = Shared { partial, work, changed: Condvar::new() };
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| shared.read(read, piece));
        }
        scope.spawn(|| shared.hash(piece));
        let outcome = shared.watch(progress);
        // More than once: a read that has not begun yet is not woken.
        while outcome.is_err() && shared.lock().reading > 0 {
            (options.interrupt)();
            thread::sleep(Duration::from_millis(10));
        }
        outcome
    })
}

/// Ends everything if its thread panics, for the others would wait for it.
struct Watched<'a>(&'a Shared<'a>, usize);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.lock().reading -= self.1;
            self.0.end(Err(Error::new(ErrorKind::Io, "a thread of the download panicked")));
        }
    }
}

fn pieces(ranges: Vec<Range<u64>>, piece: usize) -> VecDeque<Range<u64>> {
    let mut pieces = VecDeque::new();
    for Range { mut start, end } in ranges {
        // Pieces end at multiples of their size, as the records in the cache do.
        while start < end {
            let border = (start / piece as u64 + 1).saturating_mul(piece as u64).min(end);
            pieces.push_back(start..border);
            start = border;
        }
    }
    pieces
}

impl Shared<'_> {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, outcome: Result<()>) {
        self.lock().outcome.get_or_insert(outcome);
        self.changed.notify_all();
    }

    fn is_over(&self) -> bool {
        self.lock().outcome.is_some()
    }

    /// Reads piece after piece.
    fn read(&self, read: &Read<'_>, piece: usize) {
        let mut buf = Vec::new();
        while let Some(range) = self.take() {
            buf.resize(piece.min((range.end - range.start) as usize), 0);
            let watched = Watched(self, 1);
            let mut keep = Keep::new(self.partial, range.start);
            let read = read(range.start, &mut buf, &mut |filled| {
                if keep.told(filled) {
                    self.changed.notify_all();
                }
            });
            let done = read.and_then(|()| keep.all(&buf));
            drop(watched);
            self.lock().reading -= 1;
            match done {
                Ok(true) => self.changed.notify_all(),
                // Another thread was told why, or a load of this process.
                Ok(false) => self.end(Err(self.partial.trouble().unwrap_or_else(|| {
                    Error::new(ErrorKind::Busy, "another process has taken the file over in the cache")
                }))),
                Err(error) => self.end(Err(error)),
            }
        }
    }

    fn take(&self) -> Option<Range<u64>> {
        let mut work = self.lock();
        loop {
            if work.outcome.is_some() {
                return None;
            }
            if let Some(range) = work.todo.pop_front() {
                work.reading += 1;
                return Some(range);
            }
            work = self.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Follows with the checksum, and has read again what turns out not to fit its record.
    fn hash(&self, piece: usize) {
        let _watched = Watched(self, 0);
        let size = self.partial.size();
        let mut again = (size, 0);
        loop {
            let at = self.partial.hash_ahead(&|| self.is_over());
            if at == size {
                return self.end(Ok(()));
            }
            let mut work = self.lock();
            if work.outcome.is_some() {
                return;
            }
            // Only what follows at once can be waited for: the rest is looked at when it is reached.
            let missing = self.partial.missing(at..size.min(at + (1 << 20)));
            let next = missing.first().is_none_or(|gap| gap.start > at);
            if next {
                continue;
            }
            if work.todo.is_empty() && work.reading == 0 {
                again = if again.0 == at { (at, again.1 + 1) } else { (at, 1) };
                if again.1 > TRIES {
                    drop(work);
                    let message =
                        format!("the cache's disk gives back other bytes than were written, at {at}");
                    return self.end(Err(Error::new(ErrorKind::Io, message)));
                }
                work.todo = pieces(self.partial.missing(at..size), piece);
                self.changed.notify_all();
            }
            let wait = self.changed.wait_timeout(work, TELL);
            drop(wait);
        }
    }

    /// Tells how far it is, until it is over.
    fn watch(&self, progress: &mut dyn FnMut(Step) -> ControlFlow<()>) -> Result<()> {
        let _watched = Watched(self, 0);
        let size = self.partial.size();
        loop {
            let work = self.lock();
            let waited = self.changed.wait_timeout_while(work, TELL, |work| work.outcome.is_none());
            let outcome = waited.unwrap_or_else(PoisonError::into_inner).0.outcome.clone();
            if progress(Step::Fetched(self.partial.recorded(), size)).is_break() && outcome.is_none() {
                self.end(Err(cancelled()));
            } else if let Some(outcome) = outcome {
                return outcome;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
