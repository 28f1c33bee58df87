//! A file of which some ranges are there: a sparse file of the final size, and a journal of what of it was written.
//!
//! One process writes, which holds the journal's lock; others read what its journal says. A range is served if
//! records cover it whose checksums fit its bytes, which is looked at once in each process. So a kill, a full disk, a
//! power cut, or a journal that somebody forged cost ranges, and never give wrong bytes.

mod open;
#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]
mod tests;

pub(super) use open::{SECOND, check_records, journal_of};

use std::fmt;
use std::fs::{self, File};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::digest::Hasher;
use super::journal::{self, Format, LONGEST, RECORD};
use super::ranges::{Record, Records, without};
use super::repo::wrong;
use super::{Digest, Lock, Repo, files, names};
use crate::error::{Error, ErrorKind, Result};

/// A file of a repository that is not complete. Clones are the same; it is read and written from many threads.
#[derive(Clone)]
pub struct Partial(Arc<Inner>);

struct Inner {
    repo: Repo,
    etag: Digest,
    size: u64,
    data_path: PathBuf,
    journal_path: PathBuf,
    format: Format,
    state: Mutex<State>,
    /// Locked while it is hashed, and until a finished file has its name.
    hashed: Mutex<Hashed>,
}

#[derive(Default)]
struct State {
    stage: Stage,
    data: Option<Arc<File>>,
    journal: Option<File>,
    /// How far the journal is read or written.
    end: u64,
    records: Records,
    /// What threads of this process are writing.
    pending: Vec<Range<u64>>,
    /// Why nothing more is written.
    trouble: Option<Error>,
    /// Somebody was told of it.
    told: bool,
    /// When it was last opened, or looked at for what another process did.
    looked: Option<Instant>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    /// Another process writes it, or nobody can.
    #[default]
    Reading,
    Writing,
    /// It is a blob.
    Complete,
    /// It was wrong, and is gone.
    Gone,
}

struct Hashed {
    hasher: Hasher,
    at: u64,
}

/// How often a file that another process writes is looked at.
const LOOK: Duration = Duration::from_millis(20);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves no record half written: they are added whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Partial {
    /// The size of the whole file in bytes.
    pub fn size(&self) -> u64 {
        self.0.size
    }

    /// The checksum of the whole file.
    pub fn etag(&self) -> &Digest {
        &self.0.etag
    }

    /// How many bytes are there.
    pub fn recorded(&self) -> u64 {
        let mut state = self.0.current();
        self.0.look(&mut state);
        if state.stage == Stage::Complete { self.0.size } else { state.records.bytes() }
    }

    /// Whether all of it is there, as far as is known without reading it.
    pub fn is_complete(&self) -> bool {
        self.recorded() == self.0.size
    }

    /// Whether it has become a blob, here or in another process.
    pub fn is_blob(&self) -> bool {
        let mut state = self.0.current();
        self.0.look(&mut state);
        // By huggingface_hub, which does not know of our files, or from another start.
        self.0.notice_blob(&mut state);
        state.stage == Stage::Complete
    }

    /// Whether this process is the one that writes it. If nobody does, it is from now on.
    pub fn is_writer(&self) -> bool {
        let mut state = self.0.current();
        self.0.look(&mut state);
        state.stage == Stage::Writing
    }

    /// The process that writes it, or wrote it last, as far as is known.
    pub fn writer(&self) -> Option<u32> {
        locked(&self.0.state).journal.as_ref().and_then(journal::writer)
    }

    /// Why it cannot be written, where that is not another process.
    pub fn trouble(&self) -> Option<Error> {
        locked(&self.0.state).trouble.clone()
    }

    /// Tries once more to write, after there was [trouble](Self::trouble).
    pub fn retry(&self) {
        let mut state = self.0.current();
        (state.trouble, state.told, state.looked) = (None, false, None);
        self.0.look(&mut state);
    }

    /// Reads a range if all of it is there and its checksums fit. Else nothing is promised of the buffer.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> bool {
        self.0.read_at(offset, buf)
    }

    /// The parts of a range that are not there.
    pub fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let range = range.start..range.end.min(self.0.size);
        let mut state = self.0.current();
        self.0.look(&mut state);
        if state.stage == Stage::Complete { Vec::new() } else { state.records.gaps(range) }
    }

    /// Writes what is missing of a range. `false`: it was not written, for [another process](Self::is_writer) does,
    /// or there was trouble before.
    ///
    /// # Errors
    ///
    /// Whatever the file system says, a full disk first of all, but only once: nothing more is written after that.
    /// [`ErrorKind::Malformed`]: the range is not in the file.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<bool> {
        self.0.write_at(offset, bytes)
    }

    /// Goes on with the checksum of the whole as far as it is there from the start, or until `stop` says so, and
    /// returns how far it is. [`finish`](Self::finish) has only the rest left to do.
    pub fn hash_ahead(&self, stop: &dyn Fn() -> bool) -> u64 {
        self.0.hash_ahead(&mut locked(&self.0.hashed), stop)
    }

    /// Makes it a blob, and a file of a commit.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Checksum`]: it is not what the checksum is of; what was there is gone.
    /// [`ErrorKind::Busy`]: another process writes it. [`ErrorKind::Io`]: parts are missing, or whatever the file
    /// system says; what is there stays.
    pub fn finish(&self, commit: &str, path: &str) -> Result<PathBuf> {
        self.finish_in(None, commit, path)
    }

    /// The same, with the blob's lock if it is held already.
    pub(crate) fn finish_in(&self, turn: Option<Lock>, commit: &str, path: &str) -> Result<PathBuf> {
        self.0.finish(turn, names::commit(commit)?, names::path(path)?)
    }

    /// The bytes that the file system has room for; `None` where it does not say.
    pub fn room(&self) -> Option<u64> {
        #[cfg(unix)]
        {
            let data = rustix::fs::statvfs(self.0.repo.own()).ok()?;
            // Some file systems of the network count nothing.
            data.f_bavail.checked_mul(data.f_frsize).filter(|_| data.f_blocks > 0)
        }
        #[cfg(not(unix))]
        {
            None
        }
    }

    /// The repository that it is of.
    pub fn repo(&self) -> &Repo {
        &self.0.repo
    }
}

