//! A module in use, whose weights are swapped.

use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use burn::module::Module;
use weighbridge::plan::Input;
use weighbridge::{Checkpoint, Error, ErrorKind, Result};

use crate::loader::{Loader, Planned, carry_out};
use crate::panics::caught;
use crate::report::LoadReport;

/// A module that computes while its weights are swapped, all of them or those that an adapter touches.
///
/// Whoever computes [gets](Self::get) the module as it is at that moment, with its version, and keeps it as
/// long as it likes: what is swapped is put into a copy, which later calls get. So nobody sees half of a
/// swap, nobody waits for one, and a swap that fails leaves the weights and the version as they were. Copies
/// share the tensors that are not swapped.
///
/// A module is served as [`Module::valid`] gives it, without gradients. Its running statistics are its own:
/// they are not shared with the module that it was made of, nor from one version to the next.
///
/// While a swap goes on, and for as long as somebody holds the version before it, the tensors that it
/// replaces are in memory twice: all of them for new weights, and for an adapter those that the old one or
/// the new one touches. With one thread there is nothing to share; then [`Loader::into`] loads in place. It
/// needs the same memory while it loads, because nothing is changed before everything is read, and always
/// reads all that it loads.
///
/// ```
/// use weighbridge_burn::Live;
/// use weighbridge_burn::burn::nn::LinearConfig;
/// use weighbridge_burn::weighbridge::{Checkpoint, write::{Save, Values}};
/// # use weighbridge_burn::burn::tensor::Device;
///
/// # fn main() -> weighbridge_burn::weighbridge::Result<()> {
/// # let device = Device::default();
/// # let weight = Values::new(&[2, 3], &[0.0_f32; 6])?;
/// # let bias = Values::new(&[2], &[0.0_f32; 2])?;
/// # let base = Checkpoint::from_bytes(Save::new().bytes([("weight", weight), ("bias", bias)])?)?;
/// let live = Live::new(LinearConfig::new(3, 2).init(&device));
/// live.swap(weighbridge_burn::load(&base).pytorch())?;
/// let linear = live.get(); // in any thread; `linear.forward(input)`
/// assert_eq!(linear.version(), 1);
/// # Ok(())
/// # }
/// ```
pub struct Live<M> {
    serving: RwLock<Serving<M>>,
    /// Locked for as long as a swap goes on.
    origin: Mutex<Option<Origin>>,
}

/// Where the weights come from.
struct Origin {
    loader: Loader,
    /// The tensors that each parameter was made of, by its path. Each merge of adapters makes new ones.
    tensors: HashMap<String, Vec<Input>>,
}

/// A [`Live`] module as it was at one moment, all of one version. Clones are the same module.
pub struct Serving<M>(Arc<Versioned<M>>);

struct Versioned<M> {
    module: M,
    version: u64,
}

impl<M: Module> Live<M> {
    /// Serves `module`, as version 0. Parameters that are not initialised yet are initialised.
    pub fn new(module: M) -> Self {
        Self { serving: RwLock::new(Serving::new(module.valid(), 0)), origin: Mutex::new(None) }
    }

    /// Serves `module` with the weights that `loader` loads into it, as version 0. Parameters that are not
    /// initialised yet need no memory before.
    ///
    /// # Errors
    ///
    /// As [`Loader::into`].
    pub fn load(loader: Loader, mut module: M) -> Result<(Self, LoadReport)> {
        let (origin, report) = Origin::load(loader, &mut module)?;
        let live = Self::new(module);
        Ok((Self { origin: Mutex::new(Some(origin)), ..live }, report))
    }

