//! Burn's own containers (burnpack, `.bpk`) as safetensors, and back.
//!
//! A burnpack holds tensors, typed scalars and metadata. The tensors of an optimizer are named by the random
//! ids of the parameters that they belong to. In safetensors they are named by the parameters' paths instead,
//! `encoder.layers.0.weight.momentum.moment_1`, and the ids are in the metadata:
//!
//! | entry of `__metadata__` | holds |
//! |---|---|
//! | `format` | `pt` |
//! | `weighbridge.burn.ids` | the id of each parameter, as a string, by its path |
//! | `weighbridge.burn.scalars` | scalars by their names: `int 3`, `uint 3`, `float 0.1`, `bool true` |
//! | `weighbridge.burn.metadata` | all other metadata, unchanged |
//! | `weighbridge.burn.dtypes` | Burn's dtypes of tensors for which safetensors has none |
//! | `weighbridge.burn.quantised` | shapes and schemes of quantised tensors |
//! | `weighbridge.burn.record` | `named`, or `by id` where tensors were named by ids |
//!
//! Each is a JSON object of strings. Scalars of floats are written so that they are read as the same number.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use burn::tensor::{BoolStore, Bytes, DType};
use burn_pack::{MAX_FILE_SIZE, MAX_TENSOR_COUNT, MAX_TENSOR_SIZE, Reader, Scalar, Tensor, Writer};
use serde_json::{Map, Value, json};
#[cfg(feature = "store")]
use weighbridge::Dtype;
use weighbridge::write::Save;
use weighbridge::{Checkpoint, Error, ErrorKind, HostBytes, Result, TensorRef};

use crate::dtype::from_stored;
use crate::metadata::{IDS, Known, ids, in_shard, object};
use crate::packed::Outside;
pub(crate) use crate::packed::refused;
use crate::tensor_data::into_bytes;

const SCALARS: &str = "weighbridge.burn.scalars";
const METADATA: &str = "weighbridge.burn.metadata";
const DTYPES: &str = "weighbridge.burn.dtypes";
pub(crate) const RECORD: &str = "weighbridge.burn.record";
pub(crate) const NAMED: &str = "named";
const BY_ID: &str = "by id";

/// Converts a `.bpk` file, the record of a module, an optimizer or a scheduler, to a safetensors file, which
/// [`from_safetensors`] converts back. A few megabytes of one tensor are in memory at a time.
///
/// # Errors
///
/// Fails when the file is not a burnpack or is beyond burnpack's limits (10 GiB per tensor, 100,000 tensors,
/// 100 GiB), and when the result cannot be written.
pub fn to_safetensors(pack: impl AsRef<Path>, safetensors: impl AsRef<Path>) -> Result<()> {
    let pack = pack.as_ref();
    let reader = Reader::from_file_exact(pack).map_err(|error| refused(error).in_file(pack))?;
    write(reader, Save::new(), safetensors.as_ref())
}

/// Converts what [`to_safetensors`] wrote back to a `.bpk` file.
///
/// # Errors
///
/// Fails when the file does not hold a record, when it is beyond burnpack's limits, and when the result
/// cannot be written.
pub fn from_safetensors(safetensors: impl AsRef<Path>, pack: impl AsRef<Path>) -> Result<()> {
    let (ckpt, pack) = (Checkpoint::open(safetensors)?, pack.as_ref());
    if ckpt.byte_len() > MAX_FILE_SIZE {
        let message =
            format!("its {} bytes are more than the {MAX_FILE_SIZE} of a burnpack", ckpt.byte_len());
        return Err(in_file_of(&ckpt, Error::new(ErrorKind::Size, message)));
    }
    let writer = writer(&ckpt, lazy)?.overwrite(true).auto_extension(false);
    writer.write_to_file(pack).map_err(|error| refused(error).in_file(pack))
}

/// The container of a safetensors file, in memory.
pub(crate) fn container(ckpt: &Checkpoint) -> Result<Bytes> {
    in_memory(writer(ckpt, lazy)?).map_err(|error| in_file_of(ckpt, error))
}

/// The same with one element instead of each tensor's values: which tensors a record has, without what they
/// hold.
pub(crate) fn outline(ckpt: &Checkpoint) -> Result<Bytes> {
    let one = |_: &Checkpoint, tensor: &TensorRef<'_>, inside: Inside| {
        let shape = vec![1_usize; tensor.shape().len()];
        Tensor::new(inside.name, DType::F32, shape, inside.id, Bytes::from_elems(vec![0_f32]))
    };
    in_memory(writer(ckpt, one)?).map_err(|error| in_file_of(ckpt, error))
}

