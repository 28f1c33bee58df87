//! The file that is read, and its parts.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[cfg(feature = "fs")]
use weighbridge::source::FileSource;
use weighbridge::source::{Source, Window};
use weighbridge::{Error, ErrorKind, Result};

/// An open file and its path; cloning is cheap.
#[derive(Clone)]
pub(crate) struct Input {
    file: Arc<dyn Source>,
    path: Arc<Path>,
    others: Others,
}

/// Where the files are that a file names.
#[derive(Clone)]
enum Others {
    #[cfg(feature = "fs")]
    OnDisk,
    Given(Arc<BTreeMap<PathBuf, Arc<dyn Source>>>),
}

/// A range of bytes of a file.
pub(crate) type FilePart = Window<Arc<dyn Source>>;

impl Input {
    /// Opens a regular file; the error names it.
    #[cfg(feature = "fs")]
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Ok(Self { file: Arc::new(FileSource::open(path)?), path: path.into(), others: Others::OnDisk })
    }

    /// A file that a source gives, and those that it may name.
    pub(crate) fn given(
        path: &Path,
        file: Arc<dyn Source>,
        others: Arc<BTreeMap<PathBuf, Arc<dyn Source>>>,
    ) -> Self {
        Self { file, path: path.into(), others: Others::Given(others) }
    }

    /// Opens another file, which this one names.
    pub(crate) fn another(&self, path: &Path) -> Result<Self> {
        let found = match &self.others {
            #[cfg(feature = "fs")]
            Others::OnDisk => return Self::open(path),
            Others::Given(others) => others.get(path),
        };
        let missing = || Error::new(ErrorKind::NotFound, "it is not among the files").in_file(path);
        let file = Arc::clone(found.ok_or_else(missing)?);
        Ok(Self { file, path: path.into(), others: self.others.clone() })
    }

    /// Whether the files that it names are on a disk, where links may lead anywhere.
    pub(crate) fn is_on_disk(&self) -> bool {
        !matches!(self.others, Others::Given(_))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &Arc<dyn Source> {
        &self.file
    }

    pub(crate) fn size(&self) -> u64 {
        self.file.size()
    }

    /// Up to `len` bytes from `offset` on: fewer where the file ends. The error names the file.
    pub(crate) fn head(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.file.head(offset, len).map_err(|error| error.in_file(&self.path))
    }

    /// A part of it as a source of its own; `None` where it is not within the file.
    pub(crate) fn part(&self, range: Range<u64>) -> Option<FilePart> {
        Window::new(Arc::clone(&self.file), range)
    }

    /// All of it.
    pub(crate) fn whole(&self) -> FilePart {
        Window::whole(Arc::clone(&self.file))
    }
}

/// Reads the start of what is left of a source.
pub(crate) trait Head: Source {
    /// Up to `len` bytes from `offset` on: fewer where the source ends.
    fn head(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let left = usize::try_from(self.size().saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len.min(left)];
        self.read_at(offset.min(self.size()), &mut bytes).map_err(unread)?;
        Ok(bytes)
    }
}

impl<S: Source + ?Sized> Head for S {}

pub(crate) fn unread(error: io::Error) -> Error {
    Error::io("it cannot be read", error)
}

/// Reads a source front to back.
pub(crate) struct Sequential<'s> {
    source: &'s dyn Source,
    at: u64,
}

impl<'s> Sequential<'s> {
    pub(crate) fn new(source: &'s dyn Source) -> Self {
        Self { source, at: 0 }
    }

    /// Up to `len` bytes from `back` bytes before the next one.
    pub(crate) fn peek(&self, back: u64, len: usize) -> Result<Vec<u8>> {
        self.source.head(self.at.saturating_sub(back), len)
    }

    /// The bytes that were not read yet.
    pub(crate) fn left(&self) -> u64 {
        self.source.size() - self.at
    }
}

impl Read for Sequential<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.left()).unwrap_or(usize::MAX);
        let len = left.min(buf.len());
        self.source.read_at(self.at, &mut buf[..len])?;
        self.at += len as u64;
        Ok(len)
    }
}
