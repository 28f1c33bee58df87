//! Where the checkpoints of a run lie: a directory, or a prefix of an object store.

mod directory;
#[cfg(feature = "remote")]
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

pub(super) use directory::InDirectory;
#[cfg(feature = "remote")]
pub(super) use store::Far;

use super::manifest::Committed;
use super::milestone::Milestone;
use super::parts::Parts;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};

/// A place that checkpoints are read from.
pub(super) trait Place {
    /// What people call the place.
    fn root(&self) -> PathBuf;

    /// The path or the address of a file, by its name in the place: `epoch-00004/model.safetensors`.
    fn path(&self, name: &str) -> PathBuf;

    /// The manifest as it is now.
    fn manifest(&self) -> Result<Read<'_>>;

    /// The length of a file.
    fn length(&self, name: &str) -> Result<u64>;

    /// Opens a file, which must have this length.
    fn open(&self, name: &str, length: u64) -> Result<Checkpoint>;

    /// Begins to save; `create`: in a place that need not be there yet.
    fn hold(self: Box<Self>, create: bool) -> Result<Box<dyn Hold>>;
}

/// A manifest that was read.
pub(super) struct Read<'p> {
    /// `None`: there is none.
    pub(super) text: Option<String>,
    /// Whether no other one was put in its place since.
    pub(super) is_current: Box<dyn Fn() -> Result<bool> + 'p>,
}

/// A place in which somebody saves. Either nobody else can until this is dropped, or what others commit
/// meanwhile is noticed by [`commit`](Self::commit).
pub(super) trait Hold: fmt::Debug + Send {
    /// What the manifest names that is to be replaced.
    fn committed(&self) -> Result<Vec<Committed>>;

    /// The name of the folder of a new checkpoint: none that is named.
    fn begin(&self, milestone: Milestone, parts: &Parts) -> Result<String>;

    /// The lengths of files that were written into the folder of a checkpoint.
    fn lengths(&self, folder: &str, files: BTreeSet<String>) -> Result<BTreeMap<String, u64>>;

    /// Puts a manifest in the place of the one before. With [`ErrorKind::Busy`], another one is there.
    fn commit(&mut self, manifest: &str) -> Result<()>;

    /// Removes a checkpoint that was given up, unless the manifest has it nevertheless or may have it.
    fn give_up(&self, folder: &str, parts: &Parts);

    /// Removes the folders of checkpoints that are not in use. `before` was named until now.
    fn clean(&self, is_used: &dyn Fn(&str) -> bool, before: &[Committed], parts: &Parts) -> Result<()>;
}

/// Fails unless a file has the length that was committed.
pub(super) fn check_length(length: u64, committed: u64, file: &Path) -> Result<()> {
    if length == committed {
        return Ok(());
    }
    let message = "it does not have the length that was committed";
    Err(Error::new(ErrorKind::DataLength, message).in_file(file))
}
