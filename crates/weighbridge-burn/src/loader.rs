//! A checkpoint into a module.

use std::any::Any;
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use burn::module::{Module, ParamId};
use burn::tensor::DType;
use weighbridge::engine::{IntoFlow, LoadOptions, Prefetch, ReadOrder};
use weighbridge::plan::{Entry, Input, Join, Operation, Overflow, Part, Read};
use weighbridge::{
    Checkpoint, Error, ErrorKind, Names, Plan, Progress, Quantized, Renames, Result, Slice, TensorRef,
};

use crate::codes::{Codes, refusal};
use crate::dtype::{Arrival, Wishes, arrival};
use crate::mapping::{Mapping, Origin, stored_shape_of};
use crate::metadata::{Known, in_shard};
use crate::place::{caught, data};
use crate::problems::{Hints, fail, located, selects_none};
use crate::report::{Cast, Report};
use crate::walk::{self, Filled, Kind, Site};

type Keep = dyn Fn(&Site) -> bool;

/// Loads the tensors of a checkpoint into a module.
///
/// Everything that can be wrong is looked for first: names, shapes, dtypes, what the devices compute with. Then all
/// tensors are read, and only then is the module changed, in a step that cannot fail; so whatever the error, the module
/// is as it was. While a module that has its values already is loaded, both old and new ones are in memory. A `BatchNorm`'s
/// running statistics belong to all clones of a module in Burn, so those change with it.
///
/// On the CPU (`flex`) the memory that is read into becomes the tensors'; of a
/// [mapped](weighbridge::OpenOptions::map) checkpoint, or one in memory, tensors are the checkpoint's own bytes wherever
/// these are aligned.
#[must_use]
pub struct Loader {
    checkpoint: Checkpoint,
    mapping: Mapping,
    renames: Renames,
    keep: Option<Box<Keep>>,
    only: bool,
    partial: bool,
    tolerant: bool,
    all_used: bool,
    wishes: Wishes,
    bad_dtype: Option<DType>,
    quantized: Quantized,
    overflow: Overflow,
    threads: Option<usize>,
    read_ahead: u64,
    prefetch: Prefetch,
    progress: Option<Box<dyn FnMut(Progress) -> ControlFlow<()> + Send>>,
}

/// Loads from `checkpoint`: by Burn's own names, in the stored dtypes, every parameter, unless more is said.
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
/// # assert_eq!(linear.weight.val().into_data().try_to_vec::<f32>().unwrap(), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
/// # Ok(())
/// # }
/// ```
pub fn load(checkpoint: &Checkpoint) -> Loader {
    Loader {
        checkpoint: checkpoint.clone(),
        mapping: Mapping::new(),
        renames: Renames::new(),
        keep: None,
        only: false,
        partial: false,
        tolerant: false,
        all_used: false,
        wishes: Wishes::default(),
        bad_dtype: None,
        quantized: Quantized::default(),
        overflow: Overflow::default(),
        threads: None,
        read_ahead: LoadOptions::DEFAULT_READ_AHEAD,
        prefetch: Prefetch::Auto,
        progress: None,
    }
}

impl Loader {
    /// Takes names and layouts to be those of [PyTorch](crate::Convention::PyTorch): short for
    /// `mapping(Mapping::pytorch())`.
    pub fn pytorch(self) -> Self {
        self.mapping(Mapping::pytorch())
    }

    /// Sets how the module's parameters lie in the files.
    pub fn mapping(mut self, mapping: Mapping) -> Self {
        self.mapping = mapping;
        self
    }

    /// Renames stored tensors before they are looked for. Two that get one name are an error.
    ///
    /// ```no_run
    /// # use weighbridge_burn::weighbridge::{Checkpoint, Renames};
    /// # fn load(ckpt: &Checkpoint) -> weighbridge_burn::weighbridge::Result<()> {
    /// let loader = weighbridge_burn::load(ckpt).pytorch().rename(Renames::new().prefix("bert.", ""));
    /// # Ok(())
    /// # }
    /// ```
    pub fn rename(mut self, renames: Renames) -> Self {
        self.renames = renames;
        self
    }

    /// Loads only the parameters whose paths in the module are in the set, `encoder.layers.0.linear.weight`; the others
    /// stay as they are. A set that has none of them is an error.
    pub fn only(mut self, paths: Names) -> Self {
        self.only = true;
        self.keep(move |site| paths.contains(&site.path()))
    }

