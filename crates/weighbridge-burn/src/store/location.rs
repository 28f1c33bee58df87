//! Where the checkpoint of a store is.

use std::path::{Path, PathBuf};

use burn_pack::AtomicFile;
use weighbridge::write::{Save, TensorData};
use weighbridge::{Checkpoint, Error, ErrorKind, Result};

use crate::open::open;

/// The name of checkpoints in directories.
const NAME: &str = "model";

pub(super) enum Location {
    Path(PathBuf),
    /// The tensors under a key of a file of PyTorch.
    #[cfg(feature = "convert")]
    Under {
        path: PathBuf,
        key: String,
    },
    /// Nothing, until something is saved.
    Memory(Option<bytes::Bytes>),
}

impl Location {
    /// What a file has under a key.
    #[cfg(feature = "convert")]
    pub(super) fn under(self, key: String) -> Self {
        match self {
            Self::Path(path) | Self::Under { path, .. } => Self::Under { path, key },
            Self::Memory(bytes) => Self::Memory(bytes),
        }
    }

    pub(super) fn open(&self) -> Result<Checkpoint> {
        match self {
            Self::Path(path) => open(path),
            #[cfg(feature = "convert")]
            Self::Under { path, key } => open_under(path, key),
            Self::Memory(Some(bytes)) => Checkpoint::from_bytes(bytes.clone()),
            Self::Memory(None) => Err(empty()),
        }
    }

    /// What all names of the checkpoint begin with and parameters do not.
    pub(super) fn prefix(&self) -> Option<String> {
        match self {
            #[cfg(feature = "convert")]
            Self::Under { key, .. } => Some(format!("{key}.")),
            _ => None,
        }
    }

    /// The bytes of a store in memory.
    pub(super) fn bytes(&self) -> Result<Vec<u8>> {
        match self {
            Self::Memory(Some(bytes)) => Ok(bytes.to_vec()),
            Self::Memory(None) => Err(empty()),
            Self::Path(path) => Err(in_a_file(path)),
            #[cfg(feature = "convert")]
            Self::Under { path, .. } => Err(in_a_file(path)),
        }
    }

    /// Fails if saving would replace a checkpoint, unless it may.
    pub(super) fn check_free(&self, overwrite: bool) -> Result<()> {
        match self {
            Self::Path(path) if !overwrite && exists(path) => Err(in_the_way(path)),
            _ => Ok(()),
        }
    }

    pub(super) fn write<T: TensorData>(
        &mut self,
        save: &Save,
        tensors: Vec<(String, T)>,
        overwrite: bool,
    ) -> Result<()> {
        match self {
            Self::Memory(bytes) => *bytes = Some(save.bytes(tensors)?.into()),
            Self::Path(path) if path.is_dir() => drop(save.directory(path, NAME, tensors)?),
            Self::Path(path) if overwrite => save.file(path, tensors)?,
            Self::Path(path) => write_new(path, save, tensors)?,
            #[cfg(feature = "convert")]
            Self::Under { path, .. } => {
                let message = "tensors cannot be written under a key of a file";
                return Err(Error::new(ErrorKind::Unsupported, message).in_file(path));
            }
        }
        Ok(())
    }
}

/// The tensors that a file of PyTorch has under a key.
#[cfg(feature = "convert")]
fn open_under(path: &Path, key: &str) -> Result<Checkpoint> {
    use weighbridge::Names;
    use weighbridge_convert::{Aliases, Options, open_any_with};

    let names = Names::prefix(format!("{key}."));
    let options = Options::new().aliases(Aliases::Each).raw_names().only(names);
    let ckpt = open_any_with(path, &options)?.checkpoint().clone();
    if ckpt.is_empty() {
        let message = format!("it has no tensors under the key {key:?}");
        return Err(Error::new(ErrorKind::NotFound, message).in_file(path));
    }
    Ok(ckpt)
}

fn in_a_file(path: &Path) -> Error {
    let message = "the store is in a file; only a store made by `from_bytes` has its bytes in memory";
    Error::new(ErrorKind::Unsupported, message).in_file(path)
}

/// Writes a file only if there is none when it is complete, as burn-store does.
fn write_new<T: TensorData>(path: &Path, save: &Save, tensors: Vec<(String, T)>) -> Result<()> {
    let failed = |error: burn_pack::Error| match error {
        burn_pack::Error::AlreadyExists(_) => in_the_way(path),
        other => Error::new(ErrorKind::Io, other.to_string()).in_file(path),
    };
    let (scratch, reserved) = AtomicFile::create(path).map_err(failed)?;
    drop(reserved);
    // The scratch file is what protects the destination.
    let written = save.clone().unprotected().file(scratch.path(), tensors);
    written.map_err(|error| about(error, path))?;
    scratch.commit_new().map_err(failed)
}

/// The error with the name of the destination in place of the scratch file's.
fn about(error: Error, path: &Path) -> Error {
    let tensor = error.tensor().map(str::to_owned);
    let error = Error::new(error.kind(), error.message()).in_file(path).with_source(error);
    match tensor {
        Some(tensor) => error.in_tensor(&tensor),
        None => error,
    }
}

fn in_the_way(path: &Path) -> Error {
    let message = "File already exists; `overwrite(true)` replaces it";
    Error::new(ErrorKind::Io, message).in_file(path)
}

fn empty() -> Error {
    Error::new(ErrorKind::NotFound, "the store is empty: it was given no bytes, and nothing was saved to it")
}

/// Whether a checkpoint exists that saving would replace.
fn exists(path: &Path) -> bool {
    let exists = |path: &Path| path.symlink_metadata().is_ok();
    match path.is_dir() {
        true => [format!("{NAME}.safetensors"), format!("{NAME}.safetensors.index.json")]
            .iter()
            .any(|file| exists(&path.join(file))),
        false => exists(path),
    }
}
