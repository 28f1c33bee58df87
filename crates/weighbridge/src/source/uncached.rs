//! A file that is read past the page cache: what others have cached is read there and stays, the rest leaves
//! nothing behind.
//!
//! Bytes that are not cached are read directly (`O_DIRECT`), which brings in no page, reads nothing ahead, and
//! leaves pages that are there alone. A file system that has no direct reads is read page by page, and those
//! pages that were not cached before are given back. `RWF_DONTCACHE` would do for most of it, but what is read
//! ahead and never asked for stays, and few file systems have it.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{Advice, AtFlags, StatxFlags, fadvise, statx};
use rustix::io::{Errno, pread};

use super::residency::{Residency, cold};
use super::{FileSource, Hints, Source};
use crate::buffer::{self, copied};

#[derive(Debug)]
pub(super) struct Uncached {
    /// For what is cached.
    file: FileSource,
    direct: Option<Direct>,
    /// Whether direct reads were refused.
    refused: AtomicBool,
    /// The file once more, of which nothing is read ahead, where direct reads are refused.
    exact: OnceLock<FileSource>,
    /// Bytes that were all cached when they were looked at last, and so many behind them.
    cached: Mutex<Range<u64>>,
}

/// The file, opened for direct reads, and what offsets and addresses must be multiples of.
#[derive(Debug)]
struct Direct {
    file: File,
    offset: usize,
    address: usize,
}

/// A read of cached bytes can start to read ahead as far as this.
const READ_AHEAD: u64 = 16 << 20;

/// The bytes that are looked at in advance.
const LOOK_AHEAD: u64 = 64 << 20;

/// Bytes that a thread reads directly at a time where it cannot read them to where they belong.
const BOUNCE: usize = 1 << 20;

/// Reads that are smaller are not worth more than one request.
const STRAIGHT_FROM: usize = 64 << 10;

/// Direct reads in flight that keep a disk busy: nobody reads ahead for them.
const CONCURRENCY: usize = 8;

thread_local! {
    static MEMORY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Uncached {
    /// `None` if there is no way to leave the page cache as it is.
    pub(super) fn new(file: FileSource) -> Option<Self> {
        let direct = reopen(&file, libc::O_DIRECT).ok().and_then(Direct::new);
        if direct.is_none() && file.residency(&(0..1)).is_none() {
            return None;
        }
        let (refused, exact, cached) = (AtomicBool::new(false), OnceLock::new(), Mutex::new(0..0));
        Some(Self { file, direct, refused, exact, cached })
    }

    fn exact(&self) -> &FileSource {
        self.exact.get_or_init(|| match reopen(&self.file, 0) {
            Ok(exact) => {
                let _ = fadvise(&exact, 0, None, Advice::Random);
                FileSource::new(exact, self.file.size())
            }
            Err(_) => self.file.clone(),
        })
    }

    /// Whether bytes are cached, and so many behind them that reading them starts no reading ahead.
    fn is_cached_well(&self, start: u64, end: u64) -> bool {
        let size = self.file.size();
        let all = |end: u64| self.file.residency(&(start..end)).is_some_and(Residency::all);
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.start <= start && end <= cached.end {
            return true;
        }
        let behind = |end: u64| end.saturating_add(READ_AHEAD).min(size);
        let far = end.saturating_add(LOOK_AHEAD).min(size);
        if all(behind(far)) {
            *cached = start..far;
            return true;
        }
        all(behind(end))
    }

    fn direct(&self) -> Option<&Direct> {
        self.direct.as_ref().filter(|_| !self.refused.load(Ordering::Relaxed))
    }

    /// What becomes of a direct read that failed: `None` if there will be no others.
    fn after(&self, error: Errno) -> io::Result<Option<&'static [u8]>> {
        match error {
            Errno::INTR => Ok(None),
            // Some file systems open files for direct reads, and then have none.
            Errno::INVAL | Errno::OPNOTSUPP => {
                self.refused.store(true, Ordering::Relaxed);
                Ok(None)
            }
            error => Err(error.into()),
        }
    }

    /// Reads directly, by way of this thread's own memory, and has `take` take the bytes from `offset` on, up to
    /// `len` of them.
    fn bounce<T>(
        &self,
        direct: &Direct,
        offset: u64,
        len: usize,
        take: impl FnOnce(&[u8]) -> T,
    ) -> io::Result<Option<T>> {
        let start = offset / direct.block() * direct.block();
        let skipped = (offset - start) as usize;
        MEMORY.with_borrow_mut(|memory| {
            let memory = direct.aligned(memory);
            let wanted = (skipped + len).next_multiple_of(direct.block() as usize).min(memory.len());
            let read = match pread(&direct.file, &mut memory[..wanted], start) {
                Ok(read) => read,
                Err(error) => return Ok(self.after(error)?.map(take)),
            };
            let arrived = memory[..read].get(skipped..).unwrap_or_default();
            if arrived.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(Some(take(&arrived[..arrived.len().min(len)])))
        })
    }

    /// Reads with the page cache, and gives those pages back that were not in it.
    fn and_give_back<T>(
        &self,
        offset: u64,
        len: usize,
        read: impl FnOnce(&FileSource) -> io::Result<T>,
    ) -> io::Result<T> {
        let range = offset..offset.saturating_add(len as u64);
        let exact = self.exact();
        let cold = cold(exact.file(), &range).unwrap_or_default();
        let outcome = read(exact);
        for Range { start, end } in cold {
            // Pages that others use now stay.
            let _ = fadvise(exact.file(), start, NonZeroU64::new(end - start), Advice::DontNeed);
        }
        outcome
    }
}

