//! Writing checkpoints: streamed, the same bytes every time, and nothing visible until it is whole.
//!
//! [`Save`] writes tensors to a file, a directory of shards, or memory. It takes anything that is
//! [`TensorData`] and asks each tensor for its bytes only when they are due, so a model never has to be in
//! memory as a whole.
//!
//! ```
//! use weighbridge::write::{Save, Values};
//! use weighbridge::{Dtype, SafeTensors, TensorView};
//!
//! # fn main() -> weighbridge::Result<()> {
//! let bias = Values::new(&[2], &[0.5_f32, -1.0])?;
//! let bytes = Save::new().metadata("format", "pt").bytes([("linear.bias", bias)])?;
//! assert_eq!(*SafeTensors::parse(&bytes)?.tensor("linear.bias").unwrap().values::<f32>()?, [0.5, -1.0]);
//! # Ok(())
//! # }
//! ```
//!
//! Where the bytes come piece by piece, from a device or a network, lay the file out first and push them:
//!
//! ```
//! use std::io::Write;
//! use weighbridge::{Dtype, write::{OutputFile, Save}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("model.safetensors");
//! let layout = Save::new().layout([("a", Dtype::U8, vec![4]), ("b", Dtype::F32, vec![1])])?;
//! let mut writer = layout.writer(OutputFile::atomic(&path)?)?;
//! while let Some(name) = writer.expects().map(str::to_owned) {
//!     let mut tensor = writer.tensor(&name)?;
//!     tensor.write_all(&[1, 2])?;
//!     tensor.write_all(&[3, 4])?;
//!     tensor.finish()?;
//! }
//! writer.finish()?.commit()?; // only now is there a file
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised
//!
//! | | |
//! |---|---|
//! | the same tensors, metadata and options | give the same bytes |
//! | [`Save::file`] | the destination holds the old file or the new one, whenever the process or the machine stops |
//! | [`Save::directory`] | the same for the whole set as [`Checkpoint::open`](crate::Checkpoint::open) sees it; others see a mixed set while files are renamed, after the last byte was written |
//! | [`Save::unprotected`] | nothing: for file systems that cannot rename, and devices |
//! | a tensor with too few or too many bytes | is an error, and nothing becomes visible |
//!
//! A full disk is an error like any other. A limit on the size of files (`ulimit -f`) is one only if the
//! program ignores `SIGXFSZ`, which ends it otherwise; that is the program's to decide, and a temporary file
//! may be left then, which the next save to the same destination removes.

mod aliases;
mod beside;
mod copy;
mod data;
mod directory;
mod flush;
mod layout;
mod lock;
mod metadata;
mod output;
mod parallel;
mod recover;
#[cfg(feature = "remote")]
mod remote;
mod set;
mod split;
mod tensors;
mod watch;
mod writer;

use std::io;
use std::path::Path;

pub use aliases::Aliases;
pub use data::{Ranges, Stored, TensorData, Values};
pub use directory::Directory;
pub use layout::{Layout, Order, Planned};
pub use metadata::MetadataEdit;
pub use output::OutputFile;
pub use recover::recover;
pub use set::Saved;
pub use split::{Split, parse_size};
pub use writer::{TensorWriter, Writer};

use crate::dtype::Dtype;
use crate::error::Result;
use crate::progress::{Handler, IntoFlow, Progress};
use beside::SideFile;
use layout::{Form, check_names};
use set::SetOptions;
use tensors::{described, named, watch, write_file, write_into};

/// Writes tensors, and says how.
///
/// ```no_run
/// use weighbridge::write::{Save, parse_size};
/// # fn main() -> weighbridge::Result<()> {
/// # let tensors: Vec<(String, weighbridge::TensorView<'_>)> = Vec::new();
/// let save = Save::new().metadata("format", "pt");
/// save.file("model.safetensors", tensors.clone())?;
/// save.max_shard_size(parse_size("5GB")?).directory("my-model", "model", tensors)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Save {
    form: Form,
    max_shard_size: u64,
    variant: Option<String>,
    unprotected: bool,
    progress: Option<Handler>,
    beside: Vec<SideFile>,
    #[cfg(feature = "remote")]
    remote: Option<weighbridge_remote::Remote>,
}

impl Default for Save {
    fn default() -> Self {
        Self {
            form: Form::default(),
            max_shard_size: Split::DEFAULT_SIZE,
            variant: None,
            unprotected: false,
            progress: None,
            beside: Vec::new(),
            #[cfg(feature = "remote")]
            remote: None,
        }
    }
}

