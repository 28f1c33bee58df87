//! Opening the checkpoints that the command line names.

use std::path::Path;

use anyhow::{Result, anyhow};
use weighbridge::{Checkpoint, natural_order};
use weighbridge_convert::{Foreign, Format, Opened, Options, open_any_with};

use crate::show::{bytes, plural, safe};
use crate::term::Term;

/// Opens a file, a directory, an index or a repository of the cache, and passes on its warnings. It must be
/// safetensors.
pub(crate) fn open(location: &Path, term: &Term) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(location).map_err(|error| match foreign(location) {
        Ok(Some(format)) => {
            let verb = match format {
                Format::Distributed | Format::DistributedSafetensors | Format::DeepSpeedZero => "consolidate",
                _ => "convert",
            };
            anyhow!("{}: {format}; `weighbridge {verb}` makes safetensors of it", location.display())
        }
        _ => error.into(),
    })?;
    tell(location, &checkpoint, term);
    Ok(checkpoint)
}

/// Opens a checkpoint to look at: what is not safetensors is seen as `convert` would write it.
pub(crate) fn look(location: &Path, term: &Term) -> Result<Checkpoint> {
    let (checkpoint, foreign) = any(location, &Options::new())?;
    tell(location, &checkpoint, term);
    if let Some(foreign) = foreign {
        term.detail(format_args!("{}: {}, as convert would write it", location.display(), foreign.format()));
        foreign.notes().iter().for_each(|note| term.detail(safe(&note.to_string())));
    }
    Ok(checkpoint)
}

/// Opens safetensors, or what else is read.
pub(crate) fn any(location: &Path, options: &Options) -> Result<(Checkpoint, Option<Foreign>)> {
    Ok(match open_any_with(location, options)? {
        Opened::Safetensors(checkpoint) => (checkpoint, None),
        Opened::Foreign(foreign) => (foreign.checkpoint().clone(), Some(foreign)),
    })
}

/// The format of a file that is not meant to be safetensors.
fn foreign(location: &Path) -> weighbridge::Result<Option<Format>> {
    let name = location.to_string_lossy().to_lowercase();
    let is_ours = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    if is_ours { Ok(None) } else { Format::of_file(location) }
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
