//! What is in a cache.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::files::{self, on_disk};
use super::partial::{SECOND, journal_of};
use super::{Cache, Digest, Repo, RepoKind};
use crate::error::Result;

/// What is there of a repository.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RepoInfo {
    /// Which one.
    pub repo: Repo,
    /// Bytes on the disk, what is not complete included. A blob that several repositories share counts in each.
    pub size: u64,
    /// By commit.
    pub revisions: Vec<RevisionInfo>,
    /// Files that are not complete: ours, and those of `huggingface_hub`.
    pub partials: Vec<PartialInfo>,
    /// When a file was last read, as far as the file system notes that, or written.
    pub used: Option<SystemTime>,
}

/// A commit of a repository.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RevisionInfo {
    /// 40 hexadecimal digits.
    pub commit: String,
    /// The branches, tags and `refs/pr/…` that were this commit when they were last asked for.
    pub refs: Vec<String>,
    /// What is there of it.
    pub files: Vec<FileInfo>,
    /// Bytes of its files, each blob once.
    pub size: u64,
}

/// A file of a commit.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FileInfo {
    /// In the repository.
    pub path: String,
    /// In bytes; `None`: what it is a link to is missing.
    pub size: Option<u64>,
    /// The name of the blob that it is a link to.
    pub blob: Option<String>,
}

/// A file that is not complete.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PartialInfo {
    /// Where it is.
    pub path: PathBuf,
    /// Bytes that it takes on the disk.
    pub size: u64,
    /// When it was last written.
    pub modified: SystemTime,
}

impl Cache {
    /// What is in it, by kind and name. A cache that is not there yet is empty.
    ///
    /// # Errors
    ///
    /// The directory cannot be read. Repositories in it that cannot are left out.
    pub fn repos(&self) -> Result<Vec<RepoInfo>> {
        let entries = match fs::read_dir(self.root()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(files::trouble(self.root(), "list the cache", error)),
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut repos: Vec<_> = names.filter_map(|name| self.repo_in(&name)).map(RepoInfo::of).collect();
        repos.sort_by(|a, b| (a.repo.kind(), a.repo.id()).cmp(&(b.repo.kind(), b.repo.id())));
        Ok(repos)
    }

    fn repo_in(&self, directory: &str) -> Option<Repo> {
        let (kind, name) = directory.split_once("--")?;
        let kind = RepoKind::ALL.into_iter().find(|known| known.plural() == kind)?;
        let repo = self.repo(kind, &name.replace("--", "/")).ok()?;
        repo.path().is_dir().then_some(repo)
    }
}

impl RepoInfo {
    pub(super) fn of(repo: Repo) -> Self {
        let mut refs = refs_of(&repo);
        let mut used = None;
        let mut size = 0;
        let mut note = |data: &fs::Metadata| {
            used = used.max(data.accessed().ok()).max(data.modified().ok());
        };
        for (_, blob) in walk(&repo.path().join("blobs")) {
            if let Ok(data) = fs::metadata(&blob) {
                note(&data);
                size += on_disk(&data);
            }
        }
        let mut revisions = Vec::new();
        for commit in names_in(&repo.path().join("snapshots")) {
            let files: Vec<_> = walk(&repo.snapshot(&commit))
                .into_iter()
                .map(|(path, file)| FileInfo::of(path, &file))
                .collect();
            // Without links, the files themselves are here.
            for file in files.iter().filter(|file| file.blob.is_none()) {
                if let Ok(data) = fs::metadata(repo.snapshot(&commit).join(&file.path)) {
                    note(&data);
                    size += on_disk(&data);
                }
            }
            let mut blobs = BTreeSet::new();
            let once = files.iter().filter(|file| file.blob.as_ref().is_none_or(|blob| blobs.insert(blob)));
            let bytes = once.filter_map(|file| file.size).sum();
            revisions.push(RevisionInfo {
                refs: refs.remove(&commit).unwrap_or_default(),
                commit,
                files,
                size: bytes,
            });
        }
        revisions.sort_by(|a, b| a.commit.cmp(&b.commit));
        let partials = partials_of(&repo);
        let ours = |partial: &&PartialInfo| partial.path.starts_with(repo.own());
        size += partials.iter().filter(ours).map(|partial| partial.size).sum::<u64>();
        Self { repo, size, revisions, partials, used }
    }
}

impl FileInfo {
    fn of(path: String, file: &Path) -> Self {
        let target = fs::read_link(file).ok();
        let blob = target.and_then(|target| Some(target.file_name()?.to_str()?.to_owned()));
        let size = fs::metadata(file).ok().filter(fs::Metadata::is_file).map(|data| data.len());
        Self { path, size, blob }
    }
}

/// The refs of each commit.
pub(super) fn refs_of(repo: &Repo) -> BTreeMap<String, Vec<String>> {
    let mut refs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, _) in walk(&repo.path().join("refs")) {
        if let Some(commit) = repo.commit(&name) {
            refs.entry(commit).or_default().push(name);
        }
    }
    refs
}

/// The names of blobs that snapshots have links to.
pub(super) fn linked(repo: &Repo) -> BTreeSet<String> {
    let files =
        names_in(&repo.path().join("snapshots")).into_iter().flat_map(|commit| walk(&repo.snapshot(&commit)));
    files.filter_map(|(path, file)| FileInfo::of(path, &file).blob).collect()
}

fn partials_of(repo: &Repo) -> Vec<PartialInfo> {
    let mut found = Vec::new();
    let foreign =
        walk(&repo.path().join("blobs")).into_iter().filter(|(name, _)| name.ends_with(".incomplete"));
    let ours = names_in(&repo.own()).into_iter().map(|name| (name.clone(), repo.own().join(name)));
    let ours = ours.filter(|(name, _)| is_partial(name));
    for (_, path) in foreign.chain(ours) {
        let Ok(data) = fs::symlink_metadata(&path) else { continue };
        let journal = fs::symlink_metadata(journal_of(&path)).ok();
        let files = || [Some(&data), journal.as_ref()].into_iter().flatten();
        let modified =
            files().filter_map(|data| data.modified().ok()).max().unwrap_or(SystemTime::UNIX_EPOCH);
        found.push(PartialInfo { size: files().map(on_disk).sum(), modified, path });
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Whether a name in our own directory is that of a file's data.
fn is_partial(name: &str) -> bool {
    Digest::parse(name.strip_suffix(SECOND).unwrap_or(name)).is_ok()
}

/// The names in a directory that are text; none if it cannot be read.
pub(super) fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// All files and links below a directory, with `/` in their relative paths, in order. Links are not followed.
pub(super) fn walk(directory: &Path) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    let mut left = vec![(String::new(), directory.to_owned())];
    while let Some((prefix, directory)) = left.pop() {
        for name in names_in(&directory) {
            let path = directory.join(&name);
            let relative = format!("{prefix}{name}");
            match fs::symlink_metadata(&path) {
                Ok(data) if data.is_dir() => left.push((relative + "/", path)),
                // Helpers of desktops, which huggingface_hub leaves out, too.
                Ok(_) if !matches!(&*name, ".DS_Store" | "Thumbs.db" | "desktop.ini") => {
                    found.push((relative, path));
                }
                _ => {}
            }
        }
    }
    found.sort();
    found
}
