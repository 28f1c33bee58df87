//! Uninitialised host memory: the first of the crate's fenced `unsafe` modules.
//!
//! Three things live here, each behind a safe interface:
//!
//! - [`fill`]: initialise a slice step by step, with each step's initialised part as the proof.
//! - [`Allocation`]: memory for one tensor, handed out as disjoint [`Chunk`]s that several threads fill, and
//!   turned into the `Vec` of its element type once every byte is there. No byte is written twice and none is
//!   zeroed first.
//! - a hint to the kernel that a large allocation wants huge pages.
//!
//! One argument carries the module. *A function that is handed `&'a mut [MaybeUninit<u8>]` and returns
//! `&'a mut [u8]` of the same address and length has initialised it*: the argument is the only path to that
//! memory for `'a`, so the result was derived from it, and a `&mut [u8]` may only refer to initialised bytes.
//! So closures which cannot contain `unsafe` themselves may do the filling.

#![allow(unsafe_code)]

use std::collections::HashSet;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::{bf16, f16};

use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind};

/// Zeroes `buf` and returns it as bytes.
pub(crate) fn zeroed(buf: &mut [MaybeUninit<u8>]) -> &mut [u8] {
    buf.fill(MaybeUninit::new(0));
    // SAFETY: the line above initialised every byte.
    unsafe { buf.assume_init_mut() }
}

/// Initialises `buf` step by step. `step` is handed the number of bytes done and the rest of the slice; it
/// initialises a part at the start of the rest and returns that part. An empty part means that there is no
/// more to be had, `None` that it was interrupted and wants to be called again.
///
/// # Errors
///
/// Passes on the error of `step`, and fails with `UnexpectedEof` when a step returns nothing.
pub(crate) fn fill<E: From<std::io::Error>>(
    buf: &mut [MaybeUninit<u8>],
    mut step: impl for<'a> FnMut(usize, &'a mut [MaybeUninit<u8>]) -> Result<Option<&'a [u8]>, E>,
) -> Result<&mut [u8], E> {
    let mut filled = 0;
    while filled < buf.len() {
        let rest = &mut buf[filled..];
        let (address, most) = (rest.as_ptr().cast::<u8>(), rest.len());
        let Some(part) = step(filled, rest)? else {
            continue;
        };
        if part.is_empty() {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        if !std::ptr::eq(part.as_ptr(), address) || part.len() > most {
            return Err(std::io::Error::other("a reader returned memory that it was not given").into());
        }
        filled += part.len();
    }
    // SAFETY: each step returned an initialised slice that starts where the last one ended (the module's
    // argument; a shared slice of that address is as good a proof as an exclusive one, since the step's
    // exclusive borrow left no other path to the memory), and together they cover `buf`.
    Ok(unsafe { buf.assume_init_mut() })
}

/// Exchanges the two dimensions of `from`, a matrix of `rows` rows of `columns` units of `unit` bytes, and fills `to`
/// with what the result has from byte `skipped` on. `None` if the lengths do not fit.
pub(crate) fn transpose<'t>(
    from: &[u8],
    rows: usize,
    columns: usize,
    unit: usize,
    skipped: usize,
    to: &'t mut [MaybeUninit<u8>],
) -> Option<&'t mut [u8]> {
    let whole = rows.checked_mul(columns)?.checked_mul(unit)?;
    if from.len() != whole || skipped.checked_add(to.len())? > whole {
        return None;
    }
    if to.is_empty() {
        return Some(zeroed(to));
    }
    match unit {
        1 => transpose_units::<1>(from, rows, columns, skipped, to),
        2 => transpose_units::<2>(from, rows, columns, skipped, to),
        4 => transpose_units::<4>(from, rows, columns, skipped, to),
        8 => transpose_units::<8>(from, rows, columns, skipped, to),
        _ => {
            let mut at = skipped;
            fill::<std::io::Error>(to, |_, rest| {
                let (number, inside) = (at / unit, at % unit);
                let start = ((number % rows) * columns + number / rows) * unit + inside;
                let len = (unit - inside).min(rest.len());
                at += len;
                Ok(Some(rest[..len].write_copy_of_slice(&from[start..start + len])))
            })
            .ok()
        }
    }
}

