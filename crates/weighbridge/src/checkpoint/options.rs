//! Opening: how, and from what.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::catalog::{Catalog, Duplicates};
use super::home::Home;
use super::{Checkpoint, Shard, assemble};
use crate::blocks::BlockType;
use crate::error::{Error, ErrorKind, Result};
use crate::header::{Decode, Profile};
use crate::index::Index;
use crate::plan::Input;
use crate::source::{MemorySource, Source};

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
    label: Option<PathBuf>,
    directory: Option<PathBuf>,
    #[cfg(feature = "fs")]
    pub(super) files: super::open::FileOptions,
}

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

    /// Opens several safetensors files as one checkpoint: the name of each, and its bytes. With an index, these are the shards
    /// that it names, and more are not looked at.
    ///
    /// ```
    /// use weighbridge::Checkpoint;
    /// use weighbridge::source::MemorySource;
    /// use weighbridge::write::{Save, Values};
    ///
    /// # fn main() -> weighbridge::Result<()> {
    /// let file = |name: &str| Save::new().bytes([(name, Values::new(&[1], &[1.0_f32])?)]);
    /// let files = [("a.safetensors", MemorySource(file("one")?)), ("b.safetensors", MemorySource(file("two")?))];
    /// assert_eq!(Checkpoint::options().from_sources(files, None)?.len(), 2);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open`].
    pub fn from_sources<N: AsRef<Path>, S: Source + 'static>(
        &self,
        files: impl IntoIterator<Item = (N, S)>,
        index: Option<&Index>,
    ) -> Result<Checkpoint> {
        let home = self.directory.clone().map(Home::Directory);
        let shard = |(name, source): (N, S)| {
            let name = name.as_ref();
            let header = self.decode.read(&source).map_err(|error| error.in_file(name))?;
            Ok(Shard::labelled(Some(name), header, source))
        };
        let Some(index) = index else {
            return assemble::unlisted(files.into_iter().map(shard).collect::<Result<_>>()?, home);
        };
        let mut files: BTreeMap<_, _> =
            files.into_iter().map(|file| (file.0.as_ref().to_owned(), file)).collect();
        let shards = index.shards().map(|name| match files.remove(Path::new(name)) {
            Some(file) => shard(file),
            None => {
                Err(Error::new(ErrorKind::NotFound, "it is not among the files").in_file(Path::new(name)))
            }
        });
        let label = self.label.as_deref().unwrap_or(Path::new("the index"));
        assemble::listed(shards.collect(), index, label, home)
    }

    /// As [`from_source`](Self::from_source), of a source that computes tensors from [`Blocks`](crate::Blocks): `blocks` says by name of which
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
}
