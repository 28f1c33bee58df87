//! burn-store's `PytorchStore`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn_store::{ApplyResult, KeyRemapper, ModuleSnapshot, ModuleStore, PathFilter, PyTorchToBurnAdapter};
use weighbridge::{Error, ErrorKind, Result};

use crate::store::SafetensorsStore;

/// A drop-in for burn-store's `PytorchStore`, which loads the files of `torch.save`: only the `use` line
/// changes. It reads whatever [`open`](crate::open) opens, without executing anything.
///
/// ```no_run
/// use weighbridge_burn::burn_store::ModuleSnapshot;
/// use weighbridge_burn::PytorchStore; // was: burn_store::PytorchStore
/// # use weighbridge_burn::burn::nn::Linear;
///
/// # fn load(model: &mut Linear) -> weighbridge_burn::weighbridge::Result<()> {
/// let store = PytorchStore::from_file("resnet18.pth");
/// let mut store = store.with_key_remapping("downsample\\.0", "downsample.conv");
/// let result = model.load_from(&mut store)?;
/// # Ok(())
/// # }
/// ```
///
/// It is a [`SafetensorsStore`] that loads by PyTorch's convention, without the variants of enums in names,
/// and with contiguous indices. Each option does what it does there.
#[must_use]
pub struct PytorchStore(SafetensorsStore);

impl PytorchStore {
    /// The store of a file, or of a directory that holds one.
    pub fn from_file(path: impl Into<PathBuf>) -> Self {
        let store = SafetensorsStore::from_file(path)
            .with_from_adapter(PyTorchToBurnAdapter)
            .skip_enum_variants(true)
            .map_indices_contiguous(true);
        Self(store)
    }

    /// Loads the tensors that the file has under a key: the `my_state_dict` of `{"my_state_dict": {...}}`.
    pub fn with_top_level_key(self, key: impl Into<String>) -> Self {
        Self(self.0.top_level_key(key.into()))
    }

    /// Sets which parameters are loaded.
    pub fn filter(self, filter: PathFilter) -> Self {
        Self(self.0.filter(filter))
    }

    /// Adds parameters whose paths match a regular expression.
    ///
    /// # Panics
    ///
    /// When the regular expression is invalid, as in burn-store.
    pub fn with_regex<S: AsRef<str>>(self, pattern: S) -> Self {
        Self(self.0.with_regex(pattern))
    }

    /// Adds parameters whose paths match one of several regular expressions.
    ///
    /// # Panics
    ///
    /// As [`with_regex`](Self::with_regex).
    pub fn with_regexes<S: AsRef<str>>(self, patterns: impl IntoIterator<Item = S>) -> Self {
        Self(self.0.with_regexes(patterns))
    }

    /// Adds one parameter.
    pub fn with_full_path<S: Into<String>>(self, path: S) -> Self {
        Self(self.0.with_full_path(path))
    }

    /// Adds several parameters.
    pub fn with_full_paths<S: Into<String>>(self, paths: impl IntoIterator<Item = S>) -> Self {
        Self(self.0.with_full_paths(paths))
    }

    /// Adds parameters for which `predicate` holds.
    pub fn with_predicate(self, predicate: fn(&str, &str) -> bool) -> Self {
        Self(self.0.with_predicate(predicate))
    }

    /// Adds parameters for which one of several predicates holds.
    pub fn with_predicates(self, predicates: impl IntoIterator<Item = fn(&str, &str) -> bool>) -> Self {
        Self(self.0.with_predicates(predicates))
    }

    /// Selects every parameter.
    pub fn match_all(self) -> Self {
        Self(self.0.match_all())
    }

    /// Renames stored tensors by regular expressions before parameters look for them.
    pub fn remap(self, remapper: KeyRemapper) -> Self {
        Self(self.0.remap(remapper))
    }

    /// Adds one such regular expression. If it is invalid, loading fails.
    pub fn with_key_remapping(self, from: impl AsRef<str>, to: impl Into<String>) -> Self {
        Self(self.0.with_key_remapping(from, to))
    }

    /// Sets whether tensors that do not fit are an error, as they are by default, or are only listed.
    pub fn validate(self, validate: bool) -> Self {
        Self(self.0.validate(validate))
    }

    /// Sets whether parameters may be missing.
    pub fn allow_partial(self, allow: bool) -> Self {
        Self(self.0.allow_partial(allow))
    }

    /// Sets whether the variants of enums are left out of names, as they are by default.
    pub fn skip_enum_variants(self, skip: bool) -> Self {
        Self(self.0.skip_enum_variants(skip))
    }

    /// Sets whether the indices in stored names are made contiguous, as they are by default.
    pub fn map_indices_contiguous(self, map: bool) -> Self {
        Self(self.0.map_indices_contiguous(map))
    }

    /// Has lists keep their indices if the regular expression matches the name before the index.
    pub fn map_indices_contiguous_except<S: AsRef<str>>(self, pattern: S) -> Self {
        Self(self.0.map_indices_contiguous_except(pattern))
    }
}

impl ModuleStore for PytorchStore {
    type Error = Error;

    fn collect_from<M: ModuleSnapshot>(&mut self, _: &M) -> Result<()> {
        let message = "files of PyTorch cannot be written; `SafetensorsStore` writes what PyTorch reads";
        Err(Error::new(ErrorKind::Unsupported, message))
    }

    fn apply_to<M: ModuleSnapshot>(&mut self, module: &mut M) -> Result<ApplyResult> {
        self.0.apply_to(module)
    }

    fn get_tensor(&mut self, name: &str) -> Result<Option<&burn_pack::Tensor>> {
        self.0.get_tensor(name)
    }

    fn get_all_tensors(&mut self) -> Result<&BTreeMap<String, burn_pack::Tensor>> {
        self.0.get_all_tensors()
    }

    fn keys(&mut self) -> Result<Vec<String>> {
        self.0.keys()
    }
}
