//! Safetensors files of ranks, as `HuggingFaceStorageWriter` writes them: the metadata of each file says at which
//! offsets of the whole its tensors are.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use weighbridge::source::Window;
use weighbridge::{Checkpoint, Dtype, Error, ErrorKind, Result};

use crate::contents::{Contents, Tensor};
use crate::options::Options;
use crate::ranks::cover::Effort;
use crate::ranks::mosaic::{Chunk, assemble};

/// The key of the metadata that has the offsets.
const SHARDING: &str = "DCP_SHARDING_INFO";

/// The files of a directory, opened.
pub(crate) struct Sharded {
    files: Vec<(PathBuf, Checkpoint)>,
}

/// What a directory holds, if a file of it says which parts it has.
pub(crate) fn sharded(directory: &Path) -> Result<Option<Sharded>> {
    let mut paths = Vec::new();
    let unread = |error| Error::io("the directory cannot be read", error).in_file(directory);
    for entry in directory.read_dir().map_err(unread)? {
        let path = entry.map_err(unread)?.path();
        if path.extension().is_some_and(|end| end.eq_ignore_ascii_case("safetensors")) {
            paths.push(path);
        }
    }
    paths.sort();
    let mut files = Vec::with_capacity(paths.len());
    for path in paths {
        let file = Checkpoint::open(&path)?;
        // They are all of one writer, and there may be thousands.
        if files.is_empty() && offsets(&file).is_none() {
            return Ok(None);
        }
        files.push((path, file));
    }
    Ok(if files.is_empty() { None } else { Some(Sharded { files }) })
}

/// What the metadata of a file says of its offsets.
fn offsets(file: &Checkpoint) -> Option<&str> {
    file.shards().first()?.header().metadata_value(SHARDING)
}

/// Whether a checkpoint says that a tensor of it is a part of a whole and begins elsewhere than at its start, as
/// `HuggingFaceStorageWriter` writes for a rank.
pub fn is_of_rank(checkpoint: &Checkpoint) -> bool {
    let infos = checkpoint.shards().iter().filter_map(|shard| shard.header().metadata_value(SHARDING));
    let infos = infos.filter_map(|text| serde_json::from_str::<Map<String, Value>>(text).ok()).flatten();
    infos.into_iter().any(|(_, info)| {
        let offsets = info.get("saved_offsets").and_then(Value::as_array);
        offsets.into_iter().flatten().any(|offset| offset.as_u64() != Some(0))
    })
}

struct Parts {
    dtype: Dtype,
    shape: Vec<usize>,
    chunks: Vec<Chunk>,
}

impl Sharded {
    pub(crate) fn read(self, options: &Options) -> Result<Contents> {
        let mut contents = Contents::default();
        let mut parts: HashMap<String, Parts> = HashMap::new();
        let mut order = Vec::new();
        for (path, file) in &self.files {
            add(file, options, &mut parts, &mut order).map_err(|error| error.in_file(path))?;
        }
        let mut effort = Effort::default();
        for name in order {
            let Some(Parts { dtype, shape, chunks }) = parts.remove(&name) else { continue };
            if !options.wants(&name) {
                contents.unchosen += 1;
                continue;
            }
            let data = assemble(dtype.bits() as usize / 8, &shape, chunks, &mut effort);
            let data = data.map_err(|error| error.in_tensor(&name))?;
            contents.tensors.push(Tensor { name, dtype, shape, data });
        }
        Ok(contents)
    }
}

/// Adds the chunks of a file. The shape of a tensor is what its chunks reach to.
fn add(
    file: &Checkpoint,
    options: &Options,
    parts: &mut HashMap<String, Parts>,
    order: &mut Vec<String>,
) -> Result<()> {
    let malformed = |message: &str| Error::new(ErrorKind::Malformed, message);
    let text =
        offsets(file).ok_or_else(|| malformed(&format!("its metadata has no {SHARDING}, others have")))?;
    let offsets: Map<String, Value> =
        serde_json::from_str(text).map_err(|_| malformed(&format!("its {SHARDING} is no JSON object")))?;
    for tensor in file.tensors() {
        let (name, dtype, sizes) = (tensor.name(), tensor.dtype(), tensor.shape());
        let fail = |kind, message: String| Error::new(kind, message).in_tensor(name);
        if dtype.bits() % 8 != 0 && options.wants(name) {
            return Err(fail(ErrorKind::Dtype, format!("tensors of {dtype} cannot be put together")));
        }
        let saved = offsets.get(name).and_then(|info| info.get("saved_offsets")?.as_array());
        let numbers = saved.and_then(|saved| {
            saved.iter().map(|number| usize::try_from(number.as_u64()?).ok()).collect::<Option<Vec<_>>>()
        });
        let Some(offsets) = numbers.filter(|numbers| numbers.len() == sizes.len()) else {
            let message = format!("{SHARDING} has no saved_offsets of {} numbers for it", sizes.len());
            return Err(fail(ErrorKind::Malformed, message));
        };
        let reach: Option<Vec<usize>> =
            offsets.iter().zip(sizes).map(|(offset, size)| offset.checked_add(*size)).collect();
        let reach = reach.ok_or_else(|| {
            fail(ErrorKind::Malformed, format!("its offsets {offsets:?} do not fit this machine"))
        })?;
        let of_name = parts.entry(name.to_owned()).or_insert_with(|| {
            order.push(name.to_owned());
            Parts { dtype, shape: vec![0; sizes.len()], chunks: Vec::new() }
        });
        if of_name.dtype != dtype || of_name.shape.len() != sizes.len() {
            let message = format!(
                "it is {dtype} with {} dimensions here, and {} with {} in another file",
                sizes.len(),
                of_name.dtype,
                of_name.shape.len()
            );
            return Err(fail(ErrorKind::Dtype, message));
        }
        for (dim, end) in of_name.shape.iter_mut().zip(reach) {
            *dim = end.max(*dim);
        }
        let window = Window::new(Arc::clone(tensor.shard().source()), tensor.info().file_range());
        let window = window.ok_or_else(|| fail(ErrorKind::Internal, "it ends beyond its file".to_owned()))?;
        of_name.chunks.push(Chunk { offsets, sizes: sizes.to_vec(), data: Arc::new(window) });
    }
    Ok(())
}
