//! Memory for one tensor, filled by several threads.

#![allow(unsafe_code)]

use std::collections::HashSet;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::host::HostBuffer;
use super::pages::{self, HUGE_PAGE, HUGE_PAGES_FROM, HugePage};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind};

/// The memory of one tensor while it is filled: a vector that has its capacity and no values yet.
///
/// No byte is zeroed first, and none is written twice. Dropping it frees the memory.
#[derive(Debug)]
pub(crate) struct Allocation {
    /// Empty until everything is filled; nothing touches its capacity but chunks, through `start`.
    buffer: HostBuffer,
    /// The first byte of the buffer's capacity.
    start: NonNull<u8>,
    bytes: usize,
    /// The addresses at which a first touch brings in a huge page.
    huge: Range<usize>,
    /// Bytes that finished chunks have initialised.
    filled: AtomicUsize,
}

// SAFETY: an `Allocation` owns its memory as the `Vec` in it does, and `start` only says where that is.
unsafe impl Send for Allocation {}
// SAFETY: through a shared reference `start` and `bytes` are read, which nothing changes, and the counter is
// atomic. The memory behind `start` is written through `Chunk`s only, which are disjoint.
unsafe impl Sync for Allocation {}

impl Allocation {
    /// Memory for `bytes` bytes of `dtype`, uninitialised.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Memory`] where it cannot be allocated.
    pub(crate) fn new(dtype: Dtype, bytes: usize) -> Result<Self, Error> {
        let mut buffer = HostBuffer::empty(dtype);
        buffer.reserve(pages::capacity_for(bytes)).map_err(|error| {
            Error::new(ErrorKind::Memory, format!("cannot allocate {bytes} bytes of memory"))
                .with_source(error)
        })?;
        let start = buffer.spare();
        let huge = pages::advise_huge(start.addr().get(), bytes);
        Ok(Self { buffer, start, bytes, huge, filled: AtomicUsize::new(0) })
    }

    /// Cuts the memory into chunks of about `size` bytes, which is not 0.
    ///
    /// Where the memory has huge pages and `whole_pages` is asked for, no two chunks share one: threads that
    /// touch a fresh page at the same time both clear it. Cuts are at multiples of 16 bytes, and so between
    /// elements of whole bytes.
    ///
    /// It takes the allocation by value so that it happens once: chunks stay disjoint.
    pub(crate) fn into_chunks(self, size: usize, whole_pages: bool) -> (Filling, Vec<Chunk>) {
        let bytes = self.bytes;
        let (size, first) = if bytes >= HUGE_PAGES_FROM && whole_pages {
            let size = size.next_multiple_of(HUGE_PAGE);
            let to_boundary = (self.start.addr().get().wrapping_neg() % HUGE_PAGE).next_multiple_of(16);
            // A small part before the first boundary goes with the chunk behind it.
            let shared = if to_boundary < HUGE_PAGE / 2 { size } else { size - HUGE_PAGE };
            (size, to_boundary + shared)
        } else {
            (size.next_multiple_of(16), size.next_multiple_of(16))
        };
        let memory = Arc::new(self);
        // A small rest goes with the chunk before it.
        let last = bytes.saturating_sub(size / 8);
        let starts = std::iter::once(0).chain((first..last).step_by(size));
        let ends = (first..last).step_by(size).chain(std::iter::once(bytes));
        let chunks = starts
            .zip(ends)
            .filter(|(start, end)| start < end)
            .map(|(start, end)| Chunk { memory: Arc::clone(&memory), start, len: end - start })
            .collect();
        (Filling(memory), chunks)
    }
}

/// What is left of an allocation when its chunks are handed out: the right to collect it.
#[derive(Debug)]
pub(crate) struct Filling(Arc<Allocation>);

impl Filling {
    /// The filled memory; `None` while a chunk is still out or was dropped unfilled.
    pub(crate) fn finish(self) -> Option<HostBuffer> {
        let allocation = Arc::into_inner(self.0)?;
        if allocation.filled.load(Ordering::Acquire) != allocation.bytes {
            return None;
        }
        let mut buffer = allocation.buffer;
        // SAFETY: `new` allocated `bytes` bytes. Chunks are disjoint, cover them all, and each adds its
        // length to `filled` once, after it was initialised; so all bytes are.
        unsafe { buffer.set_byte_len(allocation.bytes) };
        Some(buffer)
    }
}

/// The exclusive right to fill one part of an [`Allocation`].
#[derive(Debug)]
pub(crate) struct Chunk {
    memory: Arc<Allocation>,
    start: usize,
    len: usize,
}

impl Chunk {
    /// The bytes of the tensor that this chunk is for.
    pub(crate) fn range(&self) -> Range<u64> {
        self.start as u64..(self.start + self.len) as u64
    }

    /// Where it is in memory.
    fn address(&self) -> usize {
        self.memory.start.addr().get() + self.start
    }

    /// The huge page in which it starts.
    pub(crate) fn huge_page(&self) -> HugePage {
        HugePage::of(self.address())
    }

    /// Has the kernel back the chunk with memory at once, but for its huge pages: many first touches, a small page each,
    /// cost more. With the first chunk the allocation's head becomes a huge page, too.
    pub(crate) fn populate(&self) {
        let (address, huge) = (self.address(), &self.memory.huge);
        let head = HugePage::head(address, huge).filter(|_| self.start == 0);
        let huge = match head.is_some_and(HugePage::make) {
            true => address..huge.end,
            false => huge.clone(),
        };
        pages::populate(address, self.len, &huge);
    }

