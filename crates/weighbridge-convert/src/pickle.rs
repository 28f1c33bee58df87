//! Pickles, PyTorch's above all: read by an interpreter that executes nothing.

mod allow;
mod arrays;
mod aside;
mod bytes;
mod calls;
mod element;
mod flatten;
mod globals;
mod jit;
mod keys;
mod legacy;
mod machine;
mod objects;
mod opcode;
mod persistent;
mod plain;
mod reach;
mod reader;
mod shards;
mod tensors;
mod text;
mod torch_nn;
mod unwrap;
mod value;
mod verdict;
mod view;
mod wanted;
mod zipped;

use std::sync::Arc;

use weighbridge::{Error, ErrorKind, Result, Source};

use crate::contents::Contents;
use crate::format::Format;
use crate::input::Input;
use crate::options::Options;

pub(crate) use element::Element;
pub(crate) use legacy::is_legacy;
pub(crate) use machine::{is_whole, load};
pub(crate) use opcode::{Op, Opcodes};
pub(crate) use reader::Reader;
pub(crate) use value::{Id, Pickle, Value};
pub use verdict::Verdict;
#[cfg(feature = "fs")]
pub(crate) use zipped::Opened;
pub(crate) use zipped::{Single, pickle_in, single};

/// Reads a file that was recognised.
pub(crate) fn read(input: &Input, format: Format, options: &Options) -> Result<Contents> {
    match format {
        Format::TorchZip => zipped::read(input, options),
        Format::TorchLegacy => legacy::read(input, options),
        Format::TorchShards => shards::read(input, options),
        _ => plain::read(input, options),
    }
}

/// Reads one file of a set.
fn read_single(input: &Input, options: &Options) -> Result<Contents> {
    match Format::of(input)? {
        Format::TorchShards => Err(Error::new(ErrorKind::Index, "a shard is an index itself")),
        format @ (Format::TorchZip | Format::TorchLegacy | Format::Pickle) => read(input, format, options),
        #[allow(unreachable_patterns)]
        format => Err(Error::new(ErrorKind::Unsupported, format!("a shard is of the format {format}"))),
    }
}

/// Bytes of an element of storages of a class: `FloatStorage`.
pub(crate) fn storage_width(class: &str) -> Option<u64> {
    element::of_storage(class).map(|element| element.bytes() as u64)
}

/// An element type by its name in `torch`: `bfloat16`.
pub(crate) fn element_of_torch(name: &str) -> Option<Element> {
    element::of_torch(name)
}

/// A storage, if it has the bytes that the pickle says.
fn of_size(source: Arc<dyn Source>, storage: &value::Storage) -> Result<Arc<dyn Source>> {
    if source.size() != storage.len {
        let message = format!("its storage has {} bytes, the pickle says {}", source.size(), storage.len);
        return Err(Error::new(ErrorKind::Malformed, message));
    }
    Ok(source)
}
