//! Bytes from file to file, copied by the kernel.

use std::io;

use super::data::Stored;
use super::output::OutputFile;
use super::watch::Watch;
use super::writer::Writer;
use crate::error::{Error, Result};

/// Fewer bytes are gathered in the output's buffer, where they cost no system call of their own.
const WORTH: u64 = 64 << 10;

pub(super) fn worth_a_call(stored: &Stored<'_>) -> bool {
    stored.range.end.saturating_sub(stored.range.start) >= WORTH
}

impl Writer<OutputFile> {
    /// Has the kernel write the next tensor, whatever its name; `false` where it cannot, and the tensor is
    /// still to come.
    pub(super) fn copy(&mut self, stored: &Stored<'_>, watch: &mut Watch) -> Result<bool> {
        let name = self.next_name()?;
        let mut tensor = self.tensor(&name)?;
        let bytes = stored.range.end.saturating_sub(stored.range.start);
        if bytes != tensor.left {
            return Err(tensor.wrong_size("the file has", bytes));
        }
        let copied = tensor.writer.sink.copy(stored, watch).map_err(|error| {
            let from = stored.path.map(|path| format!(" from {}", path.display())).unwrap_or_default();
            Error::io(&format!("it cannot be copied{from}"), error).in_tensor(&name)
        })?;
        if copied {
            tensor.left = 0;
            tensor.finish()?;
        } else {
            self.open = false;
        }
        Ok(copied)
    }
}

impl OutputFile {
    /// Appends bytes of another file; `false` where the kernel cannot do that and nothing was written.
    #[cfg(target_os = "linux")]
    pub(super) fn copy(&mut self, stored: &Stored<'_>, watch: &mut Watch) -> io::Result<bool> {
        use rustix::io::Errno;
        /// Progress is told as often.
        const STEP: u64 = 16 << 20;
        let mut at = stored.range.start;
        while at < stored.range.end {
            let step = (stored.range.end - at).min(STEP) as usize;
            let first = at == stored.range.start;
            match rustix::fs::copy_file_range(stored.file, Some(&mut at), self.raw()?, None, step) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(copied) => {
                    self.wrote(copied);
                    watch.wrote(copied)?;
                }
                Err(Errno::INTR) => {}
                // Two file systems, or one that has no such thing.
                Err(
                    Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM | Errno::BADF,
                ) if first => {
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn copy(&mut self, _: &Stored<'_>, _: &mut Watch) -> io::Result<bool> {
        Ok(false)
    }
}
