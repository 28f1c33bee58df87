//! How a partial file is opened, and how what other processes do with it is noticed.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use super::{Hashed, Inner, LOOK, Partial, Stage, State, locked};
use crate::cache::digest::Hasher;
use crate::cache::files::{self, is_at, no_link, trouble};
use crate::cache::journal::{self, Format, HEADER};
use crate::cache::ranges::Records;
use crate::cache::{Digest, Repo};
use crate::error::Result;

/// What this process has open: a second lock on the same journal would be refused.
static OPEN: Mutex<Vec<(PathBuf, Weak<Inner>)>> = Mutex::new(Vec::new());

/// What the name of a second one ends with.
pub(crate) const SECOND: &str = ".second";

/// The journal of a partial file.
pub(crate) fn journal_of(data: &Path) -> PathBuf {
    let mut name = data.as_os_str().to_owned();
    name.push(".journal");
    name.into()
}

/// How many records of a partial file do not fit its data, of how many. It may be being written.
pub(crate) fn check_records(data: &Path) -> (usize, usize) {
    let open = |path: &Path| no_link(File::options().read(true)).open(path).ok();
    let Some((file, journal)) = open(data).zip(open(&journal_of(data))) else { return (0, 0) };
    let mut records = Records::default();
    let name = data.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let size = file.metadata().map_or(0, |data| data.len());
    let format = Format::of(name.strip_suffix(SECOND).unwrap_or(name), size);
    let bad_seals = format.read(&journal, HEADER, false, |record| records.add(record, false)).1;
    let mut buf = Vec::new();
    let all = records.all();
    let wrong = all.iter().filter(|record| {
        buf.resize(record.len as usize, 0);
        files::read_at(&file, record.offset, &mut buf).is_err() || journal::sum(&buf) != record.sum
    });
    let bad_seals = bad_seals as usize;
    (wrong.count() + bad_seals, all.len() + bad_seals)
}

impl Repo {
    /// What is there of a file that may not be complete. It is written by this process if no other does. A file that
    /// is complete is there whole.
    ///
    /// A cache that cannot be written is no error here: the first [`write_at`](Partial::write_at) returns it.
    pub fn partial(&self, etag: &Digest, size: u64) -> Partial {
        self.partial_named(etag, size, &etag.to_string())
    }

    /// Whether anything is there of a file that may not be complete.
    pub(crate) fn has_partial(&self, etag: &Digest) -> bool {
        self.own().join(etag.to_string()).exists()
    }

    /// One beside it, for who needs the file while another process keeps the first for itself.
    pub(crate) fn second_partial(&self, etag: &Digest, size: u64) -> Partial {
        self.partial_named(etag, size, &format!("{etag}{SECOND}"))
    }

    fn partial_named(&self, etag: &Digest, size: u64, name: &str) -> Partial {
        let data_path = self.own().join(name);
        let mut open = locked(&OPEN);
        open.retain(|(_, inner)| inner.strong_count() > 0);
        let same = open.iter().filter(|(path, _)| *path == data_path).find_map(|(_, inner)| inner.upgrade());
        if let Some(same) = same.filter(|same| same.size == size && same.current().stage != Stage::Gone) {
            return Partial(same);
        }
        let inner = Arc::new(Inner {
            repo: self.clone(),
            etag: *etag,
            size,
            journal_path: journal_of(&data_path),
            format: Format::of(&etag.to_string(), size),
            state: Mutex::default(),
            hashed: Mutex::new(Hashed { hasher: Hasher::of(etag, size), at: 0 }),
            data_path: data_path.clone(),
        });
        inner.look(&mut inner.current());
        open.push((data_path, Arc::downgrade(&inner)));
        Partial(inner)
    }
}

impl Inner {
    /// Notices what another process has done, and takes its place if it has ended.
    pub(super) fn look(&self, state: &mut State) {
        let due = state.looked.is_none_or(|last| last.elapsed() >= LOOK);
        if state.stage != Stage::Reading || !due {
            return;
        }
        state.looked = Some(Instant::now());
        let named = state.journal.as_ref().filter(|journal| is_at(journal, &self.journal_path));
        if state.trouble.is_some() {
            // What cannot be written is never locked either: that would stop its owner.
            let named = named.is_some();
            if self.is_complete(state) {
            } else if named {
                self.follow(state);
            } else {
                self.open_to_read(state);
            }
        } else if named.is_some_and(is_taken) {
            self.follow(state);
        } else {
            // Drops the lock, if it has just been taken: it is taken again when all is looked at anew.
            state.journal = None;
            if let Err(error) = self.open(state) {
                state.trouble = Some(error);
                self.open_to_read(state);
            }
        }
    }

