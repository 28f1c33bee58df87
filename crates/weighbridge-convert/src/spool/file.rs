//! One temporary file without a name, for all of it.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::sync::Arc;

use weighbridge::source::{FileSource, Source, Window};
use weighbridge::{Error, ErrorKind, Result};

use super::unwritten;
use crate::input::FilePart;

/// Bytes that are written at a time.
const BUFFER: usize = 256 << 10;

/// A temporary file that grows; made when the first bytes come.
#[derive(Default)]
pub(crate) struct Spool {
    file: Option<Arc<File>>,
    end: u64,
}

impl Spool {
    /// The bytes that are in it.
    pub(crate) fn size(&self) -> u64 {
        self.end
    }

    /// Appends `len` bytes, which `write` writes in any order: offsets count from their start. What it leaves
    /// out is zero.
    pub(crate) fn append(
        &mut self,
        len: u64,
        write: impl FnOnce(&mut BufWriter<Reserved<'_>>) -> Result<()>,
    ) -> Result<FilePart> {
        let file = self.file()?;
        let start = self.end;
        let end = start.checked_add(len);
        let end = end.ok_or_else(|| {
            Error::new(ErrorKind::Overflow, "a temporary file would be longer than files can be")
        })?;
        file.set_len(end).and_then(|()| (&*file).seek(SeekFrom::Start(start))).map_err(unwritten)?;
        let mut writer = BufWriter::with_capacity(BUFFER, Reserved { file: &file, start, len, at: 0 });
        write(&mut writer)?;
        writer.flush().map_err(unwritten)?;
        drop(writer);
        self.end = end;
        part(file, start..end)
    }

    /// Appends what `write` writes front to back, even if it fails later; returns that and what `write`
    /// returned.
    pub(crate) fn grow<T>(&mut self, write: impl FnOnce(&mut dyn Write) -> T) -> Result<(FilePart, T)> {
        let file = self.file()?;
        let start = self.end;
        (&*file).seek(SeekFrom::Start(start)).map_err(unwritten)?;
        let mut writer = BufWriter::with_capacity(BUFFER, &*file);
        let result = write(&mut writer);
        writer.flush().map_err(unwritten)?;
        drop(writer);
        self.end = (&*file).stream_position().map_err(unwritten)?;
        Ok((part(file, start..self.end)?, result))
    }

    fn file(&mut self) -> Result<Arc<File>> {
        let file = match &self.file {
            Some(file) => file,
            None => {
                let file = tempfile::tempfile();
                let file = file.map_err(|error| Error::io("a temporary file cannot be made", error))?;
                self.file.insert(Arc::new(file))
            }
        };
        Ok(Arc::clone(file))
    }
}

fn part(file: Arc<File>, range: std::ops::Range<u64>) -> Result<FilePart> {
    let source: Arc<dyn Source> = Arc::new(FileSource::new(file, range.end));
    Window::new(source, range).ok_or_else(|| Error::new(ErrorKind::Internal, "a temporary file is too short"))
}

/// The part of the file that is being written.
pub(crate) struct Reserved<'f> {
    file: &'f File,
    start: u64,
    len: u64,
    at: u64,
}

impl Write for Reserved<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if buf.len() as u64 > self.len.saturating_sub(self.at) {
            return Err(io::Error::other("there are more bytes than there should be"));
        }
        let written = self.file.write(buf)?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Reserved<'_> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        let SeekFrom::Start(at) = position else {
            return Err(io::Error::other("offsets are counted from the start"));
        };
        self.file.seek(SeekFrom::Start(self.start + at))?;
        self.at = at;
        Ok(at)
    }
}