/// The same for units of `U` bytes, of which `skipped` and the length of `to` are multiples.
fn transpose_units<'t, const U: usize>(
    from: &[u8],
    rows: usize,
    columns: usize,
    skipped: usize,
    to: &'t mut [MaybeUninit<u8>],
) -> Option<&'t mut [u8]> {
    /// Units of a block in each direction: its lines stay in the first cache.
    const BLOCK: usize = 32;
    let (from, _) = from.as_chunks::<U>();
    let (units, rest) = to.as_chunks_mut::<U>();
    if !rest.is_empty() || !skipped.is_multiple_of(U) {
        return None;
    }
    let (first, end) = (skipped / U, skipped / U + units.len());
    for column in (first / rows..end.div_ceil(rows)).step_by(BLOCK) {
        let some_columns = column..(column + BLOCK).min(columns);
        for row in (0..rows).step_by(BLOCK) {
            let some_rows = row..(row + BLOCK).min(rows);
            for column in some_columns.clone() {
                let line = column * rows;
                let wanted = (line + some_rows.start).max(first)..(line + some_rows.end).min(end);
                for number in wanted {
                    units[number - first] = from[(number - line) * columns + column].map(MaybeUninit::new);
                }
            }
        }
    }
    // SAFETY: every number from `first` to `end` is in one row of one column of one block, and the loops over blocks,
    // columns and rows come to each of them; so every unit was written, and units are all of `to`.
    Some(unsafe { to.assume_init_mut() })
}

macro_rules! elements {
    ($($variant:ident $type:ty),*) => {
        /// The host type whose `Vec` holds the elements of a dtype.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Element { $($variant),* }

        /// A loaded tensor in host memory: the `Vec` of its element type.
        ///
        /// Dtypes without a Rust type of their own come as the raw bytes of the file (`BOOL`, `F4`, `F6_*`
        /// and `F8_*` as `U8`), and `C64` as `F32` pairs.
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        #[allow(missing_docs)]
        pub enum HostBuffer { $($variant(Vec<$type>)),* }

        impl HostBuffer {
            /// The bytes, in the machine's byte order.
            pub fn as_bytes(&self) -> &[u8] {
                match self { $(Self::$variant(values) => bytemuck::cast_slice(values)),* }
            }
        }

        impl Allocation {
            /// Memory for `bytes` bytes of `dtype`, uninitialised.
            ///
            /// # Errors
            ///
            /// Fails when the memory cannot be had.
            pub(crate) fn new(dtype: Dtype, bytes: usize) -> Result<Self, Error> {
                let element = Element::of(dtype);
                let (start, capacity) = match element {
                    $(Element::$variant => {
                        let mut values = Vec::<$type>::new();
                        values.try_reserve_exact(room(bytes).div_ceil(size_of::<$type>())).map_err(|error| {
                            let message = format!("{bytes} bytes of memory could not be had");
                            Error::new(ErrorKind::Memory, message).with_source(error)
                        })?;
                        let mut values = ManuallyDrop::new(values);
                        (NonNull::from(values.spare_capacity_mut()).cast::<u8>(), values.capacity())
                    })*
                };
                advise_huge_pages(start, bytes);
                Ok(Self { start, bytes, element, capacity, filled: AtomicUsize::new(0) })
            }

            /// The vector that was taken apart in `new`, with `bytes` of it as its length.
            ///
            /// # Safety
            ///
            /// The first `bytes` bytes are initialised, and nothing uses `start` afterwards.
            unsafe fn rebuild(&mut self, bytes: usize) -> HostBuffer {
                match self.element {
                    $(Element::$variant => {
                        let start = self.start.as_ptr().cast::<$type>();
                        let len = bytes / size_of::<$type>();
                        // SAFETY: `start` and `capacity` come from a `Vec` of this very type, whose
                        // destructor did not run; `len` is at most the capacity, and that many elements
                        // are initialised (the caller's promise); every bit pattern is a value of them.
                        HostBuffer::$variant(unsafe { Vec::from_raw_parts(start, len, self.capacity) })
                    })*
                }
            }
        }
    };
}

elements! {
    U8 u8, I8 i8, U16 u16, I16 i16, U32 u32, I32 i32, U64 u64, I64 i64, F16 f16, BF16 bf16, F32 f32, F64 f64
}

