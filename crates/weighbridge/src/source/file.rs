//! An open file, read at offsets: where the system can, without moving the file's cursor.

use std::fs::{self, File};
use std::io;
#[cfg(unix)]
use std::mem::MaybeUninit;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
#[cfg(target_os = "linux")]
use std::sync::OnceLock;
#[cfg(target_os = "linux")]
use std::sync::atomic::{AtomicU64, Ordering};

use super::Source;
#[cfg(target_os = "linux")]
use super::{
    Hints, file_system::FileSystem, remote::Remote, remote::WINDOW, remote::window_end, residency::Residency,
    uncached::Uncached,
};
#[cfg(unix)]
use crate::buffer;
use crate::error::{Error, Result};
#[cfg(target_os = "linux")]
use crate::header::FIRST_READ;

/// An open file and its size. Cloning is cheap; clones share the open file.
///
/// ```
/// use weighbridge::Checkpoint;
/// use weighbridge::source::{FileSource, Source, Window};
///
/// # fn main() -> weighbridge::Result<()> {
/// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder");
/// # let (path, start) = (format!("{dir}/model-00001-of-00004.safetensors"), 0);
/// // A safetensors file that begins somewhere inside another file.
/// let file = FileSource::open(path)?;
/// let size = file.size();
/// if let Some(inner) = Window::new(file, start..size) {
///     println!("{} tensors", Checkpoint::from_source(inner)?.len());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct FileSource {
    file: Arc<File>,
    size: u64,
    #[cfg(target_os = "linux")]
    known: Arc<Known>,
}

/// What is known of an open file.
#[cfg(target_os = "linux")]
#[derive(Debug, Default)]
struct Known {
    file_system: OnceLock<FileSystem>,
    uncached: OnceLock<Option<Arc<Uncached>>>,
    /// Whether what is read from it stays in the page cache.
    stays: OnceLock<bool>,
    /// What large reads go to on a file system that is remote.
    remote: OnceLock<Option<Remote>>,
    /// So many bytes at its start were brought into the page cache when its header was read.
    header: AtomicU64,
}

