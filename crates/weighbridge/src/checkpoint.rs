//! A checkpoint: one file, or the shards of an index, with every header read and proven.

mod files;
mod hub;
mod locate;
mod quantized;

use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::header::{Decode, Header, Profile, TensorInfo};
use crate::index::Index;
use crate::names::nearest_name;
use crate::source::{FileSource, Hints, Mapping, MemorySource, Source};
use crate::view::TensorView;
pub use files::CheckpointFiles;
pub use hub::hub_snapshot;
use locate::{Files, Listing, Located};
pub use quantized::{QuantMethod, Quantized, QuantizedModule};

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
    shards: Vec<Arc<Shard>>,
    by_name: HashTable<Place>,
    hasher: RandomState,
    directory: Option<PathBuf>,
    warnings: Vec<String>,
    quantized: OnceLock<quantized::Modules>,
}

/// One file of a checkpoint.
pub struct Shard {
    path: Option<PathBuf>,
    source: Arc<dyn Source>,
    header: Header,
    hints: Hints,
    number: u64,
}

/// Numbers shards in the order in which they are opened.
static OPENED: AtomicU64 = AtomicU64::new(0);

/// Where a tensor is: which shard, and which of its tensors.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    shard: u32,
    tensor: u32,
}

/// How a checkpoint is opened.
///
/// ```no_run
/// use weighbridge::{Checkpoint, Profile};
///
/// # fn main() -> weighbridge::Result<()> {
/// let ckpt = Checkpoint::options().profile(Profile::Strict).variant("fp16").open("sdxl/unet")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    decode: Decode,
    variant: Option<String>,
    mapping: Option<Mapping>,
}

/// So often a checkpoint is opened anew that is replaced meanwhile, with a pause in between.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(2);

impl OpenOptions {
    /// Sets how strictly headers are read; [`Profile::Compat`] otherwise.
    #[must_use]
    pub fn profile(mut self, profile: Profile) -> Self {
        self.decode = self.decode.profile(profile);
        self
    }

    /// Sets the greatest length of a header in bytes; 100 MB otherwise, as in the official crate.
    #[must_use]
    pub fn header_limit(mut self, bytes: u64) -> Self {
        self.decode = self.decode.header_limit(bytes);
        self
    }

    /// Asks for a variant such as `fp16`: `model.fp16.safetensors` instead of `model.safetensors`.
    #[must_use]
    pub fn variant(mut self, variant: impl Into<String>) -> Self {
        self.variant = Some(variant.into());
        self
    }

    /// Maps the files instead of reading them: tensors can then be [lent](Checkpoint::lend) and
    /// [viewed](TensorRef::view) without a copy, and opening takes no longer for a large file than for a small one.
    /// It takes a promise that nobody changes the files; see [`Mapping::new`].
    #[must_use]
    pub fn map(mut self, mapping: Mapping) -> Self {
        self.mapping = Some(mapping);
        self
    }

    /// Opens a file, a directory, an index file, or a repository in the local Hugging Face cache.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open`].
    pub fn open(&self, location: impl AsRef<Path>) -> Result<Checkpoint> {
        let path = Self::resolve(location.as_ref())?;
        // A set of files may be replaced while it is opened. What was opened is of one set if nothing changed
        // meanwhile, or if it is of one file.
        let mut opened = Err(Error::new(ErrorKind::Internal, "it was not opened"));
        for _ in 0..ATTEMPTS {
            let before = locate::signature(&path);
            let located = locate::locate(&path, self.variant.as_deref());
            // Only its own files count: others may well be written all the time.
            let stem = located.as_ref().ok().and_then(Located::stem);
            opened = located.and_then(|located| self.open_located(&located));
            let single = opened.as_ref().is_ok_and(|ckpt| ckpt.shards().len() == 1);
            if single || locate::same(&before, &locate::signature(&path), stem.as_deref()) {
                return opened;
            }
            std::thread::sleep(PAUSE);
        }
        opened?;
        let message = "the checkpoint is being replaced again and again, or is still being written";
        Err(Error::new(ErrorKind::Busy, message).in_file(&path))
    }

