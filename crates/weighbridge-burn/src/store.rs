//! burn-store's `ModuleStore`, for code that was written for its stores.

mod adapted;
mod location;
mod stored;

use std::any::TypeId;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use burn_store::{
    ApplyError, ApplyResult, BurnToPyTorchAdapter, IdentityAdapter, KeyRemapper, ModuleAdapter,
    ModuleSnapshot, ModuleStore, PathFilter, PyTorchToBurnAdapter,
};
use weighbridge::write::Save;
use weighbridge::{Error, Names, Quantized, Result};

use self::location::Location;
use self::stored::Stored;
use crate::convention::Convention;
use crate::loader::load;
use crate::mapping::Mapping;
use crate::naming::Naming;
use crate::packed::Outside;
use crate::report::LoadReport;
use crate::saver::save;
use crate::walk::{self, Site};

/// A drop-in for burn-store's `SafetensorsStore`: only the `use` line changes.
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
/// | in burn-store | here |
/// |---|---|
/// | `from_file` | reads what [`open`](crate::open) opens: a file, a directory, an index or the id of a cached repository; writes a file, or a sharded checkpoint if the path is a directory |
/// | `from_bytes`, `get_bytes` | the same |
/// | `filter`, `with_regex`, `with_full_path`, `with_predicate`, `match_all` and their plurals | the same; a parameter that is filtered out is never missing, and filters see the types on the way to it when saving, too |
/// | `remap`, `with_key_remapping` | the same; two tensors that get one name are an error |
/// | `map_indices_contiguous`, `map_indices_contiguous_except` | the same |
/// | `metadata`, `clear_metadata`, `default_metadata` | the same; saved with `BurnToPyTorchAdapter`, `format` is `pt`, which transformers asks for. Files get the mode that the umask leaves |
/// | `overwrite` | the same; in a directory it is about the checkpoint named `model` |
/// | `allow_partial`, `validate`, `skip_enum_variants` | the same; an error leaves the module as it was |
/// | `with_from_adapter`, `with_to_adapter` | the same. `PyTorchToBurnAdapter` and `BurnToPyTorchAdapter` also give `InstanceNorm` and `PRelu` PyTorch's names, which burn-store forgets. Tensors for other adapters, such as `HalfPrecisionAdapter`, chains and your own, are read and adapted one at a time |
/// | the variants `File` and `Memory` | not there |
#[must_use]
pub struct SafetensorsStore {
    location: Location,
    filter: PathFilter,
    /// Regular expressions and what they are replaced by.
    renames: Vec<(String, String)>,
    is_contiguous: bool,
    /// Regular expressions for the lists that keep their indices.
    kept_indices: Vec<String>,
    /// What the caller added.
    metadata: BTreeMap<String, String>,
    has_defaults: bool,
    overwrite: bool,
    partial: bool,
    validate: bool,
    quantized: Quantized,
    skip_variants: bool,
    from: Adapter,
    to: Adapter,
    mapping: Option<Mapping>,
    stored: Option<Stored>,
}

/// What an adapter does to tensors.
enum Adapter {
    Nothing,
    /// What the mapping [`Mapping::pytorch`] does.
    PyTorch,
    Other(Box<dyn ModuleAdapter>),
}

impl Adapter {
    /// `pytorch` is the adapter that stands for PyTorch's convention in this direction.
    fn of<A: ModuleAdapter + 'static>(adapter: A, pytorch: TypeId) -> Self {
        match TypeId::of::<A>() {
            known if known == pytorch => Self::PyTorch,
            known if known == TypeId::of::<IdentityAdapter>() => Self::Nothing,
            _ => Self::Other(Box::new(adapter)),
        }
    }

    fn mapping(&self) -> Mapping {
        match self {
            // burn-store joins no layers.
            Self::PyTorch => Mapping::pytorch().attention_unfused().gates_unfused(),
            Self::Nothing | Self::Other(_) => Mapping::new(),
        }
    }
}

