//! What a device has to do for a session, and how many staging buffers it gets.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::dtype::Dtype;
use crate::error::Result;
use crate::plan::Entry;

/// A device that copies from staging memory into memory of its own.
///
/// A session calls it from several threads at a time, without holding a lock. Each thread that reads has a
/// [lane](Self::Lane) of its own, which no other uses meanwhile.
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
    /// What a reader has of the device for itself, such as a stream that copies.
    type Lane: Send;
    /// Stands for a copy that is in flight.
    type Fence: Send;

    /// A lane. One is made by a reader when it needs the first slab, and kept until the session ends.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be made. If there are other readers, the session makes do with them.
    fn lane(&self) -> Result<Self::Lane>;

    /// Staging memory of at least `bytes` bytes.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be allocated. If the session has slabs already, it makes do with them.
    fn slab(&self, lane: &mut Self::Lane, bytes: usize) -> Result<Self::Slab>;

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

    /// Whether it can cast what it copies from one dtype to another, whose elements are some times as large:
    /// they then cross the bus as they are stored.
    fn casts(&self, from: Dtype, to: Dtype) -> bool {
        let _ = (from, to);
        false
    }

    /// Starts to copy, all from one slab of the lane. If it fails, nothing may be read or written any more
    /// when it returns.
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
    unsafe fn copy(
        &self,
        lane: &mut Self::Lane,
        transfers: &[Transfer<'_, Self::Memory>],
    ) -> Result<Self::Fence>;

    /// Waits until a copy of the lane is done; they are waited for in the order in which they were started.
    ///
    /// # Errors
    ///
    /// Fails when the copy has failed; the tensors that have bytes in it fail then.
    fn wait(&self, lane: &mut Self::Lane, fence: Self::Fence) -> Result<()>;

    /// Whether a copy of the lane is known to be done, without waiting: its slab is then filled again instead
    /// of another one, and its tensors need not wait until that is done.
    fn is_done(&self, lane: &Self::Lane, fence: &Self::Fence) -> bool {
        let _ = (lane, fence);
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
    /// The offset in that memory of the first, or of what it is cast to.
    pub offset: u64,
    /// From and to which dtype they are to be cast there, as the device said that it [can](Device::casts).
    pub cast: Option<(Dtype, Dtype)>,
}

/// The staging buffers of a session: how many, and of which size.
///
/// Each reader has two of its own, or one where there are fewer: it fills one while the device copies from
/// the other. They are best small enough that what was read is still in the processor's cache when the device
/// fetches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ring {
    slabs: usize,
    pub(super) slab_bytes: usize,
}

impl Default for Ring {
    fn default() -> Self {
        Self { slabs: 32, slab_bytes: 2 << 20 }
    }
}

impl Ring {
    /// 32 slabs of 2 MiB: 64 MiB.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the maximum number of slabs, at least one. They are made when they are needed; where there are
    /// fewer of them than threads, not all threads read.
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

    /// The slabs that each of `readers` threads may have.
    pub(super) fn a_reader(self, readers: usize) -> usize {
        /// One to fill and one to copy from.
        const MOST: usize = 2;
        (self.slabs / readers.max(1)).clamp(1, MOST)
    }

    /// The most readers if each has so many slabs.
    pub(super) fn readers(self, slabs_a_reader: usize) -> usize {
        (self.slabs / slabs_a_reader).max(1)
    }
}

/// Where tiles begin in a slab: the strictest that copy engines and GPU interfaces ask for.
pub(super) const ALIGN: usize = 256;