    /// A cache of somebody else's still serves what it has.
    fn open_to_read(&self, state: &mut State) {
        if let Ok(journal) = no_link(File::options().read(true)).open(&self.journal_path) {
            self.read_only(state, journal);
        }
    }

    fn is_complete(&self, state: &mut State) -> bool {
        let Some(file) = self.repo.blob(&self.etag, self.size).and_then(|path| File::open(path).ok()) else {
            return false;
        };
        *state = State { stage: Stage::Complete, data: Some(Arc::new(file)), ..State::default() };
        true
    }

    /// Reads what another process has added to the journal.
    fn follow(&self, state: &mut State) {
        if state.data.is_none() {
            state.data = no_link(File::options().read(true)).open(&self.data_path).ok().map(Arc::new);
        }
        let State { journal, records, end, .. } = state;
        if let Some(journal) = journal.as_ref().filter(|journal| self.format.fits(journal)) {
            *end = self.format.read(journal, *end, false, |record| records.add(record, false)).0;
        }
    }

    /// Takes the blob if another program has made it: what was ours is not needed any more.
    pub(super) fn notice_blob(&self, state: &mut State) {
        let unfinished = matches!(state.stage, Stage::Reading | Stage::Writing);
        if unfinished && self.repo.blob(&self.etag, self.size).is_some() {
            if state.stage == Stage::Writing {
                self.remove(state, Stage::Reading);
            }
            self.is_complete(state);
        }
    }

    fn open(&self, state: &mut State) -> Result<()> {
        // More than once only if another process finishes it at this very moment.
        for _ in 0..4 {
            if self.is_complete(state) {
                return Ok(());
            }
            let journal = self.open_journal()?;
            let taken = is_taken(&journal);
            if taken {
                self.read_only(state, journal);
                return Ok(());
            }
            if !is_at(&journal, &self.journal_path) {
                continue;
            }
            if self.repo.blob(&self.etag, self.size).is_some() {
                drop(fs::remove_file(&self.journal_path));
                continue;
            }
            return self
                .own(state, journal)
                .map_err(|error| trouble(&self.data_path, "write to the cache", error));
        }
        Ok(())
    }

    fn open_journal(&self) -> Result<File> {
        self.repo.prepare()?;
        files::make_directory(&self.repo.own())?;
        let mut options = OpenOptions::new();
        let options = no_link(options.read(true).write(true).create(true).truncate(false));
        options
            .open(&self.journal_path)
            .map_err(|error| trouble(&self.journal_path, "write to the cache", error))
    }

    fn read_only(&self, state: &mut State, journal: File) {
        state.journal = Some(journal);
        state.records = Records::default();
        state.data = None;
        state.end = HEADER;
        self.follow(state);
    }

    /// Takes over what the last writer left, if it is of this file; the journal is locked.
    fn own(&self, state: &mut State, journal: File) -> io::Result<()> {
        let there =
            fs::symlink_metadata(&self.data_path).is_ok_and(|data| data.is_file() && data.len() == self.size);
        let mut records = Records::default();
        let data = if there && self.format.fits(&journal) {
            no_link(File::options().read(true).write(true)).open(&self.data_path)?
        } else {
            // In this order: what is recorded is of the file that is there, at every moment.
            journal.set_len(0)?;
            match fs::remove_file(&self.data_path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let data = File::options().read(true).write(true).create_new(true).open(&self.data_path)?;
            data.set_len(self.size)?;
            data
        };
        // The process that writes it is another one now.
        files::write_at(&journal, 0, &self.format.header())?;
        let (end, _) = self.format.read(&journal, HEADER, true, |record| records.add(record, false));
        let looked = state.looked;
        *state = State {
            stage: Stage::Writing,
            data: Some(Arc::new(data)),
            journal: Some(journal),
            ..State::default()
        };
        (state.records, state.end, state.looked) = (records, end, looked);
        Ok(())
    }
}

/// Whether another process holds the journal; if not, this one does from now on.
fn is_taken(journal: &File) -> bool {
    match journal.try_lock() {
        Ok(()) => false,
        Err(TryLockError::WouldBlock) => true,
        // No locks on this file system: two writers write the same bytes, and the checksum of the whole decides.
        Err(TryLockError::Error(_)) => false,
    }
}