    /// A path, or what it stands for in the cache.
    fn resolve(location: &Path) -> Result<PathBuf> {
        match location.exists() || locate::is_coming(location)? {
            true => Ok(location.to_owned()),
            false => hub::hub_snapshot(location),
        }
    }

    fn open_located(&self, Located { files, listing }: &Located) -> Result<Checkpoint> {
        match files {
            Files::Single(name) => self.open_all(listing, std::slice::from_ref(name), None),
            Files::Set(names) => self.open_all(listing, names, None),
            Files::Index(name) => {
                let index = Index::read(&listing.place(name))?;
                let names: Vec<_> = index.shards().map(str::to_owned).collect();
                self.open_all(listing, &names, Some((&listing.directory.join(name), &index)))
            }
        }
    }

    /// Opens the bytes of one safetensors file that are in memory.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open`].
    pub fn from_bytes(&self, bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Checkpoint> {
        self.from_source(MemorySource(bytes))
    }

    /// Opens one safetensors file that any [`Source`] gives.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open`].
    pub fn from_source(&self, source: impl Source + 'static) -> Result<Checkpoint> {
        Checkpoint::new(vec![self.shard_of(None, source)?], None, None)
    }

    fn open_all(
        &self,
        listing: &Listing,
        names: &[String],
        index: Option<(&Path, &Index)>,
    ) -> Result<Checkpoint> {
        let mut shards = Vec::with_capacity(names.len());
        for name in names {
            let path = listing.place(name);
            let shard = self.shard(&path).map_err(|error| match (index, error.kind()) {
                (Some((index, _)), ErrorKind::NotFound) => {
                    let message = format!("the shard {:?} that it names is not there", path.display());
                    Error::new(ErrorKind::MissingShard, message).with_source(error).in_file(index)
                }
                _ => error.in_file(&path),
            })?;
            shards.push(shard);
        }
        Checkpoint::new(shards, Some(listing.directory.clone()), index)
    }

    fn shard(&self, path: &Path) -> Result<Shard> {
        let unopened = |error| Error::io("it cannot be opened", error);
        match &self.mapping {
            Some(mapping) => self.shard_of(Some(path), mapping.open(path).map_err(unopened)?),
            None => self.shard_of(Some(path), FileSource::open(path).map_err(unopened)?),
        }
    }

    fn shard_of(&self, path: Option<&Path>, source: impl Source + 'static) -> Result<Shard> {
        let header = self.decode.read(&source)?;
        Ok(Shard {
            path: path.map(Path::to_owned),
            hints: source.hints(),
            header,
            source: Arc::new(source),
            number: OPENED.fetch_add(1, Ordering::Relaxed),
        })
    }
}

impl Checkpoint {
    /// Opens what `location` names, whichever of these it is:
    ///
    /// - a safetensors file;
    /// - an index file, `*.index.json`, whose shards lie beside it;
    /// - a directory: `model.safetensors`, else `model.safetensors.index.json`, else numbered shards of that
    ///   name, else the same for `diffusion_pytorch_model`, `adapter_model` and `pytorch_lora_weights`, else
    ///   the only checkpoint there, whatever its name. The order is that of `transformers`;
    /// - where no such path exists, a repository id, `org/name` or `org/name@revision`, that the local Hugging
    ///   Face cache holds (`HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`). Nothing is
    ///   downloaded.
    ///
    /// # Errors
    ///
    /// Fails when there is nothing to load, when several checkpoints could be meant, when a header breaks a
    /// rule of the format, and when index and shards disagree: a shard that is not there or whose name leads
    /// out of the directory, a tensor that its shard does not hold or that two shards hold.
    pub fn open(location: impl AsRef<Path>) -> Result<Self> {
        Self::options().open(location)
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

    fn new(shards: Vec<Shard>, directory: Option<PathBuf>, index: Option<(&Path, &Index)>) -> Result<Self> {
        let mut inner = Inner {
            shards: shards.into_iter().map(Arc::new).collect(),
            by_name: HashTable::new(),
            hasher: RandomState::new(),
            directory,
            warnings: Vec::new(),
            quantized: OnceLock::new(),
        };
        if inner.shards.len() > 1 {
            inner.index_names()?;
        }
        for shard in &inner.shards {
            let findings = shard.header.findings().iter();
            inner.warnings.extend(findings.map(|finding| match &shard.path {
                Some(path) => format!("{}: {finding}", path.display()),
                None => finding.to_string(),
            }));
        }
        if let Some((path, index)) = index {
            inner.agree(path, index)?;
        }
        Ok(Self(Arc::new(inner)))
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<TensorRef<'_>> {
        let place = self.0.place(name)?;
        self.0.at(place)
    }

    /// Every tensor, shard by shard, in the order of their data.
    pub fn tensors(&self) -> impl Iterator<Item = TensorRef<'_>> {
        self.shards().iter().enumerate().flat_map(|(number, shard)| {
            shard.header.tensors().map(move |info| TensorRef { info, shard, number })
        })
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.shards().iter().map(|shard| shard.header.len()).sum()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of data of all tensors.
    pub fn byte_len(&self) -> u64 {
        self.shards().iter().fold(0, |sum, shard| sum.saturating_add(shard.header.data_len()))
    }

    /// The files, in the order of their names.
    pub fn shards(&self) -> &[Arc<Shard>] {
        &self.0.shards
    }

    /// The directory in which the checkpoint lies, with its `config.json` and whatever else belongs to it.
    /// `None` for bytes and sources.
    pub fn directory(&self) -> Option<&Path> {
        self.0.directory.as_deref()
    }

    /// What is not as the specification wants it but did not stand in the way, one line each.
    pub fn warnings(&self) -> &[String] {
        &self.0.warnings
    }

    /// The name among the tensors that is most like `name`, to suggest in a message.
    pub fn nearest_name(&self, name: &str) -> Option<&str> {
        nearest_name(name, self.tensors().map(|tensor| tensor.name()))
    }
}

impl Inner {
    fn place(&self, name: &str) -> Option<Place> {
        if let [shard] = &*self.shards {
            let tensor = shard.header.place(name)?;
            return Some(Place { shard: 0, tensor: tensor as u32 });
        }
        let same = |place: &Place| self.at(*place).is_some_and(|tensor| tensor.name() == name);
        self.by_name.find(self.hasher.hash_one(name), same).copied()
    }

