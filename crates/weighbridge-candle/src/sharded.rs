//! Tensor parallelism: each rank gets its part of a tensor, and reads no more.

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::{Backend as CandleBackend, Shard, SimpleBackend, VarBuilderArgs};
use weighbridge::{Checkpoint, Slice};

use crate::Loader;
use crate::backend::Backend;

/// What a tensor-parallel model is built from, in the place of Candle's type of that name: the hints are
/// Candle's own [`Shard`].
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

/// Gives a rank's parts of tensors, cut along any dimension. Each is read by all threads when it is asked
/// for, and no more than it needs; those that were [declared](Loader::shard_for) are read ahead.
#[derive(Debug)]
pub struct ShardedBackend(Backend);

impl ShardedBackend {
    /// As [`Backend::report`].
    pub fn report(&self) -> weighbridge::Report {
        self.0.report()
    }

    /// As [`Backend::checkpoint`].
    pub fn checkpoint(&self) -> &Checkpoint {
        self.0.checkpoint()
    }

    /// As [`Backend::tensors`].
    pub fn tensors(&self) -> impl Iterator<Item = (&str, Shape, DType)> {
        self.0.tensors()
    }

    /// As [`Backend::dtype`].
    pub fn dtype(&self) -> DType {
        self.0.dtype()
    }

    /// As [`Backend::device`].
    pub fn device(&self) -> &Device {
        self.0.device()
    }

    /// As [`Backend::get_slice`].
    ///
    /// # Errors
    ///
    /// As [`Backend::get_slice`].
    pub fn get_slice(&self, name: &str, slice: &Slice) -> Result<Tensor> {
        self.0.get_slice(name, slice)
    }

    /// As [`Backend::get_slice_as`].
    ///
    /// # Errors
    ///
    /// As [`Backend::get_slice`].
    pub fn get_slice_as(&self, name: &str, slice: &Slice, dtype: DType, device: &Device) -> Result<Tensor> {
        self.0.get_slice_as(name, slice, dtype, device)
    }
}

impl Loader {
    /// A [`ShardedVarBuilder`] over all tensors.
    ///
    /// What is read ahead is what was declared by [`shard_for`](Self::shard_for) or
    /// [`part_for`](Self::part_for): which part of the others a rank needs is known only when its model asks
    /// for it. A dimension that has no equal part for each rank is an error, as is a shape that is neither
    /// that of the tensor nor of the part; `()` stands for any.
    ///
    /// ```
    /// use weighbridge_candle::Loader;
    /// use weighbridge_candle::candle_nn::var_builder::Shard;
    /// # use weighbridge_candle::weighbridge::{Checkpoint, Names};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let ckpt = Checkpoint::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder"))?;
    /// let (rows, columns) = (Shard { dim: 0, rank: 1, world_size: 2 }, Shard { dim: 1, rank: 1, world_size: 2 });
    /// let vb = Loader::new(&ckpt)
    ///     .shard_for(Names::glob("*.{q,k,v,gate,up}_proj.weight")?, rows)
    ///     .shard_for(Names::glob("*.{o,down}_proj.weight")?, columns)
    ///     .sharded_var_builder()?;
    /// let weight = vb.get_with_hints((), "model.layers.0.self_attn.q_proj.weight", rows)?; // was read ahead
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`var_builder`](Self::var_builder).
    pub fn sharded_var_builder(self) -> weighbridge::Result<ShardedVarBuilder<'static>> {
        Ok(self.sharded_var_builder_and_report()?.0)
    }

    /// What [`sharded_var_builder`](Self::sharded_var_builder) wraps: it has a report, gives slices, and
    /// knows names, shapes and dtypes.
    ///
    /// # Errors
    ///
    /// As [`var_builder`](Self::var_builder).
    pub fn sharded_backend(self) -> weighbridge::Result<ShardedBackend> {
        self.start_backend(false).map(ShardedBackend)
    }

    /// A [`ShardedVarBuilder`], and a report that counts on while the model is built: bytes needed and read,
    /// what was never asked for.
    ///
    /// # Errors
    ///
    /// As [`var_builder`](Self::var_builder).
    pub fn sharded_var_builder_and_report(
        self,
    ) -> weighbridge::Result<(ShardedVarBuilder<'static>, weighbridge::Report)> {
        let backend = self.sharded_backend()?;
        let (dtype, device, report) = (backend.dtype(), backend.device().clone(), backend.report());
        Ok((VarBuilderArgs::new_with_args(backend, dtype, &device), report))
    }
}

impl CandleBackend for ShardedBackend {
    type Hints = Shard;

    fn get(&self, shape: Shape, name: &str, shard: Shard, dtype: DType, device: &Device) -> Result<Tensor> {
        self.0.get_shard(name, shape, shard, dtype, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        SimpleBackend::get_unchecked(&self.0, name, dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        SimpleBackend::contains_tensor(&self.0, name)
    }
}
