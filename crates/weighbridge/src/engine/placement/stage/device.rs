//! What a device has to do for a session, and how many staging buffers it gets.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::error::Result;
use crate::plan::Entry;

/// A device that copies from staging memory into memory of its own.
///
/// A session calls it from several threads at a time, without holding a lock.
///
/// A copy may go on after [`copy`](Self::copy) has returned. Two of the functions are `unsafe` to call for what their caller
/// has to see to meanwhile; a session does.
pub trait Device: Send + Sync + 'static {
    /// Staging memory. Its bytes stay where they are when it is moved.
    type Slab: AsMut<[MaybeUninit<u8>]> + Send;
    /// Memory of the device for one tensor.
    type Memory: Send + Sync;
    /// A tensor on the device.
    type Tensor: Send + 'static;
    /// Stands for a copy that is in flight.
    type Fence: Send;

    /// Staging memory of at least `bytes` bytes.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be allocated. If the ring has slabs already, it makes do with them.
    fn slab(&self, bytes: usize) -> Result<Self::Slab>;

    /// Memory for an entry's [bytes](Entry::byte_len).
    ///
    /// # Errors
    ///
    /// Fails when it cannot be allocated, or when the device cannot hold the dtype.
    fn allocate(&self, entry: &Entry) -> Result<Self::Memory>;

    /// Some bytes of a tensor's memory, where the host can write to it: a session then makes them there, without a slab and
    /// a copy.
    ///
    /// # Safety
    ///
    /// No byte of a memory may be asked for again while what was returned for it is in use, and nothing that was returned
    /// may be used after the memory was given to [`finish`](Self::finish) or dropped.
    #[allow(unsafe_code)]
    #[allow(clippy::mut_from_ref)] // No two of them overlap: its safety contract.
    unsafe fn in_place<'m>(
        &self,
        memory: &'m Self::Memory,
        bytes: Range<u64>,
    ) -> Option<&'m mut [MaybeUninit<u8>]> {
        let _ = (memory, bytes);
        None
    }

    /// Starts to copy, all from one slab. If it fails, nothing may be read or written any more when it returns.
    ///
    /// # Errors
    ///
    /// Fails when the copy cannot be started; the tensors that have bytes in it fail then. An
    /// [internal](crate::ErrorKind::Internal) error says that something may still be copied: slab and memory are then neither
    /// used nor freed.
    ///
    /// # Safety
    ///
    /// Until [`wait`](Self::wait) has returned `Ok` for the fence, the slab that the bytes are in must be neither written to
    /// nor freed, and the memory that they go to must be kept and not be given to [`finish`](Self::finish); if `wait` fails,
    /// they must be left like that for good.
    #[allow(unsafe_code)]
    unsafe fn copy(&self, transfers: &[Transfer<'_, Self::Memory>]) -> Result<Self::Fence>;

    /// Waits until a copy is done.
    ///
    /// # Errors
    ///
    /// Fails when the copy has failed; the tensors that have bytes in it fail then.
    fn wait(&self, fence: Self::Fence) -> Result<()>;

    /// Whether a copy is known to be done, without waiting; a session then does not make a slab where one is free.
    fn is_done(&self, fence: &Self::Fence) -> bool {
        let _ = fence;
        false
    }

    /// The tensor, after all copies to its memory are done.
    ///
    /// # Errors
    ///
    /// Fails when the device cannot make a tensor of it.
    fn finish(&self, entry: &Entry, memory: Self::Memory) -> Result<Self::Tensor>;
}

/// Some bytes of a tensor on their way to the device.
#[derive(Debug)]
#[non_exhaustive]
pub struct Transfer<'a, M> {
    /// The bytes, inside of a slab, at a multiple of 256 bytes from its start.
    pub bytes: &'a [u8],
    /// The memory that they go to.
    pub memory: &'a M,
    /// The offset of the first in that memory.
    pub offset: u64,
}

/// The staging buffers of a session: how many, and of which size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ring {
    pub(super) slabs: usize,
    pub(super) slab_bytes: usize,
    in_flight: Option<usize>,
}

impl Default for Ring {
    fn default() -> Self {
        Self { slabs: 16, slab_bytes: 16 << 20, in_flight: None }
    }
}

impl Ring {
    /// 16 slabs of 16 MiB: 256 MiB.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the maximum number of slabs, at least one. They are made when they are needed: one for each thread that reads, and
    /// some that are copied from.
    #[must_use]
    pub fn slabs(mut self, slabs: usize) -> Self {
        self.slabs = slabs.max(1);
        self
    }

    /// Sets the bytes of a slab, rounded down to a multiple of 256; at least that.
    #[must_use]
    pub fn slab_bytes(mut self, bytes: usize) -> Self {
        self.slab_bytes = (bytes / ALIGN * ALIGN).max(ALIGN);
        self
    }

    /// Sets the number of copies in flight, at least one, at which a thread that needs a slab waits for one of them instead of
    /// making another slab: page-locking memory takes longer than copying from it. Otherwise 32 MiB worth of slabs, but
    /// at least 8.
    #[must_use]
    pub fn in_flight(mut self, copies: usize) -> Self {
        self.in_flight = Some(copies.max(1));
        self
    }

    /// The number of copies in flight that keep the device busy.
    pub(super) fn busy(self) -> usize {
        self.in_flight.unwrap_or_else(|| ((32 << 20) / self.slab_bytes).max(8))
    }
}

/// Where tiles begin in a slab: the strictest that copy engines and GPU interfaces ask for.
pub(super) const ALIGN: usize = 256;
