//! Reading a file from front to back in small pieces, never beyond its end, whatever the file says.

use weighbridge::{Error, ErrorKind, Result, Source};

use crate::input::unread;

/// A position in a source, and the end of what may be read there.
pub(crate) struct Cursor<'s> {
    source: &'s dyn Source,
    at: u64,
    end: u64,
    /// Bytes of the source that were read ahead, and where they begin.
    window: Vec<u8>,
    start: u64,
}

/// As much is read at a time.
const WINDOW: usize = 64 << 10;

impl<'s> Cursor<'s> {
    /// From `start` to `end`, which is no more than the size of the source.
    pub(crate) fn new(source: &'s dyn Source, start: u64, end: u64) -> Self {
        Self { source, at: start, end: end.min(source.size()), window: Vec::new(), start: 0 }
    }

    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    pub(crate) fn left(&self) -> u64 {
        self.end.saturating_sub(self.at)
    }

    /// Goes to another position; nothing is read behind the end from there either.
    pub(crate) fn seek(&mut self, at: u64) {
        self.at = at;
    }

    pub(crate) fn skip(&mut self, len: u64) -> Result<()> {
        self.has(len)?;
        self.at += len;
        Ok(())
    }

    /// The next bytes, at most as many as fit a window.
    pub(crate) fn take(&mut self, len: usize) -> Result<&[u8]> {
        self.has(len as u64)?;
        if len == 0 {
            return Ok(&[]);
        }
        if len > WINDOW {
            return Err(malformed(format!("{len} bytes stand where a few belong")));
        }
        let within =
            self.at.checked_sub(self.start).filter(|within| within + len as u64 <= self.window.len() as u64);
        let within = match within {
            Some(within) => within as usize,
            None => {
                self.window.resize((WINDOW as u64).min(self.left()) as usize, 0);
                self.start = self.at;
                let read = self.source.read_at(self.at, &mut self.window);
                read.map_err(unread)?;
                0
            }
        };
        self.at += len as u64;
        Ok(&self.window[within..within + len])
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Text of that many bytes.
    pub(crate) fn text(&mut self, len: u64) -> Result<String> {
        let bytes = self.take(usize::try_from(len).unwrap_or(usize::MAX))?;
        let text = std::str::from_utf8(bytes).map_err(|_| malformed("a name in it is not UTF-8"))?;
        Ok(text.to_owned())
    }

    fn has(&self, len: u64) -> Result<()> {
        match len <= self.left() {
            true => Ok(()),
            false => {
                let (at, left) = (self.at, self.left());
                Err(malformed(format!("it needs {len} bytes at position {at}, where {left} are left")))
            }
        }
    }
}

/// The file breaks the rules of its format.
pub(crate) fn malformed(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Malformed, message)
}

/// The file holds what is not supported.
pub(crate) fn unsupported(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, message)
}