/// The file once more, with other flags. Its name may be another file's by now.
pub(super) fn reopen(file: &FileSource, flags: i32) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.file().as_raw_fd());
    File::options().read(true).custom_flags(flags).open(path)
}

impl Direct {
    fn new(file: File) -> Option<Self> {
        let stat = statx(&file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok();
        let stat = stat.filter(|stat| stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0);
        // What suffices everywhere, where it is not said.
        let (offset, address) = stat.map_or((4096, 4096), |stat| {
            (stat.stx_dio_offset_align as usize, stat.stx_dio_mem_align as usize)
        });
        // It is said to be zero where there are no direct reads.
        let fits = |align: usize| align.is_power_of_two() && align <= BOUNCE / 4;
        (fits(offset) && fits(address)).then_some(Self { file, offset, address })
    }

    /// The pieces in which it is read by way of other memory: pages, or more.
    fn block(&self) -> u64 {
        self.offset.max(4096) as u64
    }

    /// [`BOUNCE`] bytes of memory that direct reads can be made to.
    fn aligned<'m>(&self, memory: &'m mut Vec<u8>) -> &'m mut [u8] {
        let align = self.address.max(4096);
        if memory.len() < BOUNCE + align {
            *memory = vec![0; BOUNCE + align];
        }
        let start = memory.as_ptr().addr().next_multiple_of(align) - memory.as_ptr().addr();
        &mut memory[start..start + BOUNCE]
    }

    /// Bytes to skip so that the rest can be read straight to an address; `None` if it never can.
    fn head(&self, offset: u64, address: usize) -> Option<usize> {
        let head = (offset.next_multiple_of(self.offset as u64) - offset) as usize;
        ((address + head) % self.address == 0).then_some(head)
    }
}

impl Source for Uncached {
    fn size(&self) -> u64 {
        self.file.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = self.file.end(offset, buf.len())?;
        if buf.is_empty() || self.is_cached_well(offset, end) {
            return self.file.read_at(offset, buf);
        }
        let mut filled = 0;
        while filled < buf.len() {
            let (offset, rest) = (offset + filled as u64, &mut buf[filled..]);
            let Some(direct) = self.direct() else {
                return self.and_give_back(offset, rest.len(), |file| file.read_at(offset, rest));
            };
            let taken = self.bounce(direct, offset, rest.len(), |bytes| {
                rest[..bytes.len()].copy_from_slice(bytes);
                bytes.len()
            })?;
            filled += taken.unwrap_or(0);
        }
        Ok(())
    }

