//! A checkpoint into a module.

mod plan;

use std::any::Any;
use std::collections::HashMap;
use std::fmt;

use burn::module::Module;
use burn::tensor::{DType, Device};
use weighbridge::engine::{IntoFlow, PageCache, Prefetch};
use weighbridge::parallel::DeviceMap;
use weighbridge::plan::Overflow;
use weighbridge::{Checkpoint, Error, LoadOptions, Names, Progress, Quantized, Renames, Result};

pub(crate) use self::plan::Planned;
use self::plan::{Fill, Request};
use crate::mapping::Mapping;
use crate::metadata::in_shard;
#[cfg(feature = "store")]
use crate::naming::Naming;
use crate::panics::caught;
use crate::problems::fail;
use crate::report::LoadReport;
use crate::upload::Uploads;
use crate::walk::{self, Filled, Site};

/// Loads the tensors of a checkpoint into a module.
///
/// Loading has two phases. First everything that can be wrong is checked: names, shapes, dtypes, and whether
/// the devices support these dtypes. Then all tensors are read, and the module is changed at the very end, in
/// a step that cannot fail. So whatever the error, the module is as it was. While a module that already has
/// values is loaded, both the old and the new ones are in memory. The running statistics of a `BatchNorm` are
/// shared by all clones of a module in Burn, so they change in all of them.
///
/// On the CPU (`flex`) the memory that tensors are read into becomes Burn's own, without a copy. From a
/// checkpoint that is [mapped](weighbridge::OpenOptions::map) or in memory, tensors share the checkpoint's
/// bytes wherever these are aligned.
///
/// With the features `cuda`, `vulkan` or `metal`, tensors go to the GPU through at most 32 staging buffers of
/// 4 MiB (2 MiB where memory is not page-locked), by default read by one thread a core, and 16 at most. When
/// a load returns, everything is on the device. Modules on several devices, quantised tensors and other
/// backends go through memory of the host, tensor by tensor; what is on its way there is waited for at 64
/// MiB.
#[must_use = "nothing is loaded until `into` is called"]
pub struct Loader {
    request: Request,
    partial: bool,
    tolerant: bool,
    all_used: bool,
    options: LoadOptions,
}

/// Starts a load from `checkpoint`, as [`Loader::new`] does.
///
/// ```
/// use weighbridge_burn::burn::module::Module;
/// use weighbridge_burn::burn::nn::{Linear, LinearConfig};
/// use weighbridge_burn::weighbridge::{Checkpoint, write::{Save, Values}};
/// # use weighbridge_burn::burn::tensor::Device;
///
/// # fn main() -> weighbridge_burn::weighbridge::Result<()> {
/// # let device = Device::default();
/// # let weight = Values::new(&[2, 3], &[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0])?; // [out, in]
/// # let bias = Values::new(&[2], &[0.5_f32, -0.5])?;
/// # let ckpt = Checkpoint::from_bytes(Save::new().bytes([("weight", weight), ("bias", bias)])?)?;
/// let mut linear = LinearConfig::new(3, 2).init(&device);
/// let report = weighbridge_burn::load(&ckpt).pytorch().into(&mut linear)?;
/// assert_eq!(report.to_string(), "2 loaded (0 cast), 0 missing, 0 unused");
/// # let weight = linear.weight.val().into_data();
/// # assert_eq!(weight.try_to_vec::<f32>().unwrap(), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
/// # Ok(())
/// # }
/// ```
pub fn load(checkpoint: &Checkpoint) -> Loader {
    Loader::new(checkpoint)
}

impl Loader {
    /// A load of every parameter from `checkpoint`, by Burn's own names and layouts and in the stored dtypes.
    pub fn new(checkpoint: &Checkpoint) -> Self {
        Self {
            request: Request::of(checkpoint),
            partial: false,
            tolerant: false,
            all_used: false,
            options: LoadOptions::new(),
        }
    }

    /// Loads by the names and layouts of [PyTorch](crate::Convention::PyTorch): short for
    /// `mapping(Mapping::pytorch())`.
    pub fn pytorch(self) -> Self {
        self.mapping(Mapping::pytorch())
    }

