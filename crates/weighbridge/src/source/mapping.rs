//! Mapped files: the second of the crate's fenced `unsafe` modules.
//!
//! A mapping shows what the file holds at any moment, so that whoever changes the file changes memory under a `&[u8]`,
//! and whoever shortens it makes reads end in a signal. Nothing here can rule that out; the caller promises it, once,
//! with [`Mapping::new`].

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
#[cfg(target_os = "linux")]
use std::ops::Range;
use std::path::Path;

use memmap2::{Mmap, MmapOptions};

use super::file::open_regular;
use super::{Source, slice_of};
use crate::buffer::copied;

/// The promise that files which are opened stay as they are, and how they are to be mapped; for
/// [`OpenOptions::map`](crate::OpenOptions::map).
///
/// ```no_run
/// use weighbridge::{Checkpoint, Mapping};
///
/// # fn main() -> weighbridge::Result<()> {
/// // SAFETY: nobody writes to or shortens the files of this directory while the program runs.
/// let mapping = unsafe { Mapping::new() };
/// let ckpt = Checkpoint::options().map(mapping).open("Llama-3.2-1B")?;
/// let first = ckpt.tensors().next().and_then(|tensor| tensor.view()); // no copy, and no byte read yet
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Mapping {
    populate: Populate,
    access: Access,
}

/// When the pages of a mapping are brought in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Populate {
    /// Each when it is touched first.
    Never,
    /// Those of a tensor when it is [lent](crate::Entry::lend): with one call of the system instead of a fault a
    /// page, and with an error instead of a signal where the file has become shorter. On Linux 5.14 or later;
    /// elsewhere as [`Never`](Self::Never).
    #[default]
    Lent,
    /// All, when the file is opened, which then takes as long as reading it. On Linux; elsewhere as
    /// [`Never`](Self::Never).
    All,
}

/// In which order a mapping is read, for the kernel's read-ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// The kernel finds out.
    #[default]
    Normal,
    /// From front to back.
    Sequential,
    /// Here and there: nothing is read ahead.
    Random,
}

impl Mapping {
    /// Promises that files stay as they are, and maps them lazily.
    ///
    /// # Safety
    ///
    /// As long as a checkpoint that is opened with this, or something that it has lent, is alive, nobody may change
    /// the bytes of its files or shorten them: no thread, no other process, no other machine. Files that are replaced
    /// by renaming others to their names, as this crate, `huggingface_hub` and package managers do, are not changed.
    pub unsafe fn new() -> Self {
        Self { populate: Populate::default(), access: Access::default() }
    }

    /// Sets when pages are brought in.
    #[must_use]
    pub fn populate(mut self, populate: Populate) -> Self {
        self.populate = populate;
        self
    }

    /// Sets what the kernel is told about the order of reads.
    #[must_use]
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    pub(crate) fn open(&self, path: &Path) -> io::Result<MappedSource> {
        let file = open_regular(path)?;
        let mut options = MmapOptions::new();
        if self.populate == Populate::All {
            options.populate();
        }
        // SAFETY: who made `self` has promised that the file stays as it is.
        let map = unsafe { map(&options, &file) }?;
        #[cfg(unix)]
        {
            let advice = match self.access {
                Access::Normal => memmap2::Advice::Normal,
                Access::Sequential => memmap2::Advice::Sequential,
                Access::Random => memmap2::Advice::Random,
            };
            // Advice that is refused is no failure.
            let _ = map.advise(advice);
        }
        Ok(MappedSource {
            map,
            #[cfg(target_os = "linux")]
            populate: self.populate,
        })
    }
}

/// # Safety
///
/// The file stays as it is while the mapping lives.
unsafe fn map(options: &MmapOptions, file: &File) -> io::Result<Mmap> {
    // SAFETY: the caller's promise. The mapping is private and read-only, so that nobody writes through it.
    unsafe { options.map_copy_read_only(file) }
}

/// A mapped file.
pub(crate) struct MappedSource {
    map: Mmap,
    #[cfg(target_os = "linux")]
    populate: Populate,
}

impl MappedSource {
    /// Memory that nobody can change any more.
    ///
    /// # Errors
    ///
    /// Fails for memory that somebody could still change or shorten, and for files.
    #[cfg(target_os = "linux")]
    pub(crate) fn sealed(memory: &File) -> io::Result<Self> {
        use rustix::fs::{SealFlags, fcntl_get_seals};
        let needed = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        if !fcntl_get_seals(memory)?.contains(needed) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it could still be changed"));
        }
        // SAFETY: the seals, which cannot be taken off, keep every process from writing to this memory and from shortening it,
        // so that it stays as it is for as long as it exists; the mapping keeps it.
        let map = unsafe { map(&MmapOptions::new(), memory) }?;
        Ok(Self { map, populate: Populate::Lent })
    }

    #[cfg(target_os = "linux")]
    fn advise(&self, advice: memmap2::Advice, range: Range<u64>) -> io::Result<()> {
        let (Ok(start), Ok(end)) = (usize::try_from(range.start), usize::try_from(range.end)) else {
            return Ok(());
        };
        if start >= end || end > self.map.len() {
            return Ok(());
        }
        self.map.advise_range(advice, start, end - start)
    }
}

impl Source for MappedSource {
    fn size(&self) -> u64 {
        self.map.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.copy_from_slice(slice_of(&self.map, offset, buf.len())?);
        Ok(())
    }

    fn read_uninit_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> io::Result<&'b mut [u8]> {
        Ok(copied(buf, slice_of(&self.map, offset, buf.len())?))
    }

    fn as_bytes(&self) -> Option<&[u8]> {
        Some(&self.map)
    }

    #[cfg(target_os = "linux")]
    fn populate(&self, range: Range<u64>) -> io::Result<()> {
        if self.populate != Populate::Lent {
            return Ok(());
        }
        match self.advise(memmap2::Advice::PopulateRead, range) {
            // Kernels before 5.14 do not know it: pages then come when they are touched.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            other => other,
        }
    }

    #[cfg(target_os = "linux")]
    fn prefetch(&self, range: Range<u64>) {
        // A refusal is no failure.
        let _ = self.advise(memmap2::Advice::WillNeed, range);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_became_shorter_is_an_error_when_it_is_populated() {
        if !cfg!(target_os = "linux") {
            return;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; 1 << 20]).unwrap();
        // SAFETY: the promise is broken below on purpose; nothing reads the mapping afterwards.
        let mapping = unsafe { Mapping::new() };
        let source = mapping.access(Access::Random).open(file.path()).unwrap();
        source.populate(0..1 << 20).unwrap();
        let mut byte = [0];
        source.read_at((1 << 20) - 1, &mut byte).unwrap();
        assert_eq!(byte, [7]);
        assert!(source.read_at(1 << 20, &mut byte).is_err());
        file.as_file().set_len(1 << 12).unwrap();
        assert!(source.populate(1 << 19..1 << 20).is_err());
    }
}