    pub(crate) fn keep(mut self, keep: impl Fn(&Site) -> bool + 'static) -> Self {
        self.keep = Some(Box::new(keep));
        self
    }

    /// Leaves parameters as they are whose tensors do not fit.
    #[cfg(feature = "store")]
    pub(crate) fn tolerant(mut self) -> Self {
        self.tolerant = true;
        self
    }

    /// Leaves parameters for which there is no tensor as they are, and lists them in the report; otherwise they are an
    /// error.
    pub fn partial(mut self) -> Self {
        self.partial = true;
        self
    }

    /// Makes tensors that no parameter takes an error; otherwise they are listed in the report.
    pub fn all_used(mut self) -> Self {
        self.all_used = true;
        self
    }

    /// Sets the dtype of float parameters, if it is one of floats, or of integer parameters; both may be set, one after
    /// the other. A `FloatDType` or an `IntDType` will do. Otherwise parameters have the stored dtypes.
    pub fn dtype(mut self, dtype: impl Into<DType>) -> Self {
        let dtype = dtype.into();
        match dtype {
            float if float.is_float() => self.wishes.float = Some(float),
            int if int.is_int() || int.is_uint() => self.wishes.int = Some(int),
            other => self.bad_dtype = Some(other),
        }
        self
    }

    /// Sets what becomes of the weights of quantised modules: FP8 with scales, GPTQ, AWQ, bitsandbytes and
    /// [others](weighbridge::QuantMethod), but not Burn's own, which are loaded as they were saved.
    ///
    /// They are refused otherwise: their values are codes, which mean nothing without their scales.
    pub fn quantized(mut self, quantized: Quantized) -> Self {
        self.quantized = quantized;
        self
    }

    /// Short for [`quantized(Quantized::Raw)`](Self::quantized).
    pub fn unscaled(self) -> Self {
        self.quantized(Quantized::Raw)
    }

    /// Sets what casts do with values that are too large: they become infinity otherwise, and an error in integers.
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// Loads complex numbers as `F32` with a last dimension of 2: real part, imaginary part.
    pub fn complex_pairs(mut self) -> Self {
        self.wishes.complex_pairs = true;
        self
    }

    /// Sets the number of threads that read; by default one a core, and 8 at most.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Sets how many bytes may have been read that are not yet on their devices; 64 MiB otherwise.
    pub fn read_ahead(mut self, bytes: u64) -> Self {
        self.read_ahead = bytes;
        self
    }

    /// Sets whether files are fetched before they are read; by default where they are not in memory already.
    pub fn prefetch(mut self, prefetch: Prefetch) -> Self {
        self.prefetch = prefetch;
        self
    }

    /// Has `handler` called as bytes arrive; where it returns [`ControlFlow::Break`], loading ends with
    /// [`ErrorKind::Cancelled`]. See [`SessionBuilder::progress`].
    pub fn progress<F: IntoFlow>(mut self, mut handler: impl FnMut(Progress) -> F + Send + 'static) -> Self {
        self.progress = Some(Box::new(move |progress| handler(progress).into_flow()));
        self
    }

    /// What [`into`](Self::into) would do; nothing is read and nothing is an error but what makes it impossible to say.
    ///
    /// # Errors
    ///
    /// Fails when two stored tensors get one name, and when metadata that Burn's tensors need is damaged.
    pub fn check<M: Module>(&self, module: &M) -> Result<Report> {
        Ok(self.plan(walk::sites(module))?.report)
    }

