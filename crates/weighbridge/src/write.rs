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
#[cfg(feature = "fs")]
mod beside;
#[cfg(feature = "fs")]
mod copy;
mod data;
#[cfg(feature = "fs")]
mod directory;
#[cfg(feature = "fs")]
mod files;
#[cfg(feature = "fs")]
mod flush;
mod layout;
#[cfg(feature = "fs")]
mod lock;
#[cfg(feature = "fs")]
mod metadata;
#[cfg(feature = "fs")]
mod output;
#[cfg(feature = "fs")]
mod parallel;
#[cfg(feature = "fs")]
mod recover;
#[cfg(feature = "remote")]
mod remote;
#[cfg(feature = "fs")]
mod set;
mod split;
mod tensors;
mod watch;
mod writer;

use std::io;

pub use aliases::Aliases;
pub use data::{Ranges, Stored, TensorData, Values};
#[cfg(feature = "fs")]
pub use directory::Directory;
pub use layout::{Layout, Order, Planned};
#[cfg(feature = "fs")]
pub use metadata::MetadataEdit;
#[cfg(feature = "fs")]
pub use output::OutputFile;
#[cfg(feature = "fs")]
pub use recover::recover;
#[cfg(feature = "fs")]
pub use set::Saved;
pub use split::{Split, parse_size};
pub use writer::{TensorWriter, Writer};

use crate::dtype::Dtype;
use crate::error::Result;
use crate::progress::{Handler, IntoFlow, Progress};
use layout::{Form, check_names};
use tensors::{described, named, watch, write_into};

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
#[derive(Clone, Debug, Default)]
pub struct Save {
    form: Form,
    progress: Option<Handler>,
    #[cfg(feature = "fs")]
    files: files::FileOptions,
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

    /// Has `handler` called as bytes are written, with figures that never fall. Where it returns
    /// [`ControlFlow::Break`](std::ops::ControlFlow::Break), the save fails with
    /// [`Cancelled`](crate::ErrorKind::Cancelled), and the destination is as it was. What is counted are
    /// bytes of tensors; after the last one, the file has yet to reach the disk.
    #[must_use]
    pub fn progress<F: IntoFlow>(mut self, handler: impl FnMut(Progress) -> F + Send + 'static) -> Self {
        self.progress = Some(Handler::new(handler));
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