impl FileSource {
    /// Opens a file for reading. Its size is what it is now; what is appended later is not read.
    ///
    /// # Errors
    ///
    /// Fails when there is no such file, when it cannot be opened, and when it is not a regular file: opening
    /// a pipe would wait until somebody writes to it. The error names the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::opened(path, open_regular(path))
    }

    /// The same, to be written to as well.
    pub(crate) fn open_to_write(path: &Path) -> Result<Self> {
        let file = open_regular(path).and_then(|_| File::options().read(true).write(true).open(path));
        Self::opened(path, file)
    }

    fn opened(path: &Path, file: io::Result<File>) -> Result<Self> {
        let sized = file.and_then(|file| Ok((file.metadata()?.len(), file)));
        let (size, file) = sized.map_err(|error| Error::io("it cannot be opened", error).in_file(path))?;
        Ok(Self::new(file, size))
    }

    /// The first `size` bytes of a file that is open, such as a temporary file without a name.
    pub fn new(file: impl Into<Arc<File>>, size: u64) -> Self {
        Self {
            file: file.into(),
            size,
            #[cfg(target_os = "linux")]
            known: Arc::default(),
        }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// The end of `len` bytes that are there from `offset` on.
    pub(super) fn end(&self, offset: u64, len: usize) -> io::Result<u64> {
        let end = offset.checked_add(len as u64).filter(|&end| end <= self.size);
        end.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// What is done for [`PageCache::Release`](crate::engine::PageCache::Release) before it is known whether it will be
/// asked for.
#[cfg(target_os = "linux")]
impl FileSource {
    /// Has `read` read the header, of which it says how long it is. Where it comes from the disk, only its own pages
    /// are read, and it is noted which.
    pub(crate) fn read_header<T>(&self, read: impl FnOnce() -> Result<(T, u64)>) -> Result<T> {
        let is_cold = || self.residency(&(0..1)).is_some_and(Residency::none);
        if !is_cold() {
            return read().map(|(made, _)| made);
        }
        // A system that refuses reads more than that.
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::Random);
        let outcome = read();
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::Normal);
        if outcome.is_ok() {
            let _ = self.known.stays.set(!is_cold());
        }
        outcome.map(|(made, header)| {
            self.known.header.store(header.max(FIRST_READ), Ordering::Relaxed);
            made
        })
    }

    /// Gives the pages back that the header was read into.
    fn give_header_back(&self) {
        let header = self.known.header.swap(0, Ordering::Relaxed);
        if let Some(header) = std::num::NonZeroU64::new(header.next_multiple_of(4096)) {
            let _ = rustix::fs::fadvise(&self.file, 0, Some(header), rustix::fs::Advice::DontNeed);
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl FileSource {
    pub(crate) fn read_header<T>(&self, read: impl FnOnce() -> Result<(T, u64)>) -> Result<T> {
        read().map(|(made, _)| made)
    }
}

/// Opens a file for reading, and nothing else that has a path: a pipe would block until somebody writes into
/// it.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let kind = fs::metadata(path)?.file_type();
    if kind.is_file() {
        return File::open(path);
    }
    let what = if kind.is_dir() { "it is a directory" } else { "it is not a regular file" };
    Err(io::Error::new(io::ErrorKind::InvalidInput, what))
}

impl Source for FileSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.end(offset, buf.len())?;
        read_exact_at(&self.file, offset, buf)
    }

    #[cfg(unix)]
    fn read_uninit_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> io::Result<&'b mut [u8]> {
        let end = self.end(offset, buf.len())?;
        #[cfg(target_os = "linux")]
        let remote = if buf.len() as u64 >= WINDOW { self.remote(offset) } else { None };
        #[cfg(target_os = "linux")]
        if let Some(remote) = remote {
            return buffer::fill(buf, |filled, rest| {
                let start = offset + filled as u64;
                let len = (window_end(start, end) - start) as usize;
                pread_uninit(remote.file(), start, &mut rest[..len])
            });
        }
        let _ = end;
        buffer::fill(buf, |filled, rest| pread_uninit(&self.file, offset + filled as u64, rest))
    }

    fn in_file(&self, range: Range<u64>) -> Option<(&File, u64)> {
        (range.end <= self.size).then_some((&*self.file, range.start))
    }

    /// Reads a byte here and there, in order, so that the kernel reads ahead as for any program that reads a
    /// file from front to back: with growing windows and large pages. (What `posix_fadvise` fetches comes in
    /// small pages, which cost more to make and to copy from than the disk saves.)
    ///
    /// Each byte is a request of its own where what is read does not stay in the page cache, so nothing is done there, and
    /// where each request takes its time, none waits for another.
    #[cfg(unix)]
    fn prefetch(&self, range: Range<u64>) {
        /// The smallest piece in which the kernel reads ahead.
        const STEP: usize = 16 << 10;
        let range = range.start..range.end.min(self.size);
        #[cfg(target_os = "linux")]
        if let Some(remote) = self.remote(range.start) {
            return remote.fetch(range);
        } else if !self.stays_cached(range.start) {
            return;
        }
        for offset in range.step_by(STEP) {
            // A failure is met again by whoever reads.
            if rustix::io::pread(&self.file, &mut [0_u8; 1], offset).is_err() {
                return;
            }
        }
    }

    /// Where the system does not say, with reads of the first byte, the last, and one in the middle that may not
    /// wait: what is cached comes and goes in large pieces.
    #[cfg(target_os = "linux")]
    fn is_cached(&self, range: Range<u64>) -> Option<bool> {
        match self.residency(&range) {
            Some(residency) => Some(residency.all() || self.file_system().in_memory),
            None => self.reads_at_once(&range),
        }
    }

    #[cfg(target_os = "linux")]
    fn uncached(&self) -> Option<Arc<dyn Source>> {
        if self.file_system().in_memory {
            return None;
        }
        self.give_header_back();
        // Of itself, so that nothing holds the other.
        let again = || Uncached::new(Self::new(Arc::clone(&self.file), self.size)).map(Arc::new);
        Some(Arc::clone(self.known.uncached.get_or_init(again).as_ref()?) as _)
    }

    #[cfg(target_os = "linux")]
    fn hints(&self) -> Hints {
        /// Requests that a server answers at the same time without being the slower for it.
        const SERVER: usize = 32;
        /// Requests that are waited for are better fewer.
        const LEAST: usize = 512 << 10;
        let hints = Hints::default();
        if self.file_system().remote { hints.concurrency(SERVER).least(LEAST) } else { hints }
    }
}

