//! A source that says what it was asked, for tests.

use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use weighbridge::source::{MemorySource, Source};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Read(Range<u64>),
    ReadUninit(Range<u64>),
    Prefetch(Range<u64>),
    IsCached(Range<u64>),
}

/// Bytes in memory, which it says are cached up to an offset. Clones share what they were asked.
#[derive(Clone)]
pub(crate) struct Probe {
    bytes: Arc<MemorySource<Vec<u8>>>,
    cached: u64,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Probe {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { cached: bytes.len() as u64, bytes: Arc::new(MemorySource(bytes)), asked: Arc::default() }
    }

    /// Sets up to where it is cached.
    pub(crate) fn cached_to(mut self, end: u64) -> Self {
        self.cached = end;
        self
    }

    /// What it was asked since the last call.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn note(&self, asked: Asked) {
        self.asked.lock().unwrap().push(asked);
    }
}

impl Source for Probe {
    fn size(&self) -> u64 {
        self.bytes.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.note(Asked::Read(offset..offset + buf.len() as u64));
        self.bytes.read_at(offset, buf)
    }

    fn read_uninit_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> io::Result<&'b mut [u8]> {
        self.note(Asked::ReadUninit(offset..offset + buf.len() as u64));
        self.bytes.read_uninit_at(offset, buf)
    }

    fn prefetch(&self, range: Range<u64>) {
        self.note(Asked::Prefetch(range));
    }

    fn uncached(&self) -> Option<Arc<dyn Source>> {
        Some(Arc::new(self.clone()))
    }

    fn is_cached(&self, range: Range<u64>) -> Option<bool> {
        let cached = range.end <= self.cached;
        self.note(Asked::IsCached(range));
        Some(cached)
    }
}
