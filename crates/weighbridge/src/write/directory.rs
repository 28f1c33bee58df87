//! Directories that files are written to: locks, temporary files, syncs, and what killed writers left behind.
//!
//! Whatever is being written lies in a temporary file or a staging directory next to its destination, locked
//! for as long as its writer lives. So one that nobody has locked was left by a writer that died, and is
//! removed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::{NamedTempFile, TempDir};

use super::beside::SideFile;
use super::lock::{self, Locked};
use crate::error::{Error, ErrorKind, Result};
use crate::file_names;
use crate::journal::{REPLACED, STAGING, TEMPORARY, prefix};

/// So often a directory may be removed while it is created, before that is an error.
const ATTEMPTS: u32 = 1000;

/// A directory that is locked for writing: for programs that keep several files in step, as
/// [`Save::directory`](super::Save::directory) does, which takes the same lock.
///
/// The lock is advisory and belongs to this value: a second `Directory` of the same path is refused, in this
/// process or another, until the first is dropped or its process ends, however it ends. Readers need no lock.
/// Nobody is refused on file systems without locks.
///
/// ```
/// use weighbridge::{ErrorKind, write::Directory};
///
/// # fn main() -> weighbridge::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("run");
/// let directory = Directory::create(&path)?;
/// assert_eq!(Directory::lock(&path).unwrap_err().kind(), ErrorKind::Busy);
/// directory.write("state.json", b"{}")?; // atomic, and on the disk when it returns
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Dropped before the lock is released.
    _created: Option<Created>,
    _lock: Lock,
}

/// A locked directory.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // To close it is not enough: a child process that was just forked has it open, too, until it executes its
        // program, and would hold the lock for that long.
        let _ = lock::unlock(&self.0);
    }
}

impl Directory {
    /// Locks a directory that exists.
    ///
    /// # Errors
    ///
    /// Fails at once with [`ErrorKind::Busy`] when somebody else has locked it, and when it cannot be opened.
    pub fn lock(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let lock = || {
            let Some(handle) = lock::open_directory(path)?.handle() else { return Ok(None) };
            // Whoever created it may have removed it before we got the lock.
            match is_linked(&handle)? {
                true => Ok(Some((real(path)?, handle))),
                false => Err(io::ErrorKind::NotFound.into()),
            }
        };
        let locked = lock().map_err(|error| cannot_write(error).in_file(path))?;
        let (canonical, lock) = locked.ok_or_else(|| busy(path))?;
        Ok(Self { path: canonical, _created: None, _lock: Lock(lock) })
    }

