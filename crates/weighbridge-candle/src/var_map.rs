//! Stored values into variables that are there.

use std::collections::HashMap;

use candle_core::{Device, Var};
use candle_nn::VarMap;
use weighbridge::engine::ReadOrder;
use weighbridge::{Error, ErrorKind, Names, Result};

use crate::Loader;
use crate::dtype::{Arrival, arrival};
use crate::loader::refused;
use crate::session::{Devices, Tensors, Want};

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
    /// Sets every variable of a map to the stored tensor of its name, in the variable's own dtype and on its own
    /// device.
    ///
    /// It is all or nothing: names, shapes and dtypes are checked before anything is read, and everything is read
    /// before the first variable changes, so that for a moment old and new values are in memory. See
    /// [`fill_in_place`](Self::fill_in_place) for less.
    ///
    /// # Errors
    ///
    /// Fails when a variable has no tensor, or one of another shape, or when there is no such cast; the first by name
    /// is named. Fails, too, when reading fails. The variables are as they were.
    pub fn fill(self, map: &VarMap) -> Result<Filled> {
        self.fill_with(map, false)
    }

    /// The same with one copy of the model and one tensor in memory: each variable is set as soon as its tensor is
    /// read.
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
        let mut arrivals = HashMap::<String, Arrival>::new();
        for (name, var) in &vars {
            let fail = |kind, message: String| Err(Error::new(kind, message).in_tensor(name));
            self.refuse_codes(name)?;
            let Some(tensor) = self.tensor(name) else {
                let near =
                    self.nearest(name).map_or_else(String::new, |near| format!("; did you mean {near:?}?"));
                return fail(
                    ErrorKind::MissingTensor,
                    format!("the checkpoint has no tensor for this variable{near}"),
                );
            };
            let arrival = arrival(tensor.dtype(), Some(var.dtype()), self.has_complex_pairs(), var.device())
                .map_err(|e| e.in_tensor(name))?;
            let shape = arrival.shape(tensor.shape());
            if shape != *var.shape() {
                let message =
                    format!("the variable has shape {:?}, the stored tensor {shape:?}", var.shape());
                return fail(ErrorKind::Shape, message);
            }
            arrivals.insert((*name).clone(), arrival);
        }
        let unused: Vec<_> = self
            .tensors()
            .map(|tensor| tensor.name().to_owned())
            .filter(|name| !arrivals.contains_key(name))
            .collect();
        self.devices = devices_of(&vars);
        let route = self.devices.route();
        let session = self.session(&arrivals)?;
        let session = match in_place {
            true => session.order(ReadOrder::Natural),
            false => session.read_ahead(u64::MAX).order(ReadOrder::File),
        };
        let session = Tensors::start(session, &self.devices, &self.staging)?;
        let set = |var: &Var, tensor: &candle_core::Tensor| var.set(tensor).map_err(|error| refused(&error));
        let mut staged = Vec::new();
        for (changed, (name, var)) in vars.iter().enumerate() {
            let arrival = arrivals[*name];
            let carried = self.tensor(name).map_or(arrival.made, |tensor| route.carried(&tensor, arrival));
            let load = || {
                let shape = var.shape().clone();
                session.take(name, Want { carried, dtype: var.dtype(), shape, device: var.device() })
            };
            if in_place {
                load().and_then(|tensor| set(var, &tensor)).map_err(|error: Error| {
                    let message = format!("{changed} of {} variables had changed: {error}", vars.len());
                    Error::new(error.kind(), message).with_source(error)
                })?;
            } else {
                staged.push(load().map_err(|error: Error| error.in_tensor(name))?);
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
    let usual = vars.first().map_or(Device::Cpu, |(_, var)| var.device().clone());
    let mut of: Vec<(Vec<String>, Device)> = Vec::new();
    for (name, var) in vars.iter().filter(|(_, var)| !var.device().same_device(&usual)) {
        match of.iter_mut().find(|(_, device)| device.same_device(var.device())) {
            Some((names, _)) => names.push((*name).clone()),
            None => of.push((vec![(*name).clone()], var.device().clone())),
        }
    }
    Devices { usual, of: of.into_iter().map(|(names, device)| (Names::list(names), device)).collect() }
}
