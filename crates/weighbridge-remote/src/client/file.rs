//! A file that is read by ranges.

use std::fmt;
use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use super::keep::KeptFile;
use crate::Result;
use crate::http::read::{Counts, Reader};

/// A remote file. It may be read from many threads.
pub struct RemoteFile {
    reader: Reader,
    tag: Option<String>,
    kept: Option<KeptFile>,
    cached: AtomicU64,
}

impl fmt::Debug for RemoteFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteFile({}, {} bytes)", self.address(), self.size())
    }
}

impl RemoteFile {
    pub(super) fn new(reader: Reader, kept: Option<KeptFile>) -> Self {
        let tag = reader.tag();
        Self { reader, tag, kept, cached: AtomicU64::new(0) }
    }

    /// Its pinned address, for people.
    pub fn address(&self) -> &str {
        self.reader.address()
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.reader.size()
    }

    /// What names its content: a checksum on the hub, the entity tag of a web server, if it has one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The checksum of the content, where there is one: sha256 (64 digits) or its name in git (40 digits).
    pub(super) fn checksum(&self) -> Option<String> {
        self.reader.checksum()
    }

    /// Fills the buffer with the bytes from `offset` on. Bytes that are neither in the cache nor among the
    /// file's first are asked for by one request, which is sent again for what is missing if it breaks.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_as_it_comes(offset, buf, &mut |_| {})
    }

    /// The same; `arrived` is called with as much of the buffer as is filled, again and again while bytes come.
    pub fn read_as_it_comes(
        &self,
        offset: u64,
        buf: &mut [u8],
        arrived: &mut dyn FnMut(&[u8]),
    ) -> Result<()> {
        let Some(kept) = &self.kept else { return self.reader.read_telling(offset, buf, arrived) };
        let bytes = kept.read_at(&self.reader, offset, buf, arrived)?;
        self.cached.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// From now on what is read is kept in the cache, if there is one. Until then it is not: who only looks at a header wants
    /// no file on the disk.
    pub fn keep(&self) {
        if let Some(kept) = &self.kept {
            kept.want();
        }
    }

    /// The whole file in the cache; `None` if there is none for it.
    pub(super) fn fetch(
        &self,
        threads: usize,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Option<Result<PathBuf>> {
        Some(self.kept.as_ref()?.fetch(&self.reader, threads, progress))
    }

    /// Whether these bytes need no request.
    pub fn is_cached(&self, range: Range<u64>) -> bool {
        self.reader.has(&range) || self.kept.as_ref().is_some_and(|kept| kept.has(&range))
    }

    /// The gap between two ranges that is cheaper to read than to skip, in bytes: latency times rate as
    /// measured, from 256 KiB to 4 MiB; 1 MiB at first.
    pub fn read_through(&self) -> usize {
        self.reader.read_through()
    }

    /// Wakes all reads under way with [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled), at once. Later
    /// reads work again.
    pub fn interrupt(&self) {
        self.reader.interrupt();
    }

    /// Frees the first bytes, which are kept so that headers and small tensors need no request of their own.
    pub fn forget_head(&self) {
        self.reader.forget_head();
    }

    /// What it has cost so far.
    pub fn counts(&self) -> Counts {
        Counts { cached: self.cached.load(Ordering::Relaxed), ..self.reader.counters.counts() }
    }
}
