//! Advisory locks of open files and directories. (`File::lock` has been there since Rust 1.89 only.)

use std::fs::File;
use std::io;
use std::path::Path;

/// A directory that was to be locked.
pub(super) enum Locked {
    Ours(File),
    /// Somebody else has locked it.
    Taken,
    /// There are no locks.
    #[cfg_attr(windows, allow(dead_code))]
    Without(File),
}

impl Locked {
    /// `None` if somebody else has locked it. Where there are no locks, nobody can be kept out.
    pub(super) fn handle(self) -> Option<File> {
        match self {
            Self::Ours(directory) | Self::Without(directory) => Some(directory),
            Self::Taken => None,
        }
    }
}

/// Opens a directory and locks it against whoever opens it with this function.
#[cfg(not(windows))]
pub(super) fn open_directory(path: &Path) -> io::Result<Locked> {
    let directory = File::open(path)?;
    Ok(match try_lock(&directory) {
        Ok(true) => Locked::Ours(directory),
        Ok(false) => Locked::Taken,
        Err(_) => Locked::Without(directory),
    })
}

/// The same on Windows, which locks bytes of files only. But it lets nobody open a directory for an access that whoever has it open
/// does not share: this one is to add files, which nobody needs to have in order to add them.
#[cfg(windows)]
pub(super) fn open_directory(path: &Path) -> io::Result<Locked> {
    use std::os::windows::fs::OpenOptionsExt;
    const FILE_ADD_FILE: u32 = 2;
    const SYNCHRONIZE: u32 = 0x0010_0000;
    const FILE_SHARE_READ: u32 = 1;
    const FILE_SHARE_DELETE: u32 = 4;
    // Without it directories cannot be opened.
    const FILE_FLAG_BACKUP_SEMANTICS: u32 = 0x0200_0000;
    const ERROR_SHARING_VIOLATION: i32 = 32;
    let mut options = File::options();
    options
        .access_mode(FILE_ADD_FILE | SYNCHRONIZE)
        .share_mode(FILE_SHARE_READ | FILE_SHARE_DELETE)
        .custom_flags(FILE_FLAG_BACKUP_SEMANTICS);
    match options.open(path) {
        Ok(directory) => Ok(Locked::Ours(directory)),
        Err(error) if error.raw_os_error() == Some(ERROR_SHARING_VIOLATION) => Ok(Locked::Taken),
        Err(error) => Err(error),
    }
}

/// Locks it; `false` if somebody else has locked it.
#[cfg(unix)]
pub(super) fn try_lock(file: &File) -> io::Result<bool> {
    use rustix::fs::{FlockOperation, flock};
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Locks it as soon as nobody else has locked it.
#[cfg(unix)]
pub(super) fn lock(file: &File) -> io::Result<()> {
    Ok(rustix::fs::flock(file, rustix::fs::FlockOperation::LockExclusive)?)
}

#[cfg(unix)]
pub(super) fn unlock(file: &File) -> io::Result<()> {
    Ok(rustix::fs::flock(file, rustix::fs::FlockOperation::Unlock)?)
}

#[cfg(windows)]
pub(super) fn try_lock(file: &File) -> io::Result<bool> {
    match fs4::FileExt::try_lock(file) {
        Ok(()) => Ok(true),
        Err(fs4::TryLockError::WouldBlock) => Ok(false),
        Err(fs4::TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(windows)]
pub(super) fn lock(file: &File) -> io::Result<()> {
    fs4::FileExt::lock(file)
}

#[cfg(windows)]
pub(super) fn unlock(file: &File) -> io::Result<()> {
    fs4::FileExt::unlock(file)
}

#[cfg(not(any(unix, windows)))]
pub(super) fn try_lock(_: &File) -> io::Result<bool> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(any(unix, windows)))]
pub(super) fn lock(_: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(any(unix, windows)))]
pub(super) fn unlock(_: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