impl Default for SafetensorsStore {
    /// An empty store in memory.
    fn default() -> Self {
        Self::from_bytes(None)
    }
}

impl SafetensorsStore {
    /// A store in a file or a directory, which need not exist yet to save.
    pub fn from_file(path: impl Into<PathBuf>) -> Self {
        Self::new(Location::Path(path.into()))
    }

    /// A store in memory, empty if no bytes are given.
    pub fn from_bytes(bytes: Option<Vec<u8>>) -> Self {
        Self::new(Location::Memory(bytes.map(Into::into)))
    }

    /// Loads the tensors that a file of PyTorch has under a key.
    #[cfg(feature = "convert")]
    pub(crate) fn top_level_key(mut self, key: String) -> Self {
        self.location = self.location.under(key);
        self.stored = None;
        self
    }

    fn new(location: Location) -> Self {
        Self {
            location,
            filter: PathFilter::new(),
            renames: Vec::new(),
            is_contiguous: false,
            kept_indices: Vec::new(),
            metadata: BTreeMap::new(),
            has_defaults: true,
            overwrite: false,
            partial: false,
            validate: true,
            quantized: Quantized::default(),
            skip_variants: false,
            from: Adapter::Nothing,
            to: Adapter::Nothing,
            mapping: None,
            stored: None,
        }
    }

    /// The metadata of every file unless it is [cleared](Self::clear_metadata), that of burn-store: `format`
    /// (`safetensors`), `producer` (`burn`) and `version` (burn-store's).
    pub fn default_metadata() -> HashMap<String, String> {
        burn_store::SafetensorsStore::default_metadata().into_iter().collect()
    }

    /// Sets which parameters are loaded or saved.
    pub fn filter(mut self, filter: PathFilter) -> Self {
        self.filter = filter;
        self
    }

    /// Adds parameters whose paths match a regular expression.
    ///
    /// # Panics
    ///
    /// When the regular expression is invalid, as in burn-store.
    pub fn with_regex<S: AsRef<str>>(mut self, pattern: S) -> Self {
        self.filter = self.filter.with_regex(pattern);
        self
    }

    /// Adds parameters whose paths match one of several regular expressions.
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

    /// Adds several parameters.
    pub fn with_full_paths<S: Into<String>>(mut self, paths: impl IntoIterator<Item = S>) -> Self {
        self.filter = self.filter.with_full_paths(paths);
        self
    }

    /// Adds parameters for which `predicate` holds. It is given the path, and the types on the way to the
    /// parameter.
    pub fn with_predicate(mut self, predicate: fn(&str, &str) -> bool) -> Self {
        self.filter = self.filter.with_predicate(predicate);
        self
    }

    /// Adds parameters for which one of several predicates holds.
    pub fn with_predicates(mut self, predicates: impl IntoIterator<Item = fn(&str, &str) -> bool>) -> Self {
        self.filter = self.filter.with_predicates(predicates);
        self
    }

    /// Selects every parameter.
    pub fn match_all(mut self) -> Self {
        self.filter = self.filter.match_all();
        self
    }

    /// Renames tensors by regular expressions, one after another: stored tensors before parameters look for
    /// them, saved ones at the end.
    pub fn remap(mut self, remapper: KeyRemapper) -> Self {
        let pairs = remapper.to_regex_pairs().into_iter();
        self.renames = pairs.map(|(pattern, to)| (pattern.as_str().to_owned(), to)).collect();
        self.stored = None;
        self
    }

    /// Adds one such regular expression. If it is invalid, loading and saving fail.
    pub fn with_key_remapping(mut self, from: impl AsRef<str>, to: impl Into<String>) -> Self {
        self.renames.push((from.as_ref().to_owned(), to.into()));
        self.stored = None;
        self
    }