impl Element {
    fn of(dtype: Dtype) -> Self {
        match dtype {
            Dtype::I8 => Self::I8,
            Dtype::I16 => Self::I16,
            Dtype::U16 => Self::U16,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::BF16,
            Dtype::I32 => Self::I32,
            Dtype::U32 => Self::U32,
            Dtype::F32 | Dtype::C64 => Self::F32,
            Dtype::F64 => Self::F64,
            Dtype::I64 => Self::I64,
            Dtype::U64 => Self::U64,
            Dtype::Bool
            | Dtype::F4
            | Dtype::F6_E2M3
            | Dtype::F6_E3M2
            | Dtype::U8
            | Dtype::F8_E5M2
            | Dtype::F8_E4M3
            | Dtype::F8_E8M0
            | Dtype::F8_E4M3FNUZ
            | Dtype::F8_E5M2FNUZ => Self::U8,
        }
    }
}

/// The memory of one tensor while it is filled.
#[derive(Debug)]
pub(crate) struct Allocation {
    start: NonNull<u8>,
    bytes: usize,
    element: Element,
    /// Of the vector behind it, in elements.
    capacity: usize,
    /// Bytes that finished chunks have initialised.
    filled: AtomicUsize,
}

// SAFETY: an `Allocation` owns its memory as a `Vec` does; other threads reach it only through `Chunk`s,
// which are disjoint.
unsafe impl Send for Allocation {}
// SAFETY: shared access touches the atomic counter only.
unsafe impl Sync for Allocation {}

impl Allocation {
    /// Cuts the memory into chunks of about `size` bytes, which is not 0.
    ///
    /// Where the memory has huge pages and `whole_pages` is asked for, no two chunks share one: threads that touch a
    /// fresh page at the same time both clear it. Cuts are at multiples of 16 bytes, and so between elements of whole
    /// bytes.
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
        let starts = std::iter::once(0).chain((first..bytes).step_by(size));
        let ends = (first..bytes).step_by(size).chain(std::iter::once(bytes));
        let chunks = starts
            .zip(ends)
            .filter(|(start, end)| start < end)
            .map(|(start, end)| Chunk { memory: Arc::clone(&memory), start, len: end - start })
            .collect();
        (Filling(memory), chunks)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: no bytes are claimed to be initialised, and the value is gone after this.
        drop(unsafe { self.rebuild(0) });
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
        let mut allocation = ManuallyDrop::new(allocation);
        let bytes = allocation.bytes;
        // SAFETY: chunks are disjoint and each adds its length once, when it is full; so all bytes are
        // initialised. `ManuallyDrop` keeps the destructor from freeing the memory a second time.
        Some(unsafe { allocation.rebuild(bytes) })
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
    pub(crate) fn range(&self) -> std::ops::Range<u64> {
        self.start as u64..(self.start + self.len) as u64
    }

    /// Where it is in memory.
    fn address(&self) -> usize {
        self.memory.start.addr().get() + self.start
    }

    /// The huge page in which it starts.
    pub(crate) fn huge_page(&self) -> HugePage {
        HugePage(self.address() / HUGE_PAGE)
    }

