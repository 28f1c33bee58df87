//! The file that is read, and its parts.

use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use weighbridge::source::{FileSource, Source, Window};
use weighbridge::{Error, Result};

/// An open file and its path; cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    file: FileSource,
    path: Arc<Path>,
}

/// A range of bytes of a file.
pub(crate) type FilePart = Window<FileSource>;

impl Input {
    /// Opens a regular file; the error names it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Ok(Self { file: FileSource::open(path)?, path: path.into() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &FileSource {
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
        Window::new(self.file.clone(), range)
    }

    /// All of it.
    pub(crate) fn whole(&self) -> FilePart {
        Window::whole(self.file.clone())
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