    /// Sets whether the indices in stored names are made contiguous, after renaming: see
    /// [`Loader::map_indices_contiguous`](crate::Loader::map_indices_contiguous).
    pub fn map_indices_contiguous(mut self, map: bool) -> Self {
        self.is_contiguous = map;
        self.stored = None;
        self
    }

    /// Has lists keep their indices if the regular expression matches the name before the index: `^flows$`
    /// for `flows.2.weight`. If it is invalid, loading fails.
    pub fn map_indices_contiguous_except<S: AsRef<str>>(mut self, pattern: S) -> Self {
        self.kept_indices.push(pattern.as_ref().to_owned());
        self.stored = None;
        self
    }

    /// Adds an entry to the metadata.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Removes all metadata, the [default](Self::default_metadata) included.
    pub fn clear_metadata(mut self) -> Self {
        self.metadata.clear();
        self.has_defaults = false;
        self
    }

    /// Sets whether tensors that do not fit are an error, as they are by default, or are only listed.
    pub fn validate(mut self, validate: bool) -> Self {
        self.validate = validate;
        self
    }

    /// Sets whether parameters may be missing.
    pub fn allow_partial(mut self, allow: bool) -> Self {
        self.partial = allow;
        self
    }

    /// Sets what to do with the weights of quantised modules, which are an error by default; see
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

    /// Sets whether a file that exists is replaced.
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Sets the adapter for loading.
    pub fn with_from_adapter<A: ModuleAdapter + 'static>(mut self, adapter: A) -> Self {
        self.from = Adapter::of(adapter, TypeId::of::<PyTorchToBurnAdapter>());
        self
    }

    /// Sets the adapter for saving.
    pub fn with_to_adapter<A: ModuleAdapter + 'static>(mut self, adapter: A) -> Self {
        self.to = Adapter::of(adapter, TypeId::of::<BurnToPyTorchAdapter>());
        self
    }

    /// Sets how files name and lay out parameters, instead of adapters.
    pub fn mapping(mut self, mapping: Mapping) -> Self {
        self.mapping = Some(mapping);
        self
    }

    /// The bytes that were saved to memory, or given.
    ///
    /// # Errors
    ///
    /// Fails when the store is in a file, or is empty.
    pub fn get_bytes(&self) -> Result<Vec<u8>> {
        self.location.bytes()
    }

    /// The tensors of the checkpoint, listed once.
    fn stored(&mut self) -> Result<&Stored> {
        if self.stored.is_none() {
            let naming = self.naming()?;
            self.stored = Some(Stored::of(&self.location.open()?, &naming, self.quantized)?);
        }
        Ok(self.stored.get_or_insert_default())
    }

    fn naming(&self) -> Result<Naming> {
        let mut naming = Naming::default();
        if let Some(prefix) = self.location.prefix() {
            naming.renames = naming.renames.prefix(prefix, "");
        }
        for (from, to) in &self.renames {
            naming.renames = naming.renames.regex(from, to)?;
        }
        naming.is_contiguous = self.is_contiguous;
        for pattern in &self.kept_indices {
            naming.keep_indices(Names::regex(pattern)?);
        }
        Ok(naming)
    }

    /// What `adapter` does, unless a mapping was set.
    fn mapping_for(&self, adapter: &Adapter) -> Mapping {
        match (&self.mapping, self.skip_variants) {
            (Some(mapping), _) => mapping.clone(),
            (None, true) => adapter.mapping().skip_variants(),
            (None, false) => adapter.mapping().keep_variants(),
        }
    }

    /// The metadata of what is saved by `mapping`.
    fn save_with(&self, mapping: &Mapping) -> Save {
        let mut metadata = BTreeMap::new();
        if self.has_defaults {
            metadata.extend(Self::default_metadata());
            if mapping.convention() == Convention::PyTorch {
                metadata.insert("format".to_owned(), "pt".to_owned());
            }
        }
        metadata.extend(self.metadata.clone());
        metadata.into_iter().fold(Save::new(), |save, (key, value)| save.metadata(key, value))
    }

    fn load<M: ModuleSnapshot>(&mut self, module: &mut M) -> Result<LoadReport> {
        if let (None, Adapter::Other(_)) = (&self.mapping, &self.from) {
            self.stored()?;
        }
        let keeps = keeps(&self.filter, self.skip_variants);
        if let (None, Adapter::Other(adapter), Some(stored)) = (&self.mapping, &self.from, &self.stored) {
            let load = adapted::Load { stored, adapter: &**adapter, skip_variants: self.skip_variants };
            return load.run(module, keeps, self.validate, self.partial);
        }
        let (ckpt, naming) = (self.location.open()?, self.naming()?);
        let mut loader = load(&ckpt)
            .mapping(self.mapping_for(&self.from))
            .naming(naming.clone())
            .quantized(self.quantized)
            .keep(keeps);
        if self.partial {
            loader = loader.partial();
        }
        if !self.validate {
            loader = loader.tolerant();
        }
        let mut report = loader.into(module)?;
        let named = naming.of(&ckpt);
        report.unused.iter_mut().for_each(|name| *name = named.apply(name));
        Ok(report)
    }
}

