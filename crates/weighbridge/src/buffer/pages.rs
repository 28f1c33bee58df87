//! Pages of memory, and what the kernel is told about them: hints that change how fast memory is, never what
//! it holds.
//!
//! Most of the time of a fresh copy is the kernel's, which clears a page before it is written for the first
//! time. Huge pages make that cheap.

#![allow(unsafe_code)]

use std::collections::HashSet;
use std::ops::Range;

/// The usual size of a huge page; where it is another, nothing is gained or lost.
pub(super) const HUGE_PAGE: usize = 2 << 20;

/// Allocations from this size on have huge pages.
pub(super) const HUGE_PAGES_FROM: usize = HUGE_PAGE;

/// What an allocator keeps of a mapping for itself, at most; glibc 16 bytes.
const KEPT: usize = 64;

/// The capacity to ask for where `bytes` bytes are needed.
pub(super) fn capacity_for(bytes: usize) -> usize {
    capacity(bytes, cfg!(target_os = "linux"))
}

/// On Linux, so much that the mapping behind a large allocation is a whole number of huge pages, because
/// Linux (from 6.7 on) then starts it at the boundary of a huge page. What is more than `bytes` is never
/// touched and costs address space only. Elsewhere it would be in vain, and on Windows it would take memory,
/// so it is `bytes`.
fn capacity(bytes: usize, on_linux: bool) -> usize {
    let whole = bytes.checked_add(KEPT).and_then(|bytes| bytes.checked_next_multiple_of(HUGE_PAGE));
    match whole {
        Some(whole) if on_linux && bytes >= HUGE_PAGES_FROM => whole - KEPT,
        _ => bytes,
    }
}

/// Asks for huge pages behind a large allocation, before it is touched. The last huge page is left out unless
/// it is needed whole, so that no memory is taken in vain.
///
/// Returns the addresses at which a first touch brings in a huge page. They do not include the huge page in which the
/// allocation begins if it begins behind its start, since the allocator may have touched that.
pub(super) fn advise_huge(address: usize, bytes: usize) -> Range<usize> {
    let Some(pages) = huge_part(address, bytes, kernel::page_size()) else { return 0..0 };
    let end = pages.end;
    match kernel::advise(pages, Advice::Huge) && kernel::has_huge_pages() {
        true => address.next_multiple_of(HUGE_PAGE)..end,
        false => 0..0,
    }
}

/// From the page in which an allocation begins to the last boundary of huge pages in it.
fn huge_part(address: usize, bytes: usize, page: usize) -> Option<Range<usize>> {
    let start = address - address % page;
    let end = (address + bytes) / HUGE_PAGE * HUGE_PAGE;
    let is_worth_it = bytes >= HUGE_PAGES_FROM && start < end;
    (is_worth_it && (end - start) % page == 0).then_some(start..end)
}

/// Has the kernel back memory with pages at once, where it is more than a few small ones.
///
/// In `huge` a first touch does as much. It is left to whoever writes there: what was just cleared is then still in the
/// processor's cache.
pub(super) fn populate(address: usize, len: usize, huge: &Range<usize>) {
    /// Fewer bytes than this are not worth a system call.
    const WORTH: usize = 64 << 10;
    for small in outside(address..address + len, huge) {
        let pages = pages_inside(small.start, small.len(), kernel::page_size());
        if let Some(pages) = pages.filter(|_| small.len() >= WORTH) {
            kernel::advise(pages, Advice::Populate);
        }
    }
}

/// What of `memory` lies before and behind `huge`.
fn outside(memory: Range<usize>, huge: &Range<usize>) -> [Range<usize>; 2] {
    match huge.is_empty() {
        true => [memory, 0..0],
        false => {
            let (before, behind) = (memory.end.min(huge.start), memory.start.max(huge.end));
            [memory.start..before, behind..memory.end]
        }
    }
}

/// The pages of which every byte is in that memory, if there are any: pages may be larger than it.
fn pages_inside(address: usize, len: usize, page: usize) -> Option<Range<usize>> {
    let start = address.checked_next_multiple_of(page)?;
    let end = (address + len) / page * page;
    (start < end).then_some(start..end)
}

/// The huge pages that lie inside of what `spans`, addresses and lengths, cover without large gaps.
pub(super) fn inside(mut spans: Vec<(usize, usize)>) -> HashSet<HugePage> {
    /// What an allocator may keep between two of them.
    const APART: usize = 4096;
    spans.sort_unstable();
    let mut pages = HashSet::new();
    let mut spans = spans.into_iter().peekable();
    while let Some((start, len)) = spans.next() {
        let mut end = start + len;
        while let Some((next, len)) = spans.next_if(|next| next.0.saturating_sub(end) <= APART) {
            end = end.max(next + len);
        }
        pages.extend((start.div_ceil(HUGE_PAGE)..end / HUGE_PAGE).map(HugePage));
    }
    pages
}

