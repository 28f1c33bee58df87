//! What to load, as what, and onto which device.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device};
use candle_nn::var_builder::Shard;
use weighbridge::engine::{IntoFlow, PageCache, Prefetch, SessionBuilder};
use weighbridge::parallel::DeviceMap;
use weighbridge::plan::Overflow;
use weighbridge::{
    Checkpoint, Dtype, Entry, LoadOptions, Names, Plan, Progress, Quantized, Renames, Result, Slice,
    TensorRef,
};

use crate::catalog::{Catalog, Item, PartRule, Rules};
use crate::devices::Devices;
use crate::dtype::{Target, from_stored};
use crate::staging::Staging;

/// Loads the tensors of a checkpoint into Candle.
///
/// On the CPU the peak of memory is the tensors and a bounded read-ahead; see
/// [`read_ahead`](Self::read_ahead).
///
/// # Names
///
/// [`only`](Self::only) and [`filter`](Self::filter) choose among stored tensors, by their stored names.
/// Everything else goes by the names that [`rename`](Self::rename) gives them: what [`load`](Self::load)
/// returns, what a builder is asked for and says it contains, what [`fill`](Self::fill) takes for a
/// variable's, and the sets given to [`device_for`](Self::device_for), [`dtype_for`](Self::dtype_for) and
/// [`part_for`](Self::part_for).
#[must_use]
pub struct Loader {
    checkpoint: Checkpoint,
    adapters: Vec<(Checkpoint, f32)>,
    rules: Rules,
    pub(crate) dtype: Option<DType>,
    pub(crate) devices: Devices,
    device_map: Option<DeviceMap<Device>>,
    pub(crate) staging: Staging,
    pub(crate) require_all: bool,
    pub(crate) dense_where_needed: bool,
    options: LoadOptions,
}

impl Loader {
    /// Loads from `checkpoint` onto the CPU, in the stored dtypes.
    pub fn new(checkpoint: &Checkpoint) -> Self {
        Self {
            checkpoint: checkpoint.clone(),
            adapters: Vec::new(),
            rules: Rules::default(),
            dtype: None,
            devices: Devices { default: Device::Cpu, rules: Vec::new() },
            device_map: None,
            staging: Staging::new(),
            require_all: false,
            dense_where_needed: false,
            options: LoadOptions::new(),
        }
    }

    /// Sets the dtype of the weights.
    ///
    /// A `VarBuilder` gives every tensor in it, as Candle's own do. [`load`](Self::load) casts the tensors of
    /// floats and leaves integers and booleans alone: ids and masks do not survive as `BF16`. The rounding is
    /// that of [`Cast`](weighbridge::plan::Cast). [`dtype_for`](Self::dtype_for) makes exceptions.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// Sets the dtype of the tensors whose names are in the set, whatever dtype the others have or a model
    /// asks for: of integers, too. Where several sets have a name, the first one given counts.
    ///
    /// ```
    /// use weighbridge_candle::Loader;
    /// use weighbridge_candle::candle_core::DType;
    /// # use weighbridge_candle::weighbridge::{Checkpoint, Names};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let ckpt = Checkpoint::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder"))?;
    /// let norms = Names::glob("*norm.weight")?;
    /// let vb = Loader::new(&ckpt).dtype(DType::BF16).dtype_for(norms, DType::F32).var_builder()?;
    /// assert_eq!(vb.get_unchecked("model.norm.weight")?.dtype(), DType::F32);
    /// assert_eq!(vb.get_unchecked("model.embed_tokens.weight")?.dtype(), DType::BF16);
    /// # Ok(())
    /// # }
    /// ```
    pub fn dtype_for(mut self, names: Names, dtype: DType) -> Self {
        self.rules.dtypes.push((names, dtype));
        self
    }

    /// Gives each tensor in the dtype that it is stored in, or in the one that is closest to it in Candle
    /// ([the table](crate::dtype)), whatever dtype was [set](Self::dtype). [`dtype_for`](Self::dtype_for)
    /// makes exceptions.
    ///
    /// A builder does so whatever dtype it carries or is asked for. A backend cannot tell a dtype that a
    /// model asks for from the one that its builder happens to carry, so that `get_with_hints_dtype`,
    /// `get_unchecked_dtype` and `to_dtype` change nothing: the tensors that a model wants in another dtype
    /// are named in `dtype_for`, or cast by the model. The builder's own `dtype()`, which models use for what
    /// they compute, is the one that was [set](Self::dtype), else that of most weights.
    pub fn stored_dtypes(mut self) -> Self {
        self.rules.stored_dtypes = true;
        self
    }

