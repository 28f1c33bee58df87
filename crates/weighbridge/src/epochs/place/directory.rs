//! A directory, which is locked while somebody saves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind as Io, Read as _};
use std::path::{Path, PathBuf};

use super::{Hold, Place, Read, check_length};
use crate::checkpoint::Checkpoint;
use crate::epochs::manifest::{Committed, MANIFEST, parse};
use crate::epochs::milestone::Milestone;
use crate::epochs::parts::Parts;
use crate::error::{Error, Result};
use crate::write::{Directory, OutputFile};

pub(in crate::epochs) struct InDirectory<'d>(pub(in crate::epochs) &'d Path);

impl Place for InDirectory<'_> {
    fn root(&self) -> PathBuf {
        self.0.to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn manifest(&self) -> Result<Read<'_>> {
        let file = open_manifest(self.0)?;
        let text = file.as_ref().map(|file| read(file, self.0)).transpose()?;
        let seen = file.zip(text.as_deref()).map(|(file, text)| Seen::new(file, text)).transpose();
        let seen = seen.map_err(|error| unreadable(error, &self.path(MANIFEST)))?;
        Ok(Read { text, is_current: Box::new(move || is_current(self.0, seen.as_ref())) })
    }

    fn length(&self, name: &str) -> Result<u64> {
        length(&self.path(name))
    }

    fn open(&self, name: &str, committed: u64) -> Result<Checkpoint> {
        let path = self.path(name);
        check_length(length(&path)?, committed, &path)?;
        Checkpoint::open(&path)
    }

    fn hold(self: Box<Self>, create: bool) -> Result<Box<dyn Hold>> {
        let directory = if create { Directory::create(self.0)? } else { Directory::lock(self.0)? };
        Ok(Box::new(directory))
    }
}

fn unreadable(error: std::io::Error, file: &Path) -> Error {
    Error::io("it cannot be read", error).in_file(file)
}

fn length(file: &Path) -> Result<u64> {
    Ok(fs::metadata(file).map_err(|error| unreadable(error, file))?.len())
}

fn open_manifest(directory: &Path) -> Result<Option<File>> {
    let path = directory.join(MANIFEST);
    match File::open(&path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == Io::NotFound => Ok(None),
        Err(error) => Err(unreadable(error, &path)),
    }
}

fn read(mut manifest: &File, directory: &Path) -> Result<String> {
    let mut text = String::new();
    manifest.read_to_string(&mut text).map_err(|error| unreadable(error, &directory.join(MANIFEST)))?;
    Ok(text)
}

fn is_current(directory: &Path, seen: Option<&Seen>) -> Result<bool> {
    let path = directory.join(MANIFEST);
    let is_current = match seen {
        Some(seen) => seen.is_at(&path),
        None => fs::metadata(&path).map(|_| false),
    };
    match is_current {
        Err(error) if error.kind() == Io::NotFound => Ok(seen.is_none()),
        other => other.map_err(|error| unreadable(error, &path)),
    }
}

/// What tells a manifest from those that take its place: the file, which stays open, so that no other one has its number.
#[cfg(unix)]
struct Seen(File);

#[cfg(unix)]
impl Seen {
    #[allow(clippy::unnecessary_wraps)] // elsewhere it may fail
    fn new(file: File, _: &str) -> io::Result<Self> {
        Ok(Self(file))
    }

    fn is_at(&self, path: &Path) -> io::Result<bool> {
        use std::os::unix::fs::MetadataExt;
        let (seen, now) = (self.0.metadata()?, fs::metadata(path)?);
        Ok((seen.dev(), seen.ino()) == (now.dev(), now.ino()))
    }
}

/// What tells a manifest from those that take its place: when it was written, and its text, as clocks may be coarse. The file does
/// not stay open: there are Windows file systems on which it could not be replaced.
#[cfg(not(unix))]
struct Seen {
    modified: Option<std::time::SystemTime>,
    text: String,
}

#[cfg(not(unix))]
impl Seen {
    fn new(file: File, text: &str) -> io::Result<Self> {
        Ok(Self { modified: file.metadata()?.modified().ok(), text: text.to_owned() })
    }

    fn is_at(&self, path: &Path) -> io::Result<bool> {
        let mut file = File::open(path)?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok(text == self.text && file.metadata()?.modified().ok() == self.modified)
    }
}

impl Hold for Directory {
    fn committed(&self) -> Result<Vec<Committed>> {
        let text = open_manifest(self.path())?.map(|file| read(&file, self.path())).transpose()?;
        parse(text.as_deref(), &self.path().join(MANIFEST))
    }

    fn begin(&self, milestone: Milestone, parts: &Parts) -> Result<String> {
        // One that is saved again leaves what was committed alone.
        let committed = self.committed()?;
        let mut name = milestone.directory();
        let mut number = 1;
        while committed.iter().any(|other| other.directory == name) || !self.is_free(&name, parts) {
            number += 1;
            name = format!("{}-{number}", milestone.directory());
        }
        let path = self.path().join(&name);
        fs::create_dir_all(&path).map_err(|error| Error::io("it cannot be created", error).in_file(&path))?;
        Ok(name)
    }

    fn lengths(&self, folder: &str, files: BTreeSet<String>) -> Result<BTreeMap<String, u64>> {
        let folder = self.path().join(folder);
        let lengths = files.into_iter().map(|file| {
            let length = length(&folder.join(&file))?;
            Ok((file, length))
        });
        lengths.collect()
    }

    fn commit(&mut self, manifest: &str) -> Result<()> {
        // The name of the parts' directory is on the disk before the manifest that needs it.
        self.sync()?;
        self.write(MANIFEST, manifest.as_bytes())
    }

    /// All stays if the manifest cannot be read: a commit may fail when the new one is in its place already.
    fn give_up(&self, folder: &str, parts: &Parts) {
        let is_named = |committed: &Committed| committed.directory == folder;
        if self.committed().is_ok_and(|committed| !committed.iter().any(is_named)) {
            remove(&self.path().join(folder), parts, None);
        }
    }

    fn clean(&self, is_used: &dyn Fn(&str) -> bool, before: &[Committed], parts: &Parts) -> Result<()> {
        let path = self.path();
        for entry in fs::read_dir(path).map_err(|error| unreadable(error, path))?.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            if Milestone::is_directory(&name) && !is_used(&name) {
                remove(&entry.path(), parts, before.iter().find(|committed| committed.directory == name));
            }
        }
        Ok(())
    }
}

impl Directory {
    /// Whether a checkpoint's directory has none of the files that are to be written, once what a process that died may have left
    /// is removed. On Windows a file that somebody reads may keep its name until it is closed.
    fn is_free(&self, name: &str, parts: &Parts) -> bool {
        let path = self.path().join(name);
        remove(&path, parts, None);
        let files = parts.files_of(None);
        let is_file =
            |entry: fs::DirEntry| entry.file_name().to_str().is_some_and(|name| files.contains(name));
        !fs::read_dir(&path).into_iter().flatten().flatten().any(is_file)
    }
}

/// Removes what is written into the directory of a checkpoint, and the directory if nothing else is in it.
fn remove(directory: &Path, parts: &Parts, committed: Option<&Committed>) {
    for file in parts.files_of(committed) {
        let file = directory.join(file);
        OutputFile::sweep(&file);
        let _ = fs::remove_file(file);
    }
    if parts.scratch.is_some() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if parts.is_scratch(&entry.file_name().to_string_lossy(), committed) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
    let _ = fs::remove_dir(directory);
}
