//! A model in use, whose weights are swapped.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use candle_core::Var;
use candle_nn::VarMap;
use weighbridge::plan::Input;
use weighbridge::{Checkpoint, Error, ErrorKind, Report, Result};

use crate::Loader;
use crate::training::named;
use crate::var_map::{Planned, Ready, unused};

/// The variables of a model that computes while its weights are swapped, all of them or those that an adapter
/// touches.
///
/// Whoever computes holds a [`Pass`], which says the version of the weights and keeps them as they are. A
/// swap reads, casts and checks everything beside the old weights, waits until no pass is held, and lets
/// memory change hands, which takes a moment. So nobody computes with half a swap, and one that fails leaves
/// weights and version as they were.
///
/// A model sees new weights where it computes with the variables or views of them. What it made of them when
/// it was built, one matrix of several for example, stays as it was.
///
/// While a swap goes on, what it replaces is in memory twice.
///
/// ```
/// use weighbridge_candle::{Live, Loader};
/// # use weighbridge_candle::candle_core::{DType, Device, Tensor};
/// # use weighbridge_candle::candle_nn::{Embedding, Module, VarBuilder, VarMap, embedding};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let ckpt = weighbridge_candle::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder"))?;
/// let map = VarMap::new();
/// let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
/// let model = embedding(16, 128, vb.pp("model.embed_tokens"))?;
/// let live = Live::new(&map);
/// live.swap(Loader::new(&ckpt))?;
///
/// let pass = live.pass(); // in any thread
/// let output = model.forward(&Tensor::new(&[3_u32], &Device::Cpu)?)?;
/// assert_eq!(pass.version(), 1);
/// drop(pass);
/// # let _ = output;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Live {
    /// In the order of names.
    vars: Vec<(String, Var)>,
    /// Held by those who compute, and alone by a swap that is about to change the weights.
    gate: RwLock<()>,
    /// Changes with the gate held alone.
    version: AtomicU64,
    /// Locked for as long as a swap goes on.
    origin: Mutex<Option<Origin>>,
}

/// Where the weights come from.
#[derive(Debug)]
struct Origin {
    loader: Loader,
    /// What each variable was made of.
    inputs: HashMap<String, Input>,
}

/// The weights stay as they are for as long as this is held.
///
/// A thread holds one at a time: to ask for a second one while a swap waits for the first is a deadlock, and
/// so is a [`swap`](Live::swap) by the thread that holds one, which would wait for itself. On a GPU, drop it when what was computed is done, which is when its values have come back.
#[derive(Debug)]
#[must_use = "weights may be swapped as soon as it is dropped"]
pub struct Pass<'l> {
    version: u64,
    _gate: RwLockReadGuard<'l, ()>,
}

impl Pass<'_> {
    /// The number of swaps before it.
    pub fn version(&self) -> u64 {
        self.version
    }
}

/// What a swap did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Swapped {
    /// The version of the weights from now on.
    pub version: u64,
    /// The variables that were replaced, in the order of their names.
    pub set: Vec<String>,
    /// Tensors of the checkpoint for which there is no variable.
    pub unused: Vec<String>,
    /// Bytes taken and read.
    pub report: Report,
}

impl Live {
    /// The variables of a map as they are: version 0.
    pub fn new(map: &VarMap) -> Self {
        Self { vars: named(map), gate: RwLock::new(()), version: AtomicU64::new(0), origin: Mutex::new(None) }
    }

