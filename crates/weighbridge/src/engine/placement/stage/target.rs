//! Where tiles go on a device; with [`Device::in_place`] behind a safe function, the only `unsafe` of staging.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use super::device::Device;

/// The exclusive right to make some bytes of a tensor's memory.
pub(in crate::engine) struct Target<D: Device> {
    memory: Arc<D::Memory>,
    bytes: Range<u64>,
}

impl<D: Device> Target<D> {
    /// Targets of `size` bytes, the last one perhaps of fewer, that cover `len` bytes of a memory.
    pub(super) fn cut(memory: D::Memory, len: u64, size: u64) -> (Arc<D::Memory>, Vec<Self>) {
        let memory = Arc::new(memory);
        let target = |number: u64| {
            let bytes = number * size..((number + 1) * size).min(len);
            Self { memory: Arc::clone(&memory), bytes }
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
