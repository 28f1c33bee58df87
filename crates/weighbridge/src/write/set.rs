//! A set of files that replaces another as a whole.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::OutputFile;
use super::output::{lock_directory, staging, sweep, sync_directory};
use crate::error::{Error, ErrorKind, Result};
use crate::file_names;
use crate::journal::{Journal, STAGING, TEMPORARY};

/// Takes the files of a new checkpoint and puts them in the place of the old one.
#[derive(Debug)]
pub(super) struct SetWriter {
    directory: PathBuf,
    stem: String,
    /// Where the new files are until the switch; none if they are written in their places.
    staging: Option<(TempDir, File)>,
    /// Dropped behind what is in it.
    _made: Option<Made>,
    files: Vec<String>,
    /// Keeps others from replacing it at the same time.
    _lock: File,
}

impl SetWriter {
    pub(super) fn begin(directory: &Path, stem: &str, unprotected: bool) -> Result<Self> {
        let make = || {
            let made = !directory.exists();
            fs::create_dir_all(directory)?;
            let directory = directory.canonicalize()?;
            let made = made.then(|| Made(directory.clone()));
            if let (Some(_), Some(parent)) = (&made, directory.parent()) {
                sync_directory(parent)?;
            }
            Ok((directory, made))
        };
        let (directory, made): (PathBuf, _) = make().map_err(cannot)?;
        let lock = exclusively(&directory)?;
        complete(&directory, stem)?;
        let staging = match unprotected {
            true => None,
            false => {
                let name = file_names::single(stem);
                let name = OsStr::new(&name);
                sweep(&directory, name, TEMPORARY);
                sweep(&directory, name, STAGING);
                Some(staging(&directory, name).map_err(cannot)?)
            }
        };
        let (stem, files) = (stem.to_owned(), Vec::new());
        Ok(Self { directory, stem, staging, _made: made, files, _lock: lock })
    }

    /// A file of the new set; it is part of it when it was committed.
    pub(super) fn create(&mut self, file: &str) -> Result<OutputFile> {
        let place = self.directory.join(file);
        self.files.push(file.to_owned());
        match &self.staging {
            Some((staging, _)) => OutputFile::staged(&staging.path().join(file), &place),
            None => {
                // A tensor that is still to be written may come from the old file: it keeps its bytes.
                unless_gone(fs::remove_file(&place)).map_err(|error| cannot(error).in_file(&place))?;
                OutputFile::unprotected(place)
            }
        }
    }

    /// Makes the new set the checkpoint.
    pub(super) fn commit(mut self) -> Result<()> {
        let remove = self.superseded().map_err(cannot)?;
        let Some((staging, _handle)) = self.staging.take() else {
            let removed = remove.iter().try_for_each(|file| fs::remove_file(self.directory.join(file)));
            return removed.and_then(|()| sync_directory(&self.directory)).map_err(cannot);
        };
        sync_directory(staging.path()).and_then(|()| sync_directory(&self.directory)).map_err(cannot)?;
        let name = staging.path().file_name().and_then(OsStr::to_str);
        let Some(name) = name.map(str::to_owned) else {
            return Err(Error::new(ErrorKind::Internal, "the name of a temporary directory is not Unicode"));
        };
        let Self { stem, files, directory, .. } = &mut self;
        let journal =
            Journal { stem: std::mem::take(stem), staging: name, files: std::mem::take(files), remove };
        let path = directory.join(Journal::file_name(&journal.stem));
        let written =
            OutputFile::atomic(&path).and_then(|file| file.write_and_commit(journal.to_json().as_bytes()));
        if let Err(error) = written {
            // It may have got into its place and only then failed. Where it cannot be taken back it stands, and
            // so must what it speaks of.
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => drop(staging.keep()),
                _ => {}
            }
            return Err(error);
        }
        // From here on the new set is the checkpoint.
        let _ = staging.keep();
        roll_forward(directory, &journal)
    }

    /// Files of the old set that the new one does not replace.
    fn superseded(&self) -> io::Result<Vec<String>> {
        let mut superseded = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let Ok(file) = entry.file_name().into_string() else { continue };
            if entry.file_type()?.is_dir() {
                continue;
            }
            if file_names::stem(&file).as_deref() == Some(&*self.stem) && !self.files.contains(&file) {
                superseded.push(file);
            }
        }
        superseded.sort();
        Ok(superseded)
    }
}

/// A directory that was made for a set, and goes again if nothing was put there.
#[derive(Debug)]
struct Made(PathBuf);

impl Drop for Made {
    fn drop(&mut self) {
        // One that holds something stays.
        let _ = fs::remove_dir(&self.0);
    }
}

fn cannot(error: io::Error) -> Error {
    Error::io("it cannot be written", error)
}

fn exclusively(directory: &Path) -> Result<File> {
    let busy = || Error::new(ErrorKind::Busy, "another process is saving a checkpoint there");
    lock_directory(directory).map_err(cannot)?.ok_or_else(busy)
}

/// Completes what an interrupted [`Save::directory`](super::Save::directory) left in a directory, for programs that
/// do not know the journal; returns whether there was something to complete.
///
/// [`Checkpoint::open`](crate::Checkpoint::open) and the next save need no recovery.
///
/// # Errors
///
/// Fails when files cannot be renamed or removed, with [`ErrorKind::Busy`] when a save is under way, and with
/// [`ErrorKind::Journal`] when a journal is there that cannot be followed.
pub fn recover(directory: impl AsRef<Path>) -> Result<bool> {
    let directory = directory.as_ref();
    let complete_all = || {
        let _lock = exclusively(directory)?;
        let mut any = false;
        for entry in fs::read_dir(directory).map_err(cannot)? {
            let file = entry.map_err(cannot)?.file_name();
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
        let _lock = exclusively(directory)?;
        complete(directory, &stem)?;
    }
    Ok(())
}

/// Completes the switch that a journal of this checkpoint describes, if there is one.
fn complete(directory: &Path, stem: &str) -> Result<bool> {
    let Some(journal) = Journal::read(directory, stem)? else {
        return Ok(false);
    };
    roll_forward(directory, &journal)?;
    Ok(true)
}

/// Every step may have been done before.
fn roll_forward(directory: &Path, journal: &Journal) -> Result<()> {
    for file in &journal.files {
        let (staged, place) = journal.places(directory, file);
        match fs::rename(&staged, &place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && place.exists() => {}
            Err(error) => return Err(cannot(error).in_file(&place)),
            Ok(()) => {}
        }
    }
    for file in &journal.remove {
        let place = directory.join(file);
        unless_gone(fs::remove_file(&place)).map_err(|error| cannot(error).in_file(&place))?;
    }
    let finish = || {
        sync_directory(directory)?;
        unless_gone(fs::remove_file(directory.join(Journal::file_name(&journal.stem))))?;
        // The journal must not come back without what it speaks of.
        sync_directory(directory)?;
        unless_gone(fs::remove_dir_all(directory.join(&journal.staging)))
    };
    finish().map_err(cannot)
}

fn unless_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
