//! Completing sets of files whose replacement was interrupted.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;

use super::directory::{Directory, cannot_write, rename, sync_directory};
use crate::error::{Error, Result};
use crate::file_names;
use crate::journal::Journal;

/// Completes what an interrupted [`Save::directory`](super::Save::directory) left in a directory, for
/// programs that do not know the journal; returns whether there was something to complete.
///
/// [`Checkpoint::open`](crate::Checkpoint::open) and the next save need no recovery.
///
/// # Errors
///
/// Fails when files cannot be renamed or removed, with [`Busy`](crate::ErrorKind::Busy) while somebody is
/// saving there, and with [`Journal`](crate::ErrorKind::Journal) when there is a journal that cannot be
/// followed.
pub fn recover(directory: impl AsRef<Path>) -> Result<bool> {
    let directory = directory.as_ref();
    let complete_all = || {
        let _lock = Directory::lock(directory)?;
        let mut any = false;
        for entry in fs::read_dir(directory).map_err(cannot_write)? {
            let file = entry.map_err(cannot_write)?.file_name();
            if let Some(stem) = file.to_str().and_then(Journal::stem_of) {
                any |= complete(directory, stem)?;
            }
        }
        Ok(any)
    };
    complete_all().map_err(|error: Error| error.in_file(directory))
}

/// Completes what was interrupted of the checkpoint that a file belongs to, if anything was.
pub(super) fn complete_pending(directory: &Path, file: &OsStr) -> Result<()> {
    let Some(stem) = file.to_str().and_then(file_names::stem) else { return Ok(()) };
    if Journal::read(directory, &stem)?.is_some() {
        let _lock = Directory::lock(directory)?;
        complete(directory, &stem)?;
    }
    Ok(())
}

/// Completes the switch that a journal of this checkpoint describes, if there is one. The directory is
/// locked.
pub(super) fn complete(directory: &Path, stem: &str) -> Result<bool> {
    let Some(journal) = Journal::read(directory, stem)? else {
        return Ok(false);
    };
    roll_forward(directory, &journal)?;
    Ok(true)
}

/// Does what a journal says. Every step may have been done before.
pub(super) fn roll_forward(directory: &Path, journal: &Journal) -> Result<()> {
    for file in &journal.files {
        let (staged, last) = journal.places(directory, file);
        match rename(&staged, &last) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && last.exists() => {}
            Err(error) => return Err(cannot_write(error).in_file(&last)),
            Ok(()) => {}
        }
    }
    for file in &journal.remove {
        let path = directory.join(file);
        unless_gone(fs::remove_file(&path)).map_err(|error| cannot_write(error).in_file(&path))?;
    }
    let finish = || {
        sync_directory(directory)?;
        unless_gone(fs::remove_file(directory.join(Journal::file_name(&journal.stem))))?;
        // The journal must not come back without the files that it names.
        sync_directory(directory)?;
        unless_gone(fs::remove_dir_all(directory.join(&journal.staging)))
    };
    finish().map_err(cannot_write)
}

pub(super) fn unless_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