    /// Sets how files name and lay out the module's parameters.
    pub fn mapping(mut self, mapping: Mapping) -> Self {
        self.request.mapping = mapping;
        self
    }

    /// Renames the stored tensors before parameters look for them. Two tensors that get one name are an
    /// error.
    ///
    /// ```no_run
    /// # use weighbridge_burn::weighbridge::{Checkpoint, Renames};
    /// # fn load(ckpt: &Checkpoint) -> weighbridge_burn::weighbridge::Result<()> {
    /// let loader = weighbridge_burn::load(ckpt).pytorch().rename(Renames::new().prefix("bert.", ""));
    /// # Ok(())
    /// # }
    /// ```
    pub fn rename(mut self, renames: Renames) -> Self {
        self.request.naming.renames = renames;
        self
    }

    #[cfg(feature = "store")]
    pub(crate) fn naming(mut self, naming: Naming) -> Self {
        self.request.naming = naming;
        self
    }

    /// Makes the indices in names contiguous: `fc.0.weight`, `fc.2.weight`, `fc.4.weight` are looked for as
    /// `fc.0.weight`, `fc.1.weight`, `fc.2.weight`.
    ///
    /// This fits the modules of an `nn.Sequential` of which only some have parameters to a `Vec` of those
    /// that have. It is done after [renaming](Self::rename), for every list of the checkpoint by itself,
    /// whichever parameters are loaded.
    ///
    /// ```
    /// # use weighbridge_burn::burn::module::Module;
    /// # use weighbridge_burn::burn::nn::{Linear, LinearConfig};
    /// # use weighbridge_burn::burn::tensor::Device;
    /// # use weighbridge_burn::weighbridge::{Checkpoint, write::{Save, Values}};
    /// #[derive(Module, Debug)]
    /// struct Model {
    ///     fc: Vec<Linear>,
    /// }
    ///
    /// # fn main() -> weighbridge_burn::weighbridge::Result<()> {
    /// # let device = Device::default();
    /// # let names = ["fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"];
    /// # let shape = |name: &str| if name.ends_with(".bias") { &[1][..] } else { &[1, 1] };
    /// # let tensors = names.map(|name| (name, Values::new(shape(name), &[1.0_f32]).unwrap()));
    /// # let ckpt = Checkpoint::from_bytes(Save::new().bytes(tensors)?)?;
    /// // The checkpoint is that of Linear, ReLU, Linear.
    /// let mut model = Model { fc: (0..2).map(|_| LinearConfig::new(1, 1).init(&device)).collect() };
    /// let report = weighbridge_burn::load(&ckpt).pytorch().map_indices_contiguous().into(&mut model)?;
    /// assert_eq!(report.loaded.len(), 4); // fc.0 from fc.0, fc.1 from fc.2
    /// # Ok(())
    /// # }
    /// ```
    pub fn map_indices_contiguous(mut self) -> Self {
        self.request.naming.is_contiguous = true;
        self
    }

    /// [`map_indices_contiguous`](Self::map_indices_contiguous), but for the lists in the set, which keep
    /// their indices. Lists are given by the names before the index, after renaming: `flows` for
    /// `flows.2.weight`. Further calls add lists.
    pub fn map_indices_contiguous_except(mut self, lists: Names) -> Self {
        self.request.naming.keep_indices(lists);
        self.map_indices_contiguous()
    }

    /// Loads only the parameters whose paths in the module, such as `encoder.layers.0.linear.weight`, are in
    /// the set; the others stay as they are. Each further call narrows the selection. A selection without any
    /// parameter is an error.
    pub fn only(mut self, paths: Names) -> Self {
        self.request.only = true;
        self.keep(move |site| paths.contains(&site.path()))
    }

    pub(crate) fn keep(mut self, keep: impl Fn(&Site) -> bool + Send + Sync + 'static) -> Self {
        self.request.filters.push(Box::new(keep));
        self
    }

    /// Leaves parameters whose tensors do not fit as they are, instead of failing.
    #[cfg(feature = "store")]
    pub(crate) fn tolerant(mut self) -> Self {
        self.tolerant = true;
        self
    }