impl fmt::Debug for Partial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Partial({}, {} of {} bytes)", self.0.data_path.display(), self.recorded(), self.0.size)
    }
}

impl Inner {
    fn current(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// The range, if it is in the file.
    fn within(&self, offset: u64, len: usize) -> Option<Range<u64>> {
        let end = offset.checked_add(len as u64)?;
        (end <= self.size).then_some(offset..end)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> bool {
        let Some(range) = self.within(offset, buf.len()) else { return false };
        let mut state = self.current();
        if state.stage != Stage::Complete && state.records.unproven(&range).is_none() {
            self.look(&mut state);
        }
        let complete = state.stage == Stage::Complete;
        let unproven = if complete { Some(Vec::new()) } else { state.records.unproven(&range) };
        let (Some(unproven), Some(data)) = (unproven, state.data.clone()) else { return false };
        drop(state);

        if files::read_at(&data, offset, buf).is_err() {
            self.current().records.clear(&range);
            return false;
        }
        let mut whole = Vec::new();
        let mut good = true;
        for record in unproven {
            let inside = record.offset.checked_sub(offset).and_then(|start| {
                let start = usize::try_from(start).ok()?;
                buf.get(start..start + record.len as usize)
            });
            let sum = inside.map(journal::sum).or_else(|| {
                whole.resize(record.len as usize, 0);
                files::read_at(&data, record.offset, &mut whole).ok().map(|()| journal::sum(&whole))
            });
            let mut state = self.current();
            if sum == Some(record.sum) {
                state.records.prove(&record);
            } else {
                state.records.refute(&record);
                good = false;
            }
        }
        good
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<bool> {
        let range = self.within(offset, bytes.len()).ok_or_else(|| {
            let message =
                format!("{} bytes at {offset} are not in a file of {} bytes", bytes.len(), self.size);
            Error::new(ErrorKind::Malformed, message)
        })?;
        let mut state = self.current();
        self.look(&mut state);
        if state.stage == Stage::Complete {
            return Ok(true);
        }
        if let Some(error) = state.trouble.clone() {
            let told = std::mem::replace(&mut state.told, true);
            return if told { Ok(false) } else { Err(error) };
        }
        let (Stage::Writing, Some(data)) = (state.stage, state.data.clone()) else { return Ok(false) };
        // What is there was verified, or will be; it is never written over, for it may be being read.
        let missing = without(state.records.gaps(range), &state.pending);
        state.pending.extend(missing.iter().cloned());
        drop(state);

        let mut records = Vec::new();
        let written = missing.iter().try_for_each(|gap| {
            let part = &bytes[(gap.start - offset) as usize..(gap.end - offset) as usize];
            files::write_at(&data, gap.start, part)?;
            records.extend(self.cut(gap.start, part));
            std::io::Result::Ok(())
        });

        let mut state = self.current();
        state.pending.retain(|range| !missing.contains(range));
        // The records of what was written count even if a later part failed.
        let noted = self.note(&mut state, &records);
        match written.and(noted) {
            Ok(()) => Ok(true),
            Err(_) if state.trouble.is_some() => Ok(false),
            Err(error) => {
                let error = files::trouble(&self.data_path, "write to the cache", error);
                (state.trouble, state.told) = (Some(error.clone()), true);
                Err(error)
            }
        }
    }

    /// The records of a run: each ends at a border of the longest.
    fn cut(&self, mut offset: u64, mut bytes: &[u8]) -> Vec<Record> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let most = LONGEST - (offset % LONGEST as u64) as usize;
            let (run, rest) = bytes.split_at(most.min(bytes.len()));
            records.push(Record { offset, len: run.len() as u32, sum: journal::sum(run) });
            offset += run.len() as u64;
            bytes = rest;
        }
        records
    }

    fn note(&self, state: &mut State, records: &[Record]) -> std::io::Result<()> {
        let bytes: Vec<u8> = records.iter().flat_map(|record| self.format.record(record)).collect();
        // What was lost with the journal, or became a blob in the meantime, is not noted.
        let Some(journal) = state.journal.as_ref().filter(|_| state.stage == Stage::Writing) else {
            return Ok(());
        };
        files::write_at(journal, state.end, &bytes)?;
        state.end += records.len() as u64 * RECORD;
        records.iter().for_each(|record| state.records.add(*record, true));
        Ok(())
    }

    fn hash_ahead(&self, hashed: &mut Hashed, stop: &dyn Fn() -> bool) -> u64 {
        let mut buf = vec![0; LONGEST];
        while hashed.at < self.size && !stop() {
            let border = LONGEST as u64 - hashed.at % LONGEST as u64;
            let range = hashed.at..self.size.min(hashed.at + border);
            let mut state = self.current();
            if state.stage != Stage::Complete && !state.records.gaps(range.clone()).is_empty() {
                self.look(&mut state);
            }
            let gaps =
                if state.stage == Stage::Complete { Vec::new() } else { state.records.gaps(range.clone()) };
            drop(state);
            let end = gaps.first().map_or(range.end, |gap| gap.start);
            let run = &mut buf[..(end - range.start) as usize];
            if run.is_empty() || !self.read_at(range.start, run) {
                break;
            }
            hashed.hasher.update(run);
            hashed.at = end;
        }
        hashed.at
    }

    fn finish(&self, turn: Option<Lock>, commit: &str, path: &str) -> Result<PathBuf> {
        let mut hashed = locked(&self.hashed);
        let mut state = self.current();
        self.look(&mut state);
        let stage = state.stage;
        drop(state);
        match stage {
            Stage::Complete => {
                let _lock = turn.or_else(|| self.repo.lock(&self.etag));
                return self.blob_as(commit, path);
            }
            Stage::Gone => return Err(wrong(&self.etag, self.size).at(path)),
            Stage::Reading => {
                let trouble = self.current().trouble.clone();
                return Err(trouble.unwrap_or_else(|| self.busy()).at(path));
            }
            Stage::Writing => {}
        }
        let at = self.hash_ahead(&mut hashed, &|| false);
        if at < self.size {
            let message = format!("it is not complete: the {} bytes end at {at} for now", self.size);
            return Err(Error::new(ErrorKind::Io, message).at(path));
        }
        if hashed.hasher.clone().finish() != self.etag {
            self.discard(Stage::Gone);
            return Err(wrong(&self.etag, self.size).at(path));
        }
        if let Some(data) = self.current().data.clone() {
            // Or else, after a power cut, a blob may be of the right length and empty.
            data.sync_data().map_err(|error| files::trouble(&self.data_path, "write to the cache", error))?;
        }
        self.repo.prepare()?;
        let _lock = turn.or_else(|| self.repo.lock(&self.etag));
        let placed = self.repo.place(commit, path, &self.etag, self.size, &self.data_path);
        if placed.is_ok() || self.data_path.symlink_metadata().is_err() {
            self.discard(Stage::Complete);
        }
        placed
    }

    fn blob_as(&self, commit: &str, path: &str) -> Result<PathBuf> {
        let adopted = self.repo.adopt_locked(commit, path, &self.etag, self.size)?;
        adopted.or_else(|| self.repo.file(commit, path)).ok_or_else(|| {
            let message = "it was in the cache, and was removed from it meanwhile; try again";
            Error::new(ErrorKind::NotFound, message).at(path)
        })
    }

    fn busy(&self) -> Error {
        let who = locked(&self.state).journal.as_ref().and_then(journal::writer);
        let who = who.map_or_else(|| "another process".to_owned(), |id| format!("process {id}"));
        Error::new(ErrorKind::Busy, format!("{who} is writing it into the cache"))
    }

    /// It is a partial file no more.
    fn discard(&self, stage: Stage) {
        self.remove(&mut self.current(), stage);
    }

    fn remove(&self, state: &mut State, stage: Stage) {
        // The journal last: its lock keeps others away until the data has gone.
        drop(fs::remove_file(&self.data_path));
        drop(fs::remove_file(&self.journal_path));
        state.stage = stage;
        state.journal = None;
        state.records = Records::default();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.current();
        let empty = state.stage == Stage::Writing && state.records.bytes() == 0;
        drop(state);
        if empty {
            self.discard(Stage::Gone);
        }
    }
}