    /// Locks a directory, which is created with its parents if it does not exist. A created directory is
    /// removed again if it is still empty when this value is dropped.
    ///
    /// # Errors
    ///
    /// As [`lock`](Self::lock), and when the directory cannot be created.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut attempts = 0;
        let mut create = || loop {
            attempts += 1;
            let exists = path.exists();
            let opened = fs::create_dir_all(path).and_then(|()| lock::open_directory(path));
            let locked = match opened {
                Err(error) if attempts < ATTEMPTS && is_removed(path, &error) => continue,
                opened => opened?,
            };
            let Some(handle) = locked.handle() else { return Ok(None) };
            // Whoever created it may have removed it before we got the lock.
            if !is_linked(&handle)? {
                continue;
            }
            let path = real(path)?;
            let created = (!exists).then(|| Created(path.clone()));
            if let (Some(_), Some(parent)) = (&created, path.parent()) {
                sync_directory(parent)?;
            }
            return Ok(Some(Self { path, _created: created, _lock: Lock(handle) }));
        };
        create().map_err(|error| cannot_write(error).in_file(path))?.ok_or_else(|| busy(path))
    }

    /// The absolute path, with links resolved.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a small file in the directory: synced, renamed over the file of that name, if there is one, and
    /// the directory synced. Readers see the old file or the new one, whenever the process or the machine
    /// stops. What killed writers of the same file left is removed.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Value`] unless `name` is a plain file name, and for the names of checkpoint
    /// files, which [`Save`](super::Save) writes; fails, too, when the file cannot be written. Unless it is
    /// the last sync that fails, the old file is unchanged then.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        SideFile::check(name).map_err(|error| error.in_file(&self.path))?;
        let write = || {
            let temporary = Temporary::beside(follow_links(&path)?)?;
            temporary.as_file().write_all(bytes)?;
            sync(temporary.as_file())?;
            temporary.rename()
        };
        write().map_err(|error| cannot_write(error).in_file(&path))
    }

    /// Waits until the names of the directory's files and subdirectories are on the disk. Windows cannot do
    /// that.
    ///
    /// # Errors
    ///
    /// Passes on what the file system reports.
    pub fn sync(&self) -> Result<()> {
        sync_directory(&self.path).map_err(|error| cannot_write(error).in_file(&self.path))
    }

    /// A new subdirectory for files that will replace others, the first of them `name`. What killed writers
    /// of `name` left is removed, so a journal must not name any of it.
    pub(super) fn staging(&self, name: &OsStr) -> io::Result<Staging> {
        sweep(&self.path, name, TEMPORARY);
        sweep(&self.path, name, STAGING);
        let prefix = prefix(name);
        loop {
            let mut builder = tempfile::Builder::new();
            builder.prefix(&prefix).suffix(STAGING);
            let directory = with_permissions(&mut builder, 0o777).tempdir_in(&self.path)?;
            // Another writer may be about to remove it.
            let Some(lock) = lock::open_directory(directory.path())?.handle() else { continue };
            if is_linked(&lock)? {
                return Ok(Staging { directory, lock });
            }
        }
    }
}

/// The absolute path of what is there, with links resolved; on some drives of Windows, as those in memory, that cannot be found out,
/// and they stay.
fn real(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(_) if cfg!(windows) => std::path::absolute(path),
        other => other,
    }
}

/// A directory that did not exist before; removed when dropped, unless something was put into it.
#[derive(Debug)]
struct Created(PathBuf);

impl Drop for Created {
    fn drop(&mut self) {
        // Fails if it is not empty.
        let _ = fs::remove_dir(&self.0);
    }
}

/// A subdirectory for the files of a new set; removed with them when dropped.
#[derive(Debug)]
pub(super) struct Staging {
    directory: TempDir,
    lock: File,
}

impl Staging {
    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Leaves the directory on the disk. It stays locked for as long as the file that is returned is open.
    pub(super) fn keep(self) -> File {
        let _ = self.directory.keep();
        self.lock
    }
}

/// A temporary file next to the file that it will replace; removed when dropped.
#[derive(Debug)]
pub(super) struct Temporary {
    file: NamedTempFile,
    target: PathBuf,
}

impl Temporary {
    /// A temporary file for `target`, which is not a link, with the permissions of the old file, or those
    /// that the umask leaves to a new one.
    pub(super) fn beside(target: PathBuf) -> io::Result<Self> {
        let (directory, name) = parts(&target)?;
        let old = replaced(&target)?;
        sweep(directory, name, TEMPORARY);
        let file = temporary(directory, name, old.as_ref())?;
        if let Some(old) = old {
            sweep(directory, name, REPLACED);
            take_after(file.as_file(), &old)?;
        }
        Ok(Self { file, target })
    }

    pub(super) fn as_file(&self) -> &File {
        self.file.as_file()
    }

