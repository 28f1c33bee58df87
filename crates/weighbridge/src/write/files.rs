//! Saving into files and directories.

use std::path::Path;

use super::Save;
use super::beside::SideFile;
use super::copy::worth_a_call;
use super::data::TensorData;
use super::layout::Layout;
use super::output::OutputFile;
#[cfg(feature = "remote")]
use super::remote;
use super::set::{self, Saved, SetOptions};
use super::split::Split;
use super::tensors::{described, named, watch};
use super::watch::Watch;
use crate::error::Result;

/// What matters to files only.
#[derive(Clone, Debug)]
pub(super) struct FileOptions {
    max_shard_size: u64,
    variant: Option<String>,
    unprotected: bool,
    beside: Vec<SideFile>,
    #[cfg(feature = "remote")]
    remote: Option<weighbridge_remote::Remote>,
}

impl Default for FileOptions {
    fn default() -> Self {
        Self {
            max_shard_size: Split::DEFAULT_SIZE,
            variant: None,
            unprotected: false,
            beside: Vec::new(),
            #[cfg(feature = "remote")]
            remote: None,
        }
    }
}

impl Save {
    /// Sets the bytes of tensors that a shard has at most, unless one tensor alone has more; 5 GB
    /// otherwise, as in `huggingface_hub`. See [`parse_size`](super::parse_size) for `5GB` and `5GiB`.
    #[must_use]
    pub fn max_shard_size(mut self, bytes: u64) -> Self {
        self.files.max_shard_size = bytes;
        self
    }

    /// Makes [`directory`](Self::directory) write a variant, such as `fp16`: `model.fp16.safetensors`. It
    /// lies next to other variants and the checkpoint without one, and replaces only the same variant.
    #[must_use]
    pub fn variant(mut self, variant: impl Into<String>) -> Self {
        self.files.variant = Some(variant.into());
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
        self.files.beside.push(SideFile::new(name.into(), content.into()));
        self
    }

    /// Writes over the destination itself instead of renaming a finished file to it. **Not atomic**: when it
    /// fails, or the machine does, what was there is gone and what is there is no checkpoint. It is for file
    /// systems that cannot rename, for pipes and for devices. A file whose own tensors are to be written to
    /// it is emptied before they are read.
    #[must_use]
    pub fn unprotected(mut self) -> Self {
        self.files.unprotected = true;
        self
    }

    /// Sets what stores are written with: credentials, limits. Otherwise it is what the environment says.
    #[cfg(feature = "remote")]
    #[must_use]
    pub fn remote(mut self, remote: weighbridge_remote::Remote) -> Self {
        self.files.remote = Some(remote);
        self
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
            let place = crate::remote::place_to_write(&address?, self.files.remote.as_ref())?;
            let mut watch = watch(self.progress.clone(), [&layout]);
            return remote::file(&place, layout, &tensors, &mut watch).map_err(|error| error.in_file(path));
        }
        let output =
            if self.files.unprotected { OutputFile::unprotected(path) } else { OutputFile::atomic(path) };
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
    /// next save or [`recover`](super::recover) completes what an interrupted one left. A program that does not know the
    /// journal may see old and new shards mixed during the renaming, for as long as a few system calls a
    /// shard take.
    ///
    /// With the feature `remote`, an address of an object store is a directory, too: `s3://bucket/prefix`, `gs://...`,
    /// `az://...`. Shards are sent in parts of 16 MiB or more while they are made, under names that no set there had; the
    /// index comes last, if it is still the one that was there, and whoever reads has the old set or the new one. What only the
    /// old set has is deleted afterwards. A set that is one object replaces the old one at once.
    ///
    /// Shards that are links are replaced, not followed. With [`unprotected`](Self::unprotected) the shards
    /// are written over the old ones. The directory is [locked](super::Directory) while it is written.
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
            variant: self.files.variant.as_deref(),
            form: &self.form,
            max_shard_size: self.files.max_shard_size,
            unprotected: self.files.unprotected,
            progress: self.progress.clone(),
            beside: &self.files.beside,
        };
        #[cfg(feature = "remote")]
        if let Some(address) = crate::remote::address(directory) {
            let place = crate::remote::place_to_write(&address?, self.files.remote.as_ref())?;
            let saved = remote::directory(&place, options, &named(tensors));
            return saved.map_err(|error| error.in_file(&remote::named(&place)));
        }
        set::save(directory, options, &named(tensors)).map_err(|error| error.in_file(directory))
    }
}

/// Writes what was laid out into a file, to which the kernel copies what lies in other files, and several threads write what
/// comes in any order.
pub(super) fn write_file<'t, T: TensorData + 't>(
    layout: Layout,
    output: OutputFile,
    tensor: impl Fn(usize) -> &'t T,
    watch: &mut Watch,
) -> Result<OutputFile> {
    let mut writer = layout.writer(output)?;
    // So many of the next tensors are not worth several threads.
    let mut alone = 0_usize;
    while let Some(given) = writer.given() {
        let data = tensor(given);
        if let Some(stored) = data.stored().filter(worth_a_call) {
            if writer.copy(&stored, watch)? {
                continue;
            }
        }
        if alone == 0 && data.ranges().is_some() {
            alone = writer.write_together(|given| tensor(given).ranges(), watch)?;
            if alone == 0 {
                continue;
            }
        }
        writer.write(data, watch)?;
        alone = alone.saturating_sub(1);
    }
    writer.finish()
}
