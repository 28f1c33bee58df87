//! The files of a checkpoint, for those who look at each by itself: a checkpoint that is broken does not
//! open.

use std::path::{Path, PathBuf};

use super::OpenOptions;
use super::locate::{Files, locate};
use crate::error::Result;
use crate::header::Diagnosis;
use crate::source::FileSource;

/// Where the files of a checkpoint are.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckpointFiles {
    /// The directory that its files are in.
    pub directory: PathBuf,
    /// The index, where there is one; its shards are not looked for.
    pub index: Option<PathBuf>,
    /// The one file, or the numbered shards without an index.
    pub shards: Vec<PathBuf>,
}

impl OpenOptions {
    /// Finds the files that [`open`](Self::open) would read, without opening them.
    ///
    /// # Errors
    ///
    /// Fails when there is nothing to open, or when several checkpoints could be meant.
    pub fn files(&self, location: impl AsRef<Path>) -> Result<CheckpointFiles> {
        let located = locate(&Self::resolve(location.as_ref())?, self.files.variant.as_deref())?;
        let listing = located.listing;
        let place = |name: &String| listing.place(name);
        let (index, shards) = match &located.files {
            Files::Single(name) => (None, vec![place(name)]),
            Files::Index(name) => (Some(place(name)), Vec::new()),
            Files::Set(names) => (None, names.iter().map(place).collect()),
        };
        Ok(CheckpointFiles { directory: listing.directory, index, shards })
    }

    /// What is wrong with one safetensors file: not only the first fault, as when it is opened.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be read.
    pub fn diagnose(&self, file: impl AsRef<Path>) -> Result<Diagnosis> {
        let path = file.as_ref();
        let diagnosis = FileSource::open(path).and_then(|source| self.decode.diagnose(&source));
        let mut diagnosis = diagnosis.map_err(|error| error.in_file(path))?;
        for error in &mut diagnosis.errors {
            *error = error.clone().in_file(path);
        }
        Ok(diagnosis)
    }
}
