//! Weights by name, for models that are built of quantised ones.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{Device, Error, Result, Shape, Tensor};
use weighbridge::NearestNames;

use crate::quantized::Weight;

/// Gives the tensors of a [quantised load](crate::Loader::load_quantized) by name. It is used as the
/// `VarBuilder` of
/// `candle_transformers::quantized_var_builder`, whose names and functions it has, and knows dense tensors,
/// too.
///
/// ```
/// use weighbridge_candle::Loader;
/// use weighbridge_candle::candle_core::Device;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let ckpt = weighbridge_candle::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder"))?;
/// let vb = Loader::new(&ckpt).load_quantized()?.var_builder(&Device::Cpu);
/// let layer = vb.pp("model.layers").pp(0);
/// let q_proj = layer.pp("self_attn.q_proj").matmul((128, 128), "weight")?; // a layer without a bias
/// let norm = layer.pp("input_layernorm").tensor(128, "weight")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct QuantizedVarBuilder {
    weights: Arc<HashMap<String, Weight>>,
    /// Ends with a dot, unless it is empty.
    prefix: String,
    device: Device,
}

impl QuantizedVarBuilder {
    pub(crate) fn new(weights: HashMap<String, Weight>, device: &Device) -> Self {
        Self { weights: Arc::new(weights), prefix: String::new(), device: device.clone() }
    }

    /// The tensors whose names go on with `name` and a dot.
    #[must_use]
    pub fn pp(&self, name: impl ToString) -> Self {
        let prefix = format!("{}{}.", self.prefix, name.to_string());
        Self { weights: Arc::clone(&self.weights), prefix, device: self.device.clone() }
    }

    /// A tensor of that shape.
    ///
    /// # Errors
    ///
    /// Fails when there is none of that name, or it has another shape.
    pub fn weight(&self, shape: impl Into<Shape>, name: &str) -> Result<Weight> {
        let (weight, shape) = (self.find(name)?, shape.into());
        match *weight.shape() == shape {
            true => Ok(weight.clone()),
            false => {
                let (name, own) = (self.full(name), weight.shape());
                Err(Error::msg(format!("tensor {name:?}: shape {own:?} is stored, {shape:?} was expected")))
            }
        }
    }

    /// A tensor of that shape as a `QTensor`; see [`Weight::qtensor`].
    ///
    /// # Errors
    ///
    /// As [`weight`](Self::weight), and when Candle cannot make it.
    pub fn get(&self, shape: impl Into<Shape>, name: &str) -> Result<Arc<QTensor>> {
        self.weight(shape, name)?.qtensor()
    }

    /// The same of whatever shape.
    ///
    /// # Errors
    ///
    /// Fails when there is none of that name, and when Candle cannot make it.
    pub fn get_no_shape(&self, name: &str) -> Result<Arc<QTensor>> {
        self.find(name)?.qtensor()
    }

    /// What multiplies by a weight of that shape, `(outputs, inputs)`; see [`Weight::matmul`].
    ///
    /// # Errors
    ///
    /// As [`weight`](Self::weight), and when Candle cannot make it.
    pub fn matmul(&self, shape: impl Into<Shape>, name: &str) -> Result<QMatMul> {
        self.weight(shape, name)?.matmul()
    }

    /// The numbers of a tensor of that shape; see [`Weight::tensor`].
    ///
    /// # Errors
    ///
    /// As [`weight`](Self::weight), and when Candle cannot dequantise it.
    pub fn tensor(&self, shape: impl Into<Shape>, name: &str) -> Result<Tensor> {
        self.weight(shape, name)?.tensor()
    }

    /// Whether there is a tensor of that name here.
    pub fn contains_key(&self, name: &str) -> bool {
        self.weights.contains_key(&self.full(name))
    }

    /// The device that it was made with.
    pub fn device(&self) -> &Device {
        &self.device
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn find(&self, name: &str) -> Result<&Weight> {
        let name = self.full(name);
        self.weights.get(&name).ok_or_else(|| {
            let near = NearestNames::of(&name, self.weights.keys().map(String::as_str)).hint();
            Error::msg(format!("tensor {name:?}: there is none of this name{near}"))
        })
    }
}

impl fmt::Debug for QuantizedVarBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuantizedVarBuilder")
            .field("weights", &self.weights.len())
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
