//! What a load will do: a tensor for each parameter, and what is wrong.

use std::cell::Cell;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use burn::module::{Module, ParamId};
use burn::tensor::{DType, Device};
use weighbridge::parallel::DeviceMap;
use weighbridge::plan::{Entry, Input, Join, Operation, Overflow, Part, Read};
use weighbridge::{Checkpoint, Error, ErrorKind, Quantized, Result, Slice, TensorRef};

use crate::codes::{Codes, refusal};
use crate::dtype::{Arrival, Wishes, arrival};
use crate::kept::Kept;
use crate::mapping::{Mapping, Origin, stored_shape_of};
use crate::metadata::{Known, in_shard};
use crate::naming::Naming;
use crate::panics::caught;
use crate::problems::{Hints, located, no_such_path, selects_none};
use crate::report::{Conversion, Dequantized, LoadReport};
use crate::upload::Target;
use crate::walk::{self, Kind, Site, with_autodiff_of};

/// A parameter, and what is loaded into it.
pub(super) struct Fill {
    pub(super) site: Site,
    /// Named by the path of the parameter.
    pub(super) entry: Entry,
    /// The tensors of the checkpoint that it is made of. Those of the entry may be others: what a merged weight is
    /// made of.
    pub(super) tensors: Vec<Input>,
    pub(super) dtype: DType,
    /// As it is in the file, before it is transposed.
    pub(super) shape: Vec<usize>,
    pub(super) transposed: bool,
    pub(super) id: ParamId,
}

impl Fill {
    pub(super) fn target(&self) -> Target<'_> {
        Target { entry: &self.entry, shape: &self.shape, dtype: self.dtype, device: &self.site.device }
    }
}

#[derive(Default)]
pub(crate) struct Planned {
    pub(super) fills: Vec<Fill>,
    pub(super) report: LoadReport,
}

impl Planned {
    /// The tensors of the checkpoint that each parameter is made of, by its path.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&str, &[Input])> {
        self.fills.iter().map(|fill| (fill.entry.name(), &*fill.tensors))
    }

    /// Leaves out the parameters for whose path and tensors `keep` does not hold.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str, &[Input]) -> bool) {
        let Self { fills, report } = self;
        fills.retain(|fill| keep(fill.entry.name(), &fill.tensors));
        let kept: HashSet<_> = fills.iter().map(|fill| fill.entry.name()).collect();
        let is_kept = |path: &str| kept.contains(path);
        let (loaded, skipped) =
            std::mem::take(&mut report.loaded).into_iter().partition(|path| is_kept(path));
        report.loaded = loaded;
        report.skipped.extend::<Vec<_>>(skipped);
        report.cast.retain(|cast| is_kept(&cast.path));
        report.quantized.retain(|path| is_kept(path));
        report.dense.retain(|dense| is_kept(&dense.path));
        report.bytes = fills.iter().map(|fill| fill.entry.byte_len()).sum();
    }
}

/// A parameter is loaded if all of them hold for it.
pub(super) type Filter = dyn Fn(&Site) -> bool + Send + Sync;

/// What to load, and as what.
pub(super) struct Request {
    pub(super) checkpoint: Checkpoint,
    pub(super) adapters: Vec<(Checkpoint, f32)>,
    pub(super) mapping: Mapping,
    pub(super) naming: Naming,
    pub(super) filters: Vec<Box<Filter>>,
    /// Whether it is an error if the filters keep nothing.
    pub(super) only: bool,
    pub(super) wishes: Wishes,
    pub(super) bad_dtype: Option<DType>,
    pub(super) quantized: Quantized,
    /// Whether weights stay quantised.
    pub(super) keep: bool,
    /// Whether those that cannot come dense.
    pub(super) dense_where_needed: bool,
    pub(super) overflow: Overflow,
    pub(super) device_map: Option<DeviceMap<Device>>,
}

impl Request {
    /// A request for every parameter, by Burn's own names and layouts and in the stored dtypes.
    pub(super) fn of(checkpoint: &Checkpoint) -> Self {
        Self {
            checkpoint: checkpoint.clone(),
            adapters: Vec::new(),
            mapping: Mapping::new(),
            naming: Naming::default(),
            filters: Vec::new(),
            only: false,
            wishes: Wishes::default(),
            bad_dtype: None,
            quantized: Quantized::default(),
            keep: false,
            dense_where_needed: false,
            overflow: Overflow::default(),
            device_map: None,
        }
    }

