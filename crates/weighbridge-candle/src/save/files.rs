//! Files and directories.

use std::path::Path;

use candle_core::Tensor;
use weighbridge::Result;
use weighbridge::write::Saved;

use super::Saver;

impl Saver {
    /// Writes one file; see [`Save::file`](weighbridge::write::Save::file).
    ///
    /// # Errors
    ///
    /// As [`Save::file`](weighbridge::write::Save::file); fails, too, for a dtype that the format does not have.
    pub fn file<N: Into<String>, T: AsRef<Tensor>>(
        &self,
        path: impl AsRef<Path>,
        tensors: impl IntoIterator<Item = (N, T)>,
    ) -> Result<()> {
        let (save, tensors) = self.prepare(tensors)?;
        save.file(path, tensors)
    }

    /// Writes a checkpoint into a directory; see [`Save::directory`](weighbridge::write::Save::directory).
    ///
    /// # Errors
    ///
    /// As [`Save::directory`](weighbridge::write::Save::directory); fails, too, for a dtype that the format does not have.
    pub fn directory<N: Into<String>, T: AsRef<Tensor>>(
        &self,
        directory: impl AsRef<Path>,
        name: &str,
        tensors: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Saved> {
        let (save, tensors) = self.prepare(tensors)?;
        save.directory(directory, name, tensors)
    }
}
