//! A file that appears when it is whole.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::directory::{Temporary, cannot_write, follow_links, parts, replaced, sweep, sync, take_after};
use super::flush::{self, Flusher};
use super::recover::complete_pending;
use crate::error::{Error, Result};
use crate::journal::TEMPORARY;

/// A file to write, which takes its place when it is [committed](Self::commit).
///
/// An [atomic](Self::atomic) one is a temporary file in the directory of its destination until then. Dropped
/// before, it is removed and the destination is as it was. What a process leaves that is killed, the next one
/// that writes the same destination removes: temporary files are locked while they are in use. An
/// [unprotected](Self::unprotected) one is what it is from the start.
#[derive(Debug)]
pub struct OutputFile {
    file: BufWriter<Output>,
    path: PathBuf,
}

#[derive(Debug)]
struct Output {
    target: Target,
    /// Whether room was made that may not be needed.
    reserved: bool,
    flusher: Option<Flusher>,
}

#[derive(Debug)]
enum Target {
    /// To be renamed.
    Temporary(Temporary),
    /// The file itself.
    Final(File),
}

/// Small tensors are gathered; larger ones pass through.
const BUFFER: usize = 1 << 20;

impl OutputFile {
    /// A file that replaces `path` as a whole, or not at all. It has the permissions of a file that it
    /// replaces, and those that the umask leaves to a new one. A link is followed.
    ///
    /// # Errors
    ///
    /// Fails when no file can be made in the directory, and when something else than a file is there; with
    /// [`Busy`](crate::ErrorKind::Busy) when a set of files that it belongs to is being replaced.
    pub fn atomic(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let make = || {
            let target = follow_links(path)?;
            let (directory, name) = parts(&target)?;
            // What an interrupted save left to be done here would undo this one.
            complete_pending(directory, name).map_err(io::Error::other)?;
            Ok(Self::new(Target::Temporary(Temporary::beside(target)?), path))
        };
        make().map_err(|error| cannot_write(error).in_file(path))
    }

    /// Removes the temporary files that killed writers of `path` left next to it; those of living writers are
    /// locked, and stay. [`atomic`](Self::atomic) does so by itself: this is for a file that will not be
    /// written again.
    pub fn sweep(path: impl AsRef<Path>) {
        if let Ok((directory, name)) = parts(path.as_ref()) {
            sweep(directory, name, TEMPORARY);
        }
    }

    /// The file itself, emptied: not atomic. It may be a pipe or a device.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be opened for writing.
    pub fn unprotected(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::create(path).map_err(|error| cannot_write(error).in_file(path))?;
        Ok(Self::new(Target::Final(file), path))
    }

    /// A file in a directory where nobody looks, with the permissions of the one that it will replace.
    pub(super) fn staged(path: &Path, old: &Path) -> Result<Self> {
        let make = || {
            let file = File::create_new(path)?;
            if let Some(old) = replaced(old)? {
                take_after(&file, &old)?;
            }
            Ok(Self::new(Target::Final(file), path))
        };
        make().map_err(|error| cannot_write(error).in_file(path))
    }

    fn new(target: Target, path: &Path) -> Self {
        let output = Output { target, reserved: false, flusher: None };
        Self { file: BufWriter::with_capacity(BUFFER, output), path: path.to_owned() }
    }

    /// Says how many bytes will be written. Room for them is made on the disk at once, so that one that is
    /// full is found out before anything is written, and a large file is sent to the disk while it is
    /// written.
    ///
    /// The file has as many bytes as are written, whether these are fewer or more.
    ///
    /// # Errors
    ///
    /// Fails when there is no room for them.
    pub fn expect(&mut self, bytes: u64) -> Result<()> {
        let output = self.file.get_mut();
        let file = output.target.as_file();
        let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
        if !is_file || bytes == 0 {
            return Ok(());
        }
        let reserved = reserve(file, bytes).map_err(|error| {
            let message = format!("there is no room for its {bytes} bytes");
            Error::io(&message, error).in_file(&self.path)
        })?;
        output.reserved |= reserved;
        if bytes >= flush::WORTH {
            output.flusher = Flusher::start(file);
        }
        Ok(())
    }

    /// Makes it the file: synced, renamed into its place, and the directory synced.
    ///
    /// # Errors
    ///
    /// Fails when one of these does. Unless it is the last, the destination is as it was.
    pub fn commit(self) -> Result<()> {
        let Self { file, path } = self;
        let finish = || {
            let output = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            let Output { target, reserved, flusher } = output;
            flusher.map_or(Ok(()), Flusher::finish)?;
            if reserved {
                let written = target.as_file().metadata()?.len();
                target.as_file().set_len(written)?;
            }
            sync(target.as_file())?;
            match target {
                Target::Temporary(temporary) => temporary.rename(),
                Target::Final(_) => Ok(()),
            }
        };
        finish().map_err(|error| cannot_write(error).in_file(&path))
    }

    pub(super) fn write_and_commit(mut self, bytes: &[u8]) -> Result<()> {
        let written = self.write_all(bytes);
        written.map_err(|error| cannot_write(error).in_file(&self.path))?;
        self.commit()
    }

    /// Bytes were written past the buffer.
    #[cfg(target_os = "linux")]
    pub(super) fn wrote(&mut self, bytes: usize) {
        if let Some(flusher) = &mut self.file.get_mut().flusher {
            flusher.wrote(bytes);
        }
    }

    /// The file, to be written past the buffer, which is empty then.
    pub(super) fn raw(&mut self) -> io::Result<&File> {
        self.file.flush()?;
        Ok(self.file.get_ref().target.as_file())
    }

    /// Whether it has places, as pipes and devices do not.
    pub(super) fn has_places(&self) -> bool {
        self.file.get_ref().target.as_file().metadata().is_ok_and(|metadata| metadata.is_file())
    }

    /// The same as [`raw`](Self::raw), and what has to be told of bytes that are written.
    pub(super) fn raw_and_flusher(&mut self) -> io::Result<(&File, Option<&mut Flusher>)> {
        self.file.flush()?;
        let Output { target, flusher, .. } = self.file.get_mut();
        Ok((target.as_file(), flusher.as_mut()))
    }
}

impl Write for OutputFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Target {
    fn as_file(&self) -> &File {
        match self {
            Self::Temporary(temporary) => temporary.as_file(),
            Self::Final(file) => file,
        }
    }
}

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.target.as_file().write(buf)?;
        if let Some(flusher) = &mut self.flusher {
            flusher.wrote(written);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes room on the disk; `false` where that cannot be done beforehand.
#[cfg(target_os = "linux")]
fn reserve(file: &File, bytes: u64) -> io::Result<bool> {
    use rustix::io::Errno;
    loop {
        return match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, bytes) {
            Ok(()) => Ok(true),
            Err(Errno::INTR) => continue,
            Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(error.into()),
            Err(_) => Ok(false),
        };
    }
}

#[cfg(not(target_os = "linux"))]
fn reserve(_: &File, _: u64) -> io::Result<bool> {
    Ok(false)
}