    /// Finds a tensor for each parameter of a module, and what is wrong.
    pub(super) fn plan<M: Module>(&self, module: &M) -> Result<Planned> {
        let mut sites = walk::sites(module);
        let Some(map) = &self.device_map else { return self.plan_for(sites) };
        // How many bytes there will be is found out first, as if all went to the first device.
        let mut all = walk::sites(module);
        if let Some(first) = map.devices().next() {
            all.iter_mut().for_each(|site| site.device = with_autodiff_of(first, &site.device));
        }
        let mut planned = self.plan_for(all)?;
        let bytes = planned.fills.iter().map(|fill| (fill.entry.name(), fill.entry.byte_len()));
        match map.place(bytes) {
            Ok(placed) => {
                for site in &mut sites {
                    if let Some(device) = placed.device_of(&site.path()) {
                        site.device = with_autodiff_of(device, &site.device);
                    }
                }
                self.plan_for(sites)
            }
            Err(error) => {
                planned.report.problems.push(self.in_checkpoint(error));
                Ok(planned)
            }
        }
    }

    fn plan_for(&self, sites: Vec<Site>) -> Result<Planned> {
        let checkpoint = &self.checkpoint.with_adapters(&self.adapters, self.quantized)?;
        let named = self.naming.of(checkpoint);
        let stored = named.tensors(checkpoint)?;
        let known = Known::of(checkpoint)?;
        let outputs = self.mapping.outputs(&sites);
        let codes = Codes::of(checkpoint, &named, self.quantized, &known);
        let mut planned = Planned::default();
        planned.report.problems = self.wrong_settings(&sites);
        let mut hints = Hints::new(checkpoint, &named);
        let mut used = HashSet::new();
        for site in sites {
            let path = site.path();
            if !self.keeps(&site) {
                planned.report.skipped.push(path);
                continue;
            }
            // The first quantised tensor that the parameter's values may come from: no later one is used
            // instead.
            let quantised = Cell::new(None);
            let size = |name: &str, axis: usize| {
                let tensor = stored.get(name);
                if quantised.get().is_none() {
                    quantised.set(codes.module(name, tensor));
                }
                let tensor = tensor?;
                match known.quantised.get(tensor.name()) {
                    Some(quantised) => quantised.shape.get(axis).copied(),
                    // A scalar counts as one.
                    None => Some(tensor.shape().get(axis).copied().unwrap_or(1)),
                }
            };
            let origin = self.mapping.origin(&site, &outputs, size);
            if let Some(module) = quantised.get() {
                planned.report.problems.push(refusal(&module, &path));
                continue;
            }
            let origin = match origin {
                Ok(Some(origin)) => origin,
                Ok(None) => {
                    let name = self.mapping.name(&site);
                    planned.report.missing.push(hints.missing(path, name));
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
            let kept = match self.kept(&site, &path, &origin, &tensors) {
                Ok(kept) => kept,
                Err(error) if self.dense_where_needed => {
                    let reason = error.message().to_owned();
                    planned.report.dense.push(Dequantized { path: path.clone(), reason });
                    None
                }
                Err(error) => {
                    let error = error.advised("`dense_where_needed()` loads such weights dense");
                    planned.report.problems.push(located(error, &path, &tensors));
                    continue;
                }
            };
            let is_kept = kept.is_some();
            match self.fill(site, &path, &origin, &tensors, &known, kept) {
                Ok((fill, cast)) => {
                    planned.report.bytes += fill.entry.byte_len();
                    planned.report.quantized.extend(is_kept.then(|| path.clone()));
                    planned.report.cast.extend(cast);
                    planned.report.loaded.push(path);
                    planned.fills.push(fill);
                }
                Err(error) => planned.report.problems.push(located(error, &path, &tensors)),
            }
        }
        let unused = checkpoint.tensors().map(|tensor| tensor.name());
        planned.report.unused = unused.filter(|name| !used.contains(name)).map(str::to_owned).collect();
        // They are taken in the order in which the files are read.
        planned.fills.sort_by(|a, b| a.entry.inputs().first().cmp(&b.entry.inputs().first()));
        Ok(planned)
    }

    /// Whether a parameter is to be loaded.
    fn keeps(&self, site: &Site) -> bool {
        self.filters.iter().all(|keep| keep(site))
    }

    /// What is wrong whatever the checkpoint holds.
    fn wrong_settings(&self, sites: &[Site]) -> Vec<Error> {
        let mut problems = Vec::new();
        if let Some(dtype) = self.bad_dtype {
            let message = format!("{dtype:?} is neither a float nor an integer");
            problems.push(Error::new(ErrorKind::Dtype, message));
        }
        let Some(first) = sites.first() else { return problems };
        if self.only && !sites.iter().any(|site| self.keeps(site)) {
            problems.push(selects_none(first));
        }
        problems.extend(self.mapping.unused_operations(sites).map(|names| no_such_path(names, first)));
        problems
    }

    /// The parameter as a quantised tensor, if it is to stay one.
    fn kept(
        &self,
        site: &Site,
        path: &str,
        origin: &Origin,
        tensors: &[TensorRef<'_>],
    ) -> Result<Option<Kept>> {
        let fits = |tensor: &TensorRef<'_>| tensor.shape() == stored_shape_of(site, origin.transposed);
        let is_computed = self.mapping.operation_for_path(path).is_some();
        // What has another shape is refused by that.
        let is_whole = is_computed || origin.part.is_some() || tensors.len() > 1;
        match self.keep && (is_whole || tensors.iter().all(fits)) {
            true => Kept::of(site, path, origin, tensors, is_computed),
            false => Ok(None),
        }
    }

    fn fill(
        &self,
        site: Site,
        path: &str,
        origin: &Origin,
        tensors: &[TensorRef<'_>],
        known: &Known,
        kept: Option<Kept>,
    ) -> Result<(Fill, Option<Conversion>)> {
        let stored: Vec<_> = tensors.iter().map(Input::of).collect();
        let inputs = stored.clone();
        let id = known.ids.get(path).map_or(site.id, |&id| ParamId::from(id));
        if let Some(Kept { entry, dtype, shape }) = kept {
            return Ok((Fill { site, entry, tensors: stored, dtype, shape, transposed: false, id }, None));
        }
        let expected = stored_shape_of(&site, origin.transposed);
        let own = self.mapping.operation_for_path(path);
        let mismatch = |found: &[usize]| {
            let found = match own {
                Some(_) => format!("its operation gives {found:?}"),
                None => format!("the file {found:?}"),
            };
            Error::new(ErrorKind::Shape, format!("the module has {expected:?} there, {found}"))
        };
        if let [tensor] = tensors
            && let Some(quantised) = known.quantised.get(tensor.name())
        {
            if site.kind != Kind::Float || origin.part.is_some() || origin.transposed || own.is_some() {
                let message = "a quantised tensor can only be loaded as it was saved";
                return Err(Error::new(ErrorKind::Dtype, message));
            }
            if quantised.shape != expected {
                return Err(mismatch(&quantised.shape));
            }
            let entry = Entry::new(path, inputs, Arc::new(Read))?;
            let (dtype, shape) = (quantised.dtype, quantised.shape.clone());
            return Ok((Fill { site, entry, tensors: stored, dtype, shape, transposed: false, id }, None));
        }
        let operation: Arc<dyn Operation> = match (own, &origin.part) {
            (Some(own), _) => Arc::clone(own),
            (None, Some(part)) => Arc::new(Part::of(along(origin.axis, part))),
            (None, None) if tensors.len() > 1 => Arc::new(Join::along(origin.axis)),
            (None, None) => Arc::new(Read),
        };
        let entry = caught("an operation was planned", || Entry::new(path, inputs, operation))?;
        let from = entry.dtype();
        let Arrival { read_as, dtype, pairs } = arrival(from, site.kind, self.wishes, &site.device)?;
        let shape = [entry.shape(), if pairs { &[2] } else { &[] }].concat();
        if shape != expected {
            return Err(mismatch(&shape));
        }
        let cast = (read_as != from).then(|| Conversion { path: path.to_owned(), from, to: dtype });
        let entry = entry.overflow(self.overflow).recast(read_as)?;
        let transposed = origin.transposed;
        Ok((Fill { site, entry, tensors: stored, dtype, shape, transposed, id }, cast))
    }

    /// The error with the path of the checkpoint, unless it names a file.
    pub(super) fn in_checkpoint(&self, error: Error) -> Error {
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
fn along(axis: usize, part: &Range<usize>) -> Slice {
    let whole = (0..axis).fold(Slice::new(), |slice, _| slice.range(..));
    let bound = |at| i64::try_from(at).unwrap_or(i64::MAX);
    whole.range(bound(part.start)..bound(part.end))
}
