//! An exponential moving average of weights.

use std::collections::HashMap;
use std::marker::PhantomData;

use candle_core::{DType, Tensor, Var};
use candle_nn::VarMap;
use weighbridge::{Checkpoint, Error, ErrorKind, Result};

use crate::optim::{average, is_trained};
use crate::swap::exchange_all;
use crate::tensor::refused;
use crate::training::{BurnLayout, named, weights_for};

/// An exponential moving average of a model's weights, a second set of them which is often the better model.
///
/// `average = decay · average + (1 - decay) · weight`, computed and kept in `F32`, in `F64` for variables of
/// that, whatever their dtype. Variables that are not floats are what they are in the map.
///
/// ```
/// use weighbridge_candle::{Ema, Saver};
/// # use weighbridge_candle::candle_core::{DType, Device};
/// # use weighbridge_candle::candle_nn::{VarBuilder, VarMap, linear};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let map = VarMap::new();
/// # let model = linear(3, 2, VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu))?;
/// let mut ema = Ema::new(&map, 0.999)?;
/// ema.update()?; // after each step of the optimizer
/// let applied = ema.apply()?; // the variables of the map hold the average: evaluate the model
/// drop(applied); // and now the weights again
/// Saver::new().file(directory.path().join("model.safetensors"), ema.tensors())?;
/// # Ok(())
/// # }
/// ```
///
/// [`CheckpointSaver::ema`](crate::CheckpointSaver::ema) saves it with the state of the training.
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    /// By the order of names.
    averages: Vec<Average>,
}

#[derive(Debug)]
struct Average {
    name: String,
    var: Var,
    /// In `F32`, or `F64`; nothing for what is not averaged. One for all names of a variable.
    mean: Option<Var>,
    /// The variable has another name before this one.
    again: bool,
}

impl Ema {
    /// An average that begins with the weights as they are. `decay` is from 0 to 1: with 0.999 the last
    /// thousand updates count most.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Value`] when `decay` is not from 0 to 1, and when a device fails.
    pub fn new(map: &VarMap, decay: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&decay) {
            return Err(Error::new(ErrorKind::Value, format!("the decay {decay} is not from 0 to 1")));
        }
        let mut means = HashMap::new();
        let average = |(name, var): (String, Var)| {
            let id = var.as_tensor().id();
            if let Some(mean) = means.get(&id).cloned() {
                return Ok(Average { name, var, mean, again: true });
            }
            let mean = || match is_trained(var.dtype()) {
                true => Ok(Some(Var::from_tensor(&var.to_dtype(kept_in(var.dtype()))?.force_contiguous()?)?)),
                false => Ok(None),
            };
            let mean = mean().map_err(|error: candle_core::Error| refused(&error).in_tensor(&name))?;
            means.insert(id, mean.clone());
            Ok(Average { name, var, mean, again: false })
        };
        Ok(Self { decay, averages: named(map).into_iter().map(average).collect::<Result<_>>()? })
    }

    /// Takes in the weights as they are now.
    ///
    /// # Errors
    ///
    /// Fails when a device fails.
    pub fn update(&mut self) -> candle_core::Result<()> {
        for Average { var, mean, .. } in self.averages.iter().filter(|average| !average.again) {
            if let Some(mean) = mean {
                average(mean, &var.to_dtype(mean.dtype())?, self.decay)?;
            }
        }
        Ok(())
    }

    /// How much of the average an update keeps.
    pub fn decay(&self) -> f64 {
        self.decay
    }

    /// The average by the names of variables, to be [saved](crate::Saver).
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let tensor = |average: &Average| {
            let tensor = average.mean.as_ref().unwrap_or(&average.var).as_tensor();
            (average.name.clone(), tensor.clone())
        };
        self.averages.iter().map(tensor).collect()
    }

    /// Puts the average into the variables, in their dtypes, for as long as the value lives that this
    /// returns. Memory changes hands, and nothing but casts is copied; models and views of the variables see
    /// it.
    ///
    /// # Errors
    ///
    /// Fails when a device fails; the variables are as they were then.
    pub fn apply(&mut self) -> Result<Applied<'_>> {
        let mut pairs = Vec::new();
        for Average { name, var, mean, .. } in self.averages.iter().filter(|average| !average.again) {
            let Some(mean) = mean else { continue };
            let cast = if mean.dtype() == var.dtype() {
                mean.force_contiguous()
            } else {
                mean.to_dtype(var.dtype())
            };
            pairs.push((var.clone(), cast.map_err(|error| refused(&error).in_tensor(name))?));
        }
        exchange_pairs(&pairs)?;
        Ok(Applied { pairs, ema: PhantomData })
    }

    /// Loads the average from a checkpoint of the model.
    ///
    /// # Errors
    ///
    /// Fails when a tensor is missing, left over or of another shape; the average is as it was then.
    pub fn load(&mut self, ckpt: &Checkpoint) -> Result<()> {
        self.load_laid_out(ckpt, &BurnLayout::new())
    }

    pub(crate) fn load_laid_out(&mut self, ckpt: &Checkpoint, layout: &BurnLayout) -> Result<()> {
        let own =
            |average: &Average| (average.name.clone(), average.mean.clone().unwrap_or(average.var.clone()));
        let vars: Vec<_> = self.averages.iter().map(own).collect();
        let loaded = weights_for(&vars, ckpt, layout)?;
        let means = self
            .averages
            .iter()
            .zip(&loaded)
            .filter_map(|(average, new)| Some((average.mean.as_ref()?, new)));
        exchange_all(means.map(|(mean, new)| (mean.as_tensor(), new))).map_err(|(_, error)| refused(&error))
    }
}

fn kept_in(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// The average is in the variables until this is dropped; see [`Ema::apply`].
#[derive(Debug)]
#[must_use = "the weights are back as soon as it is dropped"]
pub struct Applied<'e> {
    /// Each variable, and what it does not hold at the moment.
    pairs: Vec<(Var, Tensor)>,
    /// What is in the variables is not averaged.
    ema: PhantomData<&'e mut Ema>,
}

fn exchange_pairs(pairs: &[(Var, Tensor)]) -> Result<()> {
    let both = pairs.iter().map(|(var, other)| (var.as_tensor(), other));
    exchange_all(both).map_err(|(_, error)| refused(&error))
}

impl Drop for Applied<'_> {
    fn drop(&mut self) {
        // What could be exchanged once can be exchanged again.
        let _ = exchange_pairs(&self.pairs);
    }
}