    /// Sets what casts do with values that are too large, whether the dtype was [set](Self::dtype) or is
    /// asked for when a tensor is taken; they become infinity otherwise, and an error in integers. Integers
    /// of one width are not cast but [taken by their bits](crate::dtype).
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.rules.overflow = overflow;
        self
    }

    /// Sets the device; the CPU otherwise.
    pub fn device(mut self, device: &Device) -> Self {
        self.devices.default = device.clone();
        self
    }

    /// Sets the device of the tensors whose names are in the set, whatever the device of the others; where
    /// several sets have a name, the first one given counts. A `VarBuilder` puts them there, too, whichever
    /// device it is asked for.
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
        self.devices.rules.push((names, device.clone()));
        self
    }

    /// Puts layers on devices by the memory of these: what is in front of the layers with the first ones, what is behind them with
    /// the last ones. [`device_for`](Self::device_for) makes exceptions. What does not fit is an error that names it, before
    /// anything is read. Tensors count as they will be there, in the dtype that was [set](Self::dtype).
    ///
    /// The model has to move what it computes from one device to the next; which layers are where,
    /// [`DeviceMap::place`](weighbridge::parallel::DeviceMap::place) says.
    ///
    /// ```no_run
    /// use weighbridge_candle::weighbridge::parallel::DeviceMap;
    /// # use weighbridge_candle::{Loader, candle_core::{DType, Device}, weighbridge::Checkpoint};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let ckpt = Checkpoint::open("model")?;
    /// let (first, second) = (Device::new_cuda(0)?, Device::new_cuda(1)?);
    /// let map = DeviceMap::by_memory([(first, 20 << 30), (second, 20 << 30), (Device::Cpu, 64 << 30)]);
    /// let vb = Loader::new(&ckpt).dtype(DType::BF16).device_map(map).var_builder()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn device_map(mut self, map: DeviceMap<Device>) -> Self {
        self.device_map = Some(map);
        self
    }

    /// Sets through which memory tensors go to a GPU; otherwise this load has some of its own. See
    /// [`Staging`].
    pub fn staging(mut self, staging: &Staging) -> Self {
        self.staging = staging.clone();
        self
    }

    /// Loads only the tensors whose stored names are in the set; for the others it is as if they were not
    /// there. A [`filter`](Self::filter) must keep them, too.
    pub fn only(self, names: Names) -> Self {
        self.filter(move |tensor| names.contains(tensor.name()))
    }

    /// Loads only the tensors for which `keep` holds, and all filters given before.
    pub fn filter(mut self, keep: impl Fn(&TensorRef<'_>) -> bool + Send + Sync + 'static) -> Self {
        let before = self.rules.filter.take();
        let keep =
            move |tensor: &TensorRef<'_>| before.as_ref().is_none_or(|keep| keep(tensor)) && keep(tensor);
        self.rules.filter = Some(Arc::new(keep));
        self
    }

    /// Renames tensors; further rules see what the ones before them made. See [Names](Self#names) for what
    /// goes by which name. Two tensors that get one name are an error.
    ///
    /// ```
    /// use weighbridge_candle::Loader;
    /// use weighbridge_candle::weighbridge::{Checkpoint, Names, Renames};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let ckpt = Checkpoint::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder"))?;
    /// let renames = Renames::new().prefix("model.", "language_model.");
    /// let loader = Loader::new(&ckpt).only(Names::prefix("model.")).rename(renames); // stored names, new names
    /// let loaded = loader.load()?;
    /// assert!(loaded.tensors.contains_key("language_model.norm.weight"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn rename(mut self, renames: Renames) -> Self {
        self.rules.renames.push(renames);
        self
    }

    /// Takes only a part of the tensors whose names are in the set, and reads no more than that. Where
    /// several sets have a name, of those of [`shard_for`](Self::shard_for), too, the first one given counts.
    ///
    /// The part is what [`load`](Self::load) and [`fill`](Self::fill) take and what a builder gives for a
    /// request without a shard; it is read ahead. The shards of a
    /// [`ShardedVarBuilder`](crate::ShardedVarBuilder) and the slices of
    /// [`get_slice`](crate::Backend::get_slice) are always of the stored tensor. One that is the same part
    /// has been read ahead, any other is read when it is asked for.
    ///
    /// ```
    /// use weighbridge_candle::Loader;
    /// use weighbridge_candle::weighbridge::{Checkpoint, Names, Slice};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let ckpt = Checkpoint::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder"))?;
    /// // Ten rows from the third on: parts need not be equal.
    /// let rows = Slice::along(0, 3..13);
    /// let vb = Loader::new(&ckpt).part_for(Names::exact("model.embed_tokens.weight"), rows).var_builder()?;
    /// assert_eq!(vb.get_unchecked("model.embed_tokens.weight")?.dim(0)?, 10);
    /// # Ok(())
    /// # }
    /// ```
    pub fn part_for(mut self, names: Names, part: Slice) -> Self {
        self.rules.parts.push((names, PartRule::Slice(part)));
        self
    }

    /// Takes only the part of one rank of the tensors whose names are in the set, as
    /// [`part_for`](Self::part_for) does: what a [`ShardedVarBuilder`](crate::ShardedVarBuilder) is asked for
    /// with this shard is read ahead.
    pub fn shard_for(mut self, names: Names, shard: Shard) -> Self {
        self.rules.parts.push((names, PartRule::Shard(shard)));
        self
    }

    /// Makes [`load`](Self::load) fail where Candle cannot hold a tensor, instead of listing it as skipped.
    pub fn require_all(mut self) -> Self {
        self.require_all = true;
        self
    }

    /// Loads complex numbers as `F32` with a last dimension of 2: real part, imaginary part.
    pub fn complex_pairs(mut self) -> Self {
        self.rules.complex_pairs = true;
        self
    }

    /// Sets what becomes of the weights of quantised modules: FP8 with scales, GPTQ, AWQ, bitsandbytes and
    /// [others](weighbridge::QuantMethod).
    ///
    /// By default they come as the weights that they stand for, under the names that models ask for, in
    /// whatever dtype is asked for; see [`Checkpoint::dequantized`]. All rules and filters go by these. What
    /// cannot be had so is refused when it is asked for. [`Quantized::Refuse`] refuses all, and
    /// [`Quantized::Raw`] gives the codes to code that computes with them. A builder reads raw codes when
    /// they are asked for, and not ahead, unless [`dtype_for`](Self::dtype_for) or
    /// [`stored_dtypes`](Self::stored_dtypes) says as what.
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
        self.rules.quantized = quantized;
        self
    }

    /// Merges an adapter into the weights, `weight` times what it says: `W + weight · scale · B A`, computed in `F32` and rounded
    /// once, to whatever dtype is asked for. Each further call adds one. What adapters are understood, and how their
    /// modules find the weights that they are for, [`Adapter`](weighbridge::Adapter) and [`Checkpoint::adapted`] say; a module that finds
    /// none is an error.
    ///
    /// ```no_run
    /// # use weighbridge_candle::Loader;
    /// # use weighbridge_candle::weighbridge::Checkpoint;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (base, adapter) = (Checkpoint::open("Llama-3.2-1B")?, Checkpoint::open("my-adapter")?);
    /// let vb = Loader::new(&base).adapter(&adapter, 1.0).var_builder()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn adapter(mut self, adapter: &Checkpoint, weight: f32) -> Self {
        self.adapters.push((adapter.clone(), weight));
        self
    }

    /// Sets how the load goes about its work: all that is set in `options`. By default [`load`](Self::load)
    /// reads in the order of the files and without a limit, and a `VarBuilder` reads ahead in the natural
    /// order of names.
    pub fn options(mut self, options: LoadOptions) -> Self {
        self.options = options.or(self.options);
        self
    }

    /// See [`LoadOptions::threads`].
    pub fn threads(self, threads: usize) -> Self {
        self.options(LoadOptions::new().threads(threads))
    }

    /// See [`LoadOptions::read_ahead`]: the bytes that a `VarBuilder` may have read ahead of what the model
    /// has asked for. On a GPU there is no limit unless one is set: what is read ahead is in its place.
    pub fn read_ahead(self, bytes: u64) -> Self {
        self.options(LoadOptions::new().read_ahead(bytes))
    }

    /// See [`LoadOptions::prefetch`].
    pub fn prefetch(self, prefetch: Prefetch) -> Self {
        self.options(LoadOptions::new().prefetch(prefetch))
    }

    /// See [`LoadOptions::page_cache`].
    pub fn page_cache(self, page_cache: PageCache) -> Self {
        self.options(LoadOptions::new().page_cache(page_cache))
    }

    /// See [`LoadOptions::progress`].
    pub fn progress<F: IntoFlow>(self, handler: impl FnMut(Progress) -> F + Send + 'static) -> Self {
        self.options(LoadOptions::new().progress(handler))
    }

    /// The tensors that it was told to load.
    pub(crate) fn catalog(&self) -> Result<Catalog> {
        let seen = self.checkpoint.with_adapters(&self.adapters, self.rules.quantized)?;
        Catalog::new(&seen, self.rules.clone())
    }

    /// Finds out once what the weights of quantised modules are, so that those of later catalogs are the same.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.checkpoint = self.checkpoint.with_adapters(&[], self.rules.quantized)?;
        Ok(())
    }

    /// Gives the adapters that there were.
    pub(crate) fn replace_adapters(&mut self, adapters: Vec<(Checkpoint, f32)>) -> Vec<(Checkpoint, f32)> {
        std::mem::replace(&mut self.adapters, adapters)
    }

    /// Finds the devices of tensors, if these go by memory.
    pub(crate) fn place(&mut self, catalog: &Catalog) -> Result<()> {
        if let Some(map) = self.device_map.take() {
            self.devices.rules.extend(self.placed(&map, catalog)?);
        }
        Ok(())
    }

    /// Which tensors a map puts on which device.
    fn placed(&self, map: &DeviceMap<Device>, catalog: &Catalog) -> Result<Vec<(Names, Device)>> {
        let numbered = map.map_devices(|place, device| (place, device.clone()));
        let placed = numbered.place(catalog.items().map(|item| (item.name(), self.bytes_of(&item))))?;
        let mut names: HashMap<usize, (Vec<&str>, Device)> = HashMap::new();
        for item in catalog.items() {
            if let Some((place, device)) = placed.device_of(item.name()) {
                let of_device = names.entry(*place).or_insert_with(|| (Vec::new(), device.clone()));
                of_device.0.push(item.name());
            }
        }
        Ok(names.into_values().map(|(names, device)| (Names::list(names), device)).collect())
    }

    /// The bytes that a tensor will have on its device.
    fn bytes_of(&self, item: &Item<'_>) -> u64 {
        let requested = self.dtype.filter(|_| item.tensor.dtype().is_float());
        let bytes = |target: Target| target.shape(item.shape()).elem_count() * target.dtype.size_in_bytes();
        let target = item.target(item.rule(requested), &Device::Cpu);
        target.map_or(item.tensor.byte_len(), |target| bytes(target) as u64)
    }

    /// A session over entries, with `defaults` for what was not set, and with `read_ahead` whatever was set,
    /// if it is given.
    pub(crate) fn session(
        &self,
        entries: Vec<Entry>,
        defaults: LoadOptions,
        read_ahead: Option<u64>,
    ) -> SessionBuilder {
        let session = Plan::new(entries).session().options(self.options.clone().or(defaults));
        match read_ahead {
            Some(bytes) => session.read_ahead(bytes),
            None => session,
        }
    }

    /// The dtype of builders.
    pub(crate) fn builder_dtype(&self, catalog: &Catalog) -> DType {
        let most_bytes = || {
            let mut bytes = HashMap::<Dtype, u64>::new();
            for item in catalog.items() {
                *bytes.entry(item.tensor.dtype()).or_default() += item.tensor.byte_len();
            }
            let computable = [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64];
            let most = computable.into_iter().max_by_key(|dtype| bytes.get(dtype));
            most.filter(|dtype| bytes.contains_key(dtype)).and_then(from_stored)
        };
        self.dtype.or_else(most_bytes).unwrap_or(DType::F32)
    }
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader")
            .field("checkpoint", &self.checkpoint)
            .field("dtype", &self.dtype)
            .field("device", &self.devices.default)
            .finish_non_exhaustive()
    }
}
