//! One call for safetensors and everything else.

use std::path::Path;

use weighbridge::{Checkpoint, Error, ErrorKind, Result};

use crate::{Aliases, Foreign, Format, Options, open};

/// What [`open_any_with`] found.
#[derive(Clone, Debug)]
pub enum Opened {
    /// A safetensors checkpoint.
    Safetensors(Checkpoint),
    /// A file of another format.
    Foreign(Foreign),
}

impl Opened {
    /// Its tensors.
    pub fn checkpoint(&self) -> &Checkpoint {
        match self {
            Self::Safetensors(checkpoint) => checkpoint,
            Self::Foreign(foreign) => foreign.checkpoint(),
        }
    }
}

/// Opens what [`Checkpoint::open`] opens and, where there is no safetensors checkpoint, what [`open`] opens:
///
/// - a file of any format; its content says which, not its name. A file named `*.safetensors` or
///   `*.safetensors.index.json` is never taken for anything else;
/// - a directory, or a repository in the local Hugging Face cache: its safetensors checkpoint, even if that
///   is broken; if there is none, `pytorch_model.bin`, else the shards of `pytorch_model.bin.index.json`, else what
///   the ranks of a distributed run wrote: `.metadata` and its files, or safetensors with `DCP_SHARDING_INFO`.
///
/// Each name of a tensor that has several, such as tied embeddings, is there ([`Aliases::Each`]). The
/// [directory](Checkpoint::directory) is that of the file, so that `config.json` can be found.
///
/// ```
/// # fn main() -> weighbridge::Result<()> {
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pickle/tied.bin");
/// let ckpt = weighbridge_convert::open_any(path)?;
/// for tensor in ckpt.tensors() {
///     println!("{} {} {:?}", tensor.name(), tensor.dtype(), tensor.shape());
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// As [`Checkpoint::open`], and for other formats as [`open`].
pub fn open_any(location: impl AsRef<Path>) -> Result<Checkpoint> {
    match open_any_with(location, &Options::new().aliases(Aliases::Each))? {
        Opened::Safetensors(checkpoint) => Ok(checkpoint),
        Opened::Foreign(foreign) => Ok(foreign.checkpoint().clone()),
    }
}

/// As [`open_any`], with options for files of other formats; says what was found.
///
/// # Errors
///
/// As [`open_any`].
pub fn open_any_with(location: impl AsRef<Path>, options: &Options) -> Result<Opened> {
    let location = location.as_ref();
    let error = match Checkpoint::open(location) {
        Ok(checkpoint) => return Ok(Opened::Safetensors(checkpoint)),
        Err(error) if weighbridge::share::name_in(location).is_some() => return Err(error),
        Err(error) => error,
    };
    let format = Format::of_file(location);
    // Many files of parts look like many checkpoints.
    let are_parts =
        error.kind() == ErrorKind::Ambiguous && matches!(format, Ok(Some(Format::DistributedSafetensors)));
    if !are_parts && is_safetensors(location, &error) || matches!(format, Ok(None)) {
        return Err(error);
    }
    // If it is broken, the reader of its own format says best how.
    open(location, options).map(Opened::Foreign)
}

/// Whether what did not open is meant to be safetensors.
fn is_safetensors(location: &Path, error: &Error) -> bool {
    if !location.is_file() {
        // Only where there is no safetensors checkpoint may something else be taken instead.
        return error.kind() != ErrorKind::NotFound;
    }
    let name = location.to_string_lossy().to_lowercase();
    name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")
}
