//! Files of the Hugging Face cache: links to blobs, which have digests of their content for names.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, io, thread};

use anyhow::{Context, Error, Result};
use weighbridge::Checkpoint;

use super::finding::{Findings, Severity};
use crate::interrupt;
use crate::term::{Bar, Term};
use crate::verb::hash;

/// A file, and the blob that it leads to.
struct Linked {
    path: PathBuf,
    blob: PathBuf,
    named: Named,
}

/// What a blob is named by.
#[derive(Clone, Copy)]
enum Named {
    /// Files of Git LFS.
    Sha256,
    /// All others, as Git names them.
    GitSha1,
}

impl Named {
    fn of(name: &str) -> Option<Self> {
        let is_hex = name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        match name.len() {
            64 if is_hex => Some(Self::Sha256),
            40 if is_hex => Some(Self::GitSha1),
            _ => None,
        }
    }

    fn digest(self, blob: &Path, bar: &Bar) -> Result<String> {
        Ok(match self {
            Self::Sha256 => hash::of_file(blob, bar)?.to_string(),
            Self::GitSha1 => hash::git_blob(blob, bar)?,
        })
    }

    fn word(self) -> &'static str {
        match self {
            Self::Sha256 => "SHA-256",
            Self::GitSha1 => "Git SHA-1",
        }
    }
}

/// Compares all files of a snapshot with the names of their blobs, those included that are no weights; of a
/// file that is no link into the cache nothing is known.
pub(super) fn check(
    path: &Path,
    findings: &mut Findings,
    failed: &mut Vec<Error>,
    term: &Term,
) -> Result<()> {
    // Why there are no files is among the findings.
    let Ok(files) = Checkpoint::options().files(path) else { return Ok(()) };
    let is_one = path.is_file() && files.index.is_none();
    let paths = if is_one { files.shards } else { below(&files.directory)? };
    let (linked, missing): (Vec<_>, Vec<_>) =
        paths.iter().filter_map(|path| linked(path)).partition(|linked| linked.blob.exists());
    for Linked { path, blob, .. } in missing {
        let name = blob.file_name().unwrap_or_default().to_string_lossy();
        let message = format!("it is a link to the blob {name}, which is missing");
        findings.add("blob", Severity::Error, Some(&path), None, message);
    }
    let sizes = linked.iter().map(|linked| fs::metadata(&linked.blob).map_or(0, |blob| blob.len()));
    let bar = term.bar("hashing", sizes.sum());
    for (Linked { path, blob, named }, digest) in linked.iter().zip(digests(&linked, &bar)) {
        interrupt::check()?;
        let expected = blob.file_name().unwrap_or_default().to_string_lossy();
        match digest {
            Ok(digest) if digest == expected => {}
            Ok(digest) => {
                let message = format!("its {} is {digest}, but its blob is named {expected}", named.word());
                findings.add("blob", Severity::Error, Some(path), None, message);
            }
            Err(error) => failed.push(error.context(path.display().to_string())),
        }
    }
    Ok(())
}

/// The digests of the blobs, several at a time.
fn digests(linked: &[Linked], bar: &Bar) -> Vec<Result<String>> {
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(linked.len());
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some((place, linked)) = {
            let place = next.fetch_add(1, Ordering::Relaxed);
            linked.get(place).map(|linked| (place, linked))
        } {
            let digest = linked.named.digest(&linked.blob, bar);
            if let Ok(mut done) = done.lock() {
                done.push((place, digest));
            }
        }
    };
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, digest)| digest).collect()
}

/// All files below a directory; links to directories are not followed.
fn below(directory: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = || format!("{}: it cannot be read", directory.display());
    let entries = fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut paths = Vec::new();
    for entry in entries.with_context(unreadable)? {
        match entry.file_type().with_context(unreadable)?.is_dir() {
            true => paths.extend(below(&entry.path())?),
            false => paths.push(entry.path()),
        }
    }
    paths.sort();
    Ok(paths)
}

/// Where a link leads, if that is a blob.
fn linked(path: &Path) -> Option<Linked> {
    /// As many as Linux follows.
    const MOST: usize = 40;
    let mut blob = path.to_owned();
    for _ in 0..MOST {
        let Ok(target) = fs::read_link(&blob) else { break };
        blob = blob.parent()?.join(target);
    }
    let is_blob = blob != path && blob.parent()?.file_name()? == "blobs";
    let named = Named::of(blob.file_name()?.to_str()?).filter(|_| is_blob)?;
    Some(Linked { path: path.to_owned(), blob, named })
}
