//! Candle's `VarBuilder` over a session that reads ahead.

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::Init;
use candle_nn::var_builder::{Shard, SimpleBackend};
use weighbridge::plan::{Entry, Input, Overflow, Part};
use weighbridge::{Checkpoint, Error, Quantized, Report, TensorRef};

use crate::dtype::{Arrival, arrival};
use crate::loader::Filter;
use crate::quantized;
use crate::session::{Devices, Tensors, Want};

/// Gives a model's tensors as it asks for them, each in the dtype and on the device that it asks for.
///
/// [`Loader::var_builder`](crate::Loader::var_builder) wraps it; take it apart where the report is wanted:
///
/// ```
/// use weighbridge_candle::candle_core::{DType, Device};
/// use weighbridge_candle::candle_nn::VarBuilder;
/// # use weighbridge_candle::{Loader, weighbridge::Checkpoint};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let ckpt = Checkpoint::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder"))?;
/// let backend = Loader::new(&ckpt).backend()?;
/// let report = backend.report();
/// let vb = VarBuilder::from_backend(Box::new(backend), DType::F32, Device::Cpu);
/// // ... build the model from `vb` ...
/// println!("never asked for: {:?}", report.unused());
/// # Ok(())
/// # }
/// ```
pub struct Backend {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) session: Tensors,
    pub(crate) filter: Option<Box<Filter>>,
    pub(crate) devices: Devices,
    pub(crate) complex_pairs: bool,
    pub(crate) quantized: Quantized,
    pub(crate) overflow: Overflow,
}

impl Backend {
    /// What has been asked for so far, what was cast, and what never was asked for.
    pub fn report(&self) -> Report {
        self.session.report()
    }

    /// The tensor of that name, unless it was filtered out.
    fn tensor(&self, name: &str) -> Option<TensorRef<'_>> {
        let tensor = self.checkpoint.tensor(name)?;
        self.has(&tensor).then_some(tensor)
    }

    fn has(&self, tensor: &TensorRef<'_>) -> bool {
        self.filter.as_ref().is_none_or(|keep| keep(tensor))
    }

    /// The same, unless it is not there, or is quantised.
    fn found(&self, name: &str) -> candle_core::Result<TensorRef<'_>> {
        let refused = quantized::refuse(&self.checkpoint, self.quantized, name, |tensor| self.has(tensor));
        refused.map_err(candle_core::Error::wrap)?;
        self.tensor(name).ok_or_else(|| candle_core::Error::CannotFindTensor { path: name.to_owned() }.bt())
    }

    fn take(
        &self,
        name: &str,
        expected: Option<Shape>,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let device = self.devices.chosen(name).unwrap_or(device);
        let tensor = self.found(name)?;
        let arrival = arrival(tensor.dtype(), Some(dtype), self.complex_pairs, device)
            .map_err(|error| candle_core::Error::wrap(error.in_tensor(name)))?;
        let shape = arrival.shape(tensor.shape());
        if let Some(expected) = expected
            && expected != shape
        {
            let msg = format!("shape mismatch for {name}");
            return Err(candle_core::Error::UnexpectedShape { msg, expected, got: shape }.bt());
        }
        let want = self.want(&tensor, arrival, shape, device);
        self.session.take(name, want).map_err(candle_core::Error::wrap)
    }

    /// The part of a tensor that belongs to one rank. A model may give the shape of the whole, of the part, or, as
    /// Candle's own models do, none.
    pub(crate) fn take_part(
        &self,
        name: &str,
        expected: &Shape,
        shard: Shard,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let wrap = |error: Error| candle_core::Error::wrap(error.in_tensor(name));
        let device = self.devices.chosen(name).unwrap_or(device);
        let tensor = self.found(name)?;
        let arrival = arrival(tensor.dtype(), Some(dtype), self.complex_pairs, device).map_err(wrap)?;
        let part = Part::of_rank(tensor.shape(), shard.dim, shard.rank, shard.world_size).map_err(wrap)?;
        let entry = Entry::new(name, vec![Input::of(&tensor)], Arc::new(part)).map_err(wrap)?;
        let shape = arrival.shape(entry.shape());
        if expected.rank() > 0 && *expected != shape && *expected != arrival.shape(tensor.shape()) {
            let (expected, msg) = (expected.clone(), format!("shape mismatch for {name}"));
            return Err(candle_core::Error::UnexpectedShape { msg, expected, got: shape }.bt());
        }
        let want = self.want(&tensor, arrival, shape, device);
        self.session.make(&entry.overflow(self.overflow), want).map_err(candle_core::Error::wrap)
    }

    fn want<'a>(
        &'a self,
        tensor: &TensorRef<'_>,
        arrival: Arrival,
        shape: Shape,
        device: &'a Device,
    ) -> Want<'a> {
        let carried = self.devices.route().carried(tensor, arrival);
        Want { carried, dtype: arrival.dtype, shape, device }
    }
}

impl SimpleBackend for Backend {
    /// The hint, an initialisation for training from scratch, has no meaning for stored weights.
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.take(name, Some(shape), dtype, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.take(name, None, dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.tensor(name).is_some()
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").field("session", &self.session).finish_non_exhaustive()
    }
}
