//! One repository: commits, links, and what is known to be absent.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::files::{self, Lock, Locked};
use super::{Cache, Digest, RepoKind, Tree, names};
use crate::error::{Error, ErrorKind, Result};

/// The largest list of files that is read.
const LARGEST_TREE: u64 = 100 << 20;

/// How long a lock of another program is waited for by who only wants to name a file that is complete.
const PATIENCE: Duration = Duration::from_secs(2);

/// A repository's part of a cache.
#[derive(Clone, Debug)]
pub struct Repo {
    cache: Cache,
    kind: RepoKind,
    id: String,
    directory: String,
}

/// Keeps [`Cache::prune`] from a commit, until it is dropped.
#[derive(Debug)]
pub struct Hold(#[allow(dead_code)] Option<Lock>);

impl Repo {
    pub(super) fn new(cache: Cache, kind: RepoKind, id: String, directory: String) -> Self {
        Self { cache, kind, id, directory }
    }

    /// What kind of repository it is.
    pub fn kind(&self) -> RepoKind {
        self.kind
    }

    /// `org/name`
    pub fn id(&self) -> &str {
        &self.id
    }

    /// `models--org--name`, in the cache.
    pub fn path(&self) -> PathBuf {
        self.cache.root().join(&self.directory)
    }

    /// Our own directory: what is not complete, and what is being written.
    pub(super) fn own(&self) -> PathBuf {
        self.path().join(".weighbridge")
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.path().join("snapshots").join(commit)
    }

    pub(super) fn blob_path(&self, etag: &Digest) -> PathBuf {
        self.path().join("blobs").join(etag.to_string())
    }

    /// What `huggingface_hub` holds, too, while it downloads the file.
    pub(super) fn lock_path(&self, etag: &Digest) -> PathBuf {
        self.cache.root().join(".locks").join(&self.directory).join(format!("{etag}.lock"))
    }

    /// Whose turn it is to download a file, `huggingface_hub` included.
    pub(crate) fn turn(&self, etag: &Digest) -> Locked {
        files::try_lock(&self.lock_path(etag), false)
    }

    /// The commit that a branch or tag was when it was last asked for; a commit is itself.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if names::is_commit(revision) {
            return Some(revision.to_owned());
        }
        let path = self.path().join("refs").join(names::revision(revision).ok()?);
        let mut text = String::new();
        fs::File::open(path).ok()?.take(256).read_to_string(&mut text).ok()?;
        names::commit(text.trim()).ok().map(str::to_owned)
    }

    /// Notes which commit a revision is. A list of files should be [there](Self::set_tree) before, so that
    /// `huggingface_hub` can tell whether the snapshot is complete.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Malformed`] for names that are none; whatever the file system says.
    pub fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        let (revision, commit) = (names::revision(revision)?, names::commit(commit)?);
        self.prepare()?;
        // huggingface_hub calls a cache corrupt where a ref has no snapshot.
        files::make_directory(&self.snapshot(commit))?;
        let path = self.path().join("refs").join(revision);
        if names::is_commit(revision) || fs::read(&path).is_ok_and(|old| old == commit.as_bytes()) {
            return Ok(());
        }
        files::write_whole(&path, &self.own(), commit.as_bytes())
    }

    /// A file of a commit, if it is complete.
    pub fn file(&self, commit: &str, path: &str) -> Option<PathBuf> {
        let path = self.snapshot(names::commit(commit).ok()?).join(names::path(path).ok()?);
        fs::metadata(&path).is_ok_and(|data| data.is_file()).then_some(path)
    }

    /// A file by its checksum, if it is complete, whichever commit it came with.
    pub fn blob(&self, etag: &Digest, size: u64) -> Option<PathBuf> {
        let path = self.blob_path(etag);
        fs::metadata(&path).is_ok_and(|data| data.is_file() && data.len() == size).then_some(path)
    }

    /// Whether the commit is known to have no such file.
    pub fn is_absent(&self, commit: &str, path: &str) -> bool {
        self.absent_path(commit, path).is_ok_and(|path| path.is_file())
    }

    /// Notes that a commit has no such file.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Malformed`] for names that are none; whatever the file system says.
    pub fn set_absent(&self, commit: &str, path: &str) -> Result<()> {
        let path = self.absent_path(commit, path)?;
        self.prepare()?;
        files::write_whole(&path, &self.own(), b"")
    }

    fn absent_path(&self, commit: &str, path: &str) -> Result<PathBuf> {
        Ok(self.path().join(".no_exist").join(names::commit(commit)?).join(names::path(path)?))
    }

    /// Which files a commit has, if that is known.
    pub fn tree(&self, commit: &str) -> Option<Tree> {
        let mut bytes = Vec::new();
        let file = fs::File::open(self.tree_path(names::commit(commit).ok()?)).ok()?;
        let read = file.take(LARGEST_TREE + 1).read_to_end(&mut bytes).ok()?;
        (read as u64 <= LARGEST_TREE).then(|| Tree::parse(&bytes)).flatten()
    }

    /// Notes which files a commit has.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Malformed`]: the commit is none; whatever the file system says.
    pub fn set_tree(&self, commit: &str, tree: &Tree) -> Result<()> {
        let path = self.tree_path(names::commit(commit)?);
        self.prepare()?;
        files::write_whole(&path, &self.own(), tree.json().as_bytes())
    }

    pub(super) fn tree_path(&self, commit: &str) -> PathBuf {
        self.path().join("trees").join(format!("{commit}.json"))
    }

    /// Takes a small file whole.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Checksum`]: these are not the bytes that the checksum is of, and nothing was written;
    /// [`ErrorKind::Malformed`] for names that are none; whatever the file system says.
    pub fn put(&self, commit: &str, path: &str, etag: &Digest, bytes: &[u8]) -> Result<PathBuf> {
        let (commit, path) = (names::commit(commit)?, names::path(path)?);
        if !etag.is_of(bytes) {
            return Err(wrong(etag, bytes.len() as u64).at(path));
        }
        self.prepare()?;
        let _lock = self.lock(etag);
        let new = self.blob(etag, bytes.len() as u64).is_none();
        if new {
            files::write_whole(&self.blob_path(etag), &self.own(), bytes)?;
        }
        self.link(commit, path, etag, new)
    }

    /// Gives a file that came with another commit its name in this one. `None`: the cache does not have it.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put); in a cache that cannot be written, the path is the blob's own.
    pub fn adopt(&self, commit: &str, path: &str, etag: &Digest, size: u64) -> Result<Option<PathBuf>> {
        let (commit, path) = (names::commit(commit)?, names::path(path)?);
        if self.blob(etag, size).is_none() {
            return Ok(None);
        }
        let _lock = self.lock(etag);
        self.adopt_locked(commit, path, etag, size)
    }

    pub(super) fn adopt_locked(
        &self,
        commit: &str,
        path: &str,
        etag: &Digest,
        size: u64,
    ) -> Result<Option<PathBuf>> {
        let Some(blob) = self.blob(etag, size) else { return Ok(None) };
        match self.link(commit, path, etag, false) {
            Err(error) if error.kind() == ErrorKind::Denied => Ok(Some(blob)),
            linked => linked.map(Some),
        }
    }

    /// Links a snapshot's file to its blob, which is there. `own`: nobody else uses the blob yet, so it may be moved
    /// where there are no links. Called with the blob's lock.
    pub(super) fn link(&self, commit: &str, path: &str, etag: &Digest, own: bool) -> Result<PathBuf> {
        let link = self.snapshot(commit).join(path);
        let mut target = PathBuf::from("../..");
        target.extend(path.split('/').skip(1).map(|_| ".."));
        target.extend(["blobs", &etag.to_string()]);
        if fs::read_link(&link).is_ok_and(|old| old == target) {
            return Ok(link);
        }
        files::link(&target, &self.blob_path(etag), &link, &self.own(), own, self.cache.links)?;
        Ok(link)
    }

    /// The lock that orders who makes, links and removes a blob; not for ever, for it is advice.
    pub(super) fn lock(&self, etag: &Digest) -> Option<Lock> {
        files::lock_for(&self.lock_path(etag), PATIENCE)
    }

    /// Moves a complete file to its blob's name, unless it is there, and links it. Called with the blob's lock.
    pub(super) fn place(
        &self,
        commit: &str,
        path: &str,
        etag: &Digest,
        size: u64,
        file: &Path,
    ) -> Result<PathBuf> {
        let blob = self.blob_path(etag);
        let new = self.blob(etag, size).is_none();
        if new {
            files::make_directory(&self.path().join("blobs"))?;
            fs::rename(file, &blob)
                .map_err(|error| files::trouble(&blob, "name the complete file so", error))?;
        } else {
            drop(fs::remove_file(file));
        }
        self.link(commit, path, etag, new)
    }

    /// Keeps [`Cache::prune`] from this commit while files of it may still be opened.
    pub fn hold(&self, commit: &str) -> Hold {
        let path = names::commit(commit).and_then(|commit| self.prepare().map(|()| self.hold_path(commit)));
        Hold(path.ok().and_then(|path| match files::try_lock(&path, true) {
            Locked::Ours(lock) => lock,
            Locked::Taken => None,
        }))
    }

    pub(super) fn hold_path(&self, commit: &str) -> PathBuf {
        self.own().join("holds").join(commit)
    }

    /// Makes what huggingface_hub wants of a repository.
    pub(super) fn prepare(&self) -> Result<()> {
        files::make_directory(&self.path().join("snapshots"))?;
        self.cache.tag();
        Ok(())
    }
}

/// The bytes are others than the checksum's.
pub(super) fn wrong(etag: &Digest, size: u64) -> Error {
    let message = format!("its {size} bytes do not have the checksum {etag} that the server gave");
    Error::new(ErrorKind::Checksum, message)
}