    /// Renames the file over its target, and syncs the directory.
    pub(super) fn rename(self) -> io::Result<()> {
        // Its lock is kept until it has its name.
        let (_file, temporary) = self.file.keep().map_err(|error| error.error)?;
        if let Err(error) = rename(&temporary, &self.target) {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        sync_directory(parts(&self.target)?.0)
    }
}

/// Renames a file over another one, whoever has that one open: on Unix the file system sees to it, on Windows NTFS does.
///
/// Elsewhere on Windows nothing can take the name of an open file. Most have it open for a moment, as readers of small files,
/// indexers and virus scanners, so it is tried for two seconds. Who reads from the file that it writes never closes it in time; but
/// an open file can be renamed, if whoever opened it let others remove it, as Rust's programs do. So it is moved aside after a
/// second, and for a moment nothing has its name. Killed between the two renames, the process leaves both files, under other names.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    const PAUSE: Duration = Duration::from_millis(20);
    /// So many pauses are made.
    const MOST: u32 = 100;
    /// So many of them before the file is moved aside.
    const PATIENT: u32 = 50;
    let mut attempt = 0;
    loop {
        let denied = match fs::rename(from, to) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && cfg!(windows) => error,
            other => return other,
        };
        if attempt >= PATIENT && rename_aside(from, to).is_ok() {
            return Ok(());
        }
        if attempt >= MOST {
            return Err(denied);
        }
        attempt += 1;
        std::thread::sleep(PAUSE);
    }
}

/// Moves a file aside and gives its name to another one. The first is removed as soon as nobody has it open.
fn rename_aside(from: &Path, to: &Path) -> io::Result<()> {
    // Nothing but a file gives way to one.
    if !fs::symlink_metadata(to)?.is_file() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let (directory, name) = parts(to)?;
    let prefix = prefix(name);
    let mut builder = tempfile::Builder::new();
    let aside = builder.prefix(&prefix).suffix(REPLACED).make_in(directory, |aside| fs::rename(to, aside))?;
    let renamed = fs::rename(from, to);
    if renamed.is_err() {
        let aside = aside.into_temp_path().keep()?;
        fs::rename(aside, to)?;
    }
    renamed
}

pub(super) fn cannot_write(error: io::Error) -> Error {
    Error::io("it cannot be written", error)
}

fn busy(path: &Path) -> Error {
    let message = "another process is saving there; try again when it has finished";
    Error::new(ErrorKind::Busy, message).in_file(path)
}