impl Save {
    /// The official order, no metadata, shards of 5 GB, atomic.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry to `__metadata__`; a later one of the same key replaces it. Entries are written sorted.
    /// Of a sharded checkpoint every shard has them.
    #[must_use]
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.form.metadata.insert(key.into(), value.into());
        self
    }

    /// What was set for a key of the metadata.
    pub fn metadata_value(&self, key: &str) -> Option<&str> {
        self.form.metadata.get(key).map(String::as_str)
    }

    /// Sets the order of the tensors in a file.
    #[must_use]
    pub fn order(mut self, order: Order) -> Self {
        self.form.order = order;
        self
    }

    /// Aligns the data to a power of two: `bytes` rounded up to one, from 8 bytes to 1 MiB. The header is
    /// padded so that the data starts at a multiple of it. In the [official order](Order::Official) tensors
    /// are then sorted by alignment first: each starts at a multiple of the largest power of two, up to this
    /// one, that divides its length. More is not possible without holes between tensors, which the format
    /// forbids.
    #[must_use]
    pub fn align(mut self, bytes: u64) -> Self {
        self.form.align = Some(bytes.clamp(8, 1 << 20).next_power_of_two());
        self
    }

    /// Sets the bytes of tensors that a shard has at most, unless one tensor alone has more; 5 GB
    /// otherwise, as in `huggingface_hub`. See [`parse_size`] for `5GB` and `5GiB`.
    #[must_use]
    pub fn max_shard_size(mut self, bytes: u64) -> Self {
        self.max_shard_size = bytes;
        self
    }

    /// Makes [`directory`](Self::directory) write a variant, such as `fp16`: `model.fp16.safetensors`. It
    /// lies next to other variants and the checkpoint without one, and replaces only the same variant.
    #[must_use]
    pub fn variant(mut self, variant: impl Into<String>) -> Self {
        self.variant = Some(variant.into());
        self
    }

    /// Has [`directory`](Self::directory) write a small file beside the tensors, too: `config.json`, a tokenizer. One of that name
    /// is replaced. It is written when all shards are, and before they become the checkpoint: where there was none, nobody sees
    /// tensors without it.
    ///
    /// ```
    /// use weighbridge::write::{Save, Values};
    ///
    /// # fn main() -> weighbridge::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// let save = Save::new().beside("config.json", "{}");
    /// save.directory(&dir, "model", [("w", Values::new(&[1], &[0.5_f32])?)])?;
    /// assert!(dir.path().join("config.json").is_file());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn beside(mut self, name: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        self.beside.push(SideFile::new(name.into(), content.into()));
        self
    }

    /// Writes over the destination itself instead of renaming a finished file to it. **Not atomic**: when it
    /// fails, or the machine does, what was there is gone and what is there is no checkpoint. It is for file
    /// systems that cannot rename, for pipes and for devices. A file whose own tensors are to be written to
    /// it is emptied before they are read.
    #[must_use]
    pub fn unprotected(mut self) -> Self {
        self.unprotected = true;
        self
    }

    /// Has `handler` called as bytes are written, with figures that never fall. Where it returns
    /// [`ControlFlow::Break`](std::ops::ControlFlow::Break), the save fails with
    /// [`Cancelled`](crate::ErrorKind::Cancelled), and the destination is as it was. What is counted are
    /// bytes of tensors; after the last one, the file has yet to reach the disk.
    #[must_use]
    pub fn progress<F: IntoFlow>(mut self, handler: impl FnMut(Progress) -> F + Send + 'static) -> Self {
        self.progress = Some(Handler::new(handler));
        self
    }

    /// Sets what stores are written with: credentials, limits. Otherwise it is what the environment says.
    #[cfg(feature = "remote")]
    #[must_use]
    pub fn remote(mut self, remote: weighbridge_remote::Remote) -> Self {
        self.remote = Some(remote);
        self
    }

    /// Fixes where everything goes in one file, before the first byte is written.
    ///
    /// # Errors
    ///
    /// Fails with [`DuplicateTensor`](crate::ErrorKind::DuplicateTensor) for two tensors of one name, with
    /// [`TensorName`](crate::ErrorKind::TensorName) for `__metadata__` and names that hold a NUL, with
    /// [`SubByte`](crate::ErrorKind::SubByte) or [`Overflow`](crate::ErrorKind::Overflow) for shapes that the
    /// format cannot hold, and with [`HeaderTooLarge`](crate::ErrorKind::HeaderTooLarge) when the header
    /// would be longer than the 100 MB that readers accept.
    pub fn layout<N: Into<String>>(
        &self,
        tensors: impl IntoIterator<Item = (N, Dtype, Vec<usize>)>,
    ) -> Result<Layout> {
        let tensors: Vec<_> =
            tensors.into_iter().map(|(name, dtype, shape)| (name.into(), dtype, shape)).collect();
        check_names(tensors.iter().map(|tensor| &*tensor.0))?;
        Layout::new(&self.form, tensors)
    }

    /// Writes one file.
    ///
    /// It is written beside the destination, synced, and renamed to it. It has the permissions of the file
    /// that it replaces, or those that the umask leaves to a new file. A link is followed: the file that it
    /// leads to is replaced.
    ///
    /// # Errors
    ///
    /// As [`layout`](Self::layout); fails, too, when a tensor cannot be read or does not have the bytes that
    /// its shape needs, and when the file cannot be written. The destination is as it was then.
    pub fn file<N: Into<String>, T: TensorData>(
        &self,
        path: impl AsRef<Path>,
        tensors: impl IntoIterator<Item = (N, T)>,
    ) -> Result<()> {
        let path = path.as_ref();
        let tensors = named(tensors);
        let layout = self.layout(tensors.iter().map(described)).map_err(|error| error.in_file(path))?;
        #[cfg(feature = "remote")]
        if let Some(address) = crate::remote::address(path) {
            let place = crate::remote::place_to_write(&address?, self.remote.as_ref())?;
            let mut watch = watch(self.progress.clone(), [&layout]);
            return remote::file(&place, layout, &tensors, &mut watch).map_err(|error| error.in_file(path));
        }
        let output = if self.unprotected { OutputFile::unprotected(path) } else { OutputFile::atomic(path) };
        output
            .and_then(|mut output| {
                output.expect(layout.size())?;
                let mut watch = watch(self.progress.clone(), [&layout]);
                write_file(layout, output, |given| &tensors[given].1, &mut watch)?.commit()
            })
            .map_err(|error| error.in_file(path))
    }

    /// Writes a checkpoint into a directory, which is made if it is not there: `name.safetensors`, or, where
    /// that would have more than [`max_shard_size`](Self::max_shard_size), `name-00001-of-00002.safetensors`
    /// and so on with their index. What lay there under that name is replaced as a whole: shards of the old
    /// set that the new one does not have are removed. Other files stay as they are.
    ///
    /// Tensors are distributed as `huggingface_hub` does, in the order given.
    ///
    /// All new files are written to a subdirectory and synced before the first one is renamed. A journal
    /// beside them makes the switch: from the moment it is there,
    /// [`Checkpoint::open`](crate::Checkpoint::open) reads the new set, however far the renaming got, and the
    /// next save or [`recover`] completes what an interrupted one left. A program that does not know the
    /// journal may see old and new shards mixed during the renaming, for as long as a few system calls a
    /// shard take.
    ///
    /// With the feature `remote`, an address of an object store is a directory, too: `s3://bucket/prefix`, `gs://...`,
    /// `az://...`. Shards are sent in parts of 16 MiB or more while they are made, under names that no set there had; the
    /// index comes last, if it is still the one that was there, and whoever reads has the old set or the new one. What only the
    /// old set has is deleted afterwards. A set that is one object replaces the old one at once.
    ///
    /// Shards that are links are replaced, not followed. With [`unprotected`](Self::unprotected) the shards
    /// are written over the old ones. The directory is [locked](Directory) while it is written.
    ///
    /// # Errors
    ///
    /// As [`file`](Self::file), with [`Busy`](crate::ErrorKind::Busy) while another process is saving
    /// there, and with [`Value`](crate::ErrorKind::Value) when a file [beside](Self::beside) it has no plain name, or that of a
    /// checkpoint's file. Until the switch the old set is as it was.
    pub fn directory<N: Into<String>, T: TensorData>(
        &self,
        directory: impl AsRef<Path>,
        name: &str,
        tensors: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Saved> {
        let directory = directory.as_ref();
        let options = SetOptions {
            name,
            variant: self.variant.as_deref(),
            form: &self.form,
            max_shard_size: self.max_shard_size,
            unprotected: self.unprotected,
            progress: self.progress.clone(),
            beside: &self.beside,
        };
        #[cfg(feature = "remote")]
        if let Some(address) = crate::remote::address(directory) {
            let place = crate::remote::place_to_write(&address?, self.remote.as_ref())?;
            let saved = remote::directory(&place, options, &named(tensors));
            return saved.map_err(|error| error.in_file(&remote::named(&place)));
        }
        set::save(directory, options, &named(tensors)).map_err(|error| error.in_file(directory))
    }

    /// Writes to any sink: a socket, a compressor. Bytes that it took before something fails cannot be taken
    /// back; the sink is not flushed then.
    ///
    /// # Errors
    ///
    /// As [`file`](Self::file).
    pub fn to_writer<N: Into<String>, T: TensorData, W: io::Write>(
        &self,
        sink: W,
        tensors: impl IntoIterator<Item = (N, T)>,
    ) -> Result<W> {
        let tensors = named(tensors);
        let layout = self.layout(tensors.iter().map(described))?;
        let mut watch = watch(self.progress.clone(), [&layout]);
        write_into(layout, sink, |given| &tensors[given].1, &mut watch)
    }

    /// Writes to memory.
    ///
    /// # Errors
    ///
    /// As [`file`](Self::file), and with [`Memory`](crate::ErrorKind::Memory) when there is not enough.
    pub fn bytes<N: Into<String>, T: TensorData>(
        &self,
        tensors: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Vec<u8>> {
        let tensors = named(tensors);
        let layout = self.layout(tensors.iter().map(described))?;
        let (bytes, mut watch) = (layout.room()?, watch(self.progress.clone(), [&layout]));
        write_into(layout, bytes, |given| &tensors[given].1, &mut watch)
    }
}
