//! What the page cache has of a file, asked without bringing anything into it: another of the crate's fenced
//! `unsafe` modules.

#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;

/// Pages of a range, and how many of them are in the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Residency {
    pub(super) cached: u64,
    pub(super) pages: u64,
}

impl Residency {
    /// Of the pages that have bytes of the range. `None` where the system does not say: Linux does from 6.5 on,
    /// later releases only to who owns the file or may write to it.
    pub(super) fn of(file: &File, range: &Range<u64>) -> Option<Self> {
        if range.start >= range.end {
            return Some(Self { cached: 0, pages: 0 });
        }
        let page = kernel::page_size();
        let pages = range.end.div_ceil(page) - range.start / page;
        Some(Self { cached: kernel::cached(file, range)?, pages })
    }

    pub(super) fn all(self) -> bool {
        self.cached >= self.pages
    }

    pub(super) fn none(self) -> bool {
        self.cached == 0
    }
}

/// The pages of a range that are not in the page cache, in order, as ranges of bytes.
pub(super) fn cold(file: &File, range: &Range<u64>) -> Option<Vec<Range<u64>>> {
    let page = kernel::page_size();
    let mut cold = Vec::new();
    collect_cold(file, range.start / page..range.end.div_ceil(page), page, &mut cold)?;
    Some(cold)
}

fn collect_cold(file: &File, pages: Range<u64>, page: u64, cold: &mut Vec<Range<u64>>) -> Option<()> {
    let bytes = pages.start * page..pages.end * page;
    let residency = Residency::of(file, &bytes)?;
    if residency.none() {
        match cold.last_mut() {
            Some(last) if last.end == bytes.start => last.end = bytes.end,
            _ if bytes.is_empty() => {}
            _ => cold.push(bytes),
        }
    } else if !residency.all() {
        let middle = pages.start.midpoint(pages.end);
        collect_cold(file, pages.start..middle, page, cold)?;
        collect_cold(file, middle..pages.end, page, cold)?;
    }
    Some(())
}

#[cfg(not(miri))]
mod kernel {
    use std::fs::File;
    use std::ops::Range;
    use std::os::fd::AsRawFd;

    /// `cachestat`, which has one number on all architectures; not every libc has a name for it.
    const CACHESTAT: libc::c_long = 451;

    /// From `linux/mman.h`.
    #[repr(C)]
    struct CachestatRange {
        offset: u64,
        len: u64,
    }

    #[repr(C)]
    #[derive(Default)]
    struct Cachestat {
        cache: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }

    pub(super) fn page_size() -> u64 {
        rustix::param::page_size() as u64
    }

    /// The pages in the page cache; the range is not empty.
    pub(super) fn cached(file: &File, range: &Range<u64>) -> Option<u64> {
        let range = CachestatRange { offset: range.start, len: range.end - range.start };
        let mut stat = Cachestat::default();
        let (fd, range, into) = (file.as_raw_fd(), &raw const range, &raw mut stat);
        // SAFETY: both pointers are to values that live until the call is over, of the layout that the call
        // expects; kernels that do not have the call touch neither.
        let outcome = unsafe { libc::syscall(CACHESTAT, fd, range, into, 0_u32) };
        (outcome == 0).then_some(stat.cache)
    }
}

/// The interpreter has no page cache.
#[cfg(miri)]
mod kernel {
    use std::fs::File;
    use std::ops::Range;

    pub(super) fn page_size() -> u64 {
        4096
    }

    pub(super) fn cached(_: &File, _: &Range<u64>) -> Option<u64> {
        None
    }
}