    /// Leaves parameters without a tensor as they are and lists them in the report, instead of failing.
    pub fn partial(mut self) -> Self {
        self.partial = true;
        self
    }

    /// Makes tensors that no parameter takes an error, instead of only listing them in the report.
    pub fn all_used(mut self) -> Self {
        self.all_used = true;
        self
    }

    /// Sets the dtype of float parameters, if `dtype` is a float, or of integer parameters; call it twice to
    /// set both. A `FloatDType` or an `IntDType` will do. Without it parameters get the stored dtypes.
    pub fn dtype(mut self, dtype: impl Into<DType>) -> Self {
        let dtype = dtype.into();
        match dtype {
            float if float.is_float() => self.request.wishes.float = Some(float),
            int if int.is_int() || int.is_uint() => self.request.wishes.int = Some(int),
            other => self.request.bad_dtype = Some(other),
        }
        self
    }

    /// Sets what to do with the weights of quantised modules: FP8 with scales, GPTQ, AWQ, bitsandbytes and
    /// [others](weighbridge::QuantMethod). Tensors that Burn itself quantised are not meant: they are loaded
    /// as they were saved.
    ///
    /// By default they come as the weights that they stand for, under the names and in the shapes that they
    /// have where they are not quantised, in whatever dtype is asked for
    /// ([`Checkpoint::dequantized`]); what cannot be had so is an error. [`Quantized::Refuse`] makes all of
    /// them one, and [`Quantized::Raw`] gives their codes.
    pub fn quantized(mut self, quantized: Quantized) -> Self {
        self.request.quantized = quantized;
        self
    }

