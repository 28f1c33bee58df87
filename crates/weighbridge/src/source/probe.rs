//! A source that says what it was asked, for tests.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::{Hints, Source, slice_of};
use crate::buffer::copied;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Read(Range<u64>),
    ReadUninit(Range<u64>),
    InFile(Range<u64>),
    Populate(Range<u64>),
    Prefetch(Range<u64>),
    IsCached(Range<u64>),
}

/// Bytes in memory that are not lent. Clones share what they were asked.
#[derive(Clone)]
pub(crate) struct Probe {
    bytes: Arc<[u8]>,
    size: u64,
    cached: Option<bool>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Probe {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        let size = bytes.len() as u64;
        Self { bytes: bytes.into(), size, cached: Some(true), asked: Arc::default() }
    }

    /// Sets what it says of being cached.
    pub(crate) fn cached(mut self, cached: Option<bool>) -> Self {
        self.cached = cached;
        self
    }

    /// Sets the size that it claims.
    pub(crate) fn sized(mut self, size: u64) -> Self {
        self.size = size;
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
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.note(Asked::Read(offset..offset + buf.len() as u64));
        buf.copy_from_slice(slice_of(&self.bytes, offset, buf.len())?);
        Ok(())
    }

    fn read_uninit_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> io::Result<&'b mut [u8]> {
        self.note(Asked::ReadUninit(offset..offset + buf.len() as u64));
        Ok(copied(buf, slice_of(&self.bytes, offset, buf.len())?))
    }

    fn in_file(&self, range: Range<u64>) -> Option<(&File, u64)> {
        self.note(Asked::InFile(range));
        None
    }

    fn populate(&self, range: Range<u64>) -> io::Result<()> {
        self.note(Asked::Populate(range));
        Ok(())
    }

    fn prefetch(&self, range: Range<u64>) {
        self.note(Asked::Prefetch(range));
    }

    fn is_cached(&self, range: Range<u64>) -> Option<bool> {
        self.note(Asked::IsCached(range));
        self.cached
    }

    fn uncached(&self) -> Option<Arc<dyn Source>> {
        Some(Arc::new(self.clone()))
    }

    fn hints(&self) -> Hints {
        Hints::default().chunk(12_345)
    }
}

/// Bytes of a source, read into memory that holds nothing.
pub(crate) fn read_uninit(source: &dyn Source, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut memory = vec![MaybeUninit::uninit(); len];
    source.read_uninit_at(offset, &mut memory).map(|bytes| bytes.to_vec())
}
