//! What has to be made when a file is opened, because it cannot be had piece by piece later: one temporary file without a
//! name, for all of it.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::sync::Arc;

use weighbridge::{Error, ErrorKind, Result};

use crate::input::{FilePart, Input, failed};

/// A temporary file that grows; made when the first bytes come.
#[derive(Default)]
pub(crate) struct Spool {
    file: Option<Arc<File>>,
    end: u64,
}

impl Spool {
    /// Appends `len` bytes, which `write` writes in any order: the positions are those in the part. What it leaves out is
    /// zero.
    pub(crate) fn append(
        &mut self,
        len: u64,
        write: impl FnOnce(&mut BufWriter<Window<'_>>) -> Result<()>,
    ) -> Result<FilePart> {
        let file = match &self.file {
            Some(file) => Arc::clone(file),
            None => {
                let file =
                    tempfile::tempfile().map_err(|error| failed("a temporary file cannot be made", error))?;
                Arc::clone(self.file.insert(Arc::new(file)))
            }
        };
        let start = self.end;
        let end = start.checked_add(len);
        let end = end
            .ok_or_else(|| Error::new(ErrorKind::Overflow, "a temporary file of so many bytes cannot be"))?;
        let window = Window { file: &file, start, len, at: 0 };
        let prepared = file.set_len(end).and_then(|()| (&*file).seek(SeekFrom::Start(start)));
        prepared.map_err(unwritten)?;
        let mut writer = BufWriter::with_capacity(256 << 10, window);
        write(&mut writer)?;
        writer.flush().map_err(unwritten)?;
        drop(writer);
        self.end = end;
        let part = Input::unnamed(file, end).part(start..end);
        part.ok_or_else(|| Error::new(ErrorKind::Internal, "a temporary file is too short"))
    }

    /// Appends what `write` writes, front to back.
    pub(crate) fn grow(&mut self, write: impl FnOnce(&mut dyn Write)) -> Result<FilePart> {
        let start = self.end;
        self.append(0, |_| Ok(()))?;
        let missing = || Error::new(ErrorKind::Internal, "a temporary file is missing");
        let file = self.file.clone().ok_or_else(missing)?;
        let mut writer = BufWriter::with_capacity(256 << 10, &*file);
        write(&mut writer);
        writer.flush().map_err(unwritten)?;
        self.end = (&*file).stream_position().map_err(unwritten)?;
        Input::unnamed(Arc::clone(&file), self.end).part(start..self.end).ok_or_else(missing)
    }
}

/// A part of the file that is being written.
pub(crate) struct Window<'f> {
    file: &'f File,
    start: u64,
    len: u64,
    at: u64,
}

impl Write for Window<'_> {
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

impl Seek for Window<'_> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        let SeekFrom::Start(at) = position else {
            return Err(io::Error::other("positions are counted from the start"));
        };
        self.file.seek(SeekFrom::Start(self.start + at))?;
        self.at = at;
        Ok(at)
    }
}

pub(crate) fn unwritten(error: io::Error) -> Error {
    failed("a temporary file cannot be written", error)
}
