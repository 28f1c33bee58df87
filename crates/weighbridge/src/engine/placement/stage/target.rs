//! Where tiles go on a device; with [`Device::in_place`] behind a safe function, the only `unsafe` of staging.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use super::device::Device;
use crate::dtype::Dtype;
use crate::plan::Entry;

/// The exclusive right to make some bytes of a tensor's memory.
pub(in crate::engine) struct Target<D: Device> {
    memory: Arc<D::Memory>,
    bytes: Range<u64>,
    uncast: Option<Arc<Uncast>>,
}

/// What crosses the bus in the place of an entry that the device casts.
pub(super) struct Uncast {
    pub(super) entry: Entry,
    pub(super) to: Dtype,
    /// How many times as large the result is.
    pub(super) times: u64,
}

impl<D: Device> Target<D> {
    /// Targets of `size` bytes in a slab, the last one perhaps of fewer, that cover `len` bytes of a memory.
    pub(super) fn cut(
        memory: D::Memory,
        len: u64,
        size: u64,
        uncast: Option<Uncast>,
    ) -> (Arc<D::Memory>, Vec<Self>) {
        let size = size * uncast.as_ref().map_or(1, |uncast| uncast.times);
        let uncast = uncast.map(Arc::new);
        let memory = Arc::new(memory);
        let target = |number: u64| {
            let bytes = number * size..((number + 1) * size).min(len);
            Self { memory: Arc::clone(&memory), bytes, uncast: uncast.clone() }
        };
        let targets = (0..len.div_ceil(size)).map(target).collect();
        (memory, targets)
    }

    pub(super) fn memory(&self) -> &D::Memory {
        &self.memory
    }

    pub(super) fn offset(&self) -> u64 {
        self.bytes.start
    }

    pub(super) fn range(&self) -> Range<u64> {
        self.bytes.clone()
    }

    /// What has to be in a slab: these bytes of an entry, if it is not that of the tile.
    pub(super) fn staged(&self) -> (Option<&Entry>, Range<u64>) {
        match &self.uncast {
            None => (None, self.range()),
            Some(uncast) => {
                (Some(&uncast.entry), self.bytes.start / uncast.times..self.bytes.end / uncast.times)
            }
        }
    }

    /// From and to which dtype the device casts it.
    pub(super) fn cast(&self) -> Option<(Dtype, Dtype)> {
        self.uncast.as_ref().map(|uncast| (uncast.entry.dtype(), uncast.to))
    }

    /// What keeps the memory, without the right to write to it.
    pub(super) fn into_memory(self) -> Arc<D::Memory> {
        self.memory
    }

    /// Whether the host can write to its bytes.
    pub(super) fn is_writable(&self, device: &D) -> bool {
        let at = self.bytes.start;
        // SAFETY: no byte is asked for, and what is returned is dropped at once.
        unsafe { device.in_place(&self.memory, at..at) }.is_some()
    }

    /// Its bytes, where the host can write to them, as many as it has.
    pub(super) fn bytes_mut(&mut self, device: &D) -> Option<&mut [MaybeUninit<u8>]> {
        // SAFETY: targets of one memory are disjoint, since `cut` takes the memory by value and makes them once; the bytes
        // are borrowed from this one mutably, so that they are in use once at a time; and it holds the memory, which is
        // given to `finish` only when no `Arc` of it is left.
        let bytes = unsafe { device.in_place(&self.memory, self.bytes.clone()) };
        bytes.filter(|bytes| bytes.len() as u64 == self.bytes.end - self.bytes.start)
    }
}
