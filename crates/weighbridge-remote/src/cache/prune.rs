//! Takes out of a cache what is not needed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::files::{self, Locked, TEMPORARY, on_disk};
use super::list::{self, RepoInfo, RevisionInfo, names_in};
use super::partial::journal_of;
use super::{Cache, Digest, Repo};
use crate::error::{Error, ErrorKind, Result};

/// What to take out; by default nothing.
#[derive(Clone, Debug, Default)]
pub struct Prune {
    /// This repository only.
    pub repo: Option<Repo>,
    /// All of it, of [`repo`](Self::repo): that must be named.
    pub whole: bool,
    /// These revisions of it: refs, commits, or the first digits of commits, at least 7.
    pub revisions: Vec<String>,
    /// Commits that no branch or tag was any more when it was last asked for.
    pub unreferenced: bool,
    /// Files that are not complete and were not written for so long.
    pub partials_older: Option<Duration>,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What was taken out.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Pruned {
    /// Bytes on the disk that are free now.
    pub bytes: u64,
    /// What was removed, and the bytes of each.
    pub removed: Vec<(PathBuf, u64)>,
    /// What is in use, and stayed.
    pub busy: Vec<PathBuf>,
}

/// Temporary files are written in no time: those that are as old as this were left by a process that died.
const LEFT: Duration = Duration::from_secs(24 * 60 * 60);

impl Cache {
    /// Takes out what is not needed. What other processes have in use stays: files that are being downloaded, and
    /// commits that are [held](Repo::hold).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`]: a revision is not in the cache, and nothing was done. Else what the file system says.
    pub fn prune(&self, what: &Prune) -> Result<Pruned> {
        let repos = match &what.repo {
            Some(repo) => vec![RepoInfo::of(repo.clone())],
            None if what.whole || !what.revisions.is_empty() => {
                return Err(Error::new(ErrorKind::NotFound, "say of which repository to take revisions out"));
            }
            None => self.repos()?,
        };
        let mut pruned = Pruned::default();
        for info in &repos {
            Task { cache: self, what, info, pruned: &mut pruned }.run()?;
        }
        // Where repositories go that are removed as a whole.
        if let Some(info) = repos.first().filter(|_| what.partials_older.is_some()) {
            Task { cache: self, what, info, pruned: &mut pruned }.leavings(&self.root().join(".locks"))?;
        }
        Ok(pruned)
    }
}

struct Task<'a> {
    cache: &'a Cache,
    what: &'a Prune,
    info: &'a RepoInfo,
    pruned: &'a mut Pruned,
}

fn gone(path: &Path, result: io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(files::trouble(path, "remove", error)),
        _ => Ok(()),
    }
}

fn is_old(modified: io::Result<SystemTime>, age: Duration) -> bool {
    // A time in the future is that of a clock which was set back.
    modified.ok().and_then(|time| SystemTime::now().duration_since(time).ok()).is_some_and(|old| old >= age)
}