    /// Keeps the weights as they are, for a forward pass.
    pub fn pass(&self) -> Pass<'_> {
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        Pass { version: self.version(), _gate: gate }
    }

    /// The number of swaps that were done. It waits for nobody, and may be asked for with a [`Pass`] held.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Swaps all weights for those that `loader` loads, as [`Loader::fill`] does. One swap is done at a time;
    /// others wait. It waits for every [`Pass`], so the thread that calls it must hold none.
    ///
    /// # Errors
    ///
    /// As [`Loader::fill`]; weights and version are as they were then.
    pub fn swap(&self, mut loader: Loader) -> Result<Swapped> {
        let mut origin = self.origin();
        loader.settle()?;
        let catalog = loader.catalog()?;
        let planned = loader.planned(&catalog, &self.vars)?;
        let inputs = inputs_of(&planned);
        let swapped = self.exchange(&loader.read(planned)?, unused(&catalog, &self.vars))?;
        *origin = Some(Origin { loader, inputs });
        Ok(swapped)
    }

    /// Swaps the adapters: the variables get the weights of the last [`swap`](Self::swap) with these adapters
    /// merged, each times its weight, in the place of those that were merged before; without any, the weights
    /// as they are. Only what the adapters before or the new ones touch is read and replaced. As with
    /// [`swap`](Self::swap), the thread that calls it must hold no [`Pass`].
    ///
    /// ```no_run
    /// # use weighbridge_candle::{Live, Loader, weighbridge::{Checkpoint, Result}};
    /// # fn serve(live: &Live) -> Result<()> {
    /// let (base, adapter) = (Checkpoint::open("Llama-3.2-1B")?, Checkpoint::open("my-adapter")?);
    /// live.swap(Loader::new(&base))?; // version 1
    /// live.swap_adapters([(&adapter, 1.0)])?; // version 2
    /// live.swap_adapters([])?; // version 3, without it
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Loader::adapter`] and [`Loader::fill`], and with [`ErrorKind::Unsupported`] when the weights were
    /// not loaded by [`swap`](Self::swap); weights and version are as they were then.
    pub fn swap_adapters<'a>(
        &self,
        adapters: impl IntoIterator<Item = (&'a Checkpoint, f32)>,
    ) -> Result<Swapped> {
        let mut origin = self.origin();
        let Some(origin) = &mut *origin else {
            let message = "there is nothing to merge adapters into: load the weights by `swap` first";
            return Err(Error::new(ErrorKind::Unsupported, message));
        };
        let adapters = adapters.into_iter().map(|(adapter, weight)| (adapter.clone(), weight)).collect();
        let before = origin.loader.replace_adapters(adapters);
        let swapped = self.swap_changed(origin);
        if swapped.is_err() {
            origin.loader.replace_adapters(before);
        }
        swapped
    }

    /// Swaps the variables that are no longer made of the same tensors.
    fn swap_changed(&self, origin: &mut Origin) -> Result<Swapped> {
        let catalog = origin.loader.catalog()?;
        let mut planned = origin.loader.planned(&catalog, &self.vars)?;
        let inputs = inputs_of(&planned);
        planned.retain(|planned| origin.inputs.get(planned.name) != Some(&planned.of));
        let ready = origin.loader.read(planned)?;
        let swapped = self.exchange(&ready, unused(&catalog, &self.vars))?;
        origin.inputs = inputs;
        Ok(swapped)
    }

    fn exchange(&self, ready: &Ready<'_>, unused: Vec<String>) -> Result<Swapped> {
        let _gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        self.wait_for_devices(ready)?;
        ready.exchange()?;
        let version = self.version.fetch_add(1, Ordering::AcqRel) + 1;
        // The memory of the old weights is given back when nobody waits any more.
        let set = ready.names().map(str::to_owned).collect();
        Ok(Swapped { version, set, unused, report: ready.report.clone() })
    }

    /// Waits until the devices are done with the old weights: their memory is given back soon.
    fn wait_for_devices(&self, ready: &Ready<'_>) -> Result<()> {
        let set: HashSet<_> = ready.names().collect();
        let vars = self.vars.iter().filter(|(name, _)| set.contains(name.as_str())).map(|(_, var)| var);
        let mut waited: Vec<&candle_core::Device> = Vec::new();
        for device in vars.map(|var| var.device()) {
            if !waited.iter().any(|other| other.same_device(device)) {
                crate::devices::wait(device)?;
                waited.push(device);
            }
        }
        Ok(())
    }

    fn origin(&self) -> MutexGuard<'_, Option<Origin>> {
        self.origin.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn inputs_of(planned: &[Planned<'_>]) -> HashMap<String, Input> {
    planned.iter().map(|planned| (planned.name.to_owned(), planned.of.clone())).collect()
}
