//! What the network's side needs of a cache.

use std::ops::Range;
use std::path::PathBuf;

use crate::hub::tree::Entry;

/// A repository's part of the cache. Failures to write are the cache's own to report, and stop nobody from reading.
pub(crate) trait RepoCache: Send + Sync {
    /// The commit that a revision was when the hub was last asked.
    fn commit(&self, revision: &str) -> Option<String>;
    fn set_commit(&self, revision: &str, commit: &str);
    /// A file that is complete.
    fn file(&self, commit: &str, path: &str) -> Option<PathBuf>;
    /// The hub has no such file at this commit.
    fn set_absent(&self, commit: &str, path: &str);
    fn tree(&self, commit: &str) -> Option<Vec<Entry>>;
    fn set_tree(&self, commit: &str, entries: &[Entry]);
    /// Keeps a small file.
    fn put(&self, commit: &str, path: &str, tag: &str, bytes: &[u8]);
    /// What is kept of a file's ranges; `None`: nothing is to be.
    fn ranges(&self, tag: &str, size: u64) -> Option<Box<dyn RangeCache>>;
}

/// Ranges of a file.
pub(crate) trait RangeCache: Send + Sync {
    /// Fills the buffer if all of it is kept.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> bool;
    fn has(&self, range: &Range<u64>) -> bool;
    /// Keeps what was received.
    fn write_at(&self, offset: u64, bytes: &[u8]);
}