#[cfg(target_os = "linux")]
impl FileSource {
    fn file_system(&self) -> &FileSystem {
        self.known.file_system.get_or_init(|| FileSystem::of(&self.file))
    }

    /// Whether what is read stays in the page cache: if need be, a byte at an offset is read and looked for.
    fn stays_cached(&self, offset: u64) -> bool {
        *self.known.stays.get_or_init(|| {
            // A failure is met again by whoever reads.
            let _ = rustix::io::pread(&self.file, &mut [0_u8; 1], offset);
            self.is_cached(offset..offset + 1).unwrap_or(!self.file_system().remote)
        })
    }

    /// What to read with if each request takes its time and what was read stays.
    fn remote(&self, offset: u64) -> Option<&Remote> {
        let is_remote = self.file_system().remote && self.stays_cached(offset);
        if is_remote { self.known.remote.get_or_init(|| Remote::of(self)).as_ref() } else { None }
    }

    /// What the page cache has of a range; `None` where that cannot be told.
    pub(super) fn residency(&self, range: &Range<u64>) -> Option<Residency> {
        if self.file_system().stacked {
            return None;
        }
        Residency::of(&self.file, range)
    }

    fn reads_at_once(&self, range: &Range<u64>) -> Option<bool> {
        let (first, last) = (range.start, range.end.saturating_sub(1));
        let offsets = [first, last, first / 2 + last / 2];
        let fits_a_page = last.saturating_sub(first) < 4096;
        for &offset in if fits_a_page { &offsets[..1] } else { &offsets } {
            let mut byte = [0];
            let mut buffers = [io::IoSliceMut::new(&mut byte)];
            let flags = rustix::io::ReadWriteFlags::NOWAIT;
            match rustix::io::preadv2(&self.file, &mut buffers, offset, flags) {
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => return Some(false),
                Err(_) => return self.file_system().in_memory.then_some(true),
            }
        }
        Some(true)
    }
}

/// Reads once; `None` if it was interrupted.
#[cfg(unix)]
fn pread_uninit<'b>(
    file: &File,
    offset: u64,
    buf: &'b mut [MaybeUninit<u8>],
) -> io::Result<Option<&'b [u8]>> {
    match rustix::io::pread(file, buf, offset) {
        Ok((read, _)) => Ok(Some(read)),
        Err(rustix::io::Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !buf.is_empty() {
        match file.seek_read(buf, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                offset += read as u64;
                buf = &mut buf[read..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Other systems have files with a cursor only, if they have any. One read at a time may move it, whatever
/// the file: several sources may share one.
#[cfg(not(any(unix, windows)))]
fn read_exact_at(mut file: &File, offset: u64, buf: &mut [u8]) -> io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    use std::sync::{Mutex, PoisonError};
    static CURSOR: Mutex<()> = Mutex::new(());
    let _one_at_a_time = CURSOR.lock().unwrap_or_else(PoisonError::into_inner);
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(buf)
}

#[cfg(test)]
mod tests {
    use super::super::probe::read_uninit;
    use super::*;

    #[test]
    fn a_file_is_read_up_to_the_size_given() {
        let file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut &file, b"0123456789").unwrap();
        let source = FileSource::new(file, 6);
        let mut buf = [0; 4];
        source.read_at(2, &mut buf).unwrap();
        assert_eq!(&buf, b"2345");
        assert_eq!(read_uninit(&source.clone(), 0, 6).unwrap(), b"012345");
        assert_eq!(source.in_file(1..6).map(|found| found.1), Some(1));
        for offset in [3, 6, u64::MAX] {
            let error = source.read_at(offset, &mut buf).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "at {offset}");
            assert!(read_uninit(&source, offset, 4).is_err(), "at {offset}");
        }
        assert!(source.in_file(1..7).is_none());
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = FileSource::open(dir.path()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("{}: it cannot be opened: it is a directory", dir.path().display())
        );
        let error = FileSource::open(dir.path().join("none")).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::NotFound);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_file_in_memory_is_cached() {
        let path = format!("/dev/shm/weighbridge-cached-{}", std::process::id());
        // Not everywhere may one write there.
        if fs::write(&path, [1; 4096]).is_ok() {
            let source = FileSource::open(&path);
            fs::remove_file(&path).unwrap();
            assert_eq!(source.unwrap().is_cached(0..4096), Some(true));
        }
    }
}