/// Whether burn-store's filter keeps a parameter.
fn keeps(filter: &PathFilter, skip_variants: bool) -> impl Fn(&Site) -> bool + Send + Sync + 'static {
    let filter = filter.clone();
    move |site| {
        if filter.is_empty() {
            return true;
        }
        let steps = site.steps.iter().filter(|step| !(skip_variants && step.is_variant()));
        let path: Vec<_> = steps.map(|step| step.name.clone()).collect();
        filter.matches_with_container_path(&path, &site.owners())
    }
}

impl ModuleStore for SafetensorsStore {
    type Error = Error;

    fn collect_from<M: ModuleSnapshot>(&mut self, module: &M) -> Result<()> {
        self.stored = None;
        let renames = self.naming()?.renames;
        self.location.check_free(self.overwrite)?;
        let mapping = self.mapping_for(&self.to);
        let save_as = self.save_with(&mapping);
        if let (None, Adapter::Other(adapter)) = (&self.mapping, &self.to) {
            let tensors = adapted::collect(module, adapter.clone(), &self.filter, self.skip_variants)?;
            let renamed = |tensor: burn_pack::Tensor| (renames.apply(&tensor.name), tensor);
            let outside = Outside::of(tensors.into_iter().map(renamed))?;
            return self.location.write(&outside.save_with(save_as), outside.tensors, self.overwrite);
        }
        let saver = save(module)
            .mapping(mapping)
            .rename(renames)
            .keep(keeps(&self.filter, self.skip_variants))
            .with(save_as)
            .plain();
        let (save_as, tensors) = saver.prepare()?;
        self.location.write(&save_as, tensors, self.overwrite)
    }

    fn apply_to<M: ModuleSnapshot>(&mut self, module: &mut M) -> Result<ApplyResult> {
        let LoadReport { loaded, missing, skipped, mut unused, problems, .. } = self.load(module)?;
        // To burn-store the tensors of parameters that were left out are not unused.
        let left_out: HashSet<_> = skipped.iter().collect();
        unused.retain(|name| !left_out.contains(name));
        // burn-store tells the types on the way to what is missing.
        let sites = if missing.is_empty() { Vec::new() } else { walk::sites(module) };
        let owners: HashMap<_, _> = sites.iter().map(|site| (site.path(), site.owners().join("."))).collect();
        let with_owners = |path: String| {
            let owners = owners.get(&path).cloned().unwrap_or_default();
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
        self.stored()?.tensor(name)
    }

    fn get_all_tensors(&mut self) -> Result<&BTreeMap<String, burn_pack::Tensor>> {
        self.stored()?.all()
    }

    fn keys(&mut self) -> Result<Vec<String>> {
        Ok(self.stored()?.names().to_vec())
    }
}
