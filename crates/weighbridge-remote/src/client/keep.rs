//! What is kept of a repository on the disk.

use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use crate::Result;
use crate::cache::{Digest, Hold, Partial, Repo, Tree, TreeEntry};
use crate::download::{self, Keep, Options, Step};
use crate::http::read::Reader;
use crate::hub::tree::Entry;

/// A repository's part of the cache. What cannot be written stops nobody from reading.
pub(super) struct Kept {
    repo: Repo,
}

impl Kept {
    pub(super) fn new(repo: Repo) -> Self {
        Self { repo }
    }

    /// The commit that a revision was when the hub was last asked.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        self.repo.commit(revision)
    }

    pub(super) fn set_commit(&self, revision: &str, commit: &str) {
        let _ = self.repo.set_commit(revision, commit);
    }

    /// Keeps the commit from being pruned while it is held.
    pub(super) fn hold(&self, commit: &str) -> Hold {
        self.repo.hold(commit)
    }

    /// A file that is complete.
    pub(super) fn file(&self, commit: &str, path: &str) -> Option<PathBuf> {
        self.repo.file(commit, path)
    }

    /// The hub has no such file at this commit.
    pub(super) fn set_absent(&self, commit: &str, path: &str) {
        let _ = self.repo.set_absent(commit, path);
    }

    pub(super) fn tree(&self, commit: &str) -> Option<Vec<Entry>> {
        let entry = |(path, entry): (String, TreeEntry)| {
            let (sha256, size) = entry.lfs.map_or((None, entry.size), |(sha256, size)| (Some(sha256), size));
            Entry { path, size, blob: entry.blob, sha256, xet: entry.xet }
        };
        Some(self.repo.tree(commit)?.files.into_iter().map(entry).collect())
    }

    pub(super) fn set_tree(&self, commit: &str, entries: &[Entry]) {
        let entry = |entry: &Entry| {
            let lfs = entry.sha256.clone().map(|sha256| (sha256, entry.size));
            let kept = TreeEntry { size: entry.size, blob: entry.blob.clone(), lfs, xet: entry.xet.clone() };
            (entry.path.clone(), kept)
        };
        let tree = Tree { files: entries.iter().map(entry).collect() };
        let _ = self.repo.set_tree(commit, &tree);
    }

    /// Keeps a small file.
    pub(super) fn put(&self, commit: &str, path: &str, tag: &str, bytes: &[u8]) {
        if let Ok(digest) = Digest::parse(tag) {
            let _ = self.repo.put(commit, path, &digest, bytes);
        }
    }

    /// A file that another commit has, too, and that is complete there.
    pub(super) fn adopt(&self, commit: &str, path: &str, tag: &str, size: u64) -> Option<PathBuf> {
        self.repo.adopt(commit, path, &Digest::parse(tag).ok()?, size).ok()?
    }

    /// What is kept of a file's ranges; `None` if its content has no checksum.
    pub(super) fn file_ranges(&self, commit: &str, path: &str, tag: &str, size: u64) -> Option<KeptFile> {
        let digest = Digest::parse(tag).ok()?;
        Some(KeptFile {
            repo: self.repo.clone(),
            digest,
            size,
            commit: commit.to_owned(),
            path: path.to_owned(),
            is_wanted: AtomicBool::new(false),
            partial: OnceLock::new(),
            is_given_up: AtomicBool::new(false),
            finishing: Mutex::new(None),
        })
    }
}

/// A file of which what is read is kept. When all of it is there, it is verified and gets its name.
pub(super) struct KeptFile {
    repo: Repo,
    digest: Digest,
    size: u64,
    commit: String,
    path: String,
    /// Whether what is read now is to be kept: whoever looks at a header wants no file on the disk.
    is_wanted: AtomicBool,
    partial: OnceLock<Partial>,
    /// The disk is full, or the cache is another user's.
    is_given_up: AtomicBool,
    finishing: Mutex<Option<JoinHandle<()>>>,
}

impl KeptFile {
    /// From now on what is read is kept.
    pub(super) fn want(&self) {
        self.is_wanted.store(true, Ordering::Relaxed);
    }

