//! A checkpoint: one file, or the shards of an index, with every header read and proven.

mod assemble;
mod catalog;
mod derived;
#[cfg(feature = "fs")]
mod files;
mod home;
#[cfg(feature = "fs")]
mod hub;
mod listed;
#[cfg(feature = "fs")]
mod locate;
#[cfg(feature = "fs")]
mod open;
mod options;
mod prefixed;
mod quantized;
#[cfg(feature = "remote")]
mod remote;
mod shard;
#[cfg(feature = "fs")]
mod snapshot;
mod union;
mod warning;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::names::NearestNames;
use crate::source::Source;
pub use catalog::TensorRef;
use catalog::{Catalog, TensorIndex};
pub(crate) use derived::DerivedTensor;
#[cfg(feature = "fs")]
pub use files::CheckpointFiles;
use home::Home;
#[cfg(feature = "fs")]
pub use hub::hub_snapshot;
pub use options::OpenOptions;
pub(crate) use quantized::may_be_codes;
pub use quantized::{QuantMethod, Quantized, QuantizedModule};
pub use shard::Shard;
use warning::Warning;

/// The tensors of a model, wherever their shards lie. Cloning is cheap.
///
/// Opening reads headers only, but reads them all: afterwards every name resolves to proven bytes, and the
/// files stay open, so that nothing which happens to their names changes what is loaded.
///
/// ```
/// use weighbridge::Checkpoint;
///
/// # fn main() -> weighbridge::Result<()> {
/// # let bytes = b"\x35\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}xy".to_vec();
/// let ckpt = Checkpoint::from_bytes(bytes)?; // or Checkpoint::open("path/to/model")
/// for tensor in ckpt.tensors() {
///     println!("{} {} {:?}", tensor.name(), tensor.dtype(), tensor.shape());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Checkpoint(Arc<Inner>);

struct Inner {
    catalog: Catalog,
    home: Option<Home>,
    warnings: Vec<Warning>,
    /// The warnings, as text.
    lines: Vec<String>,
    quantized: OnceLock<quantized::Modules>,
    /// Why the weights of these names cannot be had of their codes.
    refusals: HashMap<String, Error>,
    /// Tensors that hold codes, as the configuration says, though no method is known that has them so.
    alone: Vec<TensorIndex>,
}

impl Checkpoint {
    /// Opens the bytes of one safetensors file that are in memory; they are kept as they are.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn from_bytes(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Self> {
        Self::options().from_bytes(bytes)
    }

    /// Opens one safetensors file that any [`Source`] gives.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn from_source(source: impl Source + 'static) -> Result<Self> {
        Self::options().from_source(source)
    }

    /// Profile, limits and variant, for the opening functions of the same names.
    pub fn options() -> OpenOptions {
        OpenOptions::default()
    }

    fn new(catalog: Catalog, home: Option<Home>, warnings: Vec<Warning>) -> Self {
        let lines = warnings.iter().map(Warning::line).collect();
        Self(Arc::new(Inner {
            catalog,
            home,
            warnings,
            lines,
            quantized: OnceLock::new(),
            refusals: HashMap::new(),
            alone: Vec::new(),
        }))
    }

    /// A checkpoint whose shards were just opened; `warnings` come behind those of their headers.
    fn with_header_warnings(catalog: Catalog, home: Option<Home>, warnings: Vec<Warning>) -> Self {
        let of_headers = catalog.shards().iter().flat_map(|shard| Warning::of_header(shard));
        let warnings = of_headers.chain(warnings).collect();
        Self::new(catalog, home, warnings)
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<TensorRef<'_>> {
        let catalog = &self.0.catalog;
        catalog.at(catalog.find(name)?)
    }

    /// Every tensor, shard by shard, in the order of their data.
    pub fn tensors(&self) -> impl Iterator<Item = TensorRef<'_>> {
        self.0.catalog.tensors()
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.0.catalog.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of data of all tensors.
    pub fn byte_len(&self) -> u64 {
        self.0.catalog.byte_len()
    }

    /// The files: in the order of their names, or of the list that they were opened by; those of a
    /// [union](Self::union) part by part.
    ///
    /// Their headers have the tensors' names without prefixes, and also the duplicates that an index passes
    /// over: to see what the checkpoint holds, use [`tensors`](Self::tensors).
    pub fn shards(&self) -> &[Arc<Shard>] {
        self.0.catalog.shards()
    }

    /// For each of the [`shards`](Self::shards), what its tensors' names begin with in this checkpoint and
    /// not in its header; empty except in a [union](Self::union). Tensor names in a header's metadata need the
    /// same prefix.
    pub fn prefixes(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.shards().len()).map(|shard| self.0.catalog.prefix(shard))
    }

    /// The directory in which the checkpoint lies, with its `config.json` and whatever else belongs to it.
    /// `None` for bytes and sources, for files in several directories, and for what is on a network;
    /// [`beside`](Self::beside) finds files wherever the checkpoint is.
    pub fn directory(&self) -> Option<&Path> {
        match &self.0.home {
            Some(Home::Directory(directory)) => Some(directory),
            _ => None,
        }
    }

    /// How many files it has: its shards without those that are no files, whose weights are made of codes
    /// ([`dequantized`](Self::dequantized)).
    pub fn file_count(&self) -> usize {
        self.shards().iter().filter(|shard| !shard.is_derived()).count()
    }

    /// What is not as it should be but did not stand in the way, one line each: departures from the
    /// specification, tensors that an index does not list, and duplicates that it passes over.
    pub fn warnings(&self) -> &[String] {
        &self.0.lines
    }

    /// The name among the tensors that is most like `name`, to suggest in a message.
    pub fn nearest_name(&self, name: &str) -> Option<&str> {
        self.nearest_names(name).first()
    }

    /// The names among the tensors that are most like `name`.
    pub fn nearest_names(&self, name: &str) -> NearestNames<'_> {
        NearestNames::of(name, self.tensors().map(|tensor| tensor.name()))
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint")
            .field("directory", &self.directory())
            .field("shards", &self.shards().len())
            .field("tensors", &self.len())
            .field("bytes", &self.byte_len())
            .finish()
    }
}
