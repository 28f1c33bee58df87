//! Memory that a GPU copies from on its own. All `unsafe` code of this crate is in this module.
//!
//! What the runtime is told to copy is copied some time later. Until then the session keeps the slab, as it
//! promises to every [`Device`](weighbridge::engine::Device). The runtime is done when it drops the bytes that
//! it was given.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::Bytes;
use burn_std::AllocationProperty;

/// A staging buffer: page-locked, if the runtime has such memory.
pub(super) struct Slab(Bytes);

impl Slab {
    /// All bytes are initialised.
    pub(super) fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    pub(super) fn is_pinned(&self) -> bool {
        self.0.property() == AllocationProperty::Pinned
    }
}

impl AsMut<[MaybeUninit<u8>]> for Slab {
    fn as_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        let bytes: &mut [u8] = &mut self.0;
        // SAFETY: the memory is the same, lent for as long. What is written to it is not read through this
        // `Bytes`, which is private, so that it does no harm if somebody writes bytes that are not
        // initialised.
        unsafe { slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len()) }
    }
}

/// Counts the pieces of a slab that the runtime still holds.
pub(super) struct Flight(Arc<AtomicUsize>);

/// Bytes of a slab, in the hands of the runtime.
struct Piece {
    bytes: &'static [u8],
    held: Arc<AtomicUsize>,
}

impl Flight {
    pub(super) fn new() -> Self {
        Self(Arc::new(AtomicUsize::new(0)))
    }

    /// Whether the runtime has given up all pieces.
    pub(super) fn is_over(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }

    /// Bytes to give to the runtime, which are not copied.
    ///
    /// # Safety
    ///
    /// Until the flight [is over](Self::is_over), `bytes` must be neither written to nor freed.
    pub(super) unsafe fn piece(&self, bytes: &[u8], property: AllocationProperty) -> Bytes {
        // SAFETY: they stay as they are while there is a `Piece`: the flight is not over before that is
        // dropped.
        let bytes = unsafe { slice::from_raw_parts(bytes.as_ptr(), bytes.len()) };
        self.0.fetch_add(1, Ordering::Relaxed);
        let piece = Piece { bytes, held: Arc::clone(&self.0) };
        Bytes::from_shared(bytes::Bytes::from_owner(piece), property)
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.held.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flight_is_over_when_the_last_piece_is_dropped() {
        let memory = [1, 2, 3, 4];
        let flight = Flight::new();
        assert!(flight.is_over());
        // SAFETY: `memory` is not written to.
        let first = unsafe { flight.piece(&memory[..1], AllocationProperty::Pinned) };
        // SAFETY: as before.
        let second = unsafe { flight.piece(&memory[1..], AllocationProperty::Pinned) };
        assert_eq!(first.property(), AllocationProperty::Pinned);
        let copy = second.clone();
        assert_eq!((&first[..], &second[..]), (&memory[..1], &memory[1..]));
        assert_eq!(first.as_ptr(), memory.as_ptr());
        drop((first, second));
        assert!(!flight.is_over());
        drop(copy);
        assert!(flight.is_over());
    }
}
