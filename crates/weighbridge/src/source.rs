//! Where bytes are: files, memory, and whatever else can be read at an offset.
//!
//! [`Source`] is the trait. Ready-made are [`FileSource`], [`MemorySource`], [`Window`], a range of another
//! source, and [`Concat`], several sources laid end to end. [`SourceReader`] reads any of them front to back. With [`Mapping`] a
//! checkpoint maps its files.

mod concat;
#[cfg(feature = "fs")]
mod file;
#[cfg(all(feature = "fs", target_os = "linux"))]
mod file_system;
#[cfg(feature = "fs")]
mod mapping;
mod memory;
#[cfg(test)]
mod probe;
mod reader;
#[cfg(all(feature = "fs", target_os = "linux"))]
mod remote;
#[cfg(all(feature = "fs", target_os = "linux"))]
mod residency;
#[cfg(all(feature = "fs", target_os = "linux"))]
mod uncached;
mod window;

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use crate::buffer;

pub use concat::Concat;
#[cfg(feature = "fs")]
pub use file::FileSource;
#[cfg(feature = "fs")]
pub(crate) use file::open_regular;
#[cfg(all(feature = "fs", target_os = "linux"))]
pub(crate) use mapping::MappedSource;
#[cfg(feature = "fs")]
pub use mapping::{Access, Mapping, Populate};
pub use memory::MemorySource;
pub use reader::SourceReader;
pub use window::Window;

/// Bytes that can be read at any offset, from several threads at a time.
///
/// Implement [`size`](Source::size) and [`read_at`](Source::read_at); the rest has defaults. A source that
/// wraps another should forward [`prefetch`](Source::prefetch), [`is_cached`](Source::is_cached),
/// [`hints`](Source::hints) and [`interrupt`](Source::interrupt) too: without them nothing is read ahead from a cold disk, every
/// file is taken for cold, slow ones are read by too few threads, and who stops a load waits for its reads. With [`uncached`](Source::uncached) it takes part in
/// [`PageCache::Release`](crate::engine::PageCache::Release).
///
/// ```
/// use std::io;
/// use std::ops::Range;
/// use weighbridge::source::{MemorySource, Source};
/// use weighbridge::Checkpoint;
///
/// /// Decrypts what it reads, in place. (Use a real cipher that can start at any offset, such as AES in counter mode.)
/// struct Decrypted<S> {
///     inner: S,
///     key: [u8; 32],
/// }
///
/// impl<S: Source> Source for Decrypted<S> {
///     fn size(&self) -> u64 {
///         self.inner.size()
///     }
///
///     fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
///         self.inner.read_at(offset, buf)?;
///         for (byte, at) in buf.iter_mut().zip(offset..) {
///             *byte ^= self.key[(at % 32) as usize];
///         }
///         Ok(())
///     }
///
///     fn prefetch(&self, range: Range<u64>) {
///         self.inner.prefetch(range);
///     }
///
///     fn is_cached(&self, range: Range<u64>) -> Option<bool> {
///         self.inner.is_cached(range)
///     }
/// }
///
/// # fn main() -> weighbridge::Result<()> {
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder/model-00001-of-00004.safetensors");
/// # let mut bytes = std::fs::read(path).unwrap();
/// # bytes.iter_mut().for_each(|byte| *byte ^= 0x5A);
/// let encrypted = MemorySource(bytes);
/// let ckpt = Checkpoint::from_source(Decrypted { inner: encrypted, key: [0x5A; 32] })?;
/// assert!(!ckpt.is_empty());
/// # Ok(())
/// # }
/// ```
pub trait Source: Send + Sync {
    /// The number of bytes there are.
    fn size(&self) -> u64;

    /// Fills `buf` with the bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// Fails when the bytes cannot be read, with [`io::ErrorKind::UnexpectedEof`] when they are not there.
    /// Interruptions are the implementer's to retry.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// The same; `arrived` is called with as much of the buffer as is filled, whenever there is more of it. What is to
    /// be computed of bytes that come slowly is computed while others are on their way.
    ///
    /// The default calls it once, with all of them.
    ///
    /// # Errors
    ///
    /// As [`read_at`](Source::read_at).
    fn read_as_it_comes(
        &self,
        offset: u64,
        buf: &mut [u8],
        arrived: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        self.read_at(offset, buf)?;
        arrived(buf);
        Ok(())
    }