    fn partial(&self, reader: &Reader) -> Option<&Partial> {
        if !self.is_wanted.load(Ordering::Relaxed) {
            return self.partial.get();
        }
        Some(self.partial.get_or_init(|| {
            let partial = self.repo.partial(&self.digest, self.size);
            self.write(&partial, 0, &reader.take_head());
            partial
        }))
    }

    fn write(&self, partial: &Partial, offset: u64, bytes: &[u8]) {
        if !self.is_given_up.load(Ordering::Relaxed) && partial.write_at(offset, bytes).is_err() {
            self.is_given_up.store(true, Ordering::Relaxed);
        }
    }

    /// Fills the buffer, with what is kept and else from the network, and tells while it is filled. Returns how many bytes
    /// were kept.
    pub(super) fn read_at(
        &self,
        reader: &Reader,
        offset: u64,
        buf: &mut [u8],
        told: &mut dyn FnMut(&[u8]),
    ) -> Result<u64> {
        let Some(partial) = self.partial(reader) else {
            return reader.read_telling(offset, buf, told).map(|()| 0);
        };
        if partial.read_at(offset, buf) {
            told(buf);
            return Ok(buf.len() as u64);
        }
        let end = offset + buf.len() as u64;
        let missing = partial.missing(offset..end);
        let mut kept = 0;
        let mut at = offset;
        let mut part = |range: Range<u64>, is_missing: bool| {
            let into = &mut buf[(range.start - offset) as usize..(range.end - offset) as usize];
            if into.is_empty() || !is_missing && partial.read_at(range.start, into) {
                kept += into.len() as u64;
                return Ok(());
            }
            let is_given_up = self.is_given_up.load(Ordering::Relaxed);
            let mut keep = (!is_given_up).then(|| Keep::new(partial, range.start));
            reader.read_telling(range.start, into, &mut |filled| {
                if let Some(keep) = &mut keep {
                    keep.told(filled);
                }
                // What is told is the beginning of the buffer.
                if range.start == offset {
                    told(filled);
                }
            })?;
            if keep.is_some_and(|keep| keep.all(into).is_err()) {
                self.is_given_up.store(true, Ordering::Relaxed);
            }
            Ok(())
        };
        for missing in missing {
            part(at..missing.start, false)?;
            at = missing.end;
            part(missing, true)?;
        }
        part(at..end, false)?;
        told(buf);
        if partial.is_complete() {
            self.finish(partial);
        }
        Ok(kept)
    }

    pub(super) fn has(&self, range: &Range<u64>) -> bool {
        let has = |partial: &Partial| partial.missing(range.clone()).is_empty();
        match self.partial.get() {
            Some(partial) => has(partial),
            // A file that nothing is there of is not made for a question.
            None => self.repo.has_partial(&self.digest) && has(&self.repo.partial(&self.digest, self.size)),
        }
    }

    /// Has it verified and named, on a thread of its own.
    fn finish(&self, partial: &Partial) {
        let mut finishing = self.finishing.lock().unwrap_or_else(PoisonError::into_inner);
        if finishing.is_some() || self.is_given_up.load(Ordering::Relaxed) {
            return;
        }
        let (partial, commit, path) = (partial.clone(), self.commit.clone(), self.path.clone());
        let finish = move || {
            // What does not have its checksum is gone from the cache; another process may have been first.
            let _ = partial.finish(&commit, &path);
        };
        let builder = thread::Builder::new().name("weighbridge-keep".to_owned());
        *finishing = builder.spawn(finish).ok();
    }

    /// The whole file, what is missing of it fetched.
    pub(super) fn fetch(
        &self,
        reader: &Reader,
        threads: usize,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<PathBuf> {
        let partial = self.repo.partial(&self.digest, self.size);
        let read =
            |offset: u64, buf: &mut [u8], told: &mut dyn FnMut(&[u8])| reader.read_telling(offset, buf, told);
        let interrupt = || reader.interrupt();
        let options = Options { threads, interrupt: &interrupt, ..Options::default() };
        let mut tell = |step: Step| match step {
            Step::Fetched(done, all) | Step::Waiting(done, all, _) => progress(done, all),
        };
        download::download(&partial, &self.commit, &self.path, &read, options, &mut tell)
    }
}

impl Drop for KeptFile {
    fn drop(&mut self) {
        let finishing = self.finishing.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(finishing) = finishing {
            let _ = finishing.join();
        }
    }
}