    /// Merges an adapter into the weights, `weight` times what it says: `W + weight · scale · B A`, computed in `F32` and rounded
    /// once, to whatever dtype is asked for. Each further call adds one. What adapters are understood, and how their
    /// modules find the weights that they are for, [`Adapter`](weighbridge::Adapter) and [`Checkpoint::adapted`] say; a module that finds
    /// none is an error.
    ///
    /// ```no_run
    /// # use weighbridge_burn::weighbridge::{Checkpoint, Result};
    /// # use weighbridge_burn::burn::nn::Linear;
    /// # fn load(linear: &mut Linear) -> Result<()> {
    /// let (base, adapter) = (Checkpoint::open("Llama-3.2-1B")?, Checkpoint::open("my-adapter")?);
    /// weighbridge_burn::load(&base).pytorch().adapter(&adapter, 1.0).into(linear)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn adapter(mut self, adapter: &Checkpoint, weight: f32) -> Self {
        self.request.adapters.push((adapter.clone(), weight));
        self
    }

    /// Keeps the weights of quantised modules as Burn's own quantised tensors, which it computes with as they are: a
    /// quarter of the memory of the dense weights in `F32`, or less. [`LoadReport::quantized`] lists them.
    ///
    /// They hold exactly what is stored, so that `Tensor::dequantize` gives the very numbers that come in `F32`
    /// otherwise; nothing is quantised anew. Burn's schemes are codes times scales, so symmetric integers of 2, 4 and
    /// 8 bits (compressed-tensors, GPTQ, quanto, torchao), FP8, MXFP4 and NVFP4 can stay, and what has zero points,
    /// biases or columns in no order cannot. Groups are cut into blocks of up to 255 by 255 weights, and scales are
    /// `F32`. On `flex` and `ndarray` only int8 can stay; the others need Burn's backends for GPUs.
    ///
    /// A weight that cannot stay is an error that says which condition it breaks, unless
    /// [`dense_where_needed`](Self::dense_where_needed) is set. So is a weight that is split or joined on the way to
    /// its parameter, and that of a `Linear` with `LinearLayout::Col`. [`quantized`](Self::quantized) has to be
    /// `Dequantize`, as it is by default.
    ///
    /// `Tensor::matmul` multiplies by such weights, and so does `Linear`; for most else Burn dequantises them. On the
    /// CPU it also does so in every `matmul`, which saves memory and no time, and `flex` quantises blocks anew to
    /// reshape or transpose them. `Linear` reshapes its weight, so its results there differ from those of the dense
    /// weight as far as half a step of the largest weight of each block.
    ///
    /// ```
    /// use weighbridge_burn::burn::nn::LinearConfig;
    /// use weighbridge_burn::weighbridge::Checkpoint;
    /// # use weighbridge_burn::burn::tensor::Device;
    /// # use weighbridge_burn::weighbridge::{Dtype, TensorView, write::Save};
    ///
    /// # fn main() -> weighbridge_burn::weighbridge::Result<()> {
    /// # let device = Device::flex();
    /// # let codes = TensorView::new(Dtype::I8, &[2, 8], &[1; 16])?;
    /// # let scales = TensorView::new(Dtype::F32, &[2, 1], &[0, 0, 0x80, 0x3F, 0, 0, 0, 0x3F])?; // 1, 0.5
    /// # let file = Save::new().bytes([("weight", codes), ("weight_scale", scales)])?;
    /// # let ckpt = Checkpoint::from_bytes(file)?;
    /// let mut linear = LinearConfig::new(8, 2).with_bias(false).init(&device);
    /// let report = weighbridge_burn::load(&ckpt).pytorch().keep_quantized().into(&mut linear)?;
    /// println!("{report}"); // 1 loaded (0 cast, 1 quantised), 0 missing, 0 unused
    /// # assert_eq!(report.quantized, ["weight"]);
    /// # assert_eq!(report.to_string(), "1 loaded (0 cast, 1 quantised), 0 missing, 0 unused");
    /// # Ok(())
    /// # }
    /// ```
    pub fn keep_quantized(mut self) -> Self {
        self.request.keep = true;
        self
    }

    /// Makes [`keep_quantized`](Self::keep_quantized) load dense what cannot stay quantised, instead of failing;
    /// [`LoadReport::dense`] says what that was, and why.
    pub fn dense_where_needed(mut self) -> Self {
        self.request.dense_where_needed = true;
        self
    }

    /// Short for [`quantized(Quantized::Raw)`](Self::quantized).
    pub fn unscaled(self) -> Self {
        self.quantized(Quantized::Raw)
    }

    /// Sets what casts do with values that are too large. By default floats become infinity, and integers are
    /// an error.
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.request.overflow = overflow;
        self
    }

    /// Loads complex numbers as `F32` with a last dimension of 2: real part, imaginary part.
    pub fn complex_pairs(mut self) -> Self {
        self.request.wishes.complex_pairs = true;
        self
    }

    /// Sets how the load goes about its work: all that is set in `options`. By default tensors are read in
    /// the order of the files, and onto a GPU without a limit on what is read ahead, for it is on the device
    /// then.
    pub fn options(mut self, options: LoadOptions) -> Self {
        self.options = options.or(self.options);
        self
    }

    /// See [`LoadOptions::threads`].
    pub fn threads(self, threads: usize) -> Self {
        self.options(LoadOptions::new().threads(threads))
    }

    /// See [`LoadOptions::read_ahead`]: the bytes that may be read before they are on their devices.
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

    /// Puts parameters on devices by how much memory these have: layers fill them in order, and none is divided. What
    /// counts are the bytes that parameters will have, and their paths in the module say which layer they belong to.
    /// Where they do not fit, the load fails with [`Memory`](weighbridge::ErrorKind::Memory) before anything is read.
    /// Parameters that are not loaded stay where they are, and each keeps its autodiff.
    ///
    /// A model on several devices has to move what goes from layer to layer itself:
    /// `hidden.to_device(&layer.weight.device())`.
    ///
    /// ```no_run
    /// use weighbridge_burn::weighbridge::parallel::DeviceMap;
    /// # use weighbridge_burn::burn::module::Module;
    /// # use weighbridge_burn::burn::tensor::Device;
    /// # use weighbridge_burn::weighbridge::Checkpoint;
    ///
    /// # fn on<M: Module>(first: Device, second: Device, model: &mut M) -> weighbridge_burn::weighbridge::Result<()> {
    /// # let ckpt = Checkpoint::open("model")?;
    /// let map = DeviceMap::by_memory([(first, 20 << 30), (second, 20 << 30)]);
    /// weighbridge_burn::load(&ckpt).pytorch().device_map(map).into(model)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn device_map(mut self, map: DeviceMap<Device>) -> Self {
        self.request.device_map = Some(map);
        self
    }

    /// Says what [`into`](Self::into) would do, without reading a tensor: what would make it fail is listed
    /// in the report.
    ///
    /// # Errors
    ///
    /// Fails when two stored tensors get one name, and when Burn's entries in the metadata are damaged.
    pub fn check<M: Module>(&self, module: &M) -> Result<LoadReport> {
        Ok(self.request.plan(module)?.report)
    }

    /// Loads into `module`.
    ///
    /// Parameters are put on the devices that they are on, or would be initialised on, unless there is a
    /// [map](Self::device_map), and stay trainable or frozen as they are. Their ids become those of the checkpoint, if it has any.
    ///
    /// # Errors
    ///
    /// Fails with [`MissingTensor`], [`Shape`] or [`Dtype`] when parameters and tensors do not fit or a
    /// tensor is [quantised](Self::quantized), with [`Device`] when a device does not support a dtype or
    /// cannot hold a tensor, and when reading fails. The module is then as it was.
    ///
    /// [`MissingTensor`]: weighbridge::ErrorKind::MissingTensor
    /// [`Shape`]: weighbridge::ErrorKind::Shape
    /// [`Dtype`]: weighbridge::ErrorKind::Dtype
    /// [`Device`]: weighbridge::ErrorKind::Device
    pub fn into<M: Module>(self, module: &mut M) -> Result<LoadReport> {
        let planned = self.planned(module)?;
        carry_out(planned, self.options, module)
    }

    /// A tensor for each parameter of `module`; fails if anything is wrong.
    pub(crate) fn planned<M: Module>(&self, module: &M) -> Result<Planned> {
        let planned = self.request.plan(module)?;
        let failed = fail(&planned.report, self.tolerant, self.partial, self.all_used);
        failed.map_err(|error| self.request.in_checkpoint(error))?;
        Ok(planned)
    }

    pub(crate) fn load_options(&self) -> LoadOptions {
        self.options.clone()
    }

    /// Has the loader see the same checkpoint each time that it plans: codes have their weights for good.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.request.checkpoint = self.request.checkpoint.with_adapters(&[], self.request.quantized)?;
        Ok(())
    }

    /// The adapters are these, in the place of those that were given before, which it returns.
    pub(crate) fn replace_adapters(&mut self, adapters: Vec<(Checkpoint, f32)>) -> Vec<(Checkpoint, f32)> {
        std::mem::replace(&mut self.request.adapters, adapters)
    }
}

