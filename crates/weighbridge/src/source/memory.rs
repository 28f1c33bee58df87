//! Bytes in memory.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::{Source, slice_of};
use crate::buffer::copied;

/// Bytes in memory: anything that gives a byte slice, such as `Vec<u8>`, `Arc<[u8]>` or a mapping.
///
/// The slice must be the same every time it is asked for.
///
/// ```
/// use weighbridge::source::{MemorySource, Source};
///
/// let source = MemorySource(vec![1, 2, 3, 4]);
/// let mut buf = [0; 2];
/// source.read_at(1, &mut buf)?;
/// assert_eq!(buf, [2, 3]);
/// # std::io::Result::Ok(())
/// ```
#[derive(Clone, Copy, Default)]
pub struct MemorySource<T>(pub T);

impl<T: AsRef<[u8]> + Send + Sync> Source for MemorySource<T> {
    fn size(&self) -> u64 {
        self.0.as_ref().len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.copy_from_slice(slice_of(self.0.as_ref(), offset, buf.len())?);
        Ok(())
    }

    fn read_uninit_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> io::Result<&'b mut [u8]> {
        Ok(copied(buf, slice_of(self.0.as_ref(), offset, buf.len())?))
    }

    fn as_bytes(&self) -> Option<&[u8]> {
        Some(self.0.as_ref())
    }

    fn is_cached(&self, _: Range<u64>) -> Option<bool> {
        Some(true)
    }
}

/// Without the bytes, which may be many.
impl<T> fmt::Debug for MemorySource<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemorySource")
    }
}
