//! Files and links that are there whole or not at all, locks, and reads and writes at an offset.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::error::{Error, ErrorKind, Result};

/// An error of the file system, with the file's path first.
pub(crate) fn trouble(path: &Path, doing: &str, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Denied,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("{}: cannot {doing}: {error}", path.display())).with_source(error)
}

pub(crate) fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|error| trouble(path, "make the directory", error))
}

fn make_parent(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), make_directory)
}

/// A name that no other thread or process has.
pub(crate) fn fresh(directory: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.subsec_nanos());
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    directory.join(format!("{}-{now:08x}-{count}{TEMPORARY}", std::process::id()))
}

/// What the names of temporary files end with.
pub(crate) const TEMPORARY: &str = ".tmp";

/// Writes a file beside, in a directory of the same file system, and renames it.
pub(crate) fn write_whole(path: &Path, beside: &Path, bytes: &[u8]) -> Result<()> {
    make_directory(beside)?;
    make_parent(path)?;
    let temporary = fresh(beside);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        io::Write::write_all(&mut file, bytes)?;
        // Or else, after a power cut, a file of the right name and length may be empty.
        file.sync_data()?;
        fs::rename(&temporary, path)
    })();
    written.map_err(|error| {
        drop(fs::remove_file(&temporary));
        trouble(path, "write", error)
    })
}

/// Makes a link to a file that is there, in place of whatever has the name.
///
/// Where there are no links, the file itself gets the name: moved if `own`, else copied.
pub(crate) fn link(
    target: &Path,
    file: &Path,
    path: &Path,
    beside: &Path,
    own: bool,
    links: bool,
) -> Result<()> {
    make_directory(beside)?;
    make_parent(path)?;
    let temporary = fresh(beside);
    let linked = if links { symlink(target, &temporary) } else { Err(io::ErrorKind::Unsupported.into()) };
    let made = linked.or_else(|_| {
        if own {
            return fs::rename(file, path);
        }
        fs::copy(file, &temporary)?;
        File::options().write(true).open(&temporary)?.sync_data()
    });
    let placed = made.and_then(|()| {
        if temporary.symlink_metadata().is_ok() { fs::rename(&temporary, path) } else { Ok(()) }
    });
    placed.map_err(|error| {
        drop(fs::remove_file(&temporary));
        trouble(path, "make a link to the blob", error)
    })
}

#[cfg(unix)]
fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(windows)]
fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, path)?;
    // Wine says that it made one, and makes none.
    path.symlink_metadata().map(drop)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Options that do not follow a link in place of the file.
pub(crate) fn no_link(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = rustix::fs::OFlags::NOFOLLOW.bits();
        options.custom_flags(i32::try_from(flags).unwrap_or_default());
    }
    options
}

/// Whether a path still names this open file.
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), fs::symlink_metadata(path)) else { return false };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        open.dev() == named.dev() && open.ino() == named.ino()
    }
    #[cfg(not(unix))]
    {
        open.is_file() && named.is_file()
    }
}

/// The bytes that a file takes on the disk.
pub(crate) fn on_disk(data: &fs::Metadata) -> u64 {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        data.blocks() * 512
    }
    #[cfg(not(unix))]
    {
        data.len()
    }
}

/// An exclusive or shared lock, until it is dropped or the process ends.
#[derive(Debug)]
pub(crate) struct Lock(#[allow(dead_code)] File);

/// Whether a lock was free.
pub(crate) enum Locked {
    /// It is ours; `None` where there can be no locks, or no file to lock.
    Ours(Option<Lock>),
    Taken,
}

/// Takes a lock if it is free. The file is made, and stays.
pub(crate) fn try_lock(path: &Path, shared: bool) -> Locked {
    let open = || {
        make_parent(path).ok()?;
        let mut options = OpenOptions::new();
        let file = no_link(options.read(true).write(true).create(true).truncate(false)).open(path).ok()?;
        share(&file);
        Some(file)
    };
    // In a cache that cannot be written, there is nothing that a lock would order.
    let Some(file) = open() else { return Locked::Ours(None) };
    match if shared { file.try_lock_shared() } else { file.try_lock() } {
        Ok(()) => Locked::Ours(Some(Lock(file))),
        Err(TryLockError::WouldBlock) => Locked::Taken,
        Err(TryLockError::Error(_)) => Locked::Ours(None),
    }
}

/// Lets a group that shares a cache take its locks, as huggingface_hub does; they have nothing in them.
fn share(file: &File) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let missing = |data: &fs::Metadata| data.permissions().mode() & 0o660 != 0o660;
        if file.metadata().is_ok_and(|data| data.len() == 0 && missing(&data)) {
            // Only its owner may, and whoever else is here has no need to.
            drop(file.set_permissions(fs::Permissions::from_mode(0o664)));
        }
    }
    #[cfg(not(unix))]
    let _ = file;
}

/// Waits for a lock, but not for ever: it is advice, and what is right without it is made sure of otherwise.
pub(crate) fn lock_for(path: &Path, patience: Duration) -> Option<Lock> {
    let start = Instant::now();
    loop {
        match try_lock(path, false) {
            Locked::Ours(lock) => return lock,
            Locked::Taken if start.elapsed() >= patience => return None,
            Locked::Taken => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Fills the whole buffer.
pub(crate) fn read_at(file: &File, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
    while !buf.is_empty() {
        match read_some(file, offset, buf) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                offset += count as u64;
                buf = &mut buf[count..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub(crate) fn write_at(file: &File, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match write_some(file, offset, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                offset += count as u64;
                bytes = &bytes[count..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(unix)]
use std::os::unix::fs::FileExt;
#[cfg(windows)]
use std::os::windows::fs::FileExt;

#[cfg(unix)]
fn read_some(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    file.read_at(buf, offset)
}

#[cfg(unix)]
fn write_some(file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
    file.write_at(bytes, offset)
}

#[cfg(windows)]
fn read_some(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    file.seek_read(buf, offset)
}

#[cfg(windows)]
fn write_some(file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
    file.seek_write(bytes, offset)
}