    fn at(&self, place: Place) -> Option<TensorRef<'_>> {
        let number = place.shard as usize;
        let shard = self.shards.get(number)?;
        let info = shard.header.at(place.tensor as usize)?;
        Some(TensorRef { info, shard, number })
    }

    fn index_names(&mut self) -> Result<()> {
        let count = self.shards.iter().map(|shard| shard.header.len()).sum();
        let mut by_name = HashTable::with_capacity(count);
        let name = |place: &Place| self.at(*place).map_or("", |tensor| tensor.name());
        for (shard, number) in self.shards.iter().zip(0..) {
            for (info, tensor) in shard.header.tensors().zip(0..) {
                let place = Place { shard: number, tensor };
                let slot = by_name.entry(
                    self.hasher.hash_one(info.name()),
                    |other: &Place| name(other) == info.name(),
                    |other| self.hasher.hash_one(name(other)),
                );
                match slot {
                    Entry::Vacant(slot) => drop(slot.insert(place)),
                    Entry::Occupied(slot) => {
                        let first = self.shards[slot.get().shard as usize].name();
                        let message = format!("it stands in {first} too");
                        let error = Error::new(ErrorKind::DuplicateTensor, message);
                        return Err(shard.blame(error.in_tensor(info.name())));
                    }
                }
            }
        }
        self.by_name = by_name;
        Ok(())
    }

