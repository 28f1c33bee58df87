//! Opening: how, and from what.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::catalog::{Catalog, Duplicates};
use super::home::Home;
use super::hub;
use super::locate::{self, Files, Located};
#[cfg(feature = "remote")]
use super::remote;
use super::snapshot::Snapshot;
use super::{Checkpoint, Shard, assemble};
use crate::blocks::BlockType;
use crate::error::{Error, ErrorKind, Result};
use crate::header::{Decode, Profile};
use crate::index::Index;
use crate::plan::Input;
use crate::share;
use crate::source::{FileSource, Mapping, MemorySource, Source};

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
    pub(super) decode: Decode,
    pub(super) variant: Option<String>,
    mapping: Option<Mapping>,
    label: Option<PathBuf>,
    directory: Option<PathBuf>,
    #[cfg(feature = "remote")]
    pub(super) remote: Option<weighbridge_remote::Remote>,
}

/// How often a checkpoint that is being replaced is opened anew, and the pause in between.
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

    /// Maps the files instead of reading them: tensors can then be [lent](crate::Entry::lend) and
    /// [viewed](super::TensorRef::view) without a copy, and opening takes no longer for a large file than for
    /// a small one. It takes a promise that nobody changes the files; see [`Mapping::new`].
    #[must_use]
    pub fn map(mut self, mapping: Mapping) -> Self {
        self.mapping = Some(mapping);
        self
    }

    /// Sets what errors call a checkpoint that is opened [from bytes](Self::from_bytes) or from a
    /// [source](Self::from_source), which have no path: where they came from. Files are called by their
    /// paths, whatever the label.
    ///
    /// ```
    /// use weighbridge::Checkpoint;
    ///
    /// let options = Checkpoint::options().label("https://example.org/model.safetensors");
    /// let error = options.from_bytes(b"404 not found".to_vec()).unwrap_err();
    /// assert!(error.to_string().starts_with("https://example.org/model.safetensors: "));
    /// ```
    #[must_use]
    pub fn label(mut self, label: impl Into<PathBuf>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Sets the [directory](Checkpoint::directory) of a checkpoint that is opened from [bytes](Self::from_bytes) or a
    /// [source](Self::from_source). A checkpoint that is opened by its path has its own.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Sets what files on a network are read with: tokens, caches, limits. Otherwise it is what the environment says.
    #[cfg(feature = "remote")]
    #[must_use]
    pub fn remote(mut self, remote: weighbridge_remote::Remote) -> Self {
        self.remote = Some(remote);
        self
    }

    /// Opens a file, a directory, an index file, a repository in the local Hugging Face cache, or an address.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open`].
    pub fn open(&self, location: impl AsRef<Path>) -> Result<Checkpoint> {
        if let Some(name) = share::name_in(location.as_ref()) {
            return share::open(name, self);
        }
        #[cfg(feature = "remote")]
        if let Some(address) = crate::remote::address(location.as_ref()) {
            return remote::open(&address?, self);
        }
        let path = Self::resolve(location.as_ref())?;
        unreplaced(std::slice::from_ref(&path), || {
            let located = locate::locate(&path, self.variant.as_deref());
            let stem = located.as_ref().ok().and_then(Located::stem);
            (stem, located.and_then(|located| self.open_located(&located)))
        })
    }

    /// Opens several safetensors files as one checkpoint.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open_files`].
    pub fn open_files(&self, paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<Checkpoint> {
        let paths: Vec<_> = paths.into_iter().map(|path| path.as_ref().to_owned()).collect();
        if paths.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, "the list of files to open is empty"));
        }
        each_file_once(&paths)?;
        unreplaced(&paths, || (None, self.open_list(&paths)))
    }

    /// A path, or what it stands for in the cache.
    pub(super) fn resolve(location: &Path) -> Result<PathBuf> {
        match location.exists() || locate::is_coming(location)? {
            true => Ok(location.to_owned()),
            false if is_address(location) => {
                let message = "it is an address, and this needs a path; with the feature `remote` of weighbridge,                                checkpoints can be opened by address";
                Err(Error::new(ErrorKind::Unsupported, message).in_file(location))
            }
            false => hub::hub_snapshot(location),
        }
    }

    fn open_located(&self, Located { files, listing }: &Located) -> Result<Checkpoint> {
        let home = Home::Directory(listing.directory.clone());
        let shards = |names: &[String]| names.iter().map(|name| self.file(&listing.place(name))).collect();
        match files {
            Files::Single(name) => assemble::unlisted(vec![self.file(&listing.place(name))?], home),
            Files::Set(names) => assemble::unlisted(shards(names)?, home),
            Files::Index(name) => {
                let index = Index::read(&listing.place(name))?;
                let names: Vec<_> = index.shards().map(str::to_owned).collect();
                assemble::listed(shards(&names), &index, &listing.directory.join(name), home)
            }
        }
    }

    fn open_list(&self, paths: &[PathBuf]) -> Result<Checkpoint> {
        let (mut shards, mut directories) =
            (Vec::with_capacity(paths.len()), Vec::with_capacity(paths.len()));
        for path in paths {
            let (file, directory) = locate::locate_file(path)?;
            shards.push(self.file(&file)?);
            directories.push(Home::Directory(directory));
        }
        let remedy =
            "leave one of the files out, or open each and give its tensors a prefix with Checkpoint::union";
        let catalog = Catalog::of(shards, &Duplicates::Refuse(remedy))?;
        let home = Home::common(directories.iter().map(Some));
        Ok(Checkpoint::with_header_warnings(catalog, home, Vec::new()))
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
        self.from_source_of_blocks(source, HashMap::new())
    }

    /// The same of a source that computes tensors from [`Blocks`](crate::Blocks): `blocks` says by name of which
    /// type they are and where, as [words](BlockType::words).
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open`], and when a tensor has another number of blocks than its shape needs.
    pub fn from_source_of_blocks(
        &self,
        source: impl Source + 'static,
        mut blocks: HashMap<String, (BlockType, Input)>,
    ) -> Result<Checkpoint> {
        let label = self.label.as_deref();
        let header = self.decode.read(&source).map_err(|error| match label {
            Some(label) => error.in_file(label),
            None => error,
        })?;
        let has_blocks = !blocks.is_empty();
        let stored = header.tensors().filter(|_| has_blocks).map(|tensor| {
            let Some((block_type, input)) = blocks.remove(tensor.name()) else { return Ok(None) };
            let is_right = input.dtype() == block_type.words()
                && block_type.shape_in_words(tensor.shape()).is_some_and(|shape| shape == input.shape());
            let wrong = || {
                let message = format!("its blocks of {block_type} are not those of its shape");
                Error::new(ErrorKind::Shape, message).in_tensor(tensor.name())
            };
            is_right.then_some(Some((block_type, input))).ok_or_else(wrong)
        });
        let stored = stored.collect::<Result<_>>()?;
        let shard = Shard::labelled(label, header, source).with_blocks(stored);
        let catalog = Catalog::of(vec![shard], &Duplicates::Refuse(""))?;
        let home = self.directory.clone().map(Home::Directory);
        Ok(Checkpoint::with_header_warnings(catalog, home, Vec::new()))
    }

    /// Opens one file; errors name it.
    pub(super) fn file(&self, path: &Path) -> Result<Shard> {
        let unopened = |error| Error::io("it cannot be opened", error);
        let shard = match &self.mapping {
            Some(mapping) => mapping.open(path).map_err(unopened).and_then(|source| self.shard(path, source)),
            None => FileSource::open(path).and_then(|source| {
                source.read_header(|| {
                    let shard = self.shard(path, source.clone())?;
                    let header = shard.header().data_start();
                    Ok((shard, header))
                })
            }),
        };
        shard.map_err(|error| error.in_file(path))
    }

    fn shard(&self, path: &Path, source: impl Source + 'static) -> Result<Shard> {
        Ok(Shard::file(path, self.decode.read(&source)?, source))
    }
}

/// Whether a location looks like the address of something on a network.
fn is_address(location: &Path) -> bool {
    let schemes = ["hf://", "https://", "http://", "s3://", "gs://", "az://"];
    location.to_str().is_some_and(|text| schemes.iter().any(|scheme| text.starts_with(scheme)))
}

/// Opens files that may be replaced meanwhile. What was opened belongs together if it is one file, or if its
/// files, those of the checkpoint whose stem `open` gives, are the same as before.
fn unreplaced(
    paths: &[PathBuf],
    open: impl Fn() -> (Option<String>, Result<Checkpoint>),
) -> Result<Checkpoint> {
    let mut outcome = Ok(());
    for _ in 0..ATTEMPTS {
        let before = Snapshot::of(paths);
        let (stem, opened) = open();
        let is_single = opened.as_ref().is_ok_and(|checkpoint| checkpoint.shards().len() == 1);
        if is_single || before.is_same(&Snapshot::of(paths), stem.as_deref()) {
            return opened;
        }
        outcome = opened.map(drop);
        std::thread::sleep(PAUSE);
    }
    // What keeps it from being opened says more than that it changes.
    outcome?;
    let message = "the checkpoint is being replaced again and again, or is still being written";
    let error = Error::new(ErrorKind::Busy, message);
    Err(paths.first().map_or(error.clone(), |path| error.in_file(path)))
}

/// Refuses a list that has one file twice, under whatever names.
fn each_file_once(paths: &[PathBuf]) -> Result<()> {
    let mut seen = HashMap::with_capacity(paths.len());
    for path in paths {
        // Why a file cannot be found is said when it is opened.
        let Ok(file) = fs::canonicalize(path) else { continue };
        if let Some(first) = seen.insert(file, path) {
            let message = match first == path {
                true => "the list of files has it twice; list it once".to_owned(),
                false => format!("it is the same file as {:?}; list it once", first.display()),
            };
            return Err(Error::new(ErrorKind::DuplicateTensor, message).in_file(path));
        }
    }
    Ok(())
}
