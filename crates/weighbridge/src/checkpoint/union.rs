//! One checkpoint out of several.

use super::Checkpoint;
use super::catalog::{Catalog, Duplicates, TensorIndex};
use super::home::Home;
use super::prefixed::PrefixedNames;
use crate::error::{Error, ErrorKind, Result};

use std::sync::Arc;

impl Checkpoint {
    /// Puts opened checkpoints together into one, whatever each was opened from: files, bytes, sources,
    /// foreign files.
    ///
    /// Each part has a prefix, which is put before the names of its tensors as it is: a prefix of `"vae."`
    /// makes `"vae.conv.weight"` of `"conv.weight"`. It may be empty, and a union may be a part of another
    /// one, whose prefix then comes first. Nothing is read or copied but names that get a prefix, and the
    /// parts stay what they are.
    ///
    /// [`directory`](Self::directory) is that of the parts, if they all have the same.
    ///
    /// ```
    /// use weighbridge::write::{Save, Values};
    /// use weighbridge::{Checkpoint, Plan};
    ///
    /// # fn main() -> weighbridge::Result<()> {
    /// let file = |value: f32| Save::new().bytes([("weight", Values::new(&[1], &[value])?)]);
    /// let encoder = Checkpoint::from_bytes(file(1.0)?)?; // or Checkpoint::open("path/to/encoder")
    /// let decoder = Checkpoint::from_bytes(file(2.0)?)?;
    /// let model = Checkpoint::union([("encoder.", encoder), ("decoder.", decoder)])?;
    ///
    /// let names: Vec<_> = model.tensors().map(|tensor| tensor.name()).collect();
    /// assert_eq!(names, ["encoder.weight", "decoder.weight"]);
    /// let session = Plan::of(&model).build()?.session().start()?; // one plan over both
    /// let (_, values) = session.take("decoder.weight", None)?;
    /// assert_eq!(values.as_bytes(), 2.0_f32.to_le_bytes());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::NotFound`] when there are no parts, and with [`ErrorKind::DuplicateTensor`]
    /// when two tensors get one name; the error names both files. A checkpoint opened from bytes or a source
    /// is named by its [label](super::OpenOptions::label).
    pub fn union<P: Into<String>>(parts: impl IntoIterator<Item = (P, Self)>) -> Result<Self> {
        let parts: Vec<(String, Self)> =
            parts.into_iter().map(|(prefix, part)| (prefix.into(), part)).collect();
        if parts.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, "the list of checkpoints to put together is empty"));
        }
        let (mut shards, mut names) = (Vec::new(), Vec::new());
        let (mut unused, mut warnings) = (Vec::new(), Vec::new());
        for (prefix, part) in &parts {
            let catalog = &part.0.catalog;
            let moved =
                |index: &TensorIndex| TensorIndex { shard: index.shard + shards.len() as u32, ..*index };
            unused.extend(catalog.unused().iter().map(moved));
            for (number, shard) in catalog.shards().iter().enumerate() {
                names.push(match catalog.names_of(number) {
                    known if prefix.is_empty() => known.cloned(),
                    _ => {
                        let prefix = format!("{prefix}{}", catalog.prefix(number));
                        Some(Arc::new(PrefixedNames::new(prefix, shard.header())?))
                    }
                });
            }
            shards.extend_from_slice(catalog.shards());
            warnings.extend(part.0.warnings.iter().map(|warning| warning.clone().with_prefix(prefix)));
        }
        let remedy = "give one of the two checkpoints another prefix";
        let catalog = Catalog::new(shards, names, unused, &Duplicates::Refuse(remedy))?;
        let home = Home::common(parts.iter().map(|(_, part)| part.0.home.as_ref()));
        Ok(Self::new(catalog, home, warnings))
    }
}
