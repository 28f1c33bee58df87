//! Opening the checkpoints that the command line names.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use weighbridge::{Checkpoint, Error, ErrorKind, natural_order};
use weighbridge_convert::{Foreign, Format, Opened, Options, open_any_with};

use crate::show::{bytes, plural, safe};
use crate::term::Term;

/// Opens a file, a directory, an index or a repository of the cache, and passes on its warnings. It must be
/// safetensors.
pub(crate) fn open(location: &Path, term: &Term) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(location).map_err(|error| match foreign(location) {
        Ok(Some(format)) => anyhow!("{}: {format}; {}", location.display(), cure(format)),
        _ => misnamed(location, error),
    })?;
    tell(location, &checkpoint, term);
    Ok(checkpoint)
}

/// Opens a checkpoint to look at: what is not safetensors is seen as `convert` would write it.
pub(crate) fn look(location: &Path, term: &Term) -> Result<Checkpoint> {
    let (checkpoint, foreign) = any(location, &Options::new(), term)?;
    tell(location, &checkpoint, term);
    if let Some(foreign) = foreign {
        term.detail(format_args!("{}: {}, as convert would write it", location.display(), foreign.format()));
        foreign.notes().iter().for_each(|note| term.detail(safe(&note.to_string())));
    }
    Ok(checkpoint)
}

/// Opens safetensors, or what else is read; what is at an address and is not safetensors is fetched.
pub(crate) fn any(location: &Path, options: &Options, term: &Term) -> Result<(Checkpoint, Option<Foreign>)> {
    if is_remote(location) && !is_foreign_file(location) {
        return Ok((Checkpoint::open(location)?, None));
    }
    let location = on_disk(location, |_| true, term)?;
    let opened = open_any_with(location.path(), options).map_err(|error| misnamed(location.path(), error))?;
    Ok(match opened {
        Opened::Safetensors(checkpoint) => (checkpoint, None),
        Opened::Foreign(foreign) => (foreign.checkpoint().clone(), Some(foreign)),
    })
}

/// A location whose files are on the disk while it exists.
pub(crate) struct OnDisk {
    #[cfg(feature = "remote")]
    local: crate::remote::Local,
    #[cfg(not(feature = "remote"))]
    path: std::path::PathBuf,
}

impl OnDisk {
    pub(crate) fn path(&self) -> &Path {
        #[cfg(feature = "remote")]
        return &self.local.path;
        #[cfg(not(feature = "remote"))]
        return &self.path;
    }
}

/// A location for verbs that read files as they are. What is at an address is fetched: the file that it names, or all that
/// are `wanted`.
pub(crate) fn on_disk(location: &Path, wanted: impl Fn(&str) -> bool, term: &Term) -> Result<OnDisk> {
    #[cfg(feature = "remote")]
    return Ok(OnDisk { local: crate::remote::local(location, wanted, term)? });
    #[cfg(not(feature = "remote"))]
    {
        let _ = (wanted, term);
        Ok(OnDisk { path: location.to_owned() })
    }
}

/// Whether a location is an address.
pub(crate) fn is_remote(location: &Path) -> bool {
    #[cfg(feature = "remote")]
    return matches!(crate::remote::address(location), Ok(Some(_)));
    #[cfg(not(feature = "remote"))]
    {
        let _ = location;
        false
    }
}

/// What has this name in a directory or at an address, whose separator is `/` everywhere.
pub(crate) fn below(location: &Path, name: &str) -> PathBuf {
    match is_remote(location) {
        true => PathBuf::from(format!("{}/{name}", location.to_string_lossy().trim_end_matches('/'))),
        false => location.join(name),
    }
}

/// Whether an address names a file that is not safetensors by its name.
fn is_foreign_file(location: &Path) -> bool {
    let name = location.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let endings = [
        "bin", "pt", "pth", "ckpt", "pkl", "gguf", "onnx", "npy", "npz", "h5", "hdf5", "keras", "msgpack",
        "jit", "mpk", "bpk", "zip", "tar",
    ];
    name.rsplit_once('.').is_some_and(|(_, ending)| endings.contains(&ending))
}

/// The format of a file that is not meant to be safetensors.
fn foreign(location: &Path) -> weighbridge::Result<Option<Format>> {
    let name = location.to_string_lossy().to_lowercase();
    if is_remote(location) {
        return Ok(None);
    }
    let is_ours = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    if is_ours { Ok(None) } else { Format::of_file(location) }
}

/// What makes safetensors of a file of another format.
fn cure(format: Format) -> String {
    let verb = match format {
        Format::Distributed | Format::DistributedSafetensors | Format::DeepSpeedZero => "consolidate",
        _ => "convert",
    };
    format!("`weighbridge {verb}` makes safetensors of it")
}

/// The error of a file that is called like ours and is not: of which format it is, if that is known.
fn misnamed(location: &Path, error: Error) -> anyhow::Error {
    let kinds = [
        ErrorKind::HeaderTooLarge,
        ErrorKind::HeaderTruncated,
        ErrorKind::HeaderSyntax,
        ErrorKind::HeaderEncoding,
    ];
    let is_called_so = location.to_string_lossy().to_lowercase().ends_with(".safetensors");
    if !is_called_so || !kinds.contains(&error.kind()) || is_remote(location) {
        return error.into();
    }
    match Format::of_file(location) {
        // An index is JSON, and so is much else.
        Ok(Some(format)) if format != Format::TorchShards => {
            error.advised(&format!("{format}: {}", cure(format))).into()
        }
        _ => error.into(),
    }
}

/// What a location is called: its last part, or what that stands for where it is `.` or `..`.
pub(crate) fn name_of(location: &Path) -> String {
    let real = || location.canonicalize().ok()?.file_name().map(ToOwned::to_owned);
    let name = location.file_name().map(ToOwned::to_owned).or_else(real);
    name.unwrap_or_else(|| location.into()).to_string_lossy().into_owned()
}

/// Passes on the warnings of a checkpoint.
pub(crate) fn tell(location: &Path, checkpoint: &Checkpoint, term: &Term) {
    for warning in checkpoint.warnings() {
        term.warn(safe(warning));
    }
    let (tensors, shards) = (plural(checkpoint.len(), "tensor"), plural(checkpoint.shards().len(), "file"));
    let size = bytes(checkpoint.byte_len());
    term.detail(format_args!("{}: {tensors} in {shards}, {size}", location.display()));
}

/// Tensors in the order of their names, numbers in them by value: `layers.2` before `layers.10`.
pub(crate) fn by_name(checkpoint: &Checkpoint) -> Vec<weighbridge::TensorRef<'_>> {
    let mut tensors: Vec<_> = checkpoint.tensors().collect();
    tensors.sort_by(|a, b| natural_order(a.name(), b.name()));
    tensors
}
