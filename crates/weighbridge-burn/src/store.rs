//! burn-store's `ModuleStore`, for code that was written for its `SafetensorsStore`.

use std::any::TypeId;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use burn_store::{
    ApplyError, ApplyResult, BurnToPyTorchAdapter, IdentityAdapter, KeyRemapper, ModuleAdapter,
    ModuleSnapshot, ModuleStore, PathFilter, PyTorchToBurnAdapter,
};
use weighbridge::write::Save;
use weighbridge::{Checkpoint, Error, ErrorKind, Quantized, Renames, Result};

use crate::codes::refusal;
use crate::loader::load;
use crate::mapping::Mapping;
use crate::metadata::Known;
use crate::pack::deferred;
use crate::report::Report;
use crate::saver::save;
use crate::walk::{self, Site};

/// Stands where burn-store's `SafetensorsStore` stood; the `use` line is all that changes.
///
/// ```no_run
/// use weighbridge_burn::burn_store::{ModuleSnapshot, PyTorchToBurnAdapter};
/// use weighbridge_burn::SafetensorsStore; // was: burn_store::SafetensorsStore
/// # use weighbridge_burn::burn::nn::Linear;
///
/// # fn load(model: &mut Linear) -> weighbridge_burn::weighbridge::Result<()> {
/// let mut store = SafetensorsStore::from_file("model.safetensors").with_from_adapter(PyTorchToBurnAdapter);
/// let result = model.load_from(&mut store)?;
/// # Ok(())
/// # }
/// ```
///
/// | of burn-store | here |
/// |---|---|
/// | `from_file` | a file, a directory, an index or the id of a cached repository; one file is written, a directory if the path is one |
/// | `from_bytes`, `get_bytes` | the same |
/// | `filter`, `with_regex`, `with_regexes`, `with_full_path`, `with_full_paths`, `with_predicate`, `match_all` | the same; what is filtered out is never missing, when saving, too, containers count |
/// | `remap`, `with_key_remapping` | the same; two tensors that get one name are an error |
/// | `metadata`, `clear_metadata` | the same; `format` is `pt` and files have the umask's mode |
/// | `overwrite` | the same, looked at before anything is written; in a directory it is about the checkpoint `model` |
/// | `allow_partial`, `validate`, `skip_enum_variants` | the same; an error leaves the module as it was |
/// | `with_from_adapter`, `with_to_adapter` | `PyTorchToBurnAdapter`, `BurnToPyTorchAdapter`, `IdentityAdapter`; for others see [`mapping`](Self::mapping). `InstanceNorm` and `PRelu`, which burn-store forgets, get PyTorch's names, too |
/// | `map_indices_contiguous` | not there: a [`remap`](Self::remap) says what goes where |
#[must_use]
pub struct SafetensorsStore {
    place: Place,
    filter: PathFilter,
    renames: Renames,
    bad_rename: Option<String>,
    save: Save,
    cleared: bool,
    overwrite: bool,
    partial: bool,
    validate: bool,
    quantized: Quantized,
    skip_variants: bool,
    from: Convention,
    to: Convention,
    mapping: Option<Mapping>,
    stored: Option<Stored>,
}

/// The tensors of a checkpoint by the names that they get.
#[derive(Default)]
struct Stored {
    tensors: BTreeMap<String, burn_pack::Tensor>,
    /// Those that hold codes of quantised modules.
    refused: BTreeMap<String, Error>,
}

enum Place {
    Path(PathBuf),
    Memory(Option<bytes::Bytes>),
}

/// What an adapter asks for; its name, if it is not known.
enum Convention {
    Own,
    PyTorch,
    Unknown(&'static str),
}

impl Convention {
    fn of<A: ModuleAdapter + 'static>(pytorch: TypeId) -> Self {
        match TypeId::of::<A>() {
            adapter if adapter == pytorch => Self::PyTorch,
            adapter if adapter == TypeId::of::<IdentityAdapter>() => Self::Own,
            _ => Self::Unknown(std::any::type_name::<A>()),
        }
    }
}

