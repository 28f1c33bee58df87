//! Tensor parallelism: each rank gets its part of a tensor, and reads no more.

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::{Backend as CandleBackend, Shard, SimpleBackend, VarBuilderArgs};

use crate::Loader;
use crate::backend::Backend;

/// What a tensor-parallel model is built from, in the place of Candle's type of that name: the hints are Candle's
/// own [`Shard`].
///
/// ```
/// use weighbridge_candle::ShardedVarBuilder as VarBuilder; // was: candle_nn::var_builder::ShardedVarBuilder
/// # use weighbridge_candle::candle_core::{DType, Result, Tensor};
/// # use weighbridge_candle::candle_nn::var_builder::Shard;
/// # use weighbridge_candle::{Loader, weighbridge::Checkpoint};
///
/// fn column_linear(vb: VarBuilder<'_>, rank: usize, world_size: usize) -> Result<Tensor> {
///     vb.get_with_hints((), "weight", Shard { dim: 0, rank, world_size })
/// }
///
/// # fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
/// # let ckpt = Checkpoint::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder"))?;
/// let vb = Loader::new(&ckpt).dtype(DType::F32).sharded_var_builder()?;
/// let weight = column_linear(vb.pp("model.layers.0.self_attn.q_proj"), 1, 2)?;
/// # Ok(())
/// # }
/// ```
pub type ShardedVarBuilder<'a> = VarBuilderArgs<'a, ShardedBackend>;

/// Gives a rank's parts of tensors, cut along any dimension, each read by all threads when it is asked for.
#[derive(Debug)]
pub struct ShardedBackend(Backend);

impl ShardedBackend {
    /// What has been read so far, and what never was asked for.
    pub fn report(&self) -> weighbridge::Report {
        self.0.report()
    }
}

impl Loader {
    /// A [`ShardedVarBuilder`] over all tensors.
    ///
    /// Nothing is read ahead: which part a rank needs is known only when its model asks for it. A dimension that has
    /// no equal part for each rank is an error, as is a shape that is neither that of the tensor nor of the part;
    /// `()` stands for any.
    ///
    /// # Errors
    ///
    /// As [`var_builder`](Self::var_builder).
    pub fn sharded_var_builder(self) -> weighbridge::Result<ShardedVarBuilder<'static>> {
        Ok(self.sharded_var_builder_and_report()?.0)
    }

    /// The same, and a report that counts on while the model is built: bytes needed and read, what was never asked
    /// for.
    ///
    /// # Errors
    ///
    /// As [`var_builder`](Self::var_builder).
    pub fn sharded_var_builder_and_report(
        self,
    ) -> weighbridge::Result<(ShardedVarBuilder<'static>, weighbridge::Report)> {
        let (dtype, device) = self.dtype_and_device();
        let backend = ShardedBackend(self.read_ahead(0).backend()?);
        let report = backend.report();
        Ok((VarBuilderArgs::new_with_args(backend, dtype, &device), report))
    }
}

impl CandleBackend for ShardedBackend {
    type Hints = Shard;

    fn get(&self, shape: Shape, name: &str, shard: Shard, dtype: DType, device: &Device) -> Result<Tensor> {
        match shard.world_size {
            1 if shape.rank() > 0 => {
                SimpleBackend::get(&self.0, shape, name, candle_nn::Init::default(), dtype, device)
            }
            1 => SimpleBackend::get_unchecked(&self.0, name, dtype, device),
            _ => self.0.take_part(name, &shape, shard, dtype, device),
        }
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        SimpleBackend::get_unchecked(&self.0, name, dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        SimpleBackend::contains_tensor(&self.0, name)
    }
}