fn in_memory(writer: Writer) -> Result<Bytes> {
    let size = writer.size().map_err(refused)?;
    let mut words = Vec::<u64>::new();
    let room = size.div_ceil(8);
    words.try_reserve_exact(room).map_err(|error| {
        Error::new(ErrorKind::Memory, format!("{size} bytes of memory could not be allocated"))
            .with_source(error)
    })?;
    words.resize(room, 0);
    let mut bytes = Bytes::from_elems(words);
    writer.write_into(&mut bytes[..size]).map_err(refused)?;
    Ok(bytes)
}

/// The names that the tensors of a container have in safetensors.
pub(crate) fn names(container: Bytes) -> Result<BTreeSet<String>> {
    let reader = Reader::from_bytes(container).map_err(refused)?;
    let (scalars, metadata) = (reader.scalars().clone(), reader.metadata().clone());
    let tensors = reader.into_tensors().map_err(refused)?;
    let names = Names::of(&tensors, &scalars, &metadata);
    Ok(tensors.iter().map(|tensor| names.outside(&tensor.name)).collect())
}

/// The error with the name of the file; a record is one file.
fn in_file_of(ckpt: &Checkpoint, error: Error) -> Error {
    match ckpt.shards().first() {
        Some(shard) => in_shard(error, shard),
        None => error,
    }
}

/// Writes a container as safetensors.
pub(crate) fn write(reader: Reader, save: Save, path: &Path) -> Result<()> {
    let scalars = reader.scalars().clone();
    let metadata = reader.metadata().clone();
    let tensors = reader.into_tensors().map_err(|error| refused(error).in_file(path))?;
    let names = Names::of(&tensors, &scalars, &metadata);

    let mut save = save.metadata("format", "pt").metadata(RECORD, names.record());
    let known = names.paths.iter().map(|(id, path)| (&**path, *id));
    save = save.metadata(IDS, ids(known));
    let scalars: BTreeMap<_, _> =
        scalars.iter().map(|(name, scalar)| (names.outside(name), written(*scalar))).collect();
    if !scalars.is_empty() {
        save = save.metadata(SCALARS, json!(scalars).to_string());
    }
    let other: BTreeMap<_, _> = metadata.iter().filter(|(key, _)| !names.is_path(key)).collect();
    if !other.is_empty() {
        save = save.metadata(METADATA, json!(other).to_string());
    }
    let tensors = tensors.into_iter().map(|tensor| (names.outside(&tensor.name), tensor));
    let outside = Outside::of(tensors).map_err(|error| error.in_file(path))?;
    let dtypes: BTreeMap<_, _> = outside.retyped().map(|(name, dtype)| (name, tag(dtype))).collect();
    if !dtypes.is_empty() {
        save = save.metadata(DTYPES, json!(dtypes).to_string());
    }
    outside.save_with(save).file(path, outside.tensors)
}

/// How a tensor is in a container.
struct Inside {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    id: Option<u64>,
}

