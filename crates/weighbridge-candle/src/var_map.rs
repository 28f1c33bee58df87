//! Stored values into variables that are there.

use candle_core::{Device, Tensor, Var};
use candle_nn::VarMap;
use weighbridge::engine::ReadOrder;
use weighbridge::{Error, ErrorKind, LoadOptions, Names, Result};

use crate::Loader;
use crate::devices::Devices;
use crate::session::Tensors;
use crate::tensor::refused;

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
    /// read before the first variable changes, so that for a moment old and new values are in memory. See
    /// [`fill_in_place`](Self::fill_in_place) for less.
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
        let data = map.data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut vars: Vec<(&String, &Var)> = data.iter().collect();
        vars.sort_by_key(|(name, _)| *name);
        let catalog = self.catalog()?;
        self.devices = devices_of(&vars);
        let (mut entries, mut requests) = (Vec::new(), Vec::new());
        for &(name, var) in &vars {
            let fail = |kind, message: String| Err(Error::new(kind, message).in_tensor(name));
            catalog.refuse_codes(name)?;
            let Some(item) = catalog.item(name) else {
                let near = catalog.nearest(name);
                let near = near.map_or_else(String::new, |near| format!("; did you mean {near:?}?"));
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
            entries.push(entry);
            requests.push((name, var, request));
        }
        let unused = catalog.items().map(|item| item.name().to_owned());
        let unused = unused.filter(|name| !data.contains_key(name)).collect();
        let session = match in_place {
            // What is read ahead is not in its place, whichever the device.
            true => {
                let defaults = LoadOptions::new().read_ahead(LoadOptions::DEFAULT_READ_AHEAD);
                self.session(entries, defaults.order(ReadOrder::Natural), None)
            }
            false => self.session(entries, LoadOptions::new().order(ReadOrder::File), Some(u64::MAX)),
        };
        let session = Tensors::start(session, &self.devices, &self.staging)?;
        let set = |var: &Var, tensor: &Tensor| var.set(tensor).map_err(|error| refused(&error));
        let mut staged = Vec::new();
        for (changed, (name, var, request)) in requests.into_iter().enumerate() {
            let tensor = session.take(name, request);
            if in_place {
                tensor.and_then(|tensor| set(var, &tensor)).map_err(|error| {
                    let message = format!("{changed} of {} variables had changed: {error}", vars.len());
                    Error::new(error.kind(), message).with_source(error)
                })?;
            } else {
                staged.push(tensor.map_err(|error| error.in_tensor(name))?);
            }
        }
        for ((name, var), tensor) in vars.iter().zip(&staged) {
            set(var, tensor).map_err(|error| error.in_tensor(name))?;
        }
        let set = vars.iter().map(|(name, _)| (*name).clone()).collect();
        Ok(Filled { set, unused })
    }
}

/// Each variable's own device, by its name.
fn devices_of(vars: &[(&String, &Var)]) -> Devices {
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