    /// Fills uninitialised memory, and returns the same memory as initialised bytes.
    ///
    /// The default zeroes it first and calls [`read_at`](Source::read_at). Override it if the bytes can be
    /// written without that. The engine checks that what is returned is the slice that it passed in.
    ///
    /// # Errors
    ///
    /// As [`read_at`](Source::read_at).
    fn read_uninit_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> io::Result<&'b mut [u8]> {
        let buf = buffer::zeroed(buf);
        self.read_at(offset, buf)?;
        Ok(buf)
    }

    /// All bytes, if they are in memory: they are then lent instead of read. Returns the same memory every
    /// time.
    fn as_bytes(&self) -> Option<&[u8]> {
        None
    }

    /// The open file that holds these bytes contiguously, and the offset of the first, so that the kernel can
    /// copy them into another file. `None` if no file does.
    fn in_file(&self, range: Range<u64>) -> Option<(&File, u64)> {
        let _ = range;
        None
    }

    /// Brings bytes that are about to be lent into memory.
    ///
    /// # Errors
    ///
    /// Fails when they cannot be read.
    fn populate(&self, range: Range<u64>) -> io::Result<()> {
        let _ = range;
        Ok(())
    }

    /// Fetches bytes that will be read soon into a cache. It may block: a session calls it on a thread of its
    /// own, for a few megabytes at a time.
    fn prefetch(&self, range: Range<u64>) {
        let _ = range;
    }

    /// Whether bytes can be read without waiting for a disk; `None` if that is not known.
    fn is_cached(&self, range: Range<u64>) -> Option<bool> {
        let _ = range;
        None
    }

    /// The same bytes, to be read so that afterwards no cache holds more of them than before. `None` if there is
    /// no such way, or nothing to be done for it.
    ///
    /// A source that wraps others wraps what they give here:
    ///
    /// ```
    /// # use std::io;
    /// # use std::sync::Arc;
    /// # use weighbridge::Source;
    /// /// Counts what is read.
    /// struct Counted {
    ///     inner: Arc<dyn Source>,
    ///     # read: std::sync::atomic::AtomicU64,
    /// }
    ///
    /// impl Source for Counted {
    ///     # fn size(&self) -> u64 {
    ///     #     self.inner.size()
    ///     # }
    ///     # fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
    ///     #     self.inner.read_at(offset, buf)
    ///     # }
    ///     // ...
    ///     fn uncached(&self) -> Option<Arc<dyn Source>> {
    ///         Some(Arc::new(Counted { inner: self.inner.uncached()?, /* ... */
    ///             # read: Default::default(),
    ///         }))
    ///     }
    /// }
    /// ```
    fn uncached(&self) -> Option<Arc<dyn Source>> {
        None
    }

    /// How this source likes to be read.
    fn hints(&self) -> Hints {
        Hints::default()
    }

    /// Has reads under way that wait for something slow, such as a network, fail at once with
    /// [`io::ErrorKind::Interrupted`]; later ones work as before. A session calls it when it is stopped, so as not to wait
    /// for bytes that nobody wants; one that is not stopped, and whose read ends like that, reads again.
    fn interrupt(&self) {}

    /// How many requests were made so far, where each costs; `None` where nobody counts.
    fn requests(&self) -> Option<u64> {
        None
    }
}

/// How a source likes to be read.
///
/// They are asked for once, when a checkpoint is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hints {
    /// Bytes to ask for at a time.
    pub chunk: usize,
    /// The fewest bytes that are worth a request of their own, where a tensor that somebody waits for is cut up for several
    /// threads.
    pub least: usize,
    /// Gaps up to this many bytes are cheaper to read through than to skip.
    pub read_through: usize,
    /// Requests to have in flight, where they are not answered from a cache; fewer than there are cores ask for
    /// nothing. A [session](crate::Session) has as many threads, 64 at most, unless it was
    /// [told otherwise](crate::LoadOptions::threads).
    pub concurrency: usize,
}

impl Default for Hints {
    fn default() -> Self {
        Self { chunk: 4 << 20, least: 128 << 10, read_through: 16 << 10, concurrency: 1 }
    }
}

impl Hints {
    /// Sets the bytes to ask for at a time.
    #[must_use]
    pub fn chunk(mut self, bytes: usize) -> Self {
        self.chunk = bytes;
        self
    }

    /// Sets the fewest bytes that are worth a request.
    #[must_use]
    pub fn least(mut self, bytes: usize) -> Self {
        self.least = bytes;
        self
    }

    /// Sets the largest gap that is read through.
    #[must_use]
    pub fn read_through(mut self, bytes: usize) -> Self {
        self.read_through = bytes;
        self
    }

    /// Sets the requests to have in flight.
    #[must_use]
    pub fn concurrency(mut self, requests: usize) -> Self {
        self.concurrency = requests;
        self
    }

    /// Whether a request costs so much that it is worth memory to make few large ones of many small.
    pub(crate) fn is_far(&self) -> bool {
        self.read_through > Self::default().read_through
    }
}

impl<S: Source + ?Sized> Source for Arc<S> {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buf)
    }

    fn read_as_it_comes(
        &self,
        offset: u64,
        buf: &mut [u8],
        arrived: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        (**self).read_as_it_comes(offset, buf, arrived)
    }

    fn read_uninit_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> io::Result<&'b mut [u8]> {
        (**self).read_uninit_at(offset, buf)
    }

    fn as_bytes(&self) -> Option<&[u8]> {
        (**self).as_bytes()
    }

    fn in_file(&self, range: Range<u64>) -> Option<(&File, u64)> {
        (**self).in_file(range)
    }

    fn populate(&self, range: Range<u64>) -> io::Result<()> {
        (**self).populate(range)
    }

    fn prefetch(&self, range: Range<u64>) {
        (**self).prefetch(range);
    }

    fn is_cached(&self, range: Range<u64>) -> Option<bool> {
        (**self).is_cached(range)
    }

    fn uncached(&self) -> Option<Arc<dyn Source>> {
        (**self).uncached()
    }

    fn hints(&self) -> Hints {
        (**self).hints()
    }

    fn interrupt(&self) {
        (**self).interrupt();
    }

    fn requests(&self) -> Option<u64> {
        (**self).requests()
    }
}

/// `len` bytes from `offset` on.
fn slice_of(bytes: &[u8], offset: u64, len: usize) -> io::Result<&[u8]> {
    usize::try_from(offset)
        .ok()
        .and_then(|start| bytes.get(start..start.checked_add(len)?))
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
