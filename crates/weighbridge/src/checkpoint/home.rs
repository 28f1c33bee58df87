//! Where a checkpoint lies, with what belongs to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Checkpoint;
use crate::error::{Error, Result};

/// A directory, or a place on a network.
#[derive(Clone)]
pub(super) enum Home {
    Directory(PathBuf),
    #[cfg_attr(not(feature = "remote"), allow(dead_code))]
    Remote(Arc<dyn RemoteHome>),
}

/// A place on a network that holds files.
pub(super) trait RemoteHome: Send + Sync {
    /// What errors call it.
    fn address(&self) -> PathBuf;

    /// The path of a local copy; `None` if there is no such file.
    fn fetch(&self, name: &str) -> Result<Option<PathBuf>>;

    /// The names of the files, as far as they can be known.
    fn names(&self) -> Result<Vec<String>>;
}

impl Home {
    /// The home of all of them, if it is one.
    pub(super) fn common<'h>(homes: impl IntoIterator<Item = Option<&'h Self>>) -> Option<Self> {
        let mut homes = homes.into_iter();
        let first = homes.next()??;
        homes.all(|home| home.is_some_and(|home| home.is(first))).then(|| first.clone())
    }

    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Directory(one), Self::Directory(other)) => {
                let real = |path: &Path| std::fs::canonicalize(path).ok();
                one == other || real(one).is_some_and(|one| real(other) == Some(one))
            }
            (Self::Remote(one), Self::Remote(other)) => {
                Arc::ptr_eq(one, other) || one.address() == other.address()
            }
            _ => false,
        }
    }
}

impl Checkpoint {
    /// The path of a file that lies beside the checkpoint, such as `config.json` or `tokenizer.json`; `None` if there is no
    /// such file. If the checkpoint is remote, the file is fetched into a cache, or where there is none into a temporary
    /// directory that lives as long as the checkpoint.
    ///
    /// ```no_run
    /// use weighbridge::Checkpoint;
    ///
    /// # fn main() -> weighbridge::Result<()> {
    /// let ckpt = Checkpoint::open("path/to/model")?;
    /// if let Some(path) = ckpt.beside("config.json")? {
    ///     println!("{}", path.display());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Fails when a remote file cannot be fetched.
    pub fn beside(&self, name: &str) -> Result<Option<PathBuf>> {
        match &self.0.home {
            Some(Home::Directory(directory)) => Ok(Some(directory.join(name)).filter(|path| path.exists())),
            Some(Home::Remote(place)) => place.fetch(name),
            None => Ok(None),
        }
    }

    /// The names of the files that lie beside the checkpoint, its own among them, sorted. Empty where that cannot be known: for
    /// bytes and sources, and for web servers, which have no listings.
    ///
    /// # Errors
    ///
    /// Fails when the directory or the listing cannot be read.
    pub fn names_beside(&self) -> Result<Vec<String>> {
        let mut names = match &self.0.home {
            Some(Home::Directory(directory)) => names_in(directory)
                .map_err(|error| Error::io("the directory cannot be read", error).in_file(directory))?,
            Some(Home::Remote(place)) => place.names()?,
            None => Vec::new(),
        };
        names.sort_unstable();
        Ok(names)
    }

    /// Whether it is on a network: it was opened by an address such as `hf://org/name`.
    pub fn is_remote(&self) -> bool {
        matches!(self.0.home, Some(Home::Remote(_)))
    }
}

fn names_in(directory: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in directory.read_dir()? {
        let entry = entry?;
        if entry.path().is_file() {
            names.extend(entry.file_name().into_string());
        }
    }
    Ok(names)
}
