//! A checkpoint: one file, or the shards of an index, with every header read and proven.

mod assemble;
mod catalog;
mod derived;
mod files;
mod home;
mod hub;
mod listed;
mod locate;
mod options;
mod prefixed;
mod quantized;
#[cfg(feature = "remote")]
mod remote;
mod shard;
mod snapshot;
mod union;
mod warning;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::names::nearest_name;
use crate::source::Source;
pub use catalog::TensorRef;
use catalog::{Catalog, TensorIndex};
pub(crate) use derived::DerivedTensor;
pub use files::CheckpointFiles;
use home::Home;
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
    /// Opens what `location` names, whichever of these it is:
    ///
    /// - a safetensors file;
    /// - an index file, `*.index.json`, whose shards lie beside it;
    /// - a directory: `model.safetensors`, else `model.safetensors.index.json`, else numbered shards of that
    ///   name, else the same for `diffusion_pytorch_model`, `adapter_model` and `pytorch_lora_weights`, else
    ///   the only checkpoint there, whatever its name. The order is that of `transformers`;
    /// - `share:NAME`: weights that another process [shares](crate::share) under this name, mapped, not read;
    /// - where no such path exists, a repository id, `org/name` or `org/name@revision`, that the local Hugging
    ///   Face cache holds (`HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`). Nothing is
    ///   downloaded;
    /// - with the feature `remote`, an address: `hf://org/name[@revision][/path]`, `https://host/model.safetensors`,
    ///   `s3://bucket/prefix`, `gs://...`, `az://...`. Headers are read now, and of the data what is loaded, when it is.
    ///
    /// # Errors
    ///
    /// Fails when there is nothing to load, when several checkpoints could be meant, when a header breaks a
    /// rule of the format, when index and shards disagree (a shard that is not there or whose name leads out
    /// of the directory, a tensor that its shard does not hold), and when two shards hold a tensor that no
    /// index lists. Of two that the index does list, the one in the shard that it names counts, and the other
    /// is a [warning](Self::warnings).
    pub fn open(location: impl AsRef<Path>) -> Result<Self> {
        Self::options().open(location)
    }

    /// Opens several safetensors files as one checkpoint, in the order of the list, wherever they lie.
    ///
    /// No index is looked for. For files in which tensors have the same names, see [`union`](Self::union).
    ///
    /// ```
    /// use weighbridge::Checkpoint;
    ///
    /// # fn main() -> weighbridge::Result<()> {
    /// # use weighbridge::write::{Save, Values};
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let paths = ["embed", "layers"].map(|name| dir.path().join(format!("{name}.safetensors")));
    /// # for (path, name) in paths.iter().zip(["embed.weight", "layers.0.weight"]) {
    /// #     Save::new().file(path, [(name, Values::new(&[1], &[1.0_f32])?)])?;
    /// # }
    /// let ckpt = Checkpoint::open_files(&paths)?; // embed.safetensors, layers.safetensors
    /// assert_eq!(ckpt.shards().len(), 2);
    /// assert_eq!(ckpt.tensor("layers.0.weight").unwrap().shard().name(), "layers.safetensors");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) when the list is empty or a file is not
    /// there, with [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) when a path is that of a
    /// directory or an index, with [`ErrorKind::DuplicateTensor`](crate::ErrorKind::DuplicateTensor) when two
    /// files hold a tensor of one name (the error names both) or the list has one file twice, and when a header
    /// breaks a rule of the format.
    pub fn open_files(paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<Self> {
        Self::options().open_files(paths)
    }

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

    /// What is not as it should be but did not stand in the way, one line each: departures from the
    /// specification, tensors that an index does not list, and duplicates that it passes over.
    pub fn warnings(&self) -> &[String] {
        &self.0.lines
    }

    /// The name among the tensors that is most like `name`, to suggest in a message.
    pub fn nearest_name(&self, name: &str) -> Option<&str> {
        nearest_name(name, self.tensors().map(|tensor| tensor.name()))
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
