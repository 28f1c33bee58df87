//! Whether the files of a cache are what their names say.

use std::fs::{self, File};
use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::digest::Hasher;
use super::list::{RepoInfo, names_in};
use super::{Cache, Digest, Repo, partial};
use crate::error::{Error, ErrorKind, Result};

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Fault {
    /// Of which file.
    pub path: PathBuf,
    /// What is wrong with it, and what to do.
    pub what: String,
}

/// A file to read, and what it has to be.
enum Job {
    Blob { path: PathBuf, digest: Digest, size: u64 },
    Partial { path: PathBuf, size: u64 },
}

impl Job {
    fn size(&self) -> u64 {
        match self {
            Self::Blob { size, .. } | Self::Partial { size, .. } => *size,
        }
    }
}

impl Cache {
    /// Reads every blob, and what is there of files that are not complete, of one repository or all, on all cores.
    /// Nothing is changed. `progress` gets the bytes that were read, of how many.
    ///
    /// Blobs of `huggingface_hub` whose names are no checksums are left out.
    ///
    /// # Errors
    ///
    /// The cache cannot be listed; [`ErrorKind::Cancelled`]: `progress` said so.
    pub fn verify(
        &self,
        only: Option<&Repo>,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Vec<Fault>> {
        let repos = match only {
            Some(repo) => vec![RepoInfo::of(repo.clone())],
            None => self.repos()?,
        };
        let mut faults: Vec<_> = repos.iter().flat_map(links).collect();
        let jobs: Vec<_> = repos.iter().flat_map(jobs).collect();
        faults.extend(run(&jobs, progress)?);
        faults.sort();
        Ok(faults)
    }
}

/// Links that lead nowhere, or to another file than the list of the commit's files says.
fn links(info: &RepoInfo) -> Vec<Fault> {
    let mut faults = Vec::new();
    for revision in &info.revisions {
        let tree = info.repo.tree(&revision.commit).unwrap_or_default();
        for file in &revision.files {
            let expected = tree.files.get(&file.path);
            let digest = expected.and_then(|entry| Some(entry.digest()?.to_string()));
            let other = file.blob.as_ref().zip(digest.as_ref()).is_some_and(|(blob, digest)| blob != digest);
            let what = match (file.size, expected) {
                (None, _) => "its blob is missing: fetch it again".to_owned(),
                (Some(_), _) if other => "it is another file than the commit has: fetch it again".to_owned(),
                (Some(size), Some(entry)) if size != entry.lfs.as_ref().map_or(entry.size, |lfs| lfs.1) => {
                    format!("it has {size} bytes, and others in the commit: fetch it again")
                }
                _ => continue,
            };
            faults.push(Fault { path: info.repo.snapshot(&revision.commit).join(&file.path), what });
        }
    }
    faults
}

fn jobs(info: &RepoInfo) -> Vec<Job> {
    let blobs = info.repo.path().join("blobs");
    let size = |path: &Path| fs::metadata(path).map_or(0, |data| data.len());
    let mut jobs = Vec::new();
    for name in names_in(&blobs) {
        if let Ok(digest) = Digest::parse(&name) {
            let path = blobs.join(name);
            jobs.push(Job::Blob { size: size(&path), path, digest });
        }
    }
    let ours = info.partials.iter().filter(|partial| partial.path.starts_with(info.repo.own()));
    jobs.extend(ours.map(|partial| Job::Partial { path: partial.path.clone(), size: partial.size }));
    // Where there are no links, the snapshot's files are the blobs.
    for revision in &info.revisions {
        let tree = info.repo.tree(&revision.commit).unwrap_or_default();
        for file in revision.files.iter().filter(|file| file.blob.is_none()) {
            if let Some(digest) = tree.files.get(&file.path).and_then(super::TreeEntry::digest) {
                let path = info.repo.snapshot(&revision.commit).join(&file.path);
                jobs.push(Job::Blob { path, digest, size: file.size.unwrap_or_default() });
            }
        }
    }
    jobs
}

fn run(jobs: &[Job], progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>) -> Result<Vec<Fault>> {
    let total = jobs.iter().map(Job::size).sum();
    let (next, done, stop) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let faults = Mutex::new(Vec::new());
    let threads = thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
    thread::scope(|scope| {
        let work = || {
            while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Some(fault) = check(job, &done, &stop) {
                    faults.lock().unwrap_or_else(PoisonError::into_inner).push(fault);
                }
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        loop {
            let over = threads.iter().all(thread::ScopedJoinHandle::is_finished);
            if progress(done.load(Ordering::Relaxed).min(total), total).is_break() {
                stop.store(true, Ordering::Relaxed);
            }
            if over {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
    });
    if stop.into_inner() {
        return Err(Error::new(ErrorKind::Cancelled, "the check was cancelled"));
    }
    Ok(faults.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn check(job: &Job, done: &AtomicU64, stop: &AtomicBool) -> Option<Fault> {
    let (path, what) = match job {
        Job::Blob { path, digest, size } => (path, blob(path, digest, *size, done, stop).err()?),
        Job::Partial { path, size } => {
            let (bad, all) = partial::check_records(path);
            done.fetch_add(*size, Ordering::Relaxed);
            let what = format!("{bad} of its {all} records do not fit: these parts will be fetched again");
            (path, (bad > 0).then_some(what)?)
        }
    };
    Some(Fault { path: path.clone(), what })
}

fn blob(
    path: &Path,
    digest: &Digest,
    size: u64,
    done: &AtomicU64,
    stop: &AtomicBool,
) -> std::result::Result<(), String> {
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "it is a link to a file that is missing: remove it".to_owned(),
        _ => format!("it cannot be read: {error}"),
    };
    let mut file = File::open(path).map_err(unreadable)?;
    let mut hasher = Hasher::of(digest, size);
    let mut buf = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buf).map_err(unreadable)?;
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        if count == 0 {
            break;
        }
        hasher.update(&buf[..count]);
        done.fetch_add(count as u64, Ordering::Relaxed);
    }
    let good = hasher.finish() == *digest;
    if good {
        Ok(())
    } else {
        Err("its bytes are not those that it is named by: remove it, and fetch it again".to_owned())
    }
}
