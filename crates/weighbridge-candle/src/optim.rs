//! Optimizers whose state is saved and resumed, with PyTorch's arithmetic.

mod adamw;
mod in_place;
mod sgd;

use candle_core::{DType, Tensor, Var};
use candle_nn::Optimizer;

pub use adamw::AdamW;
pub(crate) use in_place::average;
pub use sgd::{ParamsSgd, Sgd};

/// An optimizer whose state [`Checkpoints`](crate::Checkpoints) saves and resumes: [`AdamW`] and [`Sgd`].
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

/// The variables that can be trained, without state.
fn slots(vars: Vec<Var>) -> Vec<Slot> {
    vars.into_iter().filter(|var| is_trained(var.dtype())).map(|var| Slot { var, moments: None }).collect()
}

pub(crate) fn is_trained(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
}
