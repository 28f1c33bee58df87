//! AdamW.

use candle_core::backprop::GradStore;
use candle_core::{Result, Var};
use candle_nn::{Optimizer, ParamsAdamW, VarMap};

use super::in_place::{adam, add_squares, lerp, maximum};
use super::{Moments, Slot, Stateful, check, private, slots};

/// AdamW, computed as `torch.optim.AdamW` does, in the place of [`candle_nn::AdamW`]: its state is saved and
/// resumed.
///
/// Moments have the dtype of their variable, as in PyTorch, and each variable counts its own steps. One that
/// gets no gradient is left as it is and has no state before its first.
///
/// ```
/// use weighbridge_candle::AdamW;
/// use weighbridge_candle::candle_core::{DType, Device};
/// use weighbridge_candle::candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap, linear};
/// # use weighbridge_candle::candle_core::Tensor;
/// # use weighbridge_candle::candle_nn::Module;
///
/// # fn main() -> weighbridge_candle::candle_core::Result<()> {
/// let map = VarMap::new();
/// let layer = linear(3, 2, VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu))?;
/// let mut optimizer = AdamW::new(map.all_vars(), ParamsAdamW { lr: 1e-3, ..Default::default() })?;
/// let loss = layer.forward(&Tensor::ones((1, 3), DType::F32, &Device::Cpu)?)?.sqr()?.sum_all()?;
/// optimizer.backward_step(&loss)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AdamW {
    slots: Vec<Slot>,
    params: ParamsAdamW,
    amsgrad: bool,
}

impl AdamW {
    /// Trains all variables of a map that are floats.
    ///
    /// # Errors
    ///
    /// None so far.
    pub fn of(map: &VarMap, params: ParamsAdamW) -> Result<Self> {
        Self::new(map.all_vars(), params)
    }

    /// Divides by the largest second moment so far instead of the last one. It may be set after steps were
    /// taken: the largest is that of the steps from then on.
    #[must_use]
    pub fn amsgrad(mut self) -> Self {
        self.amsgrad = true;
        self
    }

    /// What it was made with.
    pub fn params(&self) -> &ParamsAdamW {
        &self.params
    }

    /// Changes the parameters; the state stays.
    pub fn set_params(&mut self, params: ParamsAdamW) {
        self.params = params;
    }
}

impl Optimizer for AdamW {
    type Config = ParamsAdamW;

    fn new(vars: Vec<Var>, params: ParamsAdamW) -> Result<Self> {
        Ok(Self { slots: slots(vars), params, amsgrad: false })
    }

    fn step(&mut self, gradients: &GradStore) -> Result<()> {
        let ParamsAdamW { lr, beta1, beta2, eps, weight_decay } = self.params;
        check(&self.slots, gradients)?;
        for Slot { var, moments } in &mut self.slots {
            let Some(gradient) = gradients.get(var) else { continue };
            let gradient = gradient.contiguous()?;
            let moments = moments.get_or_insert(Moments { tensors: Vec::new(), time: 0 });
            // A state from before `amsgrad()` lacks the third.
            while moments.tensors.len() < if self.amsgrad { 3 } else { 2 } {
                moments.tensors.push(var.zeros_like()?);
            }
            let [first, second, largest @ ..] = &*moments.tensors else { continue };
            moments.time += 1;
            let time = moments.time as f64;
            lerp(first, &gradient, 1.0 - beta1)?;
            add_squares(second, beta2, &gradient, 1.0 - beta2)?;
            let second = match largest.first() {
                Some(largest) => {
                    maximum(largest, second)?;
                    largest
                }
                None => second,
            };
            let step = lr / (1.0 - beta1.powf(time));
            let bias = (1.0 - beta2.powf(time)).sqrt();
            adam(var, 1.0 - lr * weight_decay, step, [first, second], bias, eps)?;
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

impl Stateful for AdamW {}

impl private::State for AdamW {
    const NAME: &'static str = "AdamW";
    const COUNTS: bool = true;

    fn leaves(&self) -> &'static [&'static str] {
        const LEAVES: [&str; 3] = ["momentum.moment_1", "momentum.moment_2", LARGEST];
        if self.amsgrad { &LEAVES } else { &LEAVES[..2] }
    }

    fn advice(&self, leaf: &str) -> Option<&'static str> {
        (leaf == LARGEST).then_some("it was saved with amsgrad; make the optimizer with `amsgrad()`")
    }

    fn slots(&self) -> &[Slot] {
        &self.slots
    }

    fn slots_mut(&mut self) -> &mut [Slot] {
        &mut self.slots
    }
}

const LARGEST: &str = "momentum.max_moment_2";
