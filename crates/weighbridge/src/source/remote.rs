//! A file of a file system on which each request takes its time, and whose pages the system keeps: FUSE,
//! NFS and others.
//!
//! What fills the page cache of a FUSE file system is fetched in the background, of which Linux has 12
//! requests in flight unless the file system asks for more (`max_background`), however many threads read.
//! So requests had better be large. A window of reading ahead is 128 KiB by default; who says that a file
//! is read in order gets windows twice as large. Where several threads read one file, reading ahead for
//! one meets what others have asked for, which cuts requests into small ones. So the kernel reads nothing
//! ahead here: windows are fetched whole, by who prefetches and by who reads.

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;

use rustix::fs::{Advice, fadvise};

use super::FileSource;
use super::uncached::reopen;

/// The file once more, of which nothing is read ahead.
#[derive(Debug)]
pub(super) struct Remote {
    file: File,
}

/// What the system fetches at a time, where nobody has changed its defaults.
pub(super) const WINDOW: u64 = 256 << 10;

impl Remote {
    pub(super) fn of(file: &FileSource) -> Option<Self> {
        let file = reopen(file, 0).ok()?;
        // The first makes windows larger, which the second leaves so.
        fadvise(&file, 0, None, Advice::Sequential).ok()?;
        fadvise(&file, 0, None, Advice::Random).ok()?;
        Some(Self { file })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Has the windows that a range lies in fetched, without waiting for any of them.
    pub(super) fn fetch(&self, range: Range<u64>) {
        for start in (range.start / WINDOW * WINDOW..range.end).step_by(WINDOW as usize) {
            // What cannot be fetched is met again by whoever reads.
            let _ = fadvise(&self.file, start, NonZeroU64::new(WINDOW), Advice::WillNeed);
        }
    }
}

/// The end of what is to be read at a time from `start` on, and not beyond `end`: that of a window, so that a
/// window is one request, whoever reads it.
pub(super) fn window_end(start: u64, end: u64) -> u64 {
    end.min((start / WINDOW + 1).saturating_mul(WINDOW))
}