    /// Has `fill` initialise the whole chunk; it returns the slice it was given, now as bytes.
    ///
    /// # Errors
    ///
    /// Passes on the error of `fill`; the chunk is lost then, and the tensor with it.
    pub(crate) fn fill<E>(
        self,
        fill: impl for<'a> FnOnce(&'a mut [MaybeUninit<u8>]) -> Result<&'a mut [u8], E>,
    ) -> Result<(), E> {
        // SAFETY: `start..start + len` lies inside the allocation, so the offset stays in bounds.
        let first = unsafe { self.memory.start.add(self.start) };
        // SAFETY: the range lies inside the allocation, which lives as long as `self.memory`; no other chunk
        // covers it and `self` is consumed, so access is exclusive; `MaybeUninit` asks for no initialisation.
        let memory =
            unsafe { std::slice::from_raw_parts_mut(first.as_ptr().cast::<MaybeUninit<u8>>(), self.len) };
        let filled = fill(memory)?;
        if std::ptr::eq(filled.as_ptr(), first.as_ptr()) && filled.len() == self.len {
            self.memory.filled.fetch_add(self.len, Ordering::Release);
        }
        Ok(())
    }
}

/// The huge pages that lie inside of what chunks of small allocations cover, made one after the other.
///
/// Memory of small allocations comes in pages that the allocator has touched here and there, so that they
/// cannot become huge by a first touch; see [`HugePage::make`].
pub(crate) fn huge_pages<'c>(chunks: impl Iterator<Item = &'c Chunk>) -> HashSet<HugePage> {
    // Large ones were advised as a whole.
    let small = chunks.filter(|chunk| chunk.memory.bytes < HUGE_PAGES_FROM);
    pages::inside(small.map(|chunk| (chunk.address(), chunk.len)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::copied;

    fn chunks(dtype: Dtype, bytes: usize, size: usize) -> (Filling, Vec<Chunk>) {
        Allocation::new(dtype, bytes).unwrap().into_chunks(size, true)
    }

    fn write(chunk: Chunk) {
        let first = chunk.range().start as u8;
        chunk
            .fill(|memory| {
                let bytes: Vec<u8> = (0..memory.len()).map(|i| first + i as u8).collect();
                Ok::<_, Error>(copied(memory, &bytes))
            })
            .unwrap();
    }

    #[test]
    fn threads_fill_disjoint_chunks() {
        let (filling, chunks) = chunks(Dtype::U16, 70, 20);
        assert_eq!(chunks.len(), 3);
        std::thread::scope(|scope| {
            for chunk in chunks {
                scope.spawn(|| write(chunk));
            }
        });
        let buffer = filling.finish().unwrap();
        assert!(matches!(&buffer, HostBuffer::U16(values) if values.len() == 35));
        assert_eq!(buffer.as_bytes(), (0..70).collect::<Vec<u8>>());
    }

    #[test]
    fn chunks_cover_everything_and_share_no_huge_page() {
        for bytes in [1, 15, 16, 17, 100, HUGE_PAGES_FROM, HUGE_PAGES_FROM + 2, 5 * HUGE_PAGE + 12_346] {
            for size in [1, 16, 50, 3 << 20, 1 << 30] {
                let (filling, parts) = chunks(Dtype::U16, bytes, size.max(bytes / 64));
                let start = filling.0.start.addr().get();
                let mut end = 0;
                for part in parts {
                    assert_eq!(part.start, end);
                    assert!(part.len > 0 && part.start % 16 == 0);
                    let huge = bytes >= HUGE_PAGES_FROM && part.start > 0;
                    assert!(!huge || (start + part.start) % HUGE_PAGE == 0);
                    part.populate();
                    end += part.len;
                }
                assert_eq!(end, bytes);
                let fine = Allocation::new(Dtype::U16, bytes).unwrap().into_chunks(size, false).1;
                assert_eq!(fine.iter().map(|part| part.len).sum::<usize>(), bytes);
                // A rest of less than an eighth is not a chunk of its own.
                let size = size.next_multiple_of(16);
                assert_eq!(fine.len(), bytes.saturating_sub(size / 8).div_ceil(size).max(1));
            }
        }
    }

    #[test]
    fn a_missing_chunk_is_noticed() {
        let (filling, mut parts) = chunks(Dtype::F32, 32, 16);
        write(parts.pop().unwrap());
        drop(parts);
        assert_eq!(filling.finish(), None);

        let (filling, parts) = chunks(Dtype::F32, 16, 8);
        assert_eq!(filling.finish(), None);
        drop(parts);
    }

    #[test]
    fn a_reader_that_returns_other_memory_is_refused() {
        let (filling, parts) = chunks(Dtype::U8, 4, 4);
        for part in parts {
            let other = Box::into_raw(Box::new([1; 4]));
            // SAFETY: nobody else refers to it, and it is freed only below.
            let lent: &'static mut [u8; 4] = unsafe { &mut *other };
            part.fill(|_| Ok::<_, Error>(lent)).unwrap();
            // SAFETY: it comes from a `Box`, and what referred to it is gone.
            drop(unsafe { Box::from_raw(other) });
        }
        assert_eq!(filling.finish(), None);
    }

    #[test]
    fn an_empty_tensor_is_complete_at_once() {
        let (filling, parts) = chunks(Dtype::F64, 0, 1);
        assert!(parts.is_empty());
        assert_eq!(filling.finish(), Some(HostBuffer::F64(Vec::new())));
    }

    #[test]
    fn memory_that_cannot_be_had_is_an_error() {
        let error = Allocation::new(Dtype::F64, usize::MAX / 2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Memory);
    }
}
