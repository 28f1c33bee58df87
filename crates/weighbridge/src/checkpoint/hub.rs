//! The local Hugging Face cache: `models--org--name/snapshots/<commit>/`, with branches in `refs/`.
//!
//! The layout and the environment variables are those of `huggingface_hub` (its guide "Manage your cache" and
//! reference "Environment variables").

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// The directory of the snapshot that `location` names as `org/name[@revision]` in the local Hugging Face cache. It may hold
/// anything; [`Checkpoint::open`](crate::Checkpoint::open) looks here by itself for what is not a path that exists.
///
/// # Errors
///
/// Fails with [`ErrorKind::NotFound`] where the cache has no such repository or revision.
pub fn hub_snapshot(location: impl AsRef<Path>) -> Result<PathBuf> {
    let location = location.as_ref();
    let missing = |message: &str| Error::new(ErrorKind::NotFound, message).in_file(location);
    let Some(id) = location.to_str().and_then(RepoId::parse) else {
        return Err(missing("no such file or directory"));
    };
    let Some(cache) = cache_directory() else {
        return Err(missing("no such file or directory, and no home directory to look for a cache in"));
    };
    id.find_in(&cache).map_err(|error| error.in_file(location))
}

struct RepoId<'a> {
    name: &'a str,
    revision: Option<&'a str>,
}

impl<'a> RepoId<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (name, revision) = match text.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (text, None),
        };
        let plain = |part: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !part.is_empty() && part.chars().all(known) && !part.starts_with('.') && !part.contains("..")
        };
        let parts = name.split('/').count();
        let named = parts <= 2 && name.split('/').all(plain);
        let revised = revision.is_none_or(|revision| revision.split('/').all(plain));
        (named && revised).then_some(Self { name, revision })
    }

    fn find_in(&self, cache: &Path) -> Result<PathBuf> {
        let repository = cache.join(format!("models--{}", self.name.replace('/', "--")));
        if !repository.is_dir() {
            let mut message = format!(
                "no such file or directory, and no repository of that name in the Hugging Face cache {}",
                cache.display()
            );
            if self.name.contains('/') {
                message += &format!("; hf://{} is that of the hub", self.name);
            }
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        let revision = self.revision.unwrap_or("main");
        let commit = fs::read_to_string(repository.join("refs").join(revision));
        let commit = commit.as_deref().map_or(revision, str::trim);
        let snapshot = repository.join("snapshots").join(commit);
        // A branch's file holds a commit id; anything else in it must not lead elsewhere.
        if !commit.is_empty() && commit.chars().all(|c| c.is_ascii_alphanumeric()) && snapshot.is_dir() {
            return Ok(snapshot);
        }
        let mut known = entries(&repository.join("refs"));
        known.extend(entries(&repository.join("snapshots")));
        let message = format!(
            "the Hugging Face cache has the repository, but not its revision {revision}; it has: {}",
            if known.is_empty() { "none".to_owned() } else { known.join(", ") }
        );
        Err(Error::new(ErrorKind::NotFound, message))
    }
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn cache_directory() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || set("HOME").or_else(|| set("USERPROFILE"));
    set("HF_HUB_CACHE")
        .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(set("HF_HOME")?.join("hub")))
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("huggingface/hub")))
        .or_else(|| Some(home()?.join(".cache/huggingface/hub")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_ids() {
        for id in ["gpt2", "org/name", "org/na.me-1_x@main", "org/name@refs/pr/1"] {
            assert!(RepoId::parse(id).is_some(), "{id}");
        }
        for id in ["", "/abs", "a/b/c", "../x", "a/..", "a b", "a@", "./a", "a@../x", "a\\b"] {
            assert!(RepoId::parse(id).is_none(), "{id}");
        }
    }

    #[test]
    fn revisions_resolve_through_refs() {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("models--org--name");
        let commit = "0123456789abcdef0123456789abcdef01234567";
        fs::create_dir_all(repository.join("refs/refs/pr")).unwrap();
        fs::create_dir_all(repository.join("snapshots").join(commit)).unwrap();
        fs::write(repository.join("refs/main"), commit).unwrap();
        fs::write(repository.join("refs/refs/pr/1"), format!("{commit}\n")).unwrap();
        fs::write(repository.join("refs/bad"), "../../elsewhere").unwrap();
        let find = |id: &str| RepoId::parse(id).unwrap().find_in(cache.path());
        let expected = repository.join("snapshots").join(commit);
        assert_eq!(find("org/name").unwrap(), expected);
        assert_eq!(find("org/name@refs/pr/1").unwrap(), expected);
        assert_eq!(find(&format!("org/name@{commit}")).unwrap(), expected);
        for id in ["org/name@bad", "org/name@dev", "org/other"] {
            assert_eq!(find(id).unwrap_err().kind(), ErrorKind::NotFound, "{id}");
        }
        assert!(find("org/name@dev").unwrap_err().to_string().contains("main"));
    }
}