    /// Whether the shards hold what the index says.
    fn agree(&mut self, path: &Path, index: &Index) -> Result<()> {
        for (tensor, shard_name) in index.weights() {
            let fail = |kind, message| Err(Error::new(kind, message).in_tensor(tensor).in_file(path));
            match self.place(tensor).and_then(|place| self.at(place)) {
                None => {
                    let message = format!("the index places it in {shard_name:?}, which does not hold it");
                    return fail(ErrorKind::MissingTensor, message);
                }
                Some(found) if index.shard_number(shard_name) != Some(found.number) => {
                    let actual = found.shard.name();
                    let message =
                        format!("the index places it in {shard_name:?}, but it stands in {actual:?}");
                    return fail(ErrorKind::MissingTensor, message);
                }
                Some(_) => {}
            }
        }
        let listed = index.weights().len();
        let there: usize = self.shards.iter().map(|shard| shard.header.len()).sum();
        if there > listed {
            let more = there - listed;
            self.warnings.push(format!("{}: {more} tensors in its shards are not listed", path.display()));
        }
        Ok(())
    }
}

impl Shard {
    /// The name of the file, or `<memory>`.
    pub fn name(&self) -> std::borrow::Cow<'_, str> {
        match self.path.as_deref().and_then(Path::file_name) {
            Some(name) => name.to_string_lossy(),
            None => "<memory>".into(),
        }
    }

    /// Where the file is, unless it is in memory or behind a [`Source`].
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What the file holds.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The bytes of the file.
    pub fn source(&self) -> &Arc<dyn Source> {
        &self.source
    }

    /// Tells it from every other shard of the program; ascends in the order in which shards were opened.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// How its source likes to be read.
    pub(crate) fn hints(&self) -> Hints {
        self.hints
    }

    /// Names this shard in an error.
    pub(crate) fn blame(&self, error: Error) -> Error {
        match &self.path {
            Some(path) => error.in_file(path),
            None => error,
        }
    }
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard").field("name", &self.name()).field("tensors", &self.header.len()).finish()
    }
}

/// One tensor of a checkpoint.
#[derive(Clone, Copy)]
pub struct TensorRef<'a> {
    info: TensorInfo<'a>,
    shard: &'a Arc<Shard>,
    number: usize,
}

impl<'a> TensorRef<'a> {
    /// The name.
    pub fn name(&self) -> &'a str {
        self.info.name()
    }

    /// The type of the elements, as stored.
    pub fn dtype(&self) -> Dtype {
        self.info.dtype()
    }

    /// The size of each dimension, in elements; empty for a scalar.
    pub fn shape(&self) -> &'a [usize] {
        self.info.shape()
    }

    /// The number of elements.
    pub fn elements(&self) -> u64 {
        self.info.elements()
    }

    /// The number of bytes, as stored.
    pub fn byte_len(&self) -> u64 {
        self.info.byte_len()
    }

    /// The header's entry.
    pub fn info(&self) -> TensorInfo<'a> {
        self.info
    }

    /// Its bytes where they are, if the checkpoint is in memory: [`Checkpoint::from_bytes`], [`OpenOptions::map`].
    pub fn view(&self) -> Option<TensorView<'a>> {
        TensorView::of(&self.info, self.shard.source.as_bytes()?)
    }

    /// The file that holds it.
    pub fn shard(&self) -> &'a Arc<Shard> {
        self.shard
    }

    /// Which of [`Checkpoint::shards`] that is.
    pub fn shard_number(&self) -> usize {
        self.number
    }
}

impl std::fmt::Debug for TensorRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TensorRef").field("info", &self.info).field("shard", &self.shard.name()).finish()
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
