//! An open file, read with positional reads.

use std::fs::{self, File};
use std::io;
#[cfg(unix)]
use std::mem::MaybeUninit;
use std::ops::Range;
use std::path::Path;

use super::Source;
#[cfg(unix)]
use crate::buffer;

/// A file and the size it had when it was opened.
#[derive(Debug)]
pub(crate) struct FileSource {
    file: File,
    size: u64,
}

impl FileSource {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = open_regular(path)?;
        let size = file.metadata()?.len();
        Ok(Self { file, size })
    }

    /// The same, to be written to as well.
    pub(crate) fn open_to_write(path: &Path) -> io::Result<Self> {
        open_regular(path)?;
        let file = File::options().read(true).write(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { file, size })
    }

    pub(crate) fn into_file(self) -> File {
        self.file
    }
}

/// Opens a file for reading, and nothing else that has a path: a pipe would block until somebody writes into it.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let kind = fs::metadata(path)?.file_type();
    if kind.is_file() {
        return File::open(path);
    }
    let what = if kind.is_dir() { "it is a directory" } else { "it is not a regular file" };
    Err(io::Error::new(io::ErrorKind::InvalidInput, what))
}

#[cfg(unix)]
impl Source for FileSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn in_file(&self, range: Range<u64>) -> Option<(&File, u64)> {
        Some((&self.file, range.start))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, buf, offset)
    }

    fn read_uninit_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> io::Result<&'b mut [u8]> {
        buffer::fill(buf, |filled, rest| match rustix::io::pread(&self.file, rest, offset + filled as u64) {
            Ok((read, _)) => Ok(Some(read)),
            Err(rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        })
    }

    /// Reads a byte here and there, in order, so that the kernel reads ahead as for any program that reads a file from
    /// front to back: with growing windows and large pages. (What `posix_fadvise` fetches comes in small pages, which cost
    /// more to make and to copy from than the disk saves.)
    fn prefetch(&self, range: Range<u64>) {
        /// The smallest piece in which the kernel reads ahead.
        const STEP: usize = 16 << 10;
        for offset in range.step_by(STEP) {
            // A failure is met again by whoever reads.
            let _ = rustix::io::pread(&self.file, &mut [0_u8; 1], offset);
        }
    }

    /// Looks at the first byte, the last, and one in the middle: what is cached comes and goes in large pieces.
    #[cfg(target_os = "linux")]
    fn is_cached(&self, range: Range<u64>) -> Option<bool> {
        let (first, last) = (range.start, range.end.saturating_sub(1));
        for offset in [first, last, first / 2 + last / 2] {
            let mut byte = [0];
            let mut buffers = [io::IoSliceMut::new(&mut byte)];
            let flags = rustix::io::ReadWriteFlags::NOWAIT;
            match rustix::io::preadv2(&self.file, &mut buffers, offset, flags) {
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => return Some(false),
                // Files of a memory file system are nowhere else, and cannot be asked.
                Err(_) => return is_in_memory(&self.file).then_some(true),
            }
        }
        Some(true)
    }
}

/// Whether a file is on a file system that is in memory.
#[cfg(target_os = "linux")]
fn is_in_memory(file: &File) -> bool {
    // From `linux/magic.h`: tmpfs, ramfs, hugetlbfs.
    const MAGIC: [u32; 3] = [0x0102_1994, 0x8584_58F6, 0x9584_58F6];
    rustix::fs::fstatfs(file).is_ok_and(|stat| MAGIC.contains(&(stat.f_type as u32)))
}

#[cfg(not(unix))]
impl Source for FileSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn in_file(&self, range: Range<u64>) -> Option<(&File, u64)> {
        Some((&self.file, range.start))
    }

    fn read_at(&self, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        use std::os::windows::fs::FileExt;
        while !buf.is_empty() {
            match self.file.seek_read(buf, offset) {
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
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_memory_is_cached() {
        let path = format!("/dev/shm/weighbridge-cached-{}", std::process::id());
        // Not everywhere may one write there.
        if fs::write(&path, [1; 4096]).is_ok() {
            let source = FileSource::open(Path::new(&path));
            fs::remove_file(&path).unwrap();
            assert_eq!(source.unwrap().is_cached(0..4096), Some(true));
        }
    }
}
