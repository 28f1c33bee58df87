//! Checkpoints that PyTorch's distributed code wrote: every rank its own chunks of the tensors.

mod metadata;
#[cfg(feature = "fs")]
mod sharded;

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use weighbridge::{Error, ErrorKind, Result};

use crate::contents::{Contents, Tensor};
use crate::input::{FilePart, Input};
use crate::note::{Note, NoteKind};
use crate::options::Options;
use crate::pickle::{Single, load, single};
use crate::ranks::cover::Effort;
use crate::ranks::mosaic::{Chunk, assemble};
use metadata::{Described, Metadata, Stored};

#[cfg(feature = "fs")]
pub use sharded::is_of_rank;
#[cfg(feature = "fs")]
pub(crate) use sharded::{Sharded, sharded};

/// What a directory has that `torch.distributed.checkpoint` wrote.
#[cfg(feature = "fs")]
pub(crate) const METADATA: &str = ".metadata";

const CLASSES: [(&str, &[&str]); 3] = [
    (
        "torch.distributed.checkpoint.metadata",
        &[
            "Metadata",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "TensorProperties",
            "MetadataIndex",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        ],
    ),
    ("torch.distributed.checkpoint.filesystem", &["_StorageInfo", "_StoragePrefix"]),
    ("torch.distributed._shard.sharded_tensor.metadata", &["TensorProperties", "MEM_FORMAT_ENCODING"]),
];

/// Whether a class only says what is where.
pub(crate) fn is_class(module: &str, name: &str) -> bool {
    CLASSES.iter().any(|(of, names)| *of == module && names.contains(&name))
}

/// Whether a file that begins so is the metadata of a checkpoint.
pub(crate) fn is_metadata(head: &[u8]) -> bool {
    let module = CLASSES[0].0.as_bytes();
    head.windows(module.len()).any(|window| window == module)
}

/// Reads the metadata, and what it says where.
pub(crate) fn read(input: &Input, options: &Options) -> Result<Contents> {
    let pickle = load(Arc::clone(input.file()), 0, options)?;
    let Metadata { tensors, values } = metadata::of(&pickle)?;
    let mut files = Files::beside(input);
    let mut effort = Effort::default();
    let mut contents = Contents::default();
    for described in tensors {
        if !options.wants(&described.name) {
            contents.unchosen += 1;
            continue;
        }
        let name = described.name.clone();
        let tensor = tensor(described, &mut files, options, &mut effort);
        contents.tensors.push(tensor.map_err(|error| error.in_tensor(&name))?);
    }
    let values = values.into_iter().filter(|name| options.wants(name));
    contents.notes.extend(values.map(|name| Note::new(NoteKind::Dropped, name, "a value that is no tensor")));
    Ok(contents)
}

fn tensor(described: Described, files: &mut Files, options: &Options, effort: &mut Effort) -> Result<Tensor> {
    let Described { name, element, size, chunks } = described;
    let shape = element.shape(&size);
    let shape =
        shape.ok_or_else(|| Error::new(ErrorKind::Unsupported, "it is a scalar of two values of 4 bits"))?;
    let chunks = chunks.into_iter().map(|stored| {
        let Single { element: own, shape, data } = single(files.part(&stored)?, options)
            .map_err(|error| error.in_file(&files.directory.join(&stored.file)))?;
        if own != element || shape != stored.sizes {
            let message = format!(
                "{:?} has {} of shape {shape:?} at byte {} for it, the metadata says {} of shape {:?}",
                stored.file, own.name, stored.start, element.name, stored.sizes
            );
            return Err(Error::new(ErrorKind::Malformed, message));
        }
        Ok(Chunk { offsets: stored.offsets, sizes: stored.sizes, data })
    });
    let chunks = chunks.collect::<Result<Vec<_>>>()?;
    let data = assemble(element.bytes(), &size, chunks, effort)?;
    Ok(Tensor { name, dtype: element.dtype, shape, data })
}

/// The files beside the metadata, opened once each.
struct Files {
    metadata: Input,
    directory: PathBuf,
    open: HashMap<String, Input>,
}

impl Files {
    fn beside(metadata: &Input) -> Self {
        let directory = metadata.path().parent().unwrap_or(Path::new("")).to_owned();
        Self { metadata: metadata.clone(), directory, open: HashMap::new() }
    }

    /// The bytes of a chunk.
    fn part(&mut self, stored: &Stored) -> Result<FilePart> {
        let Stored { file, start, len, transforms, .. } = stored;
        if let Some(transform) = transforms.first() {
            let message = format!(
                "{file:?} holds it transformed by {transform:?}, which is not read; load it in PyTorch and save it \
                 without extensions"
            );
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let opened = self.open(file)?;
        let part = start.checked_add(*len).and_then(|end| opened.part(*start..end));
        part.ok_or_else(|| {
            let size = opened.size();
            let message = format!("its {len} bytes at {start} are not within the {size} of {file:?}");
            Error::new(ErrorKind::Malformed, message)
        })
    }

    fn open(&mut self, file: &str) -> Result<&Input> {
        let path = Path::new(file);
        let within = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        let backwards = file.split(['/', '\\']).any(|part| part == "..");
        if file.is_empty() || backwards || file.contains('\0') || !path.components().all(within) {
            let message = format!("the metadata names {file:?}, which is not within its directory");
            return Err(Error::new(ErrorKind::Unsafe, message));
        }
        if !self.open.contains_key(file) {
            let opened =
                self.metadata.another(&self.directory.join(path)).map_err(|error| match error.kind() {
                    ErrorKind::NotFound => {
                        let message = format!("the file {file:?} that the metadata names is not there");
                        Error::new(ErrorKind::MissingShard, message)
                    }
                    _ => error,
                })?;
            self.open.insert(file.to_owned(), opened);
        }
        self.open.get(file).ok_or_else(|| Error::new(ErrorKind::Internal, "it was not opened"))
    }
}
