//! In memory, where there are no files.

use std::io::{self, Cursor, Write};
use std::sync::Arc;

use weighbridge::source::{MemorySource, Source, Window};
use weighbridge::{Error, ErrorKind, Result};

use crate::input::FilePart;

/// All of it together may have so many bytes.
const MOST: usize = 1 << 30;

/// Pieces of memory; each belongs to whoever reads it.
#[derive(Default)]
pub(crate) struct Spool {
    size: u64,
}

impl Spool {
    /// The bytes that were put into it.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Appends `len` bytes, which `write` writes in any order: offsets count from their start. What it leaves
    /// out is zero.
    pub(crate) fn append(
        &mut self,
        len: u64,
        write: impl FnOnce(&mut Cursor<&mut [u8]>) -> Result<()>,
    ) -> Result<FilePart> {
        let mut bytes = Vec::new();
        let room = usize::try_from(len).ok().filter(|&len| len <= self.left());
        room.and_then(|len| bytes.try_reserve_exact(len).ok()).ok_or_else(full)?;
        bytes.resize(room.unwrap_or_default(), 0);
        write(&mut Cursor::new(&mut bytes))?;
        Ok(self.part(bytes))
    }

    /// Appends what `write` writes front to back, even if it fails later; returns that and what `write`
    /// returned.
    pub(crate) fn grow<T>(&mut self, write: impl FnOnce(&mut dyn Write) -> T) -> Result<(FilePart, T)> {
        let mut growing = Growing { bytes: Vec::new(), most: self.left() };
        let result = write(&mut growing);
        Ok((self.part(growing.bytes), result))
    }

    fn left(&self) -> usize {
        MOST.saturating_sub(usize::try_from(self.size).unwrap_or(usize::MAX))
    }

    fn part(&mut self, bytes: Vec<u8>) -> FilePart {
        self.size += bytes.len() as u64;
        let source: Arc<dyn Source> = Arc::new(MemorySource(bytes));
        Window::whole(source)
    }
}

fn full() -> Error {
    Error::new(ErrorKind::Memory, format!("what is unpacked of it does not fit into memory ({MOST} bytes)"))
}

/// Takes as much as there may be.
struct Growing {
    bytes: Vec<u8>,
    most: usize,
}

impl Write for Growing {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if buf.len() > self.most - self.bytes.len() || self.bytes.try_reserve(buf.len()).is_err() {
            return Err(io::Error::other(full()));
        }
        self.bytes.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