    /// Loads into `module`.
    ///
    /// Parameters are put on the devices on which they are, or would be initialised, and keep whether they are trained;
    /// their ids become those of the checkpoint, where it has some.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::MissingTensor`], [`ErrorKind::Shape`] or [`ErrorKind::Dtype`] when parameters and tensors do
    /// not fit or a tensor is [quantised](Self::quantized), with [`ErrorKind::Device`] when a device does not compute with a dtype or cannot hold a tensor, and when
    /// reading fails. The module is as it was then.
    pub fn into<M: Module>(mut self, module: &mut M) -> Result<Report> {
        let planned = self.plan(walk::sites(module))?;
        let Planned { fills, report } = planned;
        let failed = fail(&report, self.tolerant, self.partial, self.all_used);
        failed.map_err(|error| self.in_checkpoint(error))?;
        let plan = Plan::new(fills.iter().map(|fill| fill.entry.clone()));
        let mut session =
            plan.session().order(ReadOrder::File).read_ahead(self.read_ahead).prefetch(self.prefetch);
        if let Some(threads) = self.threads {
            session = session.threads(threads);
        }
        if let Some(progress) = self.progress.take() {
            session = session.progress(progress);
        }
        let session = session.start_lending()?;
        let mut ready: HashMap<String, Box<dyn Any>> = HashMap::with_capacity(fills.len());
        for fill in fills {
            let Fill { site, entry, dtype, shape, exchanged, id } = fill;
            let (_, bytes) = session.take(entry.name(), None)?;
            let filled = caught("a tensor was made", || {
                let data = data(bytes, &shape, dtype, &site.device)?;
                site.slot.filled(data, dtype, Filled { device: &site.device, exchanged, id })
            });
            let located = |error: Error| match entry.inputs().first() {
                Some(input) => in_shard(error.in_tensor(entry.name()), input.shard()),
                None => error.in_tensor(entry.name()),
            };
            ready.insert(site.path(), filled.map_err(located)?);
        }
        drop(session);
        // An update that running statistics keep to themselves would later go over what is loaded.
        caught("running statistics were brought up to date", || {
            walk::settle(module);
            Ok(())
        })?;
        *module = caught("parameters were replaced", || Ok(walk::replace(module.clone(), ready)))?;
        Ok(report)
    }

    /// Finds a tensor for each parameter, and what is wrong.
    fn plan(&self, sites: Vec<Site>) -> Result<Planned> {
        let stored = self.stored()?;
        let known = Known::of(&self.checkpoint)?;
        let usual = self.mapping.usual(&sites);
        let codes = Codes::of(&self.checkpoint, &self.renames, self.quantized, &known);
        let mut planned = Planned::default();
        if let Some(dtype) = self.bad_dtype {
            let message = format!("{dtype:?} is neither a float nor an integer");
            planned.report.problems.push(Error::new(ErrorKind::Dtype, message));
        }
        let is_kept = |site: &Site| self.keep.as_ref().is_none_or(|keep| keep(site));
        if let Some(first) = sites.first()
            && self.only
            && !sites.iter().any(is_kept)
        {
            planned.report.problems.push(selects_none(first));
        }
        let mut hints = Hints::new(&self.checkpoint, &self.renames);
        let mut used = HashSet::new();
        for site in sites {
            let path = site.path();
            if !is_kept(&site) {
                planned.report.skipped.push(path);
                continue;
            }
            // The first place where the parameter may be that is quantised: no other one stands in for it.
            let quantised = Cell::new(None);
            let size = |name: &str, axis: usize| {
                let tensor = stored.get(name);
                if quantised.get().is_none() {
                    quantised.set(codes.module(name, tensor));
                }
                let tensor = tensor?;
                match known.quantised.get(tensor.name()) {
                    Some(quantised) => quantised.shape.get(axis).copied(),
                    // A scalar, too, is there.
                    None => Some(tensor.shape().get(axis).copied().unwrap_or(1)),
                }
            };
            let origin = self.mapping.origin(&site, &usual, size);
            if let Some(module) = quantised.get() {
                planned.report.problems.push(refusal(&module, &path));
                continue;
            }
            let origin = match origin {
                Ok(Some(origin)) => origin,
                Ok(None) => {
                    let name = self.mapping.name(&site);
                    let missing = hints.missing(path, name);
                    planned.report.missing.push(missing);
                    continue;
                }
                Err(error) => {
                    planned.report.problems.push(self.in_checkpoint(error.in_tensor(&path)));
                    continue;
                }
            };
            let tensors: Vec<_> =
                origin.names.iter().filter_map(|name| stored.get(&**name)).copied().collect();
            used.extend(tensors.iter().map(TensorRef::name));
            match self.fill(site, &path, &origin, &tensors, &known) {
                Ok((fill, cast)) => {
                    planned.report.bytes += fill.entry.byte_len();
                    planned.report.cast.extend(cast);
                    planned.report.loaded.push(path);
                    planned.fills.push(fill);
                }
                Err(error) => planned.report.problems.push(located(error, &path, &tensors)),
            }
        }
        planned.report.unused = self
            .checkpoint
            .tensors()
            .map(|tensor| tensor.name())
            .filter(|name| !used.contains(name))
            .map(str::to_owned)
            .collect();
        // In the order of the files, as they are read.
        planned.fills.sort_by(|a, b| a.entry.inputs().first().cmp(&b.entry.inputs().first()));
        Ok(planned)
    }