/// Where a path leads, whether or not something is there.
pub(super) fn follow_links(path: &Path) -> io::Result<PathBuf> {
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
pub(super) fn parts(path: &Path) -> io::Result<(&Path, &OsStr)> {
    let none = || io::Error::new(io::ErrorKind::InvalidInput, "it is not the name of a file");
    let name = path.file_name().ok_or_else(none)?;
    Ok((file_names::directory_of(path), name))
}

/// The metadata of the file that is to be replaced; `None` if there is none.
pub(super) fn replaced(path: &Path) -> io::Result<Option<fs::Metadata>> {
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

/// Gives a new file the permissions of an old one, and its owner, if that is allowed.
pub(super) fn take_after(file: &File, old: &fs::Metadata) -> io::Result<()> {
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

/// A temporary file with the permissions that the umask leaves, or with no more than those of the old file.
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
        if lock_temporary(temporary.as_file())? {
            return Ok(temporary);
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

/// Whether a directory could not be made or opened because, it seems, its last owner removed it meanwhile.
fn is_removed(path: &Path, error: &io::Error) -> bool {
    match error.kind() {
        io::ErrorKind::NotFound => true,
        // Nothing but a directory may be there by now.
        io::ErrorKind::AlreadyExists => fs::symlink_metadata(path).map_or(true, |there| there.is_dir()),
        _ => false,
    }
}

/// Marks a temporary as in use; `false` if another writer removed it before it was locked.
fn lock_temporary(temporary: &File) -> io::Result<bool> {
    // Without locks nobody else can lock it either, and only what could be locked is removed.
    if lock::lock(temporary).is_err() {
        return Ok(true);
    }
    is_linked(temporary)
}

/// Whether an open file or directory still has a name.
fn is_linked(file: &File) -> io::Result<bool> {
    #[cfg(unix)]
    let linked = std::os::unix::fs::MetadataExt::nlink(&file.metadata()?) > 0;
    #[cfg(not(unix))]
    let linked = {
        let _ = file;
        true
    };
    Ok(linked)
}

/// Removes what killed writers of a file left next to it: temporary files, or stagings, which no journal may
/// name.
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
        // A living writer holds the lock. What cannot be locked is left.
        if kind.is_dir() {
            if let Ok(Locked::Ours(_lock)) = lock::open_directory(&path) {
                let _ = fs::remove_dir_all(&path);
            }
        } else if let Ok(file) = File::open(&path) {
            if let Ok(true) = lock::try_lock(&file) {
                let _ = fs::remove_file(&path);
            }
        }
    }
}

/// Waits until the bytes are on the disk; pipes and devices have none.
pub(super) fn sync(file: &File) -> io::Result<()> {
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
    match File::open(directory)?.sync_all() {
        // Some network file systems refuse to sync directories.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// Of two files with one name both can be read: the new one by its name, the old one by who has it open. The old one does
    /// not stay.
    #[test]
    fn a_file_is_replaced_while_it_is_open() {
        let parent = tempfile::tempdir().unwrap();
        let (old, new) = (parent.path().join("m.safetensors"), parent.path().join("new"));
        fs::write(&old, b"old").unwrap();
        fs::write(&new, b"new").unwrap();
        let mut reader = File::open(&old).unwrap();
        rename(&new, &old).unwrap();
        assert_eq!(fs::read(&old).unwrap(), b"new");
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(read, "old");
        drop(reader);
        let left: Vec<_> =
            fs::read_dir(parent.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["m.safetensors"]);
    }

    #[test]
    fn a_directory_gives_way_to_no_file() {
        let parent = tempfile::tempdir().unwrap();
        let (directory, new) = (parent.path().join("m"), parent.path().join("new"));
        fs::create_dir(&directory).unwrap();
        fs::write(&new, b"new").unwrap();
        rename(&new, &directory).unwrap_err();
        assert!(directory.is_dir() && new.is_file());
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 2);
    }

    /// What a file was moved aside for may not have been put in its place.
    #[test]
    fn what_was_moved_aside_goes_once_there_is_a_new_file() {
        let parent = tempfile::tempdir().unwrap();
        let (target, aside) = (parent.path().join("m"), parent.path().join(".m.aB3dE6.replaced"));
        fs::write(&aside, b"old").unwrap();
        drop(Temporary::beside(target.clone()).unwrap());
        assert!(aside.is_file());
        fs::write(&target, b"new").unwrap();
        drop(Temporary::beside(target).unwrap());
        assert!(!aside.exists());
    }

    /// Files in the place of directories, and paths at which none can be made, are errors and no endless loop.
    #[cfg(unix)]
    #[test]
    fn what_cannot_be_created_is_an_error() {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join("file");
        fs::write(&file, b"").unwrap();
        assert_eq!(Directory::create(&file).unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(Directory::create("").unwrap_err().kind(), ErrorKind::NotFound);
        let dangling = parent.path().join("dangling");
        std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
        assert_eq!(Directory::create(&dangling).unwrap_err().kind(), ErrorKind::Io);
    }

    #[cfg(unix)]
    #[test]
    fn what_was_removed_before_it_was_locked_is_recognised() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("run");
        fs::create_dir(&path).unwrap();
        let handle = lock::open_directory(&path).unwrap().handle().unwrap();
        assert!(is_linked(&handle).unwrap());
        fs::remove_dir(&path).unwrap();
        assert!(!is_linked(&handle).unwrap());

        let file = tempfile::NamedTempFile::new_in(parent.path()).unwrap();
        let handle = file.reopen().unwrap();
        assert!(lock_temporary(&handle).unwrap());
        drop(file);
        assert!(!lock_temporary(&handle).unwrap());
    }
}
