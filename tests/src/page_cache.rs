//! What the page cache has of a file, by `mincore`.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use memmap2::Mmap;

/// Which pages of a file are in the page cache.
///
/// # Panics
///
/// Panics when it cannot be found out.
pub fn resident(path: &Path) -> Vec<bool> {
    match look(path) {
        Ok(pages) => pages,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

/// The bytes of those pages.
///
/// # Panics
///
/// As [`resident`].
pub fn resident_bytes(path: &Path) -> u64 {
    resident(path).iter().filter(|&&is_resident| is_resident).count() as u64 * page_size() as u64
}

/// The size of a page.
pub fn page_size() -> usize {
    rustix::param::page_size()
}

fn look(path: &Path) -> io::Result<Vec<bool>> {
    let file = File::open(path)?;
    // SAFETY: the mapping is asked about, not read.
    let map = unsafe { Mmap::map(&file) }?;
    let mut pages = vec![0_u8; map.len().div_ceil(page_size())];
    // SAFETY: the vector has an element for each page of the mapping, which lives until the call is over.
    let outcome = unsafe { libc::mincore(map.as_ptr().cast_mut().cast(), map.len(), pages.as_mut_ptr()) };
    match outcome {
        0 => Ok(pages.iter().map(|page| page & 1 == 1).collect()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the system tells what is cached without reading it (`cachestat`): Linux does from 6.5 on.
pub fn is_told(path: &Path) -> bool {
    const CACHESTAT: libc::c_long = 451;
    let Ok(file) = File::open(path) else { return false };
    let (range, mut stat) = ([0_u64, 4096], [0_u64; 5]);
    let (fd, range, stat) = (file.as_raw_fd(), &raw const range, &raw mut stat);
    // SAFETY: two integers are read and five written, as the call has it.
    unsafe { libc::syscall(CACHESTAT, fd, range, stat, 0_u32) == 0 }
}

/// Takes the pages of files out of the page cache; whether that worked: a memory file system has them nowhere else.
///
/// # Panics
///
/// Panics when a file cannot be opened or written to the disk.
pub fn evict<'p>(paths: impl IntoIterator<Item = &'p Path>) -> bool {
    let mut all = true;
    for path in paths {
        let outcome = File::open(path).and_then(|file| {
            file.sync_all()?;
            Ok(rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?)
        });
        if let Err(error) = outcome {
            panic!("{}: {error}", path.display());
        }
        all &= resident_bytes(path) == 0;
    }
    all
}

/// Brings bytes of a file into the page cache, and nothing else.
///
/// # Panics
///
/// Panics when they cannot be read.
pub fn warm(path: &Path, range: std::ops::Range<u64>) {
    use std::os::unix::fs::FileExt;
    let outcome = File::open(path).and_then(|file| {
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random)?;
        file.read_exact_at(&mut vec![0; (range.end - range.start) as usize], range.start)
    });
    if let Err(error) = outcome {
        panic!("{}: {error}", path.display());
    }
}
