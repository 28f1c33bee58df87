//! The variables of a map and the tensors of a file, brought together.

use std::collections::HashMap;

use candle_core::{Tensor, Var};
use candle_nn::VarMap;
use weighbridge::{Checkpoint, Error, ErrorKind, NearestNames, Quantized, Result};

use super::layout::BurnLayout;
use crate::Loader;
use crate::swap::whole;
use crate::tensor::refused;

/// The variables of a map, in the order of their names.
pub(crate) fn named(map: &VarMap) -> Vec<(String, Var)> {
    let vars = map.data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut vars: Vec<_> = vars.iter().map(|(name, var)| (name.clone(), var.clone())).collect();
    vars.sort_by(|a, b| a.0.cmp(&b.0));
    vars
}

/// All tensors of a file, as they are stored.
pub(crate) fn tensors(ckpt: &Checkpoint) -> Result<HashMap<String, Tensor>> {
    Ok(Loader::new(ckpt).quantized(Quantized::Raw).stored_dtypes().require_all().load()?.tensors)
}

/// For each variable the tensor that a file has for it, in the variable's dtype and on its device, in memory
/// of its own.
///
/// # Errors
///
/// Fails when a variable has none or one of another shape, and when a tensor is left over.
pub(crate) fn weights_for(
    vars: &[(String, Var)],
    ckpt: &Checkpoint,
    layout: &BurnLayout,
) -> Result<Vec<Tensor>> {
    let mut stored = tensors(ckpt)?;
    let mut weights = Vec::with_capacity(vars.len());
    for (variable, var) in vars {
        let name = layout.name(variable);
        let Some(tensor) = stored.remove(&name) else {
            let near = NearestNames::of(&name, stored.keys().map(String::as_str)).hint();
            let message = format!("the checkpoint has no tensor for this variable{near}");
            return Err(Error::new(ErrorKind::MissingTensor, message).in_tensor(&name));
        };
        weights.push(fitted(variable, var, &tensor, layout).map_err(|error| error.in_tensor(&name))?);
    }
    match stored.into_keys().min() {
        Some(left) => {
            let message = "there is no variable for it: it is a checkpoint of another model";
            Err(Error::new(ErrorKind::Value, message).in_tensor(&left))
        }
        None => Ok(weights),
    }
}

/// A stored tensor as it belongs to a variable.
pub(super) fn fitted(variable: &str, var: &Var, stored: &Tensor, layout: &BurnLayout) -> Result<Tensor> {
    let turned = layout.turned(variable, stored).map_err(|error| refused(&error))?;
    if turned.shape() != var.shape() {
        let message =
            format!("the variable has shape {:?}, the stored tensor {:?}", var.shape(), turned.shape());
        return Err(Error::new(ErrorKind::Shape, message));
    }
    let placed = || whole(&turned.to_dtype(var.dtype())?.to_device(var.device())?);
    placed().map_err(|error| refused(&error))
}
