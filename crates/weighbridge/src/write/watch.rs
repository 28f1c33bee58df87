//! Bytes counted as they are written, for a progress handler.

use std::io::{self, Write};
use std::ops::ControlFlow;

use crate::error::{Error, ErrorKind};
use crate::progress::{Handler, Progress};

/// Counts what is written, and tells.
#[derive(Debug)]
pub(super) struct Watch {
    handler: Option<Handler>,
    progress: Progress,
}

impl Watch {
    pub(super) fn new(handler: Option<Handler>, bytes_total: u64) -> Self {
        Self { handler, progress: Progress { bytes_done: 0, bytes_total } }
    }

    /// Bytes were written; fails when the handler wants no more.
    pub(super) fn wrote(&mut self, bytes: usize) -> io::Result<()> {
        self.progress.bytes_done += bytes as u64;
        match self.handler.as_ref().map(|handler| handler.tell(|| self.progress)) {
            Some(ControlFlow::Break(())) => {
                Err(io::Error::other(Error::new(ErrorKind::Cancelled, "the save was cancelled")))
            }
            _ => Ok(()),
        }
    }
}

/// A sink, watched.
pub(super) struct Watched<'w, W> {
    pub(super) sink: W,
    pub(super) watch: &'w mut Watch,
}

impl<W: Write> Write for Watched<'_, W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.sink.write(buf)?;
        self.watch.wrote(written)?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}