impl SafetensorsStore {
    /// A store in a file, or in a directory, that is there or will be.
    pub fn from_file(path: impl Into<PathBuf>) -> Self {
        Self::new(Place::Path(path.into()))
    }

    /// A store in memory, empty if nothing is given.
    pub fn from_bytes(bytes: Option<Vec<u8>>) -> Self {
        Self::new(Place::Memory(bytes.map(Into::into)))
    }

    fn new(place: Place) -> Self {
        Self {
            place,
            filter: PathFilter::new(),
            renames: Renames::new(),
            bad_rename: None,
            save: Save::new(),
            cleared: false,
            overwrite: false,
            partial: false,
            validate: true,
            quantized: Quantized::default(),
            skip_variants: false,
            from: Convention::Own,
            to: Convention::Own,
            mapping: None,
            stored: None,
        }
    }

    /// Sets which parameters are loaded or saved.
    pub fn filter(mut self, filter: PathFilter) -> Self {
        self.filter = filter;
        self
    }

    /// Adds parameters whose paths match.
    ///
    /// # Panics
    ///
    /// When it is no regular expression, as burn-store does.
    pub fn with_regex<S: AsRef<str>>(mut self, pattern: S) -> Self {
        self.filter = self.filter.with_regex(pattern);
        self
    }

    /// The same for several.
    ///
    /// # Panics
    ///
    /// As [`with_regex`](Self::with_regex).
    pub fn with_regexes<S: AsRef<str>>(mut self, patterns: impl IntoIterator<Item = S>) -> Self {
        self.filter = self.filter.with_regexes(patterns);
        self
    }

    /// Adds one parameter.
    pub fn with_full_path<S: Into<String>>(mut self, path: S) -> Self {
        self.filter = self.filter.with_full_path(path);
        self
    }

    /// Adds some parameters.
    pub fn with_full_paths<S: Into<String>>(mut self, paths: impl IntoIterator<Item = S>) -> Self {
        self.filter = self.filter.with_full_paths(paths);
        self
    }

    /// Adds parameters for which `predicate` holds: it is given the path, and the types on the way.
    pub fn with_predicate(mut self, predicate: fn(&str, &str) -> bool) -> Self {
        self.filter = self.filter.with_predicate(predicate);
        self
    }

    /// Takes every parameter.
    pub fn match_all(mut self) -> Self {
        self.filter = self.filter.match_all();
        self
    }

    /// Renames tensors, by regular expressions one after the other: stored ones before they are looked for, saved ones at
    /// the end.
    pub fn remap(mut self, remapper: KeyRemapper) -> Self {
        for (pattern, to) in remapper.to_regex_pairs() {
            self = self.rename(pattern.as_str(), &to);
        }
        self
    }

    /// Adds one such expression.
    pub fn with_key_remapping(self, from: impl AsRef<str>, to: impl Into<String>) -> Self {
        self.rename(from.as_ref(), &to.into())
    }

    fn rename(mut self, from: &str, to: &str) -> Self {
        match std::mem::take(&mut self.renames).regex(from, to) {
            Ok(renames) => self.renames = renames,
            Err(error) => self.bad_rename = Some(error.to_string()),
        }
        self.stored = None;
        self
    }

