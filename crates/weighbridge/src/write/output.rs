//! A file that appears when it is whole.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::flush::{self, Flusher};
use super::set::complete_pending;
use crate::error::{Error, Result};
use crate::file_names;
use crate::journal::{STAGING, TEMPORARY, prefix};

/// A file to write, which takes its place when it is [committed](Self::commit).
///
/// An [atomic](Self::atomic) one is a temporary file in the directory of its destination until then. Dropped before,
/// it is removed and the destination is as it was. What a process leaves that is killed, the next one that writes
/// the same destination removes: temporary files are locked while they are in use. An
/// [unprotected](Self::unprotected) one is what it is from the start.
#[derive(Debug)]
pub struct OutputFile {
    file: BufWriter<Output>,
    path: PathBuf,
}

#[derive(Debug)]
struct Output {
    place: Place,
    /// Whether room was made that may not be needed.
    reserved: bool,
    flusher: Option<Flusher>,
}

#[derive(Debug)]
enum Place {
    /// To be renamed to the path.
    Temporary(NamedTempFile, PathBuf),
    /// In its place already.
    Placed(File),
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
            let old = replaced(&target)?;
            sweep(directory, name, TEMPORARY);
            let temporary = temporary(directory, name, old.as_ref())?;
            if let Some(old) = old {
                take_after(temporary.as_file(), &old)?;
            }
            Ok(Self::new(Place::Temporary(temporary, target), path))
        };
        make().map_err(|error| Error::io("it cannot be written", error).in_file(path))
    }

    /// The file itself, emptied: not atomic. It may be a pipe or a device.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be opened for writing.
    pub fn unprotected(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file =
            File::create(path).map_err(|error| Error::io("it cannot be written", error).in_file(path))?;
        Ok(Self::new(Place::Placed(file), path))
    }

    /// A file in a directory where nobody looks, with the permissions of the one that it will replace.
    pub(super) fn staged(path: &Path, old: &Path) -> Result<Self> {
        let make = || {
            let file = File::create_new(path)?;
            if let Some(old) = replaced(old)? {
                take_after(&file, &old)?;
            }
            Ok(Self::new(Place::Placed(file), path))
        };
        make().map_err(|error| Error::io("it cannot be written", error).in_file(path))
    }

    fn new(place: Place, path: &Path) -> Self {
        let output = Output { place, reserved: false, flusher: None };
        Self { file: BufWriter::with_capacity(BUFFER, output), path: path.to_owned() }
    }

    /// Says how many bytes will be written. Room for them is made on the disk at once, so that one that is full is
    /// found out before anything is written, and a large file is sent to the disk while it is written.
    ///
    /// The file has as many bytes as are written, whether these are fewer or more.
    ///
    /// # Errors
    ///
    /// Fails when there is no room for so many bytes.
    pub fn expect(&mut self, bytes: u64) -> Result<()> {
        let output = self.file.get_mut();
        let file = output.place.as_file();
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
            let Output { place, reserved, flusher } = output;
            flusher.map_or(Ok(()), Flusher::finish)?;
            if reserved {
                let written = place.as_file().metadata()?.len();
                place.as_file().set_len(written)?;
            }
            sync(place.as_file())?;
            if let Place::Temporary(temporary, target) = place {
                temporary.persist(&target).map_err(|error| error.error)?;
                sync_directory(parts(&target)?.0)?;
            }
            Ok(())
        };
        finish().map_err(|error| Error::io("it cannot be written", error).in_file(&path))
    }

    pub(super) fn write_and_commit(mut self, bytes: &[u8]) -> Result<()> {
        let written = self.write_all(bytes);
        written.map_err(|error| Error::io("it cannot be written", error).in_file(&self.path))?;
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
        Ok(self.file.get_ref().place.as_file())
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

impl Place {
    fn as_file(&self) -> &File {
        match self {
            Self::Temporary(temporary, _) => temporary.as_file(),
            Self::Placed(file) => file,
        }
    }
}

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.place.as_file().write(buf)?;
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

/// Where a path leads, whether or not something is there.
fn follow_links(path: &Path) -> io::Result<PathBuf> {
    /// As many as Linux follows.
    const MOST: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MOST {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "too many links lead to it"))
}

/// Directory and name of a file.
fn parts(path: &Path) -> io::Result<(&Path, &OsStr)> {
    let none = || io::Error::new(io::ErrorKind::InvalidInput, "it is not the name of a file");
    let name = path.file_name().ok_or_else(none)?;
    Ok((file_names::directory_of(path), name))
}