/// A huge page's worth of memory, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HugePage(usize);

impl HugePage {
    /// The one with that address.
    pub(super) fn of(address: usize) -> Self {
        Self(address / HUGE_PAGE)
    }

    /// The one in which an allocation begins, of which only the allocator has touched a few bytes so far, if `huge`
    /// goes on behind it.
    pub(super) fn head(address: usize, huge: &Range<usize>) -> Option<Self> {
        let begins_there = (1..=KEPT).contains(&(address % HUGE_PAGE));
        (begins_there && !huge.is_empty()).then(|| Self::of(address))
    }

    /// Has the kernel put one huge page where there are small ones, some of them in use; whether it did.
    pub(crate) fn make(self) -> bool {
        let start = self.0 * HUGE_PAGE;
        kernel::advise(start..start + HUGE_PAGE, Advice::Collapse)
    }
}

/// What the kernel is told. None of it changes what memory holds, whoever's it is.
#[derive(Clone, Copy, Debug)]
enum Advice {
    /// Use huge pages when these are touched.
    Huge,
    /// Fault these in, as a write to each would.
    Populate,
    /// Put a huge page in the place of small ones.
    Collapse,
}

#[cfg(all(target_os = "linux", not(miri)))]
mod kernel {
    use std::ops::Range;
    use std::sync::OnceLock;

    use super::Advice;

    pub(super) fn page_size() -> usize {
        rustix::param::page_size()
    }

    /// Whether advice is all that it takes to have huge pages.
    pub(super) fn has_huge_pages() -> bool {
        static HAS: OnceLock<bool> = OnceLock::new();
        *HAS.get_or_init(|| {
            let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
            let is_on = |modes: String| modes.contains("[madvise]") || modes.contains("[always]");
            // SAFETY: it returns a setting of this process and has no other effect.
            let is_disabled = unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0) };
            enabled.is_ok_and(is_on) && is_disabled == 0
        })
    }

    /// Whether the advice was taken. A kernel that does not know it, or cannot follow it, refuses, which is no failure.
    pub(super) fn advise(pages: Range<usize>, advice: Advice) -> bool {
        /// Linux's; libc does not have it for musl.
        const MADV_COLLAPSE: libc::c_int = 25;
        let start = std::ptr::without_provenance_mut(pages.start);
        let advice = match advice {
            Advice::Huge => libc::MADV_HUGEPAGE,
            Advice::Populate => libc::MADV_POPULATE_WRITE,
            Advice::Collapse => MADV_COLLAPSE,
        };
        // SAFETY: these three change how the kernel backs pages, never what they hold, so they may be given
        // about any memory; of addresses at which there is none, the kernel says so.
        unsafe { libc::madvise(start, pages.len(), advice) == 0 }
    }
}

/// Elsewhere there is nothing to say.
#[cfg(not(all(target_os = "linux", not(miri))))]
mod kernel {
    use std::ops::Range;

    use super::Advice;

    pub(super) fn page_size() -> usize {
        4096
    }

    pub(super) fn has_huge_pages() -> bool {
        false
    }

    pub(super) fn advise(_: Range<usize>, _: Advice) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1 << 10;

    #[test]
    fn only_linux_has_spare_capacity() {
        for bytes in [0, 1, HUGE_PAGES_FROM - 1, HUGE_PAGES_FROM, 5 * HUGE_PAGE + 7, usize::MAX - 1] {
            assert_eq!(capacity(bytes, false), bytes);
        }
        assert_eq!(capacity(HUGE_PAGES_FROM - 1, true), HUGE_PAGES_FROM - 1);
        assert_eq!(capacity(HUGE_PAGES_FROM, true), 2 * HUGE_PAGE - 64);
        assert_eq!(capacity(2 * HUGE_PAGE - 64, true), 2 * HUGE_PAGE - 64);
        assert_eq!(capacity(usize::MAX - 1, true), usize::MAX - 1);
        assert_eq!(capacity_for(HUGE_PAGES_FROM) > HUGE_PAGES_FROM, cfg!(target_os = "linux"));
    }