    /// The stored tensors by the names that they get.
    fn stored(&self) -> Result<HashMap<String, TensorRef<'_>>> {
        let mut stored: HashMap<String, TensorRef<'_>> = HashMap::with_capacity(self.checkpoint.len());
        for tensor in self.checkpoint.tensors() {
            let name = self.renames.apply(tensor.name());
            if let Some(first) = stored.get(&name) {
                let message = format!("{:?} and this one would both be named {name:?}", first.name());
                let error = Error::new(ErrorKind::DuplicateTensor, message).in_tensor(tensor.name());
                return Err(in_shard(error, tensor.shard()));
            }
            stored.insert(name, tensor);
        }
        Ok(stored)
    }

    fn fill(
        &self,
        site: Site,
        path: &str,
        origin: &Origin,
        tensors: &[TensorRef<'_>],
        known: &Known,
    ) -> Result<(Fill, Option<Cast>)> {
        let inputs = tensors.iter().map(Input::of).collect();
        let id = known.ids.get(path).map_or(site.id, |&id| ParamId::from(id));
        let expected = stored_shape_of(&site, origin.exchanged);
        let mismatch = |found: &[usize]| {
            Error::new(ErrorKind::Shape, format!("the module has {expected:?} there, the file {found:?}"))
        };
        if let [tensor] = tensors
            && let Some(quantised) = known.quantised.get(tensor.name())
        {
            if site.kind != Kind::Float || origin.part.is_some() || origin.exchanged {
                let message = "a quantised tensor can only be loaded as it was saved";
                return Err(Error::new(ErrorKind::Dtype, message));
            }
            if quantised.shape != expected {
                return Err(mismatch(&quantised.shape));
            }
            let entry = Entry::new(path, inputs, Arc::new(Read))?;
            let (dtype, shape) = (quantised.dtype, quantised.shape.clone());
            return Ok((Fill { site, entry, dtype, shape, exchanged: false, id }, None));
        }
        let operation: Arc<dyn Operation> = match &origin.part {
            Some(part) => Arc::new(Part::of(along(origin.axis, part))),
            None if tensors.len() > 1 => Arc::new(Join::along(origin.axis)),
            None => Arc::new(Read),
        };
        let entry = Entry::new(path, inputs, operation)?;
        let stored = entry.dtype();
        let Arrival { made, dtype, pairs } = arrival(stored, site.kind, self.wishes, &site.device)?;
        let shape = [entry.shape(), if pairs { &[2] } else { &[] }].concat();
        if shape != expected {
            return Err(mismatch(&shape));
        }
        let cast = (made != stored).then(|| Cast { path: path.to_owned(), from: stored, to: dtype });
        let entry = entry.overflow(self.overflow).recast(made)?;
        Ok((Fill { site, entry, dtype, shape, exchanged: origin.exchanged, id }, cast))
    }

    /// The error with the place of the checkpoint, unless it names a file.
    fn in_checkpoint(&self, error: Error) -> Error {
        match self.checkpoint.shards() {
            [shard] => in_shard(error, shard),
            _ => match self.checkpoint.directory() {
                Some(directory) => error.in_file(directory),
                None => error,
            },
        }
    }
}

/// The slice of a range along one dimension.
fn along(axis: usize, part: &std::ops::Range<usize>) -> Slice {
    let whole = (0..axis).fold(Slice::new(), |slice, _| slice.range(..));
    let bound = |at| i64::try_from(at).unwrap_or(i64::MAX);
    whole.range(bound(part.start)..bound(part.end))
}

/// A parameter, and what it gets.
struct Fill {
    site: Site,
    /// Under the path of the parameter.
    entry: Entry,
    dtype: DType,
    /// Before its dimensions are exchanged.
    shape: Vec<usize>,
    exchanged: bool,
    id: ParamId,
}

#[derive(Default)]
struct Planned {
    fills: Vec<Fill>,
    report: Report,
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader")
            .field("checkpoint", &self.checkpoint)
            .field("mapping", &self.mapping)
            .field("renames", &self.renames)
            .finish_non_exhaustive()
    }
}
