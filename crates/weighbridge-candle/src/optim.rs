//! Optimizers whose state is saved and resumed, with PyTorch's arithmetic.

mod adamw;
mod in_place;
mod sgd;

use std::collections::HashSet;

use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor, Var, bail};
use candle_nn::Optimizer;

pub use adamw::AdamW;
pub(crate) use in_place::average;
pub use sgd::{ParamsSgd, Sgd};

/// An optimizer whose state [`Checkpoints`](crate::Checkpoints) saves and resumes: [`AdamW`] and [`Sgd`].
///
/// A step whose gradients do not fit the variables changes nothing. One that fails because a device does may
/// have been done in part; load the last checkpoint then.
pub trait Stateful: Optimizer + private::State {}

pub(crate) mod private {
    use super::Slot;

    /// What a record has to know of an optimizer.
    pub trait State {
        /// Its name, for messages.
        const NAME: &'static str;
        /// Whether each parameter counts its steps.
        const COUNTS: bool;

        /// The names of a parameter's tensors, as they are in [`Moments::tensors`](super::Moments::tensors).
        fn leaves(&self) -> &'static [&'static str];
        /// Why a tensor of another leaf is not taken, if there is more to say than that it is not.
        fn advice(&self, leaf: &str) -> Option<&'static str>;
        fn slots(&self) -> &[Slot];
        fn slots_mut(&mut self) -> &mut [Slot];
    }
}

/// A variable and its state.
#[derive(Debug)]
pub struct Slot {
    pub(crate) var: Var,
    /// Nothing before its first gradient.
    pub(crate) moments: Option<Moments>,
}

/// The state of a variable: tensors of its shape and dtype.
#[derive(Debug)]
pub(crate) struct Moments {
    pub(crate) tensors: Vec<Tensor>,
    /// Steps that were done.
    pub(crate) time: u64,
}

/// The variables that can be trained, each once, without state.
fn slots(vars: Vec<Var>) -> Vec<Slot> {
    let mut seen = HashSet::new();
    let is_new = |var: &Var| is_trained(var.dtype()) && seen.insert(var.as_tensor().id());
    vars.into_iter().filter(is_new).map(|var| Slot { var, moments: None }).collect()
}

/// Refuses gradients that are not like their variables, before anything changes.
fn check(slots: &[Slot], gradients: &GradStore) -> Result<()> {
    for Slot { var, .. } in slots {
        let Some(gradient) = gradients.get(var) else { continue };
        if gradient.shape() != var.shape() || gradient.dtype() != var.dtype() {
            bail!(
                "a variable of shape {:?} in {:?} has a gradient of shape {:?} in {:?}; nothing was changed",
                var.shape(),
                var.dtype(),
                gradient.shape(),
                gradient.dtype()
            );
        }
        if !gradient.device().same_device(var.device()) {
            bail!(
                "a variable of shape {:?} has a gradient on another device; nothing was changed",
                var.shape()
            );
        }
    }
    Ok(())
}

pub(crate) fn is_trained(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
}