/// A container with what a safetensors file holds; `make` makes its tensors.
fn writer(ckpt: &Checkpoint, make: impl Fn(&Checkpoint, &TensorRef<'_>, Inside) -> Tensor) -> Result<Writer> {
    check_limits(ckpt).and_then(|()| made(ckpt, make)).map_err(|error| in_file_of(ckpt, error))
}

/// Checks the limits that Burn's reader has and its writer does not.
fn check_limits(ckpt: &Checkpoint) -> Result<()> {
    if ckpt.len() > MAX_TENSOR_COUNT {
        let message =
            format!("its {} tensors are more than the {MAX_TENSOR_COUNT} of a burnpack", ckpt.len());
        return Err(Error::new(ErrorKind::Size, message));
    }
    let is_large = |tensor: &TensorRef<'_>| tensor.byte_len() > MAX_TENSOR_SIZE as u64;
    if let Some(tensor) = ckpt.tensors().find(is_large) {
        let bytes = tensor.byte_len();
        let message =
            format!("its {bytes} bytes are more than the {MAX_TENSOR_SIZE} of a tensor in a burnpack");
        return Err(Error::new(ErrorKind::Size, message).in_tensor(tensor.name()));
    }
    Ok(())
}

fn made(ckpt: &Checkpoint, make: impl Fn(&Checkpoint, &TensorRef<'_>, Inside) -> Tensor) -> Result<Writer> {
    let entry = |key| entry(ckpt, key);
    let known = Known::of(ckpt)?;
    let by_id = match ckpt.shards().first().and_then(|shard| shard.header().metadata_value(RECORD)) {
        Some(BY_ID) => true,
        Some(NAMED) => false,
        _ => {
            let message = "it is not a training record: its metadata has no \"weighbridge.burn.record\"";
            return Err(Error::new(ErrorKind::Value, message));
        }
    };
    let dtypes = entry(DTYPES)?;
    let names = Names { by_id, paths: known.ids.iter().map(|(path, id)| (*id, path.clone())).collect() };
    let tensors = ckpt.tensors().map(|tensor| {
        let name = tensor.name();
        let (inside, id) = names.inside(name);
        let id = if by_id { id } else { known.ids.get(name).copied() };
        if by_id && id.is_none() {
            let message = format!("it belongs to no parameter that the metadata entry {IDS:?} names");
            return Err(Error::new(ErrorKind::Value, message).in_tensor(name));
        }
        let (dtype, shape) = match known.quantised.get(name) {
            Some(quantised) => (quantised.dtype, quantised.shape.clone()),
            None => {
                let tagged = dtypes.get(name).and_then(Value::as_str).and_then(untagged);
                let dtype = tagged.or_else(|| from_stored(tensor.dtype())).ok_or_else(|| {
                    let message = format!("Burn has no {}", tensor.dtype());
                    Error::new(ErrorKind::Dtype, message).in_tensor(name)
                })?;
                (dtype, tensor.shape().to_vec())
            }
        };
        Ok(make(ckpt, &tensor, Inside { name: inside, dtype, shape, id }))
    });
    let mut writer = Writer::new(tensors.collect::<Result<Vec<_>>>()?);
    for (name, value) in entry(SCALARS)? {
        let scalar = value.as_str().and_then(read).ok_or_else(|| {
            Error::new(ErrorKind::Value, format!("the scalar {name:?} of the metadata is {value}"))
        })?;
        writer = writer.with_scalar(&names.inside(&name).0, scalar);
    }
    for (key, value) in entry(METADATA)? {
        writer = writer.with_metadata(&key, value.as_str().unwrap_or_default());
    }
    if by_id {
        for (id, path) in &names.paths {
            writer = writer.with_metadata(&id.to_string(), path);
        }
    }
    Ok(writer)
}

/// A stored tensor as one of a container. It is read when its bytes are asked for.
#[cfg(feature = "store")]
pub(crate) fn deferred(ckpt: &Checkpoint, tensor: &TensorRef<'_>, name: String) -> Result<Tensor> {
    let dtype = match tensor.dtype() {
        Dtype::Bool => DType::Bool(BoolStore::U8),
        other => from_stored(other).ok_or_else(|| {
            Error::new(ErrorKind::Dtype, format!("Burn has no {other}")).in_tensor(tensor.name())
        })?,
    };
    Ok(lazy(ckpt, tensor, Inside { name, dtype, shape: tensor.shape().to_vec(), id: None }))
}

/// A tensor that is read when its bytes are asked for.
fn lazy(ckpt: &Checkpoint, tensor: &TensorRef<'_>, inside: Inside) -> Tensor {
    let Inside { name, dtype, shape, id } = inside;
    let wide = dtype == DType::Bool(BoolStore::U32);
    let len = tensor.byte_len() as usize * if wide { 4 } else { 1 };
    let (ckpt, stored) = (ckpt.clone(), tensor.name().to_owned());
    let provider = move || {
        let values = ckpt.read(&stored).map_err(|error| burn_pack::Error::IoError(error.to_string()))?;
        Ok(match wide {
            true => {
                Bytes::from_elems(values.as_bytes().iter().map(|&byte| u32::from(byte)).collect::<Vec<_>>())
            }
            false => into_bytes(HostBytes::Owned(values), dtype),
        })
    };
    Tensor::deferred(name, dtype, shape, id, len, provider)
}

fn entry(ckpt: &Checkpoint, key: &str) -> Result<Map<String, Value>> {
    object(ckpt.shards().first().and_then(|shard| shard.header().metadata_value(key)), key)
}

/// How tensors and scalars are named in a container and in a file.
struct Names {
    /// Whether they are named in the container by the ids of the parameters that they belong to.
    by_id: bool,
    paths: BTreeMap<u64, String>,
}

impl Names {
    fn of(
        tensors: &[Tensor],
        scalars: &BTreeMap<String, Scalar>,
        metadata: &BTreeMap<String, String>,
    ) -> Self {
        let prefix = |name: &str| name.split_once('.').and_then(|(id, _)| id.parse::<u64>().ok());
        let tensors_by_id =
            tensors.iter().all(|tensor| tensor.param_id.is_some() && prefix(&tensor.name) == tensor.param_id);
        let by_id = tensors_by_id
            && scalars.keys().all(|name| prefix(name).is_some())
            && !(tensors.is_empty() && scalars.is_empty());
        if !by_id {
            let paths =
                tensors.iter().filter_map(|tensor| Some((tensor.param_id?, tensor.name.clone()))).collect();
            return Self { by_id, paths };
        }
        let mut uses = HashMap::<&str, usize>::new();
        for path in metadata.values() {
            *uses.entry(path).or_default() += 1;
        }
        let path = |(id, path): (&String, &String)| {
            // Parameters that share a path, or whose path is a number, keep their ids.
            let plain = uses.get(&**path) == Some(&1) && prefix(&format!("{path}.")).is_none();
            plain.then_some((id.parse().ok()?, path.clone()))
        };
        Self { by_id, paths: metadata.iter().filter_map(path).collect() }
    }

    fn record(&self) -> &'static str {
        if self.by_id { BY_ID } else { NAMED }
    }

    /// Whether an entry of the container's metadata is the path of a parameter.
    fn is_path(&self, key: &str) -> bool {
        self.by_id && key.parse().is_ok_and(|id| self.paths.contains_key(&id))
    }

    /// `5.momentum.time` -> `encoder.weight.momentum.time`.
    fn outside(&self, name: &str) -> String {
        let parts = name.split_once('.').filter(|_| self.by_id);
        let path = parts.and_then(|(id, field)| Some((self.paths.get(&id.parse().ok()?)?, field)));
        match path {
            Some((path, field)) => format!("{path}.{field}"),
            None => name.to_owned(),
        }
    }

    /// The way back, and the id: the longest path that the name begins with is the parameter's.
    fn inside(&self, name: &str) -> (String, Option<u64>) {
        if !self.by_id {
            return (name.to_owned(), None);
        }
        let of = |(id, path): (&u64, &String)| {
            let field = name.strip_prefix(&**path)?.strip_prefix('.')?;
            Some((path.len(), *id, field.to_owned()))
        };
        match self.paths.iter().filter_map(of).max_by_key(|(len, ..)| *len) {
            Some((_, id, field)) => (format!("{id}.{field}"), Some(id)),
            None => (name.to_owned(), name.split_once('.').and_then(|(id, _)| id.parse().ok())),
        }
    }
}

/// A scalar as text that is read as the same scalar.
fn written(scalar: Scalar) -> String {
    match scalar {
        Scalar::Int(value) => format!("int {value}"),
        Scalar::UInt(value) => format!("uint {value}"),
        Scalar::Float(value) => format!("float {value:?}"),
        Scalar::Bool(value) => format!("bool {value}"),
    }
}

fn read(text: &str) -> Option<Scalar> {
    let (kind, value) = text.split_once(' ')?;
    Some(match kind {
        "int" => Scalar::Int(value.parse().ok()?),
        "uint" => Scalar::UInt(value.parse().ok()?),
        "float" => Scalar::Float(value.parse().ok()?),
        "bool" => Scalar::Bool(value.parse().ok()?),
        _ => return None,
    })
}

/// A name for a dtype that safetensors does not have.
fn tag(dtype: DType) -> &'static str {
    match dtype {
        DType::Flex32 => "Flex32",
        DType::Bool(BoolStore::Native) => "Bool(Native)",
        DType::Bool(BoolStore::U8) => "Bool(U8)",
        DType::Bool(BoolStore::U32) => "Bool(U32)",
        _ => "",
    }
}

fn untagged(text: &str) -> Option<DType> {
    [DType::Flex32, DType::Bool(BoolStore::Native), DType::Bool(BoolStore::U8), DType::Bool(BoolStore::U32)]
        .into_iter()
        .find(|&dtype| tag(dtype) == text)
}
