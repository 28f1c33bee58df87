//! The memory of the host through which tensors go to GPUs and come back.

use std::fmt;
#[cfg(feature = "cuda")]
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(any(feature = "cuda", feature = "metal"))]
use weighbridge::engine::Ring;

/// Page-locked memory through which tensors go to a GPU and come back: 32 buffers of 2 MiB unless something
/// else is said. Other devices need none.
///
/// Each thread that reads has two buffers of its own, or one where there are fewer, and fills one while the
/// other is copied from: they are small enough to be still in the processor's cache then. A load makes the
/// buffers that it needs, not more than that, and frees them. Locking pages takes time: who loads or saves more
/// than once gives the same `Staging` to each [`Loader`](crate::Loader::staging) and
/// [`Saver`](crate::Saver::staging), and frees it by dropping it.
///
/// ```
/// use weighbridge_candle::{Loader, Staging};
/// # use weighbridge_candle::weighbridge::Checkpoint;
///
/// # fn main() -> weighbridge_candle::weighbridge::Result<()> {
/// # let ckpt = Checkpoint::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder"))?;
/// let staging = Staging::new().buffers(16); // 32 MiB
/// let loaded = Loader::new(&ckpt).staging(&staging).load()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct Staging {
    buffers: usize,
    buffer_bytes: usize,
    #[cfg(feature = "cuda")]
    free: Arc<Mutex<Vec<crate::cuda::Pinned>>>,
}

impl Default for Staging {
    fn default() -> Self {
        Self::of(32, 2 << 20)
    }
}

impl Staging {
    /// 32 buffers of 2 MiB, 64 MiB in all, none of which is made yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the number of buffers that a load or a save has at most; at least one. Where there are fewer than
    /// threads, not all threads read.
    pub fn buffers(self, buffers: usize) -> Self {
        Self::of(buffers.max(1), self.buffer_bytes)
    }

    /// Sets the bytes of a buffer, rounded down to a multiple of 256; at least that.
    pub fn buffer_bytes(self, bytes: usize) -> Self {
        Self::of(self.buffers, (bytes / 256 * 256).max(256))
    }

    fn of(buffers: usize, buffer_bytes: usize) -> Self {
        Self {
            buffers,
            buffer_bytes,
            #[cfg(feature = "cuda")]
            free: Arc::default(),
        }
    }

    /// The same as the engine has it.
    #[cfg(any(feature = "cuda", feature = "metal"))]
    pub(crate) fn ring(&self) -> Ring {
        Ring::new().slabs(self.buffers).slab_bytes(self.buffer_bytes)
    }
}

#[cfg(feature = "cuda")]
impl Staging {
    /// A buffer, and where it goes when it is no longer needed.
    pub(crate) fn slab(
        &self,
        context: &Arc<crate::cuda::Context>,
    ) -> Result<crate::cuda::Slab, crate::cuda::DriverError> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let pinned = match free {
            Some(pinned) => pinned,
            None => crate::cuda::Pinned::new(context, self.buffer_bytes)?,
        };
        Ok(crate::cuda::Slab::new(pinned, &self.free))
    }

    pub(crate) fn most(&self) -> usize {
        self.buffers
    }

    pub(crate) fn bytes(&self) -> usize {
        self.buffer_bytes
    }
}

impl fmt::Debug for Staging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staging")
            .field("buffers", &self.buffers)
            .field("buffer_bytes", &self.buffer_bytes)
            .finish_non_exhaustive()
    }
}
