//! Stochastic gradient descent with momentum.

use candle_core::backprop::GradStore;
use candle_core::{Result, Var};
use candle_nn::{Optimizer, VarMap};

use super::in_place::sum;
use super::{Moments, Slot, Stateful, check, private, slots};

/// What [`Sgd`] is made with; the names and defaults are PyTorch's, but for the learning rate, which it has
/// none for.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamsSgd {
    /// The learning rate; 0.001 by default.
    pub lr: f64,
    /// How much of the velocity is kept; 0 for none.
    pub momentum: f64,
    /// How much of a gradient the velocity does not take in. Burn's default is 0.1, PyTorch's 0.
    pub dampening: f64,
    /// Looks ahead by one step of the velocity.
    pub nesterov: bool,
    /// What is added to the gradient of each weight, times the weight.
    pub weight_decay: f64,
}

impl Default for ParamsSgd {
    fn default() -> Self {
        Self { lr: 1e-3, momentum: 0.0, dampening: 0.0, nesterov: false, weight_decay: 0.0 }
    }
}

/// Stochastic gradient descent, computed as `torch.optim.SGD` does, with a velocity that is saved and
/// resumed.
///
/// ```
/// use weighbridge_candle::candle_nn::{Optimizer, VarMap};
/// use weighbridge_candle::{ParamsSgd, Sgd};
///
/// # fn main() -> weighbridge_candle::candle_core::Result<()> {
/// # let map = VarMap::new();
/// let optimizer = Sgd::new(map.all_vars(), ParamsSgd { lr: 0.1, momentum: 0.9, ..Default::default() })?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Sgd {
    slots: Vec<Slot>,
    params: ParamsSgd,
}

impl Sgd {
    /// Trains all variables of a map that are floats.
    ///
    /// # Errors
    ///
    /// None so far.
    pub fn of(map: &VarMap, params: ParamsSgd) -> Result<Self> {
        Self::new(map.all_vars(), params)
    }

    /// What it was made with.
    pub fn params(&self) -> &ParamsSgd {
        &self.params
    }
}

impl Optimizer for Sgd {
    type Config = ParamsSgd;

    fn new(vars: Vec<Var>, params: ParamsSgd) -> Result<Self> {
        Ok(Self { slots: slots(vars), params })
    }

    fn step(&mut self, gradients: &GradStore) -> Result<()> {
        let ParamsSgd { lr, momentum, dampening, nesterov, weight_decay } = self.params;
        check(&self.slots, gradients)?;
        for Slot { var, moments } in &mut self.slots {
            let Some(gradient) = gradients.get(var) else { continue };
            let mut gradient = gradient.contiguous()?;
            // From here on it may be changed, if it is not the one in the store.
            if weight_decay != 0.0 || momentum != 0.0 && nesterov {
                gradient = gradient.force_contiguous()?;
            }
            if weight_decay != 0.0 {
                sum(&gradient, 1.0, var, weight_decay)?;
            }
            if momentum == 0.0 {
                sum(var, 1.0, &gradient, -lr)?;
                continue;
            }
            let velocity = match moments {
                Some(Moments { tensors, .. }) => {
                    let [velocity] = &**tensors else { continue };
                    sum(velocity, momentum, &gradient, 1.0 - dampening)?;
                    velocity
                }
                none => {
                    let Moments { tensors, .. } =
                        none.insert(Moments { tensors: vec![gradient.force_contiguous()?], time: 0 });
                    let [velocity] = &**tensors else { continue };
                    velocity
                }
            };
            if nesterov {
                sum(&gradient, 1.0, velocity, momentum)?;
                sum(var, 1.0, &gradient, -lr)?;
            } else {
                sum(var, 1.0, velocity, -lr)?;
            }
        }
        Ok(())
    }

    fn learning_rate(&self) -> f64 {
        self.params.lr
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.params.lr = lr;
    }
}

impl Stateful for Sgd {}

impl private::State for Sgd {
    const NAME: &'static str = "SGD";
    const COUNTS: bool = false;

    fn leaves(&self) -> &'static [&'static str] {
        const LEAVES: [&str; 1] = ["momentum.velocity"];
        if self.params.momentum == 0.0 { &[] } else { &LEAVES }
    }

    fn advice(&self, leaf: &str) -> Option<&'static str> {
        (leaf == "momentum.velocity")
            .then_some("it was saved with momentum; make the optimizer with a momentum")
    }

    fn slots(&self) -> &[Slot] {
        &self.slots
    }

    fn slots_mut(&mut self) -> &mut [Slot] {
        &mut self.slots
    }
}
