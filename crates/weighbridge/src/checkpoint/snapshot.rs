//! Whether files were replaced while they were being opened.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;

use crate::file_names;
use crate::journal::Journal;

/// What can be seen of the files of checkpoints when others replace them, taken before and after opening.
pub(super) struct Snapshot(Vec<(OsString, Option<Identity>)>);

impl Snapshot {
    /// The files of the checkpoint that each path belongs to; those of all checkpoints in a directory.
    pub(super) fn of<P: AsRef<Path>>(paths: &[P]) -> Self {
        let mut watched: Vec<_> = paths.iter().map(|path| watched(path.as_ref())).collect();
        watched.sort_unstable();
        watched.dedup();
        Self(watched.into_iter().flat_map(|(directory, stem)| files(directory, stem.as_deref())).collect())
    }

    /// Whether the files are the same in both: those of one checkpoint, or all where no stem is named.
    pub(super) fn is_same(&self, after: &Self, stem: Option<&str>) -> bool {
        let counts = |(name, _): &&(OsString, _)| {
            stem.is_none_or(|stem| name.to_str().and_then(stem_of).is_some_and(|its| its == stem))
        };
        self.0.iter().filter(counts).eq(after.0.iter().filter(counts))
    }
}

/// The directory of the files to watch, and the stem of their checkpoint; `None` of a directory that was
/// named itself, where any of its checkpoints may be meant.
fn watched(path: &Path) -> (&Path, Option<String>) {
    match path.is_dir() {
        true => (path, None),
        false => {
            let stem = path.file_name().and_then(OsStr::to_str).and_then(file_names::stem);
            (file_names::directory_of(path), Some(stem.unwrap_or_default()))
        }
    }
}

fn files(directory: &Path, stem: Option<&str>) -> Vec<(OsString, Option<Identity>)> {
    let names = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let is_watched = |name: &OsString| {
        name.to_str().and_then(stem_of).is_some_and(|its| stem.is_none_or(|stem| stem == its))
    };
    let mut found: Vec<_> = names
        .filter(is_watched)
        .map(|name| {
            let identity = fs::metadata(directory.join(&name)).ok().map(|data| identity(&data));
            (name, identity)
        })
        .collect();
    found.sort();
    found
}

/// The stem of the checkpoint that a file, or a journal, belongs to.
fn stem_of(name: &str) -> Option<String> {
    Journal::stem_of(name).map(str::to_owned).or_else(|| file_names::stem(name))
}

#[cfg(unix)]
type Identity = [i128; 5];

/// Another file has another inode, or, where the inode's number is used again, another time of change.
#[cfg(unix)]
fn identity(data: &fs::Metadata) -> Identity {
    use std::os::unix::fs::MetadataExt;
    [data.dev().into(), data.ino().into(), data.size().into(), data.ctime().into(), data.ctime_nsec().into()]
}

#[cfg(not(unix))]
type Identity = (u64, Option<std::time::SystemTime>);

#[cfg(not(unix))]
fn identity(data: &fs::Metadata) -> Identity {
    (data.len(), data.modified().ok())
}