    fn read_uninit_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> io::Result<&'b mut [u8]> {
        let end = self.file.end(offset, buf.len())?;
        if buf.is_empty() || self.is_cached_well(offset, end) {
            return self.file.read_uninit_at(offset, buf);
        }
        buffer::fill(buf, |filled, rest| {
            let (offset, len) = (offset + filled as u64, rest.len());
            let Some(direct) = self.direct() else {
                let read = self.and_give_back(offset, len, |file| file.read_uninit_at(offset, rest))?;
                return Ok(Some(&*read));
            };
            // Straight to where the bytes belong, if that can be; the ends by way of other memory.
            let head = direct.head(offset, rest.as_ptr().addr());
            let len = match head.filter(|head| len >= head + STRAIGHT_FROM) {
                Some(0) => {
                    let whole = len / direct.offset * direct.offset;
                    return match pread(&direct.file, &mut rest[..whole], offset) {
                        Ok((read, _)) => Ok(Some(read)),
                        Err(error) => self.after(error),
                    };
                }
                Some(head) => head,
                None => len,
            };
            self.bounce(direct, offset, len, |bytes| &*copied(&mut rest[..bytes.len()], bytes))
        })
    }

    fn in_file(&self, range: Range<u64>) -> Option<(&File, u64)> {
        self.file.in_file(range)
    }

    /// Nothing is fetched into the cache: [`CONCURRENCY`] keeps the disk busy.
    fn prefetch(&self, _: Range<u64>) {}

    fn is_cached(&self, range: Range<u64>) -> Option<bool> {
        self.file.residency(&range).map(Residency::all)
    }

    fn uncached(&self) -> Option<Arc<dyn Source>> {
        self.file.uncached()
    }

    fn hints(&self) -> Hints {
        let hints = self.file.hints();
        hints.concurrency(hints.concurrency.max(CONCURRENCY))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::super::probe::read_uninit;
    use super::*;

    const KIB: usize = 1 << 10;

    /// A file whose pages can be evicted, all of them evicted, and its bytes; `None` on file systems without.
    fn cold_file(len: usize) -> Option<(FileSource, Vec<u8>)> {
        let bytes: Vec<u8> = (0..len).map(|i| (i.wrapping_mul(37) ^ (i >> 9)) as u8).collect();
        let file = tempfile::tempfile().unwrap();
        (&file).write_all(&bytes).unwrap();
        file.sync_all().unwrap();
        let source = FileSource::new(file, len as u64);
        evict(&source);
        let is_cold = source.residency(&(0..len as u64)).is_some_and(Residency::none);
        if !is_cold {
            eprintln!("skipped: pages of temporary files cannot be evicted, or not be seen");
        }
        is_cold.then_some((source, bytes))
    }

    fn evict(source: &FileSource) {
        fadvise(source.file(), 0, None, Advice::DontNeed).unwrap();
    }

    /// What is cold.
    fn cold_pages(source: &FileSource) -> Option<Vec<Range<u64>>> {
        cold(source.file(), &(0..source.size()))
    }

    /// Reads pages and nothing else.
    fn warm(source: &FileSource, range: Range<u64>) {
        fadvise(source.file(), 0, None, Advice::Random).unwrap();
        source.read_at(range.start, &mut vec![0; (range.end - range.start) as usize]).unwrap();
        fadvise(source.file(), 0, None, Advice::Normal).unwrap();
    }

    /// Ways to read, and whether they are there.
    fn ways(source: &FileSource) -> Vec<(&'static str, Uncached)> {
        let Some(usual) = Uncached::new(source.clone()) else { return Vec::new() };
        let mut ways = vec![("directly", usual)];
        let mut add = |name, change: fn(&mut Uncached)| {
            let mut uncached = Uncached::new(source.clone()).unwrap();
            change(&mut uncached);
            ways.push((name, uncached));
        };
        add("by way of other memory", |uncached| {
            uncached.direct.iter_mut().for_each(|direct| direct.offset = 4096);
            uncached.direct.iter_mut().for_each(|direct| direct.address = BOUNCE / 4);
        });
        add("with direct reads that are refused", |uncached| {
            uncached.direct.iter_mut().for_each(|direct| direct.offset = 1);
        });
        add("without direct reads", |uncached| uncached.direct = None);
        ways
    }

    #[test]
    fn bytes_are_right_and_pages_stay_as_they_are() {
        let len = 3 * BOUNCE + 1234;
        let Some((source, bytes)) = cold_file(len) else { return };
        let reads = [
            (0, len),
            (0, 1),
            (len - 1, 1),
            (8, 100 * KIB),
            (513, 64 * KIB),
            (4096, 256 * KIB),
            (70_001, 2 * BOUNCE + 77),
            (len - 5000, 5000),
            (BOUNCE, 0),
        ];
        for warmed in [0..0, 0..256 * KIB as u64, BOUNCE as u64..BOUNCE as u64 + 12_288, 0..len as u64] {
            for (name, uncached) in ways(&source) {
                evict(&source);
                warm(&source, warmed.clone());
                let before = cold_pages(&source);
                for (start, len) in reads {
                    let mut buf = vec![0xEE; len];
                    uncached.read_at(start as u64, &mut buf).unwrap();
                    assert!(buf == bytes[start..start + len], "{name}: {len} bytes at {start}");
                    // Memory that lies as the file does, and that does not.
                    for shift in [0, 8, 512 - start % 512] {
                        let mut memory = vec![MaybeUninit::new(0xEE); len + 1024];
                        let shift = shift + memory.as_ptr().align_offset(512) % 512;
                        let into = &mut memory[shift..shift + len];
                        let read = uncached.read_uninit_at(start as u64, into).unwrap();
                        assert!(read == &bytes[start..start + len], "{name}: {len} bytes at {start}");
                    }
                    assert_eq!(
                        cold_pages(&source),
                        before,
                        "{name}: {len} bytes at {start}, {warmed:?} warm"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_not_there_is_not_read() {
        let Some((source, _)) = cold_file(100 * KIB) else { return };
        for (name, uncached) in ways(&source) {
            for offset in [100 * KIB as u64 - 3, u64::MAX] {
                let error = uncached.read_at(offset, &mut [0; 4]).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{name}");
                assert!(read_uninit(&uncached, offset, 4).is_err(), "{name}");
            }
        }
        source.file().set_len(50 * KIB as u64).unwrap();
        for (name, uncached) in ways(&source) {
            let error = uncached.read_at(50 * KIB as u64 - 100, &mut [0; 200]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{name}: it became shorter");
            let error = read_uninit(&uncached, 50 * KIB as u64 - 100, 80 * KIB).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{name}: it became shorter");
        }
    }

    #[test]
    fn files_in_memory_are_read_as_usual() {
        let path = format!("/dev/shm/weighbridge-uncached-{}", std::process::id());
        // Not everywhere may one write there.
        if fs::write(&path, [1; 4096]).is_ok() {
            let source = FileSource::open(&path);
            fs::remove_file(&path).unwrap();
            assert!(source.unwrap().uncached().is_none());
        }
    }
}
