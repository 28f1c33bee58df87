//! One tensor out of the same tensor of several models.

mod block;
mod loops;
mod mask;
mod measure;
mod method;
#[cfg(test)]
mod tests;
mod threshold;
mod tiles;

use super::{Bound, Operation};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Input;
use crate::text::brief;
pub(super) use measure::read_values;
pub use method::BlendMethod;
use tiles::BlendTiles;

/// Tensors of one shape blended into one of `F32`, by a [`BlendMethod`].
///
/// For methods that work on task vectors the first input is the base, and the others are the models; for the
/// others each input is a model. Inputs may be of any float of at least 8 bits, each of another; values of
/// `F64` are rounded to `F32`. All is computed in `F32`, element by element, sums in the order of the models;
/// cast to another dtype ([`Entry::recast`](crate::Entry::recast)), the result is rounded once. The same
/// inputs and parameters give the same bits, whatever the machine, its threads and the tiles.
///
/// What a method has to know of whole tensors (the angle of [`Slerp`](BlendMethod::Slerp), the thresholds of
/// [`Ties`](BlendMethod::Ties)) is measured when the first tile is made, in constant memory: the inputs are
/// read once more for the angle, and for thresholds, which a sample of them brackets; twice where that does not help.
///
/// NaN in an input is NaN in the output, whatever the weights. Slerp refuses what is not finite, because one
/// value would spoil the whole tensor.
///
/// ```
/// use std::sync::Arc;
///
/// use weighbridge::plan::{Blend, BlendMethod, Input};
/// use weighbridge::{Checkpoint, Dtype, Entry, Plan};
///
/// # fn main() -> weighbridge::Result<()> {
/// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder");
/// let (a, b) = (Checkpoint::open(dir)?, Checkpoint::open(dir)?);
/// let blend = Blend::new(BlendMethod::Linear, [0.25, 0.75]);
/// let name = "model.norm.weight";
/// let inputs = [&a, &b].map(|model| Input::of(&model.tensor(name).unwrap()));
/// let entry = Entry::new(name, inputs.into(), Arc::new(blend))?.recast(Dtype::BF16)?;
/// let session = Plan::new([entry]).session().start()?;
/// # let stored = Plan::of(&a).build()?.session().start()?.take(name, None)?.1;
/// # assert_eq!(session.take(name, None)?.1.as_bytes(), stored.as_bytes());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Blend {
    method: BlendMethod,
    weights: Vec<f64>,
    /// Of each model, or one for all.
    densities: Vec<f64>,
    lambda: f64,
    normalize: bool,
    rescale: bool,
    seed: u64,
    /// The name that masks depend on.
    name: String,
}

impl Blend {
    /// Blends by `method`, with a weight for each model: of two models, [`Slerp`](BlendMethod::Slerp) goes
    /// the share of the second weight in both of the way from the first model to the second.
    pub fn new(method: BlendMethod, weights: impl Into<Vec<f64>>) -> Self {
        Self {
            method,
            weights: weights.into(),
            densities: vec![1.0],
            lambda: 1.0,
            normalize: method.normalizes(),
            rescale: true,
            seed: 0,
            name: String::new(),
        }
    }

    /// Sets which share of the differences between each model and the base is kept, above 0 and at most 1:
    /// one for all models, or one for each. Without it all are.
    #[must_use]
    pub fn densities(mut self, densities: impl Into<Vec<f64>>) -> Self {
        self.densities = densities.into();
        self
    }

    /// Sets what the blended differences are multiplied by before they are added to the base: 1 unless set.
    #[must_use]
    pub fn lambda(mut self, lambda: f64) -> Self {
        self.lambda = lambda;
        self
    }

    /// Sets whether sums are divided by the sum of the weights that went into them; the default is the
    /// [method's](BlendMethod::normalizes).
    #[must_use]
    pub fn normalize(mut self, normalize: bool) -> Self {
        self.normalize = normalize;
        self
    }

    /// Sets whether differences that are kept at random are divided by the density, so that their sum stays
    /// what it was on average. They are unless it is set otherwise.
    #[must_use]
    pub fn rescale(mut self, rescale: bool) -> Self {
        self.rescale = rescale;
        self
    }