    /// Has the kernel back the chunk with memory at once: many first touches, a page each, cost more.
    pub(crate) fn populate(&self) {
        /// Fewer pages than this are not worth a call of the system.
        #[cfg(target_os = "linux")]
        const WORTH: usize = 64 << 10;
        #[cfg(target_os = "linux")]
        if self.len >= WORTH {
            let page = rustix::param::page_size();
            // Pages that the chunk has for itself.
            let start = self.address().next_multiple_of(page);
            let len = (self.address() + self.len - start) / page * page;
            let start = std::ptr::without_provenance_mut(start);
            // SAFETY: the advice faults pages in as a write would, and changes nothing that they hold. A kernel that
            // does not know it refuses, which is no failure.
            let _ = unsafe { libc::madvise(start, len, libc::MADV_POPULATE_WRITE) };
        }
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

/// The usual size of a huge page; where it is another, nothing is gained or lost.
const HUGE_PAGE: usize = 2 << 20;

/// Allocations from this size on have huge pages.
const HUGE_PAGES_FROM: usize = HUGE_PAGE;

/// The capacity to ask for: so much that the mapping behind a large allocation is a whole number of huge pages,
/// because Linux (from 6.7 on) then places it on a boundary of huge pages. What is more than `bytes` is never
/// touched and costs address space only.
fn room(bytes: usize) -> usize {
    /// What an allocator keeps of a mapping for itself; glibc 16 bytes.
    const KEPT: usize = 64;
    let whole = bytes.checked_add(KEPT).and_then(|bytes| bytes.checked_next_multiple_of(HUGE_PAGE));
    match whole {
        Some(whole) if bytes >= HUGE_PAGES_FROM => whole - KEPT,
        _ => bytes,
    }
}

/// The huge pages that lie inside of what chunks of small allocations cover, made one after the other.
///
/// Memory of small allocations comes in pages that the allocator has touched here and there, so that they cannot
/// become huge by a first touch; see [`HugePage::make`].
pub(crate) fn huge_pages<'c>(chunks: impl Iterator<Item = &'c Chunk>) -> HashSet<HugePage> {
    /// What an allocator may keep between two of them.
    const APART: usize = 4096;
    // Large ones were advised as a whole.
    let small = chunks.filter(|chunk| chunk.memory.bytes < HUGE_PAGES_FROM);
    let mut spans: Vec<_> = small.map(|chunk| (chunk.address(), chunk.len)).collect();
    spans.sort_unstable();
    let mut pages = HashSet::new();
    let mut spans = spans.into_iter().peekable();
    while let Some((start, len)) = spans.next() {
        let mut end = start + len;
        while let Some((at, len)) = spans.next_if(|next| next.0.saturating_sub(end) <= APART) {
            end = end.max(at + len);
        }
        pages.extend((start.div_ceil(HUGE_PAGE)..end / HUGE_PAGE).map(HugePage));
    }
    pages
}

/// A huge page's worth of memory, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HugePage(usize);

impl HugePage {
    /// Has the kernel put one huge page where there are small ones, some of them in use.
    pub(crate) fn make(self) {
        #[cfg(target_os = "linux")]
        {
            let start = std::ptr::without_provenance_mut(self.0 * HUGE_PAGE);
            // SAFETY: the advice changes how the kernel backs these pages, never what they hold, whoever's they are by
            // now. A kernel that does not know it, or cannot, refuses, which is no failure.
            let _ = unsafe { libc::madvise(start, HUGE_PAGE, libc::MADV_COLLAPSE) };
        }
    }
}

/// Asks for huge pages behind a large allocation: fresh 4 KiB pages cost more than the reads into them. The last
/// huge page is left out unless it is needed whole, so that no memory is taken in vain.
#[cfg(target_os = "linux")]
fn advise_huge_pages(start: NonNull<u8>, bytes: usize) {
    let page = rustix::param::page_size();
    let before = start.addr().get() % page;
    let behind = (start.addr().get() + bytes) % HUGE_PAGE;
    let len = (before + bytes).saturating_sub(behind);
    if bytes < HUGE_PAGES_FROM || len == 0 || !len.is_multiple_of(page) {
        return;
    }
    let pages = start.as_ptr().wrapping_sub(before);
    // SAFETY: the advice changes how the kernel backs the pages, never what they hold, for our own bytes
    // and for whatever shares the first page with them. All the pages are mapped, since each holds a byte of
    // the allocation. A refusal is no failure.
    let _ = unsafe { rustix::mm::madvise(pages.cast(), len, rustix::mm::Advice::LinuxHugepage) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: NonNull<u8>, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(dtype: Dtype, bytes: usize, size: usize) -> (Filling, Vec<Chunk>) {
        Allocation::new(dtype, bytes).unwrap().into_chunks(size, true)
    }

    fn write(chunk: Chunk) {
        let first = chunk.range().start as u8;
        chunk
            .fill(|memory| {
                let bytes: Vec<u8> = (0..memory.len()).map(|i| first + i as u8).collect();
                Ok::<_, Error>(memory.write_copy_of_slice(&bytes))
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
                    assert!(!huge || (start + part.start).is_multiple_of(HUGE_PAGE));
                    part.populate();
                    end += part.len;
                }
                assert_eq!(end, bytes);
                let fine = Allocation::new(Dtype::U16, bytes).unwrap().into_chunks(size, false).1;
                assert_eq!(fine.iter().map(|part| part.len).sum::<usize>(), bytes);
                assert_eq!(fine.len(), bytes.div_ceil(size.next_multiple_of(16)));
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

        let mut memory = [MaybeUninit::uninit(); 4];
        assert!(fill::<std::io::Error>(&mut memory, |_, _| Ok(Some(&[1; 4]))).is_err());
        assert!(fill::<std::io::Error>(&mut memory, |_, _| Ok(Some(&[]))).is_err());
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