impl Task<'_> {
    fn repo(&self) -> &Repo {
        &self.info.repo
    }

    fn run(&mut self) -> Result<()> {
        let mut left: BTreeSet<String> = BTreeSet::new();
        let doomed = self.doomed()?;
        let mut removed = 0;
        for revision in &self.info.revisions {
            if doomed.contains(&revision.commit) && self.revision(revision)? {
                removed += 1;
            } else {
                left.extend(revision.files.iter().filter_map(|file| file.blob.clone()));
            }
        }
        if self.what.whole || self.what.unreferenced || removed > 0 {
            self.blobs(&left)?;
        }
        if let Some(age) = self.what.partials_older.or(self.what.whole.then_some(Duration::ZERO)) {
            self.partials(age)?;
        }
        if self.what.whole && self.pruned.busy.is_empty() && !self.what.dry_run {
            self.rest()?;
        }
        Ok(())
    }

    fn doomed(&self) -> Result<BTreeSet<String>> {
        let revisions = &self.info.revisions;
        let mut doomed = BTreeSet::new();
        for name in &self.what.revisions {
            let commit = self.repo().commit(name);
            let digits = name.len() >= 7;
            let named = |revision: &&RevisionInfo| {
                commit.as_ref() == Some(&revision.commit)
                    || digits && revision.commit.starts_with(name.as_str())
            };
            let found: Vec<_> = revisions.iter().filter(named).collect();
            let [found] = &*found else {
                let known: Vec<_> =
                    revisions.iter().flat_map(|r| r.refs.iter().chain([&r.commit])).cloned().collect();
                let name = name.escape_debug();
                let message =
                    format!("the cache has not one revision \"{name}\"; it has {}", known.join(", "));
                return Err(Error::new(ErrorKind::NotFound, message).at(self.repo().id()));
            };
            doomed.insert(found.commit.clone());
        }
        let unreferenced =
            |revision: &&RevisionInfo| self.what.whole || self.what.unreferenced && revision.refs.is_empty();
        doomed.extend(revisions.iter().filter(unreferenced).map(|revision| revision.commit.clone()));
        Ok(doomed)
    }

    /// The exclusive lock on a file, which a dry run does not make.
    fn lock(&self, path: &Path) -> Locked {
        if self.what.dry_run && !path.exists() { Locked::Ours(None) } else { files::try_lock(path, false) }
    }

    fn note(&mut self, path: &Path, bytes: u64) {
        self.pruned.bytes += bytes;
        self.pruned.removed.push((path.to_owned(), bytes));
    }

    /// Removes a commit's files; `false`: it is in use.
    fn revision(&mut self, revision: &RevisionInfo) -> Result<bool> {
        let repo = self.repo().clone();
        let snapshot = repo.snapshot(&revision.commit);
        let _lock = match self.lock(&repo.hold_path(&revision.commit)) {
            Locked::Ours(lock) => lock,
            Locked::Taken => {
                self.pruned.busy.push(snapshot);
                return Ok(false);
            }
        };
        // Where there are no links, these are the bytes themselves.
        let own = revision.files.iter().filter(|file| file.blob.is_none());
        let own = own
            .filter_map(|file| fs::metadata(snapshot.join(&file.path)).ok())
            .map(|data| on_disk(&data))
            .sum();
        self.note(&snapshot, own);
        if self.what.dry_run {
            return Ok(true);
        }
        // In this order there is no moment at which huggingface_hub would call the cache corrupt.
        for name in &revision.refs {
            let path = repo.path().join("refs").join(name);
            gone(&path, fs::remove_file(&path))?;
        }
        let doomed = files::fresh(&repo.own());
        gone(&snapshot, fs::rename(&snapshot, &doomed))?;
        gone(&doomed, fs::remove_dir_all(&doomed))?;
        let absent = repo.path().join(".no_exist").join(&revision.commit);
        gone(&absent, fs::remove_dir_all(&absent))?;
        let tree = repo.tree_path(&revision.commit);
        gone(&tree, fs::remove_file(&tree))?;
        Ok(true)
    }

    /// Removes blobs that no commit needs.
    fn blobs(&mut self, left: &BTreeSet<String>) -> Result<()> {
        let repo = self.repo().clone();
        for name in names_in(&repo.path().join("blobs")) {
            let path = repo.path().join("blobs").join(&name);
            if left.contains(&name)
                || name.ends_with(".incomplete")
                || fs::symlink_metadata(&path).is_ok_and(|d| d.is_dir())
            {
                continue;
            }
            let lock = Digest::parse(&name).map(|etag| self.lock(&repo.lock_path(&etag)));
            if matches!(lock, Ok(Locked::Taken)) {
                self.pruned.busy.push(path);
                continue;
            }
            // Somebody may have linked it before we had the lock.
            if !self.what.dry_run && list::linked(&repo).contains(&name) {
                continue;
            }
            let shared = self.cache.shared(&path);
            let bytes = fs::symlink_metadata(&path)
                .ok()
                .filter(|_| shared.is_none())
                .map_or(0, |data| on_disk(&data));
            if !self.what.dry_run {
                gone(&path, fs::remove_file(&path))?;
            }
            let stored = shared.map_or(0, |stored| {
                self.cache.sweep(&stored, std::slice::from_ref(&path), self.what.dry_run)
            });
            self.note(&path, bytes + stored);
        }
        Ok(())
    }

    /// Removes files that are not complete, and what dead processes left.
    fn partials(&mut self, age: Duration) -> Result<()> {
        for partial in self.info.partials.iter().filter(|partial| is_old(Ok(partial.modified), age)) {
            // The journal is locked by who writes ours; huggingface_hub locks the blob.
            let lock = if partial.path.starts_with(self.repo().own()) {
                journal_of(&partial.path)
            } else {
                let name = partial.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let Ok(etag) = Digest::parse(name.split('.').next().unwrap_or_default()) else { continue };
                self.repo().lock_path(&etag)
            };
            let held = self.lock(&lock);
            if matches!(held, Locked::Taken) {
                self.pruned.busy.push(partial.path.clone());
                continue;
            }
            if !self.what.dry_run {
                gone(&partial.path, fs::remove_file(&partial.path))?;
                let journal = journal_of(&partial.path);
                gone(&journal, fs::remove_file(&journal))?;
            }
            self.note(&partial.path, partial.size);
        }
        self.leavings(&self.repo().own())
    }

    /// Removes temporary files and directories that nobody writes any more.
    fn leavings(&mut self, directory: &Path) -> Result<()> {
        for name in names_in(directory).into_iter().filter(|name| name.ends_with(TEMPORARY)) {
            let path = directory.join(name);
            let Some(data) = fs::symlink_metadata(&path).ok().filter(|data| is_old(data.modified(), LEFT))
            else {
                continue;
            };
            if !self.what.dry_run {
                let removed = if data.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                gone(&path, removed)?;
            }
            self.note(&path, on_disk(&data));
        }
        Ok(())
    }

    /// Removes what is left of a repository without any commit.
    fn rest(&mut self) -> Result<()> {
        let path = self.repo().path();
        let locks = self.cache.root().join(".locks");
        files::make_directory(&locks)?;
        // Nobody sees half of it.
        let doomed = files::fresh(&locks);
        gone(&path, fs::rename(&path, &doomed))?;
        gone(&doomed, fs::remove_dir_all(&doomed))
    }
}
