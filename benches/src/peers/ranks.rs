//! One rank's parts of a tensor-parallel model.

use anyhow::Result;
use benches::checkpoint::Layout;
use candle_core::{Device, Shape, Tensor};
use candle_nn::var_builder::{Backend, Shard, ShardedSafeTensors, VarBuilderArgs};
use weighbridge::Checkpoint;
use weighbridge_candle::Loader;

use crate::loads::{LOAD, in_candle};
use crate::work::{Column, Job, Side, Way, Work};

/// Neither the first rank nor the last.
const RANK: usize = 3;
const RANKS: usize = 8;

pub(crate) const ROWS: Work = Work {
    name: "rank-rows",
    title: "One rank of eight, matrices cut by rows",
    layout: Layout::Llama,
    python: false,
    ways: &ways::<0>(),
    columns: &[Column::Needed, Column::ReadCalls, Column::Cpu, Column::Peak, Column::Faults],
    ..LOAD
};

pub(crate) const COLUMNS: Work = Work {
    name: "rank-columns",
    title: "One rank of eight, matrices cut by columns",
    ways: &ways::<1>(),
    ..ROWS
};

/// Both, with matrices cut along dimension `DIM`.
const fn ways<const DIM: usize>() -> [Way; 2] {
    [
        Way {
            name: "weighbridge",
            title: "**weighbridge** `sharded_var_builder`",
            side: Side::Ours,
            run: |job| in_candle(job, || ours(job, DIM)),
        },
        Way {
            name: "candle",
            title: "candle `ShardedSafeTensors::var_builder`, mapped",
            side: Side::Peer,
            run: |job| in_candle(job, || candle(job, DIM)),
        },
    ]
}

fn ours(job: &Job, dim: usize) -> Result<Vec<Tensor>> {
    let checkpoint = Checkpoint::open(&job.directory)?;
    collect(&Loader::new(&checkpoint).dtype(job.work.dtype).sharded_var_builder()?, job, dim)
}

#[allow(unsafe_code)]
fn candle(job: &Job, dim: usize) -> Result<Vec<Tensor>> {
    // SAFETY: the files are ours, and nobody changes them while they are mapped.
    let vb = unsafe { ShardedSafeTensors::var_builder(&job.files, job.work.dtype, &Device::Cpu) }?;
    collect(&vb, job, dim)
}

/// Matrices are cut, vectors come whole.
fn collect<B>(vb: &VarBuilderArgs<'_, B>, job: &Job, dim: usize) -> Result<Vec<Tensor>>
where
    B: Backend<Hints = Shard>,
{
    let part = |(name, shape): &(String, Vec<usize>)| {
        let (shape, shard) = match shape.len() {
            1 => (Shape::from(&**shape), Shard::default()),
            _ => (Shape::from(()), Shard { dim, rank: RANK, world_size: RANKS }),
        };
        Ok(vb.get_with_hints(shape, name, shard)?)
    };
    job.tensors.iter().map(part).collect()
}
