//! Opening by path or address.

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
use super::{Checkpoint, OpenOptions, Shard, assemble};
use crate::error::{Error, ErrorKind, Result};
use crate::header::Header;
use crate::index::Index;
use crate::share;
use crate::source::{FileSource, Mapping, Source};

/// What matters to files only.
#[derive(Clone, Debug, Default)]
pub(super) struct FileOptions {
    pub(super) variant: Option<String>,
    mapping: Option<Mapping>,
    #[cfg(feature = "remote")]
    pub(super) remote: Option<weighbridge_remote::Remote>,
}

/// How often a checkpoint that is being replaced is opened anew, and the pause in between.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(2);

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
}

impl OpenOptions {
    /// Asks for a variant such as `fp16`: `model.fp16.safetensors` instead of `model.safetensors`.
    #[must_use]
    pub fn variant(mut self, variant: impl Into<String>) -> Self {
        self.files.variant = Some(variant.into());
        self
    }

    /// Maps the files instead of reading them: tensors can then be [lent](crate::Entry::lend) and
    /// [viewed](super::TensorRef::view) without a copy, and opening takes no longer for a large file than for
    /// a small one. It takes a promise that nobody changes the files; see [`Mapping::new`].
    #[must_use]
    pub fn map(mut self, mapping: Mapping) -> Self {
        self.files.mapping = Some(mapping);
        self
    }

    /// Sets what files on a network are read with: tokens, caches, limits. Otherwise it is what the environment says.
    #[cfg(feature = "remote")]
    #[must_use]
    pub fn remote(mut self, remote: weighbridge_remote::Remote) -> Self {
        self.files.remote = Some(remote);
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
            let located = locate::locate(&path, self.files.variant.as_deref());
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
            Files::Single(name) => assemble::unlisted(vec![self.file(&listing.place(name))?], Some(home)),
            Files::Set(names) => assemble::unlisted(shards(names)?, Some(home)),
            Files::Index(name) => {
                let index = Index::read(&listing.place(name))?;
                let names: Vec<_> = index.shards().map(str::to_owned).collect();
                assemble::listed(shards(&names), &index, &listing.directory.join(name), Some(home))
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

    /// Opens one file; errors name it.
    pub(super) fn file(&self, path: &Path) -> Result<Shard> {
        let unopened = |error| Error::io("it cannot be opened", error);
        let shard = match &self.files.mapping {
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

impl Shard {
    /// A safetensors file, already open.
    pub(super) fn file(path: &Path, header: Header, source: impl Source + 'static) -> Self {
        let mut shard = Self::labelled(Some(path), header, source);
        shard.is_file = true;
        shard
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