    /// Adds an entry to the metadata.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.save = self.save.metadata(key, value);
        self
    }

    /// Removes all metadata that was added.
    pub fn clear_metadata(mut self) -> Self {
        self.save = Save::new();
        self.cleared = true;
        self
    }

    /// Sets whether tensors that do not fit are an error, which they are otherwise; if not, they are listed.
    pub fn validate(mut self, validate: bool) -> Self {
        self.validate = validate;
        self
    }

    /// Sets whether parameters may be missing.
    pub fn allow_partial(mut self, allow: bool) -> Self {
        self.partial = allow;
        self
    }

    /// Sets what becomes of the weights of quantised modules, which are an error otherwise; see
    /// [`Loader::quantized`](crate::Loader::quantized).
    pub fn quantized(mut self, quantized: Quantized) -> Self {
        self.quantized = quantized;
        self.stored = None;
        self
    }

    /// Sets whether the variants of enums are left out of names.
    pub fn skip_enum_variants(mut self, skip: bool) -> Self {
        self.skip_variants = skip;
        self
    }

    /// Sets whether a file that is there is replaced.
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Sets how names and layouts in files are, for loading.
    pub fn with_from_adapter<A: ModuleAdapter + 'static>(mut self, _: A) -> Self {
        self.from = Convention::of::<A>(TypeId::of::<PyTorchToBurnAdapter>());
        self
    }

    /// The same for saving.
    pub fn with_to_adapter<A: ModuleAdapter + 'static>(mut self, _: A) -> Self {
        self.to = Convention::of::<A>(TypeId::of::<BurnToPyTorchAdapter>());
        self
    }

    /// Sets how parameters lie in files, in the place of adapters.
    pub fn mapping(mut self, mapping: Mapping) -> Self {
        self.mapping = Some(mapping);
        self
    }

    /// What was saved to memory, or given.
    ///
    /// # Errors
    ///
    /// Fails when the store is a file, or is empty.
    pub fn get_bytes(&self) -> Result<Vec<u8>> {
        match &self.place {
            Place::Memory(Some(bytes)) => Ok(bytes.to_vec()),
            Place::Memory(None) => Err(nothing_saved()),
            Place::Path(path) => Err(Error::new(ErrorKind::NotFound, "the store is no memory").in_file(path)),
        }
    }

    fn checkpoint(&self) -> Result<Checkpoint> {
        match &self.place {
            Place::Path(path) => Checkpoint::open(path),
            Place::Memory(Some(bytes)) => Checkpoint::from_bytes(bytes.clone()),
            Place::Memory(None) => Err(nothing_saved()),
        }
    }

    /// The tensors of the checkpoint, listed once.
    fn stored(&mut self) -> Result<&Stored> {
        if self.stored.is_none() {
            let ckpt = self.checkpoint()?;
            let known = Known::of(&ckpt)?;
            let mut stored = Stored::default();
            let mut names = HashSet::with_capacity(ckpt.len());
            for tensor in ckpt.tensors() {
                let name = self.renames.apply(tensor.name());
                if !names.insert(name.clone()) {
                    let message = format!("another tensor and this one would both be named {name:?}");
                    return Err(Error::new(ErrorKind::DuplicateTensor, message).in_tensor(tensor.name()));
                }
                let is_own = known.quantised.contains_key(tensor.name());
                if self.quantized != Quantized::Raw
                    && !is_own
                    && let Some(module) = ckpt.quantized_codes(tensor.name())
                {
                    stored.refused.insert(name.clone(), refusal(&module, &name));
                } else if let Ok(lazy) = deferred(&ckpt, &tensor, name.clone()) {
                    // What Burn has no dtype for is not there; `Checkpoint` has it.
                    stored.tensors.insert(name, lazy);
                }
            }
            self.stored = Some(stored);
        }
        Ok(self.stored.get_or_insert_default())
    }

    fn how(&self, convention: &Convention) -> Result<Mapping> {
        if let Some(error) = &self.bad_rename {
            return Err(Error::new(ErrorKind::Pattern, error.clone()));
        }
        let mapping = match (&self.mapping, convention) {
            (Some(mapping), _) => return Ok(mapping.clone()),
            (None, Convention::Own) => Mapping::new(),
            // burn-store puts no layers together.
            (None, Convention::PyTorch) => Mapping::pytorch().attention_fused(false).gates_fused(false),
            (None, Convention::Unknown(name)) => {
                let message = format!("the adapter {name} is not known here; `mapping` says what it did");
                return Err(Error::new(ErrorKind::Value, message));
            }
        };
        Ok(mapping.variants(!self.skip_variants))
    }
}

fn nothing_saved() -> Error {
    Error::new(ErrorKind::NotFound, "nothing was saved yet")
}

/// Whether a checkpoint is there that saving would replace.
fn is_there(path: &Path) -> bool {
    let exists = |path: &Path| path.symlink_metadata().is_ok();
    match path.is_dir() {
        true => {
            ["model.safetensors", "model.safetensors.index.json"].iter().any(|file| exists(&path.join(file)))
        }
        false => exists(path),
    }
}