/// Reads what is planned and puts it into the module, which is as it was if that fails.
pub(crate) fn carry_out<M: Module>(
    planned: Planned,
    options: LoadOptions,
    module: &mut M,
) -> Result<LoadReport> {
    let targets: Vec<_> = planned.fills.iter().map(Fill::target).collect();
    let mut uploads = Uploads::start(&targets, options)?;
    drop(targets);
    let mut ready: HashMap<String, Box<dyn Any>> = HashMap::with_capacity(planned.fills.len());
    for fill in planned.fills {
        let values = uploads.take(fill.target());
        let Fill { site, entry, dtype, transposed, id, .. } = fill;
        let how = Filled { device: &site.device, transposed, id };
        let filled =
            values.and_then(|values| caught("a tensor was made", || site.slot.filled(values, dtype, how)));
        let located = |error: Error| match entry.inputs().first() {
            Some(input) => in_shard(error.in_tensor(entry.name()), input.shard()),
            None => error.in_tensor(entry.name()),
        };
        ready.insert(site.path(), filled.map_err(located)?);
    }
    uploads.finish()?;
    walk::install(module, ready)?;
    Ok(planned.report)
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader")
            .field("checkpoint", &self.request.checkpoint)
            .field("mapping", &self.request.mapping)
            .field("renames", &self.request.naming.renames)
            .finish_non_exhaustive()
    }
}
