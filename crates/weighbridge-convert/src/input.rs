//! The file that is read, and the sources whose bytes lie in it or in memory.

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weighbridge::{Error, ErrorKind, Result, Source};

/// An open file; cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    file: Arc<File>,
    size: u64,
    path: Arc<PathBuf>,
}

impl Input {
    /// Opens a regular file: a pipe would block until somebody writes into it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let opened = fs::metadata(path).and_then(|metadata| match metadata.is_file() {
            true => File::open(path),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
        });
        let with_size = opened.and_then(|file| Ok((file.metadata()?.len(), file)));
        let (size, file) = with_size.map_err(|error| failed("it cannot be opened", error).in_file(path))?;
        Ok(Self { file: Arc::new(file), size, path: Arc::new(path.to_owned()) })
    }

    /// A file without a name, such as a temporary one, of which so many bytes are there.
    pub(crate) fn unnamed(file: Arc<File>, size: u64) -> Self {
        Self { file, size, path: Arc::default() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Up to `len` bytes from `offset` on: fewer where the file ends.
    pub(crate) fn head(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len.min(left)];
        self.read_at(offset, &mut bytes).map_err(|error| self.unread(error))?;
        Ok(bytes)
    }

    /// A part of it as a source of its own; `None` where it is not within the file.
    pub(crate) fn part(&self, range: Range<u64>) -> Option<FilePart> {
        (range.start <= range.end && range.end <= self.size).then(|| FilePart { whole: self.clone(), range })
    }

    /// All of it.
    pub(crate) fn whole(&self) -> FilePart {
        FilePart { whole: self.clone(), range: 0..self.size }
    }

    pub(crate) fn unread(&self, error: io::Error) -> Error {
        failed("it cannot be read", error).in_file(&self.path)
    }
}

impl Source for Input {
    fn size(&self) -> u64 {
        self.size
    }

    #[cfg(unix)]
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&*self.file, buf, offset)
    }

    #[cfg(not(unix))]
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

    fn in_file(&self, range: Range<u64>) -> Option<(&File, u64)> {
        Some((&self.file, range.start))
    }
}

/// A run of bytes of a file.
#[derive(Clone, Debug)]
pub(crate) struct FilePart {
    whole: Input,
    range: Range<u64>,
}

impl Source for FilePart {
    fn size(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.within(offset, buf.len() as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.whole.read_at(self.range.start + offset, buf)
    }

    fn in_file(&self, range: Range<u64>) -> Option<(&File, u64)> {
        let start = self.within(range.start, range.end.checked_sub(range.start)?)?;
        Some((&self.whole.file, start))
    }
}

impl FilePart {
    /// A part of it; `None` where it is not within.
    pub(crate) fn part(&self, range: Range<u64>) -> Option<Self> {
        let start = self.within(range.start, range.end.checked_sub(range.start)?)?;
        Some(Self { whole: self.whole.clone(), range: start..start + (range.end - range.start) })
    }

    /// Up to `len` bytes from `offset` on: fewer where it ends.
    pub(crate) fn head(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let left = usize::try_from(self.size().saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len.min(left)];
        self.read_at(offset.min(self.size()), &mut bytes).map_err(|error| self.whole.unread(error))?;
        Ok(bytes)
    }

    /// The position in the file of a part of it.
    fn within(&self, offset: u64, len: u64) -> Option<u64> {
        (offset.checked_add(len)? <= self.size()).then_some(self.range.start + offset)
    }
}

/// Reads a source front to back.
pub(crate) struct Sequential<'s> {
    source: &'s FilePart,
    at: u64,
}

impl<'s> Sequential<'s> {
    pub(crate) fn new(source: &'s FilePart) -> Self {
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
        let left = usize::try_from(self.source.size().saturating_sub(self.at)).unwrap_or(usize::MAX);
        let len = left.min(buf.len());
        self.source.read_at(self.at, &mut buf[..len])?;
        self.at += len as u64;
        Ok(len)
    }
}

/// Bytes in memory.
pub(crate) struct Memory<T>(pub(crate) T);

impl<T: AsRef<[u8]> + Send + Sync> Source for Memory<T> {
    fn size(&self) -> u64 {
        self.0.as_ref().len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.0.as_ref().get(start..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// What was being done, and why it failed.
pub(crate) fn failed(doing: &str, error: io::Error) -> Error {
    let error = match error.downcast::<Error>() {
        Ok(own) => return own,
        Err(error) => error,
    };
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("{doing}: {error}")).with_source(error)
}