/// Whether a filter, burn-store's, has a parameter.
fn keeps(filter: &PathFilter, site: &Site, skip_variants: bool) -> bool {
    if filter.is_empty() {
        return true;
    }
    let steps = site.steps.iter().filter(|step| !(skip_variants && step.is_variant()));
    let path: Vec<_> = steps.map(|step| step.name.clone()).collect();
    let owners: Vec<_> = site.steps.iter().map(|step| step.owner.clone()).collect();
    filter.matches_with_container_path(&path, &owners)
}

impl ModuleStore for SafetensorsStore {
    type Error = Error;

    fn collect_from<M: ModuleSnapshot>(&mut self, module: &M) -> Result<()> {
        self.stored = None;
        let (filter, skip) = (self.filter.clone(), self.skip_variants);
        if let Place::Path(path) = &self.place
            && !self.overwrite
            && is_there(path)
        {
            let message = "it is there already; `overwrite(true)` replaces it";
            return Err(Error::new(ErrorKind::Io, message).in_file(path));
        }
        let mut saver = save(module)
            .mapping(self.how(&self.to)?)
            .rename(self.renames.clone())
            .keep(|site| keeps(&filter, site, skip))
            .with(self.save.clone());
        if self.cleared {
            saver = saver.plain();
        }
        match &mut self.place {
            Place::Memory(bytes) => *bytes = Some(saver.bytes()?.into()),
            Place::Path(path) if path.is_dir() => drop(saver.directory(path, "model")?),
            Place::Path(path) => saver.file(path)?,
        }
        Ok(())
    }

    fn apply_to<M: ModuleSnapshot>(&mut self, module: &mut M) -> Result<ApplyResult> {
        let (filter, skip) = (self.filter.clone(), self.skip_variants);
        let mut loader = load(&self.checkpoint()?)
            .mapping(self.how(&self.from)?)
            .rename(self.renames.clone())
            .quantized(self.quantized)
            .keep(move |site| keeps(&filter, site, skip));
        if self.partial {
            loader = loader.partial();
        }
        if !self.validate {
            loader = loader.tolerant();
        }
        let Report { loaded, missing, skipped, unused, problems, .. } = loader.into(module)?;
        // What is missing is told with the types on the way to it.
        let sites = if missing.is_empty() { Vec::new() } else { walk::sites(module) };
        let owners = |site: &Site| site.steps.iter().map(|step| &*step.owner).collect::<Vec<_>>().join(".");
        let mut owners: HashMap<_, _> = sites.iter().map(|site| (site.path(), owners(site))).collect();
        let mut with_owners = |path: String| {
            let owners = owners.remove(&path).unwrap_or_default();
            (path, owners)
        };
        let error = |error: Error| ApplyError::LoadError {
            path: error.tensor().unwrap_or_default().to_owned(),
            message: error.to_string(),
        };
        Ok(ApplyResult {
            applied: loaded,
            skipped,
            missing: missing.into_iter().map(|missing| with_owners(missing.path)).collect(),
            unused,
            errors: problems.into_iter().map(error).collect(),
        })
    }

    fn get_tensor(&mut self, name: &str) -> Result<Option<&burn_pack::Tensor>> {
        let Stored { tensors, refused } = self.stored()?;
        match refused.get(name) {
            Some(error) => Err(error.clone()),
            None => Ok(tensors.get(name)),
        }
    }

    fn get_all_tensors(&mut self) -> Result<&BTreeMap<String, burn_pack::Tensor>> {
        let Stored { tensors, refused } = self.stored()?;
        match refused.values().next() {
            Some(error) => Err(error.clone()),
            None => Ok(tensors),
        }
    }

    fn keys(&mut self) -> Result<Vec<String>> {
        let ckpt = self.checkpoint()?;
        let mut keys: Vec<_> = ckpt.tensors().map(|tensor| self.renames.apply(tensor.name())).collect();
        keys.sort();
        Ok(keys)
    }
}
