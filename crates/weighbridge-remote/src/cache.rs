//! A cache of files of the hub, in the layout of `huggingface_hub`: it reads what we write, and we read what it writes.
//!
//! | | |
//! |---|---|
//! | `models--org--name/blobs/<etag>` | a file's content, complete |
//! | `models--org--name/snapshots/<commit>/<path>` | a link to it |
//! | `models--org--name/refs/<revision>` | the commit, 40 digits without a line end |
//! | `models--org--name/.no_exist/<commit>/<path>` | empty: the commit has no such file |
//! | `models--org--name/trees/<commit>.json` | which files the commit has |
//! | `models--org--name/.weighbridge/<etag>` | a file that is not complete, and with `.journal` what of it is there |
//! | `.locks/models--org--name/<etag>.lock` | held by who makes or removes a blob |
//!
//! Nothing that is not complete ever has the name of a blob; nothing without a checksum that fits is ever served of
//! what is not.

mod digest;
mod files;
mod journal;
mod list;
mod names;
mod partial;
mod prune;
mod ranges;
mod repo;
mod shared;
mod tree;
mod verify;

use std::path::{Path, PathBuf};

use crate::error::Result;

pub(crate) use files::{Lock, Locked};

pub use digest::Digest;
pub use list::{FileInfo, PartialInfo, RepoInfo, RevisionInfo};
pub use partial::Partial;
pub use prune::{Prune, Pruned};
pub use repo::{Hold, Repo};
pub use tree::{Tree, TreeEntry};

pub use crate::address::RepoKind;
pub use verify::Fault;

/// A directory of repositories. Cheap to clone; nothing is opened or made until it is needed.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
    links: bool,
}

impl RepoKind {
    const ALL: [Self; 4] = [Self::Model, Self::Dataset, Self::Space, Self::Kernel];
}

impl Cache {
    /// The cache in this directory, which need not be there yet.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        // A relative path would be another one after a change of the working directory.
        Self { root: std::path::absolute(&root).unwrap_or(root), links: true }
    }

    /// Without symbolic links: files lie in the snapshots themselves, as on Windows without developer mode.
    #[must_use]
    pub fn without_links(mut self) -> Self {
        self.links = false;
        self
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A repository, `org/name` or, for some old ones, `name`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Malformed`](crate::ErrorKind::Malformed): the name is no repository's.
    pub fn repo(&self, kind: RepoKind, id: &str) -> Result<Repo> {
        let id = names::repository(id)?;
        let directory = format!("{}--{}", kind.plural(), id.replace('/', "--"));
        Ok(Repo::new(self.clone(), kind, id.to_owned(), directory))
    }

    /// Tells programs that make backups that this is a cache.
    fn tag(&self) {
        const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
            # This file is a cache directory tag created by weighbridge.\n\
            # For information about cache directory tags, see:\n\
            #\thttps://bford.info/cachedir/\n";
        let path = self.root.join("CACHEDIR.TAG");
        if !path.exists() {
            // Nothing depends on it.
            drop(std::fs::write(path, TAG));
        }
    }
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)]
mod tests;
