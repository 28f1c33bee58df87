//! The bytes of a pickle, read as CPython reads them: through frames, and through a small window of our own.

use std::ops::Range;
use std::sync::Arc;

use weighbridge::{Error, ErrorKind, Result, Source};

use crate::input::unread;

/// As much is read at a time, at first and later.
const FIRST: usize = 4 << 10;
const WINDOW: usize = 64 << 10;
/// Longer lines and texts are not read into memory.
pub(crate) const LONGEST_TEXT: u64 = 64 << 20;

/// Longer names of globals are not read: more than one may have to be kept.
pub(super) const LONGEST_NAME: u64 = 4 << 20;

/// A position in a source.
pub(super) struct Bytes {
    source: Arc<dyn Source>,
    size: u64,
    window: Vec<u8>,
    /// Where in the source the window begins, and where in the window the next byte is.
    start: u64,
    next: usize,
    /// Where the frame ends that is being read.
    frame: Option<u64>,
    /// What CPython's readers of memory, of files, and the one in Python do not agree about.
    ambiguous: Option<&'static str>,
}

impl Bytes {
    pub(super) fn new(source: Arc<dyn Source>, at: u64) -> Self {
        let size = source.size();
        Self { source, size, window: Vec::new(), start: at, next: 0, frame: None, ambiguous: None }
    }

    /// Where the next byte is.
    pub(super) fn at(&self) -> u64 {
        self.start + self.next as u64
    }

    pub(super) fn ambiguous(&self) -> Option<&'static str> {
        self.ambiguous
    }

    pub(super) fn byte(&mut self) -> Result<u8> {
        if self.next == self.window.len() {
            self.fill()?;
        }
        let byte = self.window[self.next];
        self.next += 1;
        Ok(byte)
    }

    /// Reads the next window, of one byte at least.
    fn fill(&mut self) -> Result<()> {
        let at = self.at();
        let most = (2 * self.window.len()).clamp(FIRST, WINDOW);
        let len = self.size.saturating_sub(at).min(most as u64) as usize;
        if len == 0 {
            return Err(self.malformed("the file ends in the middle of it"));
        }
        self.window.resize(len, 0);
        (self.start, self.next) = (at, 0);
        self.source.read_at(at, &mut self.window).map_err(unread)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.frames(N as u64);
        let mut array = [0; N];
        match self.window.get(self.next..self.next + N) {
            Some(bytes) => {
                array.copy_from_slice(bytes);
                self.next += N;
            }
            None => {
                for byte in &mut array {
                    *byte = self.byte()?;
                }
            }
        }
        Ok(array)
    }

    /// Bytes that are read into memory.
    pub(super) fn take(&mut self, len: u64) -> Result<Vec<u8>> {
        let within = usize::try_from(len).ok().and_then(|len| self.window.get(self.next..)?.get(..len));
        if let Some(bytes) = within {
            let bytes = bytes.to_vec();
            self.frames(len);
            self.next += bytes.len();
            return Ok(bytes);
        }
        let range = self.skip(len)?;
        let mut bytes = vec![0; len as usize];
        self.source.read_at(range.start, &mut bytes).map_err(unread)?;
        Ok(bytes)
    }

    /// Passes over bytes that are in the file.
    pub(super) fn skip(&mut self, len: u64) -> Result<Range<u64>> {
        self.frames(len);
        let start = self.at();
        let end = start.checked_add(len).filter(|&end| end <= self.size);
        let end = end.ok_or_else(|| self.malformed(&format!("{len} bytes that are not in the file")))?;
        self.seek(end);
        Ok(start..end)
    }

    /// Goes on at another position, outside of frames.
    pub(super) fn jump(&mut self, at: u64) {
        self.stop();
        self.frame = None;
        self.seek(at);
    }

    fn seek(&mut self, at: u64) {
        match at.checked_sub(self.start).map(usize::try_from) {
            Some(Ok(next)) if next <= self.window.len() => self.next = next,
            _ => {
                self.window.clear();
                (self.start, self.next) = (at, 0);
            }
        }
    }

    /// A line without its newline. Carriage returns belong to it.
    pub(super) fn line(&mut self) -> Result<Vec<u8>> {
        self.line_of(LONGEST_TEXT)
    }

    /// A line of at most this many bytes.
    pub(super) fn line_of(&mut self, most: u64) -> Result<Vec<u8>> {
        let start = self.at();
        let mut line = Vec::new();
        loop {
            if self.next == self.window.len() {
                self.fill()?;
            }
            let rest = &self.window[self.next..];
            let newline = rest.iter().position(|&byte| byte == b'\n');
            let part = &rest[..newline.unwrap_or(rest.len())];
            if (line.len() + part.len()) as u64 > most {
                return Err(self.malformed(&format!("a line of more than {} MiB", most >> 20)));
            }
            line.extend_from_slice(part);
            self.next += part.len();
            if newline.is_some() {
                self.next += 1;
                self.crossed(start);
                return Ok(line);
            }
        }
    }

    /// What is left of the file from a position on, if that is not much.
    pub(super) fn rest(&self, at: u64) -> Option<Vec<u8>> {
        let len = self.size.checked_sub(at).filter(|&len| len <= WINDOW as u64)?;
        let mut rest = vec![0; len as usize];
        self.source.read_at(at, &mut rest).ok()?;
        Some(rest)
    }

    /// Begins the frame whose opcode was read.
    pub(super) fn begin_frame(&mut self) -> Result<()> {
        let len = u64::from_le_bytes(self.array()?);
        if self.frame.is_some_and(|end| self.at() < end) {
            self.doubt("a frame within a frame");
        }
        let end = self.at().checked_add(len).filter(|&end| end <= self.size);
        self.frame = Some(end.ok_or_else(|| self.malformed("a frame that ends behind the end of the file"))?);
        Ok(())
    }

    /// The pickle has ended.
    pub(super) fn stop(&mut self) {
        if self.frame.is_some_and(|end| self.at() < end) {
            self.doubt("a frame goes on behind what was read of it");
        }
    }

    /// So many bytes are about to be read at once.
    fn frames(&mut self, len: u64) {
        if let Some(end) = self.frame {
            let at = self.at();
            if at < end && at.saturating_add(len) > end {
                self.frame = None;
                self.doubt("an argument crosses the end of its frame");
            }
        }
    }

    /// Bytes from `start` on were read at once.
    fn crossed(&mut self, start: u64) {
        if self.frame.is_some_and(|end| start < end && self.at() > end) {
            self.frame = None;
            self.doubt("a line crosses the end of its frame");
        }
    }

    /// Readers of CPython's do not agree about something.
    pub(super) fn doubt(&mut self, what: &'static str) {
        self.ambiguous.get_or_insert(what);
    }

    pub(super) fn malformed(&self, what: &str) -> Error {
        malformed(self.at(), what)
    }
}

/// An error that says where in the pickle it is.
pub(crate) fn malformed(at: u64, what: &str) -> Error {
    Error::new(ErrorKind::Malformed, format!("the pickle is broken at byte {at}: {what}"))
}
