//! Loading and saving through an adapter of burn-store, whatever it does: tensors are read and adapted one at
//! a time.

use std::any::Any;
use std::collections::{HashMap, HashSet};

use burn::module::{Module, ParamId};
use burn::tensor::DType;
use burn_pack::Tensor;
use burn_store::{ModuleAdapter, ModuleContext, ModuleSnapshot, PathFilter, bridge};
use weighbridge::{Error, ErrorKind, HostBuffer, HostBytes, Result};

use super::stored::Stored;
use crate::dtype::{bool_dtype, check_support, narrow_bools};
use crate::panics::caught;
use crate::problems::fail;
use crate::report::{LoadReport, Missing};
use crate::tensor_data::data;
use crate::upload::Values;
use crate::walk::{self, Filled, Kind, Site, dotted};

/// The parameters of a module, adapted; they are read from their devices when their bytes are asked for.
///
/// # Errors
///
/// Fails when the adapter panics.
pub(super) fn collect<M: ModuleSnapshot>(
    module: &M,
    adapter: Box<dyn ModuleAdapter>,
    filter: &PathFilter,
    skip_variants: bool,
) -> Result<Vec<Tensor>> {
    let filter = (!filter.is_empty()).then(|| filter.clone());
    caught("parameters were collected", || {
        walk::settle(module);
        Ok(module.collect(filter, Some(adapter), skip_variants))
    })
}

/// A load through an adapter.
pub(super) struct Load<'l> {
    pub(super) stored: &'l Stored,
    pub(super) adapter: &'l dyn ModuleAdapter,
    pub(super) skip_variants: bool,
}

/// A parameter, and the adapted tensor that goes into it.
struct Fill {
    site: Site,
    tensor: Tensor,
}

impl Load<'_> {
    /// Loads the parameters that `keeps` holds for. If `strict`, tensors that do not fit are an error; if not
    /// `partial`, missing ones are.
    pub(super) fn run<M: Module>(
        &self,
        module: &mut M,
        keeps: impl Fn(&Site) -> bool,
        strict: bool,
        partial: bool,
    ) -> Result<LoadReport> {
        let mut report = LoadReport::default();
        let mut fills = Vec::new();
        let mut used = HashSet::new();
        for site in walk::sites(module) {
            let path = site.path();
            if !keeps(&site) {
                report.skipped.push(path);
                continue;
            }
            let Some((name, tensor)) = self.find(&site) else {
                let name = self.name(&site);
                report.missing.push(Missing { path, name, nearest: None, nearest_renamed: None });
                continue;
            };
            used.insert(name);
            match tensor.and_then(|tensor| self.adapted(tensor, &site)) {
                Ok(tensor) => {
                    report.bytes += tensor.byte_len() as u64;
                    report.loaded.push(path);
                    fills.push(Fill { site, tensor });
                }
                Err(error) => report.problems.push(error.in_tensor(&path)),
            }
        }
        let unused = self.stored.names().iter().filter(|name| !used.contains(*name));
        report.unused = unused.cloned().collect();
        fail(&report, !strict, partial, false)?;
        let mut ready: HashMap<String, Box<dyn Any>> = HashMap::with_capacity(fills.len());
        for Fill { site, tensor } in fills {
            let path = site.path();
            let id = self.stored.ids.get(&path).copied().or(tensor.param_id);
            let id = id.map_or(site.id, ParamId::from);
            let filled = caught("a tensor was adapted", || filled(&site, tensor, id));
            ready.insert(path.clone(), filled.map_err(|error| error.in_tensor(&path))?);
        }
        walk::install(module, ready)?;
        Ok(report)
    }

    /// The name under which a parameter is looked for first.
    fn name(&self, site: &Site) -> String {
        dotted(site.steps.iter().filter(|step| !(self.skip_variants && step.is_variant())))
    }

    /// The tensor of a parameter and its name: its own, or the one that the adapter says instead.
    fn find(&self, site: &Site) -> Option<(String, Result<&Tensor>)> {
        let name = self.name(site);
        if let Some(tensor) = self.stored.find(&name) {
            return Some((name, tensor));
        }
        let owners = site.owners();
        let module_type = ModuleContext::new(&owners).module_type()?;
        let (list, leaf) = name.rsplit_once('.').map_or(("", &*name), |(list, leaf)| (list, leaf));
        let other = caught("an adapter named a parameter", || {
            Ok(self.adapter.get_alternative_param_name(leaf, module_type))
        });
        let other = match other {
            Ok(other) => other?,
            Err(error) => return Some((name, Err(error))),
        };
        let name = if list.is_empty() { other } else { format!("{list}.{other}") };
        self.stored.find(&name).map(|tensor| (name, tensor))
    }

    /// What the adapter makes of a tensor, if it fits the parameter.
    fn adapted(&self, tensor: &Tensor, site: &Site) -> Result<Tensor> {
        let mut tensor = tensor.clone();
        tensor.name = self.name(site);
        let owners = site.owners();
        let tensor =
            caught("a tensor was adapted", || Ok(self.adapter.adapt(tensor, ModuleContext::new(&owners))))?;
        let dtype = tensor.dtype;
        let fits = match site.kind {
            Kind::Float => dtype.is_float() || matches!(dtype, DType::QFloat(_)),
            Kind::Int => dtype.is_int() || dtype.is_uint(),
            // Formats without booleans store them as integers.
            Kind::Bool => dtype.is_bool() || matches!(dtype, DType::U8 | DType::U32),
        };
        if !fits {
            let message = format!("{dtype:?} cannot be loaded into a parameter of {}", site.kind.name());
            return Err(Error::new(ErrorKind::Dtype, message));
        }
        if tensor.shape.to_vec() != site.shape {
            let (expected, found) = (&site.shape, tensor.shape.to_vec());
            let message = format!("the module has {expected:?} there, the adapter gives {found:?}");
            return Err(Error::new(ErrorKind::Shape, message));
        }
        if site.kind != Kind::Bool && !matches!(dtype, DType::QFloat(_)) {
            check_support(&site.device, dtype, site.kind)?;
        }
        Ok(tensor)
    }
}

/// The parameter with the values of a tensor, which are read now.
fn filled(site: &Site, tensor: Tensor, id: ParamId) -> Result<Box<dyn Any>> {
    let dtype = tensor.dtype;
    let values = bridge::into_data(tensor).map_err(|error| match error {
        // What reading failed with.
        burn_pack::Error::IoError(message) => Error::new(ErrorKind::Io, message),
        other => Error::new(ErrorKind::Value, other.to_string()),
    })?;
    let how = Filled { device: &site.device, transposed: false, id };
    match site.kind {
        Kind::Bool => {
            let dtype = bool_dtype(&site.device);
            let bytes = match values.dtype().size() {
                4 => narrow_bools(values.as_bytes()),
                _ => values.as_bytes().to_vec(),
            };
            let bytes = HostBytes::Owned(HostBuffer::U8(bytes));
            site.slot.filled(Values::Host(data(bytes, &site.shape, dtype, &site.device)?), dtype, how)
        }
        _ => site.slot.filled(Values::Host(values), dtype, how),
    }
}
