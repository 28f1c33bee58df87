//! Stored values into variables that are there.

use candle_core::{Device, Tensor, Var};
use candle_nn::VarMap;
use weighbridge::engine::ReadOrder;
use weighbridge::plan::Input;
use weighbridge::{Entry, Error, ErrorKind, LoadOptions, Names, Report, Result};

use crate::Loader;
use crate::catalog::Catalog;
use crate::devices::Devices;
use crate::session::{Request, Tensors};
use crate::swap::{exchange_all, whole};
use crate::tensor::refused;
use crate::training::named;

/// What [`Loader::fill`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Filled {
    /// The variables that were set, in the order of their names.
    pub set: Vec<String>,
    /// Tensors of the checkpoint for which there is no variable.
    pub unused: Vec<String>,
}

impl Loader {
    /// Sets every variable of a map to the stored tensor of its name, in the variable's own dtype and on its
    /// own device. [`part_for`](Self::part_for) counts, [`dtype`](Self::dtype) and
    /// [`dtype_for`](Self::dtype_for) do not.
    ///
    /// It is all or nothing: names, shapes and dtypes are checked before anything is read, and everything is
    /// read before the first variable changes, so that for a moment old and new values are in memory. Then
    /// the memory changes hands, and nothing is copied. See [`fill_in_place`](Self::fill_in_place) for less.
    ///
    /// # Errors
    ///
    /// Fails when a variable has no tensor, or one of another shape, or when there is no such cast; the first
    /// by name is named. Fails, too, when reading fails. The variables are as they were.
    pub fn fill(self, map: &VarMap) -> Result<Filled> {
        self.fill_with(map, false)
    }

    /// The same with one copy of the model and one tensor in memory: each variable is set as soon as its
    /// tensor is read.
    ///
    /// # Errors
    ///
    /// As [`fill`](Self::fill); when reading fails, the error says how many variables had changed by then.
    pub fn fill_in_place(self, map: &VarMap) -> Result<Filled> {
        self.fill_with(map, true)
    }

    fn fill_with(mut self, map: &VarMap, in_place: bool) -> Result<Filled> {
        let vars = named(map);
        let catalog = self.catalog()?;
        let planned = self.planned(&catalog, &vars)?;
        let unused = unused(&catalog, &vars);
        match in_place {
            true => self.set_each(planned)?,
            false => self.read(planned)?.exchange()?,
        }
        Ok(Filled { set: vars.into_iter().map(|(name, _)| name).collect(), unused })
    }

    /// What each variable becomes; `vars` are in the order of their names.
    pub(crate) fn planned<'v>(
        &mut self,
        catalog: &Catalog,
        vars: &'v [(String, Var)],
    ) -> Result<Vec<Planned<'v>>> {
        self.devices = devices_of(vars);
        let mut planned = Vec::with_capacity(vars.len());
        for (name, var) in vars {
            let fail = |kind, message: String| Err(Error::new(kind, message).in_tensor(name));
            catalog.refuse_codes(name)?;
            let Some(item) = catalog.item(name) else {
                let near = catalog.nearest(name).hint();
                let message = format!("the checkpoint has no tensor for this variable{near}");
                return fail(ErrorKind::MissingTensor, message);
            };
            let device = var.device();
            let target = item.target(Some(var.dtype()), device).map_err(|error| error.in_tensor(name))?;
            let shape = target.shape(item.shape());
            if shape != *var.shape() {
                let message =
                    format!("the variable has shape {:?}, the stored tensor {shape:?}", var.shape());
                return fail(ErrorKind::Shape, message);
            }
            let (entry, request) = item.planned(&target, true, device)?;
            planned.push(Planned { name, var, of: Input::of(&item.tensor), entry, request });
        }
        Ok(planned)
    }

    /// Sets each variable as soon as its tensor is read.
    fn set_each(&self, planned: Vec<Planned<'_>>) -> Result<()> {
        // What is read ahead is not in its place, whichever the device.
        let defaults = LoadOptions::new().read_ahead(LoadOptions::DEFAULT_READ_AHEAD);
        let session = self.session(entries(&planned), defaults.order(ReadOrder::Natural), None);
        let session = Tensors::start(session, &self.devices, &self.staging)?;
        let count = planned.len();
        for (changed, Planned { name, var, request, .. }) in planned.into_iter().enumerate() {
            let tensor = session.take(name, request);
            let set = tensor.and_then(|tensor| var.set(&tensor).map_err(|error| refused(&error)));
            set.map_err(|error| {
                let message = format!("{changed} of {count} variables had changed: {error}");
                Error::new(error.kind(), message).with_source(error)
            })?;
        }
        Ok(())
    }

    /// Reads everything; no variable changes.
    pub(crate) fn read<'v>(&self, planned: Vec<Planned<'v>>) -> Result<Ready<'v>> {
        let session =
            self.session(entries(&planned), LoadOptions::new().order(ReadOrder::File), Some(u64::MAX));
        let session = Tensors::start(session, &self.devices, &self.staging)?;
        let mut all = Vec::with_capacity(planned.len());
        for Planned { name, var, request, .. } in planned {
            let tensor = session.take(name, request).map_err(|error| error.in_tensor(name))?;
            // A view of other memory cannot change hands.
            let whole = whole(&tensor).map_err(|error| refused(&error).in_tensor(name))?;
            all.push((name, var, whole));
        }
        Ok(Ready { all, report: session.report() })
    }
}

/// What a variable is to become.
pub(crate) struct Planned<'v> {
    pub(crate) name: &'v str,
    var: &'v Var,
    /// The tensor that it is made of. What is merged from adapters is another one every time, whatever it is
    /// computed from.
    pub(crate) of: Input,
    entry: Entry,
    request: Request<'v>,
}

fn entries(planned: &[Planned<'_>]) -> Vec<Entry> {
    planned.iter().map(|planned| planned.entry.clone()).collect()
}

/// Variables, and the tensors that were read for them.
pub(crate) struct Ready<'v> {
    all: Vec<(&'v str, &'v Var, Tensor)>,
    pub(crate) report: Report,
}

impl<'v> Ready<'v> {
    /// Puts the tensors into the variables: all or none.
    pub(crate) fn exchange(&self) -> Result<()> {
        let pairs = self.all.iter().map(|(_, var, tensor)| (var.as_tensor(), tensor));
        exchange_all(pairs).map_err(|(number, error)| {
            let name = self.all.get(number).map_or("", |(name, ..)| name);
            refused(&error).in_tensor(name)
        })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &'v str> {
        self.all.iter().map(|(name, ..)| *name)
    }
}

/// The tensors that no variable is named like.
pub(crate) fn unused(catalog: &Catalog, vars: &[(String, Var)]) -> Vec<String> {
    let is_unused = |name: &&str| vars.binary_search_by(|(var, _)| var.as_str().cmp(name)).is_err();
    catalog.items().map(|item| item.name()).filter(is_unused).map(str::to_owned).collect()
}

/// Each variable's own device, by its name.
fn devices_of(vars: &[(String, Var)]) -> Devices {
    let default = vars.first().map_or(Device::Cpu, |(_, var)| var.device().clone());
    let mut others: Vec<(Vec<String>, Device)> = Vec::new();
    for (name, var) in vars.iter().filter(|(_, var)| !var.device().same_device(&default)) {
        match others.iter_mut().find(|(_, device)| device.same_device(var.device())) {
            Some((names, _)) => names.push((*name).clone()),
            None => others.push((vec![(*name).clone()], var.device().clone())),
        }
    }
    let rules = others.into_iter().map(|(names, device)| (Names::list(names), device)).collect();
    Devices { default, rules }
}