    /// The module as it is now. It stays as it is, whatever is swapped.
    pub fn get(&self) -> Serving<M> {
        self.serving.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of swaps that were done.
    pub fn version(&self) -> u64 {
        self.get().version()
    }

    /// Swaps the weights for those that `loader` loads, and gives the module the next version. One swap is
    /// done at a time; others wait. Parameters that the loader leaves out keep their tensors.
    ///
    /// # Errors
    ///
    /// As [`Loader::into`]; weights and version are as they were then.
    pub fn swap(&self, loader: Loader) -> Result<LoadReport> {
        let mut current = self.origin.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = self.next()?;
        let (origin, report) = Origin::load(loader, &mut next)?;
        *current = Some(origin);
        self.serve(next);
        Ok(report)
    }

    /// Swaps the adapters: the module gets the weights of the last [`swap`](Self::swap) or
    /// [`load`](Self::load) with these adapters merged, each times its weight, in the place of those that
    /// were merged before; without any, the weights as they are. Only what the adapters before or the new
    /// ones touch is read and replaced; it is what the report says to be loaded.
    ///
    /// ```no_run
    /// # use weighbridge_burn::{Live, load, burn::nn::Linear, weighbridge::{Checkpoint, Result}};
    /// # fn serve(module: Linear) -> Result<()> {
    /// let (base, adapter) = (Checkpoint::open("Llama-3.2-1B")?, Checkpoint::open("my-adapter")?);
    /// let (live, _) = Live::load(load(&base).pytorch(), module)?;
    /// live.swap_adapters([(&adapter, 1.0)])?; // version 1
    /// live.swap_adapters([])?; // version 2, without it
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Loader::adapter`] and [`Loader::into`], and with [`ErrorKind::Unsupported`] when the weights were
    /// not loaded here; weights and version are as they were then.
    pub fn swap_adapters<'a>(
        &self,
        adapters: impl IntoIterator<Item = (&'a Checkpoint, f32)>,
    ) -> Result<LoadReport> {
        let mut origin = self.origin.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(origin) = &mut *origin else {
            let message =
                "there is nothing to merge adapters into: load the weights by `load` or `swap` first";
            return Err(Error::new(ErrorKind::Unsupported, message));
        };
        let mut next = self.next()?;
        let adapters = adapters.into_iter().map(|(adapter, weight)| (adapter.clone(), weight)).collect();
        let before = origin.loader.replace_adapters(adapters);
        let loaded = origin.load_changed(&mut next);
        if loaded.is_err() {
            origin.loader.replace_adapters(before);
        }
        let report = loaded?;
        self.serve(next);
        Ok(report)
    }

    /// A copy of the module with running statistics of its own.
    fn next(&self) -> Result<M> {
        let serving = self.get();
        caught("the module was copied", || Ok(serving.valid()))
    }

    fn serve(&self, module: M) {
        let next = Serving::new(module, self.version() + 1);
        let mut serving = self.serving.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *serving, next);
        // Nobody waits for memory that is given back.
        drop(serving);
        drop(before);
    }
}

impl Origin {
    fn load<M: Module>(mut loader: Loader, module: &mut M) -> Result<(Self, LoadReport)> {
        loader.settle()?;
        let planned = loader.planned(module)?;
        let tensors = of(&planned);
        let report = carry_out(planned, loader.load_options(), module)?;
        Ok((Self { loader, tensors }, report))
    }

    /// Loads the parameters that are no longer made of the same tensors.
    fn load_changed<M: Module>(&mut self, module: &mut M) -> Result<LoadReport> {
        let mut planned = self.loader.planned(module)?;
        let tensors = of(&planned);
        planned.retain(|path, tensors| self.tensors.get(path).is_none_or(|before| before != tensors));
        let report = carry_out(planned, self.loader.load_options(), module)?;
        self.tensors = tensors;
        Ok(report)
    }
}

fn of(planned: &Planned) -> HashMap<String, Vec<Input>> {
    planned.tensors().map(|(path, tensors)| (path.to_owned(), tensors.to_vec())).collect()
}

impl<M> Serving<M> {
    fn new(module: M, version: u64) -> Self {
        Self(Arc::new(Versioned { module, version }))
    }

    /// The number of swaps before it.
    pub fn version(&self) -> u64 {
        self.0.version
    }
}

impl<M> Deref for Serving<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.0.module
    }
}

impl<M> Clone for Serving<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M: fmt::Debug> fmt::Debug for Serving<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").field("version", &self.version()).field("module", &self.0.module).finish()
    }
}

impl<M: Module> fmt::Debug for Live<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("version", &self.version()).finish_non_exhaustive()
    }
}
