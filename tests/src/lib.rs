//! Checkpoints for tests, written by the official crate.

#[cfg(target_os = "linux")]
pub mod page_cache;
pub mod stores;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, View};
use weighbridge::HostBuffer;

/// A tensor to be written: dtype, shape, and its bytes.
#[derive(Clone, Debug)]
pub struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl Stored {
    /// A tensor of those bytes.
    pub fn new(dtype: Dtype, shape: &[usize], data: Vec<u8>) -> Self {
        Self { dtype, shape: shape.to_vec(), data }
    }

    /// A tensor whose bytes differ from place to place, and from seed to seed.
    pub fn filled(dtype: Dtype, shape: &[usize], seed: usize) -> Self {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let data = (0..bytes).map(|i| (i.wrapping_mul(31) ^ (i >> 8) ^ seed.wrapping_mul(97)) as u8);
        Self::new(dtype, shape, data.collect())
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }
}

impl View for &Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        (&self.data).into()
    }

    fn data_len(&self) -> usize {
        self.data.len()
    }
}

/// The bytes of a file with those tensors, as the official crate writes it.
///
/// # Panics
///
/// Panics when the official crate refuses.
pub fn file(tensors: &[(&str, Stored)]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, stored)| (*name, stored));
    match safetensors::serialize(views, None) {
        Ok(bytes) => bytes,
        Err(error) => panic!("{error}"),
    }
}

/// The bytes of loaded values as a file has them, on whatever machine.
///
/// # Panics
///
/// Panics for types that no test needs.
pub fn in_file_order(values: &HostBuffer) -> Vec<u8> {
    match values {
        HostBuffer::U8(values) => values.clone(),
        HostBuffer::I16(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        HostBuffer::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        HostBuffer::I64(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        other => panic!("{other:?}"),
    }
}

/// Writes shards and their index into a directory; returns the path of the index.
///
/// # Panics
///
/// Panics when a file cannot be written.
pub fn sharded(directory: &Path, shards: &[(&str, &[(&str, Stored)])]) -> PathBuf {
    let mut map = HashMap::new();
    for (name, tensors) in shards {
        write(&directory.join(name), &file(tensors));
        map.extend(tensors.iter().map(|(tensor, _)| (*tensor, *name)));
    }
    let map: Vec<_> = map.iter().map(|(tensor, shard)| format!("{tensor:?}: {shard:?}")).collect();
    let index = format!("{{\"metadata\": {{}}, \"weight_map\": {{{}}}}}", map.join(", "));
    let path = directory.join("model.safetensors.index.json");
    write(&path, index.as_bytes());
    path
}

/// The sorted names of what lies in a directory.
///
/// # Panics
///
/// Panics when it cannot be read, and at a name that is not Unicode.
pub fn names(directory: &Path) -> Vec<String> {
    let names = std::fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>());
    let mut names: Vec<_> = match names {
        Ok(names) => names.into_iter().map(|name| name.to_str().map(str::to_owned)).collect(),
        Err(error) => panic!("{}: {error}", directory.display()),
    };
    names.sort();
    names.into_iter().map(|name| name.unwrap_or_else(|| panic!("a name is not Unicode"))).collect()
}

/// Writes a file.
///
/// # Panics
///
/// Panics when it cannot be written.
pub fn write(path: &Path, bytes: &[u8]) {
    if let Err(error) = std::fs::write(path, bytes) {
        panic!("{}: {error}", path.display());
    }
}

/// Bytes of a file that nobody has to store: those from an offset on.
pub fn made_up(offset: u64, buf: &mut [u8]) {
    let mut at = offset;
    let mut rest = buf;
    while !rest.is_empty() {
        let mut word = (at / 8).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word = (word ^ word >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let bytes = (word ^ word >> 32).to_le_bytes();
        let skip = (at % 8) as usize;
        let len = rest.len().min(8 - skip);
        let (now, later) = rest.split_at_mut(len);
        now.copy_from_slice(&bytes[skip..skip + len]);
        at += len as u64;
        rest = later;
    }
}
