//! What to load, as what, and onto which device.

use std::collections::HashMap;
use std::fmt;
use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use weighbridge::engine::{IntoFlow, LoadOptions, Prefetch, ReadOrder, SessionBuilder};
use weighbridge::plan::Overflow;
use weighbridge::{
    Checkpoint, Dtype, Error, ErrorKind, Names, Plan, Progress, Quantized, Report, Result, TensorRef,
};

use crate::backend::Backend;
use crate::dtype::{Arrival, arrival, from_stored};
use crate::quantized;
use crate::session::{Devices, Tensors, Want};
use crate::staging::Staging;

pub(crate) type Filter = dyn Fn(&TensorRef<'_>) -> bool + Send + Sync;

/// Loads the tensors of a checkpoint into Candle.
///
/// On the CPU the peak of memory is the tensors and a bounded read-ahead; see
/// [`read_ahead`](Self::read_ahead).
#[must_use]
pub struct Loader {
    checkpoint: Checkpoint,
    dtype: Option<DType>,
    overflow: Overflow,
    pub(crate) devices: Devices,
    pub(crate) staging: Staging,
    filter: Option<Box<Filter>>,
    require_all: bool,
    complex_pairs: bool,
    quantized: Quantized,
    threads: Option<usize>,
    read_ahead: u64,
    prefetch: Prefetch,
    progress: Option<Box<dyn FnMut(Progress) -> ControlFlow<()> + Send>>,
}

impl Loader {
    /// Loads from `checkpoint` onto the CPU, in the stored dtypes.
    pub fn new(checkpoint: &Checkpoint) -> Self {
        Self {
            checkpoint: checkpoint.clone(),
            dtype: None,
            overflow: Overflow::default(),
            devices: Devices { usual: Device::Cpu, of: Vec::new() },
            staging: Staging::new(),
            filter: None,
            require_all: false,
            complex_pairs: false,
            quantized: Quantized::default(),
            threads: None,
            read_ahead: LoadOptions::DEFAULT_READ_AHEAD,
            prefetch: Prefetch::Auto,
            progress: None,
        }
    }

    /// Sets the dtype of the weights.
    ///
    /// A `VarBuilder` gives every tensor in it, as Candle's own do. [`load`](Self::load) casts the tensors of
    /// floats and leaves integers and booleans alone: ids and masks do not survive as `BF16`. The rounding is
    /// that of [`Cast`](weighbridge::plan::Cast).
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// Sets what casts do with values that are too large, whether the dtype was [set](Self::dtype) or is asked for when
    /// a tensor is taken; they become infinity otherwise, and an error in integers.
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// Sets the device; the CPU otherwise.
    pub fn device(mut self, device: &Device) -> Self {
        self.devices.usual = device.clone();
        self
    }

    /// Sets the device of the tensors whose names are in the set, whatever the device of the others; where several sets
    /// have a name, the first one given counts. A `VarBuilder` puts them there, too, whichever device it is asked for.
    ///
    /// ```no_run
    /// # use weighbridge_candle::{Loader, candle_core::Device, weighbridge::{Checkpoint, Names}};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let ckpt = Checkpoint::open("model")?;
    /// let (first, second) = (Device::new_cuda(0)?, Device::new_cuda(1)?);
    /// let upper_half = Names::regex(r"^model\.layers\.(1[6-9]|2[0-9]|3[01])\.")?;
    /// let loaded = Loader::new(&ckpt).device(&first).device_for(upper_half, &second).load()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn device_for(mut self, names: Names, device: &Device) -> Self {
        self.devices.of.push((names, device.clone()));
        self
    }

    /// Sets through which memory tensors go to a GPU; otherwise this load has some of its own. See [`Staging`].
    pub fn staging(mut self, staging: &Staging) -> Self {
        self.staging = staging.clone();
        self
    }

    /// Loads only the tensors whose names are in the set; for the others it is as if they were not there. A
    /// [`filter`](Self::filter) must keep them, too.
    pub fn only(self, names: Names) -> Self {
        self.filter(move |tensor| names.contains(tensor.name()))
    }

    /// Loads only the tensors for which `keep` holds, and all filters given before.
    pub fn filter(mut self, keep: impl Fn(&TensorRef<'_>) -> bool + Send + Sync + 'static) -> Self {
        let filter = self.filter.take();
        self.filter =
            Some(Box::new(move |tensor| keep(tensor) && filter.as_ref().is_none_or(|keep| keep(tensor))));
        self
    }

    /// Makes [`load`](Self::load) fail where Candle cannot hold a tensor, instead of listing it as skipped.
    pub fn require_all(mut self) -> Self {
        self.require_all = true;
        self
    }

    /// Loads complex numbers as `F32` with a last dimension of 2: real part, imaginary part.
    pub fn complex_pairs(mut self) -> Self {
        self.complex_pairs = true;
        self
    }

    /// Sets what becomes of the weights of quantised modules: FP8 with scales, GPTQ, AWQ, bitsandbytes and
    /// [others](weighbridge::QuantMethod).
    ///
    /// They are refused otherwise, whatever dtype is asked for: their values are codes. Code that computes with codes
    /// itself asks for them raw.
    ///
    /// ```
    /// use weighbridge_candle::Loader;
    /// use weighbridge_candle::weighbridge::{Checkpoint, Quantized};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let ckpt = Checkpoint::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder"))?;
    /// for module in ckpt.quantized() {
    ///     println!("{}: {}", module.name(), module.method());
    /// }
    /// let vb = Loader::new(&ckpt).quantized(Quantized::Raw).var_builder()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn quantized(mut self, quantized: Quantized) -> Self {
        self.quantized = quantized;
        self
    }

    /// Sets the number of threads that read; by default one a core, and 8 at most, or 16 where tensors go to CUDA.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Sets how many bytes a `VarBuilder` may have read ahead of what the model has asked for; 64 MiB
    /// otherwise.
    pub fn read_ahead(mut self, bytes: u64) -> Self {
        self.read_ahead = bytes;
        self
    }

    /// Sets whether files are fetched before they are read; by default where they are not in memory already.
    pub fn prefetch(mut self, prefetch: Prefetch) -> Self {
        self.prefetch = prefetch;
        self
    }

    /// Has `handler` called as bytes arrive: from the threads that read, by one at a time, with figures that
    /// never fall. It should return at once, and must not touch what it reports on. Where it returns
    /// [`ControlFlow::Break`], loading ends with [`ErrorKind::Cancelled`].
    pub fn progress<F: IntoFlow>(mut self, mut handler: impl FnMut(Progress) -> F + Send + 'static) -> Self {
        self.progress = Some(Box::new(move |progress| handler(progress).into_flow()));
        self
    }

    /// Loads all tensors.
    ///
    /// What Candle cannot hold is listed in [`Loaded::skipped`].
    ///
    /// # Errors
    ///
    /// Fails when reading, casting or placing a tensor on the device fails, when one holds codes of a
    /// [quantised](Self::quantized) module, and, with [`require_all`](Self::require_all), when Candle cannot hold one.
    pub fn load(mut self) -> Result<Loaded> {
        quantized::refuse_any(&self.checkpoint, self.quantized, |tensor| self.has(tensor))?;
        let (mut arrivals, mut skipped) = (HashMap::new(), Vec::new());
        for tensor in self.tensors() {
            let requested = self.dtype.filter(|_| tensor.dtype().is_float());
            let device = self.devices.of(tensor.name());
            match arrival(tensor.dtype(), requested, self.complex_pairs, device) {
                Ok(arrival) => drop(arrivals.insert(tensor.name().to_owned(), arrival)),
                Err(error) if self.require_all => return Err(error.in_tensor(tensor.name())),
                Err(error) => skipped.push(Skipped {
                    name: tensor.name().to_owned(),
                    dtype: tensor.dtype(),
                    reason: error.to_string(),
                }),
            }
        }
        let route = self.devices.route();
        let read_ahead = if route.ends_there() { u64::MAX } else { self.read_ahead };
        let session = self.session(&arrivals)?.read_ahead(read_ahead).order(ReadOrder::File);
        let session = Tensors::start(session, &self.devices, &self.staging)?;
        let mut tensors = HashMap::with_capacity(arrivals.len());
        let mut converted = Vec::new();
        for tensor in self.tensors() {
            let name = tensor.name();
            let Some(arrival) = arrivals.get(name) else { continue };
            let want = Want {
                carried: route.carried(&tensor, *arrival),
                dtype: arrival.dtype,
                shape: arrival.shape(tensor.shape()),
                device: self.devices.of(name),
            };
            tensors.insert(name.to_owned(), session.take(name, want)?);
            if tensor.dtype() != arrival.made || arrival.pairs {
                let (from, to) = (tensor.dtype(), arrival.dtype);
                converted.push(Conversion { name: name.to_owned(), from, to });
            }
        }
        Ok(Loaded { tensors, skipped, converted, report: session.report() })
    }

    /// A `VarBuilder` over all tensors; a model that is built from it gets them as it asks for them.
    ///
    /// Its dtype is the one that was [set](Self::dtype), else the float dtype with the most bytes in the
    /// checkpoint, else `F32`. A tensor that Candle cannot hold, or not in the builder's dtype, is an error when
    /// it is asked for. The shape that the model expects is checked before anything is read for the request.
    ///
    /// # Errors
    ///
    /// Fails when the session cannot be started.
    pub fn var_builder(self) -> Result<VarBuilder<'static>> {
        let (dtype, device) = self.dtype_and_device();
        Ok(VarBuilder::from_backend(Box::new(self.backend()?), dtype, device))
    }

    /// What [`var_builder`](Self::var_builder) wraps, for those who want its report.
    ///
    /// # Errors
    ///
    /// As [`var_builder`](Self::var_builder).
    pub fn backend(mut self) -> Result<Backend> {
        let dtype = self.builder_dtype();
        let fitting = |tensor: TensorRef<'_>| {
            self.refuse_codes(tensor.name()).ok()?;
            let device = self.devices.of(tensor.name());
            let arrival = |requested| arrival(tensor.dtype(), requested, self.complex_pairs, device);
            // What does not come in the builder's dtype may be asked for in another one, and fails then if not.
            let arrival = arrival(Some(dtype)).or_else(|_| arrival(None));
            Some((tensor.name().to_owned(), arrival.ok()?))
        };
        let arrivals = self.tensors().filter_map(fitting).collect();
        let read_ahead = self.read_ahead;
        let session = self.session(&arrivals)?.read_ahead(read_ahead).order(ReadOrder::Natural);
        let session = Tensors::start(session, &self.devices, &self.staging)?;
        let Self { checkpoint, filter, devices, complex_pairs, quantized, overflow, .. } = self;
        Ok(Backend { checkpoint, session, filter, devices, complex_pairs, quantized, overflow })
    }

    /// The dtype and the device of its builders.
    pub(crate) fn dtype_and_device(&self) -> (DType, Device) {
        (self.builder_dtype(), self.devices.usual.clone())
    }

    pub(crate) fn has_complex_pairs(&self) -> bool {
        self.complex_pairs
    }

    /// The tensor of that name, unless it was filtered out.
    pub(crate) fn tensor(&self, name: &str) -> Option<TensorRef<'_>> {
        let tensor = self.checkpoint.tensor(name)?;
        self.has(&tensor).then_some(tensor)
    }

    fn has(&self, tensor: &TensorRef<'_>) -> bool {
        self.filter.as_ref().is_none_or(|keep| keep(tensor))
    }

    /// Fails where a tensor, or the weight that would have this name, is quantised.
    pub(crate) fn refuse_codes(&self, name: &str) -> Result<()> {
        quantized::refuse(&self.checkpoint, self.quantized, name, |tensor| self.has(tensor))
    }

    /// The stored name that is most like another.
    pub(crate) fn nearest(&self, name: &str) -> Option<&str> {
        self.checkpoint.nearest_name(name)
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = TensorRef<'_>> {
        self.checkpoint.tensors().filter(|tensor| self.has(tensor))
    }

    /// A session over the tensors of `arrivals`, each as it arrives.
    pub(crate) fn session(&mut self, arrivals: &HashMap<String, Arrival>) -> Result<SessionBuilder> {
        let route = self.devices.route();
        let carried = |tensor: &TensorRef<'_>| {
            arrivals.get(tensor.name()).map(|arrival| route.carried(tensor, *arrival))
        };
        let plan = Plan::of(&self.checkpoint)
            .filter(|tensor| arrivals.contains_key(tensor.name()))
            .dtype(carried)
            .overflow(self.overflow)
            .build()?;
        let mut session = plan.session().prefetch(self.prefetch);
        if let Some(threads) = self.threads.or(route.threads()) {
            session = session.threads(threads);
        }
        if let Some(progress) = self.progress.take() {
            session = session.progress(progress);
        }
        Ok(session)
    }

    fn builder_dtype(&self) -> DType {
        let most_bytes = || {
            let mut bytes = HashMap::<Dtype, u64>::new();
            for tensor in self.tensors() {
                *bytes.entry(tensor.dtype()).or_default() += tensor.byte_len();
            }
            let computable = [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64];
            let most = computable.into_iter().max_by_key(|dtype| bytes.get(dtype));
            most.filter(|dtype| bytes.contains_key(dtype)).and_then(from_stored)
        };
        self.dtype.or_else(most_bytes).unwrap_or(DType::F32)
    }
}

pub(crate) fn refused(error: &candle_core::Error) -> Error {
    Error::new(ErrorKind::Device, format!("Candle could not place it: {error}"))
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader")
            .field("checkpoint", &self.checkpoint)
            .field("dtype", &self.dtype)
            .field("device", &self.devices.usual)
            .finish_non_exhaustive()
    }
}

/// What [`Loader::load`] gives.
#[derive(Debug)]
#[non_exhaustive]
pub struct Loaded {
    /// The tensors by name.
    pub tensors: HashMap<String, Tensor>,
    /// The tensors that Candle cannot hold.
    pub skipped: Vec<Skipped>,
    /// The tensors whose dtype was changed.
    pub converted: Vec<Conversion>,
    /// Bytes taken and read.
    pub report: Report,
}

/// A tensor that was not loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Skipped {
    /// Its name.
    pub name: String,
    /// Its stored dtype.
    pub dtype: Dtype,
    /// Why, and what would load it.
    pub reason: String,
}

/// A tensor that came in another dtype than it is stored in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Conversion {
    /// Its name.
    pub name: String,
    /// Its stored dtype.
    pub from: Dtype,
    /// Its dtype in Candle.
    pub to: DType,
}
