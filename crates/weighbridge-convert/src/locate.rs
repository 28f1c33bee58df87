//! Which file of a directory is meant, and what reads it.

use std::path::{Path, PathBuf};

use weighbridge::{Error, ErrorKind, Result, hub_snapshot};

use crate::contents::Contents;
use crate::format::Format;
use crate::input::Input;
use crate::options::Options;
use crate::{dcp, format, zero};

impl Format {
    /// What a file is, or the file in a directory that [`open`](crate::open) would take; `None` if it is nothing that is read.
    /// Only the first bytes are looked at, and the names in an archive.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Io`] where the file cannot be read, and with
    /// [`ErrorKind::Malformed`] for an archive that is broken.
    pub fn of_file(path: impl AsRef<Path>) -> Result<Option<Self>> {
        let path = path.as_ref();
        let format = locate(path).and_then(|located| match located {
            Located::File(file) => Self::of(&Input::open(&file)?),
            Located::Sharded(..) => Ok(Self::DistributedSafetensors),
            Located::Zero(_) => Ok(Self::DeepSpeedZero),
        });
        match format {
            Ok(format) => Ok(Some(format)),
            Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::NotFound) => Ok(None),
            Err(error) => Err(error.in_file(path)),
        }
    }
}

/// Reads what is there, whatever it is, and says in which file it was found.
pub(crate) fn read(path: &Path, options: &Options) -> Result<(Format, PathBuf, Contents)> {
    let file = match locate(path)? {
        Located::File(file) => file,
        Located::Sharded(directory, files) => {
            return Ok((Format::DistributedSafetensors, directory, files.read(options)?));
        }
        Located::Zero(files) => {
            let contents = zero::read(&files, options)?;
            return Ok((Format::DeepSpeedZero, files.directory, contents));
        }
    };
    let input = Input::open(&file)?;
    let (format, contents) = format::read(&input, options)?;
    Ok((format, file, contents))
}

/// What is to be read.
enum Located {
    File(PathBuf),
    /// All safetensors files of a directory together.
    Sharded(PathBuf, dcp::Sharded),
    Zero(zero::Files),
}

/// What is to be read of a directory: as transformers has it, a whole file before an index; then what ranks wrote.
fn locate(path: &Path) -> Result<Located> {
    const NAMES: [&str; 3] = ["pytorch_model.bin", "pytorch_model.bin.index.json", dcp::METADATA];
    // What is not there may be a repository of the cache.
    let path = &if path.exists() { path.to_owned() } else { hub_snapshot(path)? };
    if !path.is_dir() {
        return Ok(Located::File(path.clone()));
    }
    let found = NAMES.iter().map(|name| path.join(name)).find(|path| path.exists());
    if let Some(file) = found {
        return Ok(Located::File(file));
    }
    if let Some(files) = zero::find(path)? {
        return Ok(Located::Zero(files));
    }
    match dcp::sharded(path)? {
        Some(files) => Ok(Located::Sharded(path.clone(), files)),
        None => {
            let message =
                "it has neither pytorch_model.bin nor its index, nor .metadata; name the file to convert";
            Err(Error::new(ErrorKind::NotFound, message).in_file(path))
        }
    }
}