    #[test]
    fn pages_may_be_larger_than_memory() {
        // 100 KiB in the middle of a page of 256 KiB.
        assert_eq!(pages_inside(300 * KIB, 100 * KIB, 256 * KIB), None);
        assert_eq!(pages_inside(500 * KIB, 100 * KIB, 256 * KIB), None, "in two pages, the whole of neither");
        assert_eq!(pages_inside(500 * KIB, 700 * KIB, 256 * KIB), Some(512 * KIB..1024 * KIB));
        assert_eq!(pages_inside(512 * KIB, 256 * KIB, 256 * KIB), Some(512 * KIB..768 * KIB));
        assert_eq!(pages_inside(4 * KIB + 1, 100 * KIB, 4 * KIB), Some(8 * KIB..104 * KIB));
        assert_eq!(pages_inside(usize::MAX - 10, 5, 4 * KIB), None);
    }

    #[test]
    fn advice_ends_with_the_last_whole_huge_page() {
        let at = 3 * HUGE_PAGE + 16;
        for page in [4 * KIB, 64 * KIB, 256 * KIB] {
            assert_eq!(huge_part(at, 2 * HUGE_PAGE, page), Some(3 * HUGE_PAGE..5 * HUGE_PAGE), "{page}");
            assert_eq!(huge_part(at, HUGE_PAGES_FROM - 1, page), None, "it is small");
        }
        assert_eq!(huge_part(at, 4 * HUGE_PAGE, 32 << 20), None, "pages are larger than huge ones");
        let at = 3 * HUGE_PAGE + 300 * KIB;
        assert_eq!(huge_part(at, HUGE_PAGE, 256 * KIB), Some(3 * HUGE_PAGE + 256 * KIB..4 * HUGE_PAGE));
    }

    #[test]
    fn only_small_pages_are_populated() {
        let parts = |memory: Range<usize>, huge: Range<usize>| {
            let [before, behind] = outside(memory, &huge);
            [before.len(), behind.len()]
        };
        assert_eq!(parts(10..90, 0..0), [80, 0]);
        assert_eq!(parts(10..90, 20..80), [10, 10]);
        assert_eq!(parts(30..70, 20..80), [0, 0]);
        assert_eq!(parts(10..50, 20..80), [10, 0]);
        assert_eq!(parts(50..90, 20..80), [0, 10]);
        assert_eq!(parts(10..20, 20..80), [10, 0]);
        assert_eq!(parts(80..90, 20..80), [0, 10]);
    }

    /// Whatever was touched before, the memory behind the advice is the kernel's to make huge, and the head is not.
    #[test]
    fn what_comes_huge_begins_at_a_boundary() {
        let memory: Vec<u8> = Vec::with_capacity(capacity_for(5 * HUGE_PAGE));
        let address = memory.as_ptr().addr();
        let huge = advise_huge(address, 5 * HUGE_PAGE);
        if !huge.is_empty() {
            assert_eq!(huge.start, address.next_multiple_of(HUGE_PAGE));
            assert_eq!(huge.end, (address + 5 * HUGE_PAGE) / HUGE_PAGE * HUGE_PAGE);
        }
        assert!(advise_huge(address, HUGE_PAGE / 2).is_empty());
    }

    #[test]
    fn a_head_is_what_the_allocator_has_touched() {
        let (at, huge) = (3 * HUGE_PAGE, 4 * HUGE_PAGE..6 * HUGE_PAGE);
        assert_eq!(HugePage::head(at + 16, &huge), Some(HugePage(3)));
        assert_eq!(HugePage::head(at, &huge), None, "it is huge at the first touch");
        assert_eq!(HugePage::head(at + 4096, &huge), None, "somebody else's memory may be before it");
        assert_eq!(HugePage::head(at + 16, &(0..0)), None, "there are no huge pages");
    }

    #[test]
    fn huge_pages_inside_of_small_allocations() {
        let pages = |spans: &[(usize, usize)]| {
            let mut pages: Vec<_> = inside(spans.to_vec()).into_iter().map(|page| page.0).collect();
            pages.sort_unstable();
            pages
        };
        let half = HUGE_PAGE / 2;
        assert_eq!(pages(&[(5 * HUGE_PAGE + half, half), (5 * HUGE_PAGE, half - 100)]), [5]);
        assert_eq!(
            pages(&[(5 * HUGE_PAGE, half - 5000), (5 * HUGE_PAGE + half, half)]),
            [0; 0],
            "a large gap"
        );
        assert_eq!(pages(&[(5 * HUGE_PAGE - 1, 2 * HUGE_PAGE)]), [5]);
        assert_eq!(pages(&[(5 * HUGE_PAGE, 3 * HUGE_PAGE), (9 * HUGE_PAGE, HUGE_PAGE)]), [5, 6, 7, 9]);
    }
}