/// What is known of the file that is to be replaced; `None` if there is none.
fn replaced(path: &Path) -> io::Result<Option<fs::Metadata>> {
    match fs::metadata(path) {
        Ok(old) if old.is_file() => Ok(Some(old)),
        Ok(old) => {
            let what = if old.is_dir() { "it is a directory" } else { "it is not a regular file" };
            Err(io::Error::new(io::ErrorKind::InvalidInput, what))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Gives a new file the owner, if that may be done, and the permissions of an old one.
fn take_after(file: &File, old: &fs::Metadata) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, fchown};
        let new = file.metadata()?;
        if new.gid() != old.gid() {
            let _ = fchown(file, None, Some(old.gid()));
        }
        if new.uid() != old.uid() {
            let _ = fchown(file, Some(old.uid()), None);
        }
    }
    file.set_permissions(old.permissions())
}

/// A temporary file with the permissions that the umask leaves, or with no more than those of the file that it will
/// replace.
fn temporary(directory: &Path, name: &OsStr, old: Option<&fs::Metadata>) -> io::Result<NamedTempFile> {
    #[cfg(unix)]
    let mode = old.map_or(0o666, |old| std::os::unix::fs::MetadataExt::mode(old) & 0o666);
    #[cfg(not(unix))]
    let mode = old.map_or(0, |_| 0);
    let prefix = prefix(name);
    loop {
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(TEMPORARY);
        let temporary = with_permissions(&mut builder, mode).tempfile_in(directory)?;
        if lock(temporary.as_file())? {
            return Ok(temporary);
        }
    }
}

/// A directory for files that will replace others.
pub(super) fn staging(directory: &Path, name: &OsStr) -> io::Result<(tempfile::TempDir, File)> {
    let prefix = prefix(name);
    loop {
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(STAGING);
        let temporary = with_permissions(&mut builder, 0o777).tempdir_in(directory)?;
        let handle = open_directory(temporary.path())?;
        if lock(&handle)? {
            return Ok((temporary, handle));
        }
    }
}

fn with_permissions<'b, 'p, 's>(
    builder: &'b mut tempfile::Builder<'p, 's>,
    mode: u32,
) -> &'b mut tempfile::Builder<'p, 's> {
    #[cfg(unix)]
    builder.permissions(<fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    builder
}

/// Marks a temporary as in use; `false` if somebody removed it before.
fn lock(temporary: &File) -> io::Result<bool> {
    // Where locks do not exist nobody else gets one either, and what is not locked by its finder is not removed.
    if temporary.lock().is_err() {
        return Ok(true);
    }
    #[cfg(unix)]
    let there = std::os::unix::fs::MetadataExt::nlink(&temporary.metadata()?) > 0;
    #[cfg(not(unix))]
    let there = true;
    Ok(there)
}

/// Removes what processes that were killed left behind for this destination: temporary files, or stagings that no
/// journal speaks of, which is the caller's to know.
pub(super) fn sweep(directory: &Path, name: &OsStr, suffix: &str) {
    let prefix = prefix(name);
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let left = entry.file_name().to_str().is_some_and(|name| {
            name.strip_prefix(&*prefix)
                .and_then(|rest| rest.strip_suffix(suffix))
                .is_some_and(|random| random.len() == 6 && random.bytes().all(|b| b.is_ascii_alphanumeric()))
        });
        let Ok(kind) = entry.file_type() else { continue };
        if !left || kind.is_symlink() || kind.is_dir() != (suffix == STAGING) {
            continue;
        }
        let path = entry.path();
        let opened = if kind.is_dir() { open_directory(&path) } else { File::open(&path) };
        // Its owner holds a lock as long as it lives.
        let Ok(handle) = opened else { continue };
        if let Ok(()) = handle.try_lock() {
            let _ = if kind.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

/// The directory, locked against others who would replace the set of files in it; `None` if another has it.
pub(super) fn lock_directory(directory: &Path) -> io::Result<Option<File>> {
    let handle = open_directory(directory)?;
    match handle.try_lock() {
        Err(TryLockError::WouldBlock) => Ok(None),
        // Where locks do not exist, it has to be done without.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(Some(handle)),
    }
}

fn open_directory(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true);
    #[cfg(windows)]
    {
        // FILE_FLAG_BACKUP_SEMANTICS, without which directories cannot be opened.
        std::os::windows::fs::OpenOptionsExt::custom_flags(&mut options, 0x0200_0000);
    }
    options.open(path)
}

/// Waits until the bytes are on the disk; pipes and devices have none.
fn sync(file: &File) -> io::Result<()> {
    match file.sync_all() {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput && !file.metadata()?.is_file() => Ok(()),
        other => other,
    }
}

/// Waits until the names in a directory are on the disk. Windows has no way to.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    if cfg!(windows) {
        return Ok(());
    }
    match open_directory(directory)?.sync_all() {
        // Some network file systems do not take it for directories.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other,
    }
}