    /// Sets what the random choice of differences depends on: a seed, and the name of the tensor, so that
    /// tensors are chosen from independently. Of the same seed, name, number of the model and index of the
    /// element it is the same choice, in every version of this crate.
    #[must_use]
    pub fn seed(mut self, seed: u64, name: &str) -> Self {
        (self.seed, self.name) = (seed, name.to_owned());
        self
    }

    /// How it blends.
    pub fn method(&self) -> BlendMethod {
        self.method
    }

    /// The number of inputs: the models, and the base if the method has one.
    pub fn inputs(&self) -> usize {
        self.weights.len() + usize::from(self.method.has_base())
    }

    /// Whether tensors of a dtype can be blended.
    pub fn takes(dtype: Dtype) -> bool {
        let is_no_number = matches!(dtype, Dtype::F4 | Dtype::F6_E2M3 | Dtype::F6_E3M2 | Dtype::F8_E8M0);
        dtype.is_float() && !is_no_number
    }

    /// The density of a model.
    fn density(&self, model: usize) -> f64 {
        self.densities.get(model).or(self.densities.first()).copied().unwrap_or(1.0)
    }

    /// The share of the second of two models.
    fn share(&self) -> f64 {
        self.weights.get(1).map_or(0.0, |second| second / self.weights.iter().sum::<f64>())
    }

    /// Fails where its numbers make no sense, whatever the inputs.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Value`]: weights that are not finite, no weights or, of slerp, not two of
    /// them, weights that are to be divided by their sum where that is zero, and densities that are not above
    /// 0 and at most 1, or not as many as models.
    pub fn check(&self) -> Result<()> {
        let (method, models) = (self.method, self.weights.len());
        let refuse = |message: String| Err(Error::new(ErrorKind::Value, message));
        let is_single = |number: &f64| (*number as f32).is_finite();
        if models == 0 {
            return refuse(format!("{method} needs the weight of at least one model"));
        }
        if method == BlendMethod::Slerp && models != 2 {
            return refuse(format!("slerp blends two models, not {models}; linear and the others take more"));
        }
        if let Some(weight) = self.weights.iter().find(|weight| !is_single(weight)) {
            return refuse(format!("a weight is {weight}; it must be a finite number"));
        }
        if !is_single(&self.lambda) {
            return refuse(format!("lambda is {}; it must be a finite number", self.lambda));
        }
        let divides = method == BlendMethod::Slerp || method == BlendMethod::Linear && self.normalize;
        if divides && self.weight_sum() == 0.0 {
            return refuse("the weights have the sum zero, which nothing can be divided by".to_owned());
        }
        let kept = |density: &f64| *density > 0.0 && *density <= 1.0;
        if let Some(density) = self.densities.iter().find(|density| !kept(density)) {
            return refuse(format!("a density is {density}; it must be above 0 and at most 1"));
        }
        if self.densities.len() != 1 && self.densities.len() != models {
            return refuse(format!("there are {} densities of {models} models", self.densities.len()));
        }
        if !method.has_density() && self.densities.iter().any(|&density| density != 1.0) {
            return refuse(format!("{method} keeps all differences: a density is of ties and dare"));
        }
        Ok(())
    }

    /// The sum of the weights, as it is divided by.
    fn weight_sum(&self) -> f32 {
        self.weights.iter().fold(0.0, |sum, &weight| sum + weight as f32)
    }
}

impl Operation for Blend {
    fn bind(&self, inputs: &[Input]) -> Result<Bound> {
        self.check()?;
        let refuse = |kind, message: String| Err(Error::new(kind, message));
        if inputs.len() != self.inputs() {
            let message = format!(
                "{} with {} weights takes {} tensors, not {}",
                self.method,
                self.weights.len(),
                self.inputs(),
                inputs.len()
            );
            return refuse(ErrorKind::Shape, message);
        }
        let Some(first) = inputs.first() else {
            return refuse(ErrorKind::Shape, "nothing to blend".to_owned());
        };
        for input in inputs {
            if input.shape() != first.shape() {
                let (own, other) = (brief(input.shape()), brief(first.shape()));
                return refuse(ErrorKind::Shape, format!("shapes {other} and {own} cannot be blended"));
            }
            if !Self::takes(input.dtype()) {
                let message =
                    format!("{} cannot be blended: only floats of at least 8 bits can", input.dtype());
                return refuse(ErrorKind::Dtype, message);
            }
        }
        Ok(Bound::new(Dtype::F32, first.shape(), BlendTiles::new(self, inputs)))
    }
}
