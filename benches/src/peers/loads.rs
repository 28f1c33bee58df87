//! Whole checkpoints into memory: as they are, cast, in shards, and of many small tensors.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use benches::checkpoint::Layout;
use benches::loaders::{candle_load, candle_mapped, collect, map, ours};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use safetensors::SafeTensors;
use weighbridge::Checkpoint;
use weighbridge::engine::PageCache;
use weighbridge_candle::Loader;

use crate::burn;
use crate::limits;
use crate::measure::{Measure, Size, measure};
use crate::work::{Column, Job, Side, Way, Work};

pub(crate) const LOAD: Work = Work {
    name: "load",
    title: "A Llama in bf16 into memory, page cache hot",
    layout: Layout::Llama,
    dtype: DType::BF16,
    cold: false,
    python: true,
    own_tensors: false,
    ways: &[
        limits::COPY,
        VAR_BUILDER,
        OUR_LOAD,
        CANDLE_MMAP,
        CANDLE_BUFFERED,
        CANDLE_LOAD,
        OFFICIAL_READ,
        OFFICIAL_TOUCH,
        burn::STORE,
    ],
    columns: &[Column::Speed, Column::Cpu, Column::Peak, Column::Faults],
};

pub(crate) const CAST: Work = Work {
    name: "cast",
    title: "The same Llama, cast to f32",
    dtype: DType::F32,
    python: false,
    ways: &[limits::CAST, VAR_BUILDER, OUR_LOAD, CANDLE_MMAP, CANDLE_BUFFERED],
    ..LOAD
};

pub(crate) const SHARDS: Work = Work {
    name: "shards",
    title: "The same Llama as shards with an index",
    layout: Layout::Shards,
    // Candle's buffered `VarBuilder` takes one file, and so does burn-store.
    ways: &[limits::COPY, VAR_BUILDER, OUR_LOAD, CANDLE_MMAP, CANDLE_LOAD],
    ..LOAD
};

pub(crate) const SMALL: Work = Work {
    name: "small",
    title: "Many small tensors, 64 KB each",
    layout: Layout::Small,
    ways: &[
        limits::COPY,
        limits::SMALL,
        VAR_BUILDER,
        OUR_LOAD,
        CANDLE_MMAP,
        CANDLE_BUFFERED,
        CANDLE_LOAD,
        OFFICIAL_READ,
        OFFICIAL_TOUCH,
        burn::STORE,
    ],
    ..LOAD
};

pub(crate) const SMALL_CAST: Work = Work {
    name: "small-cast",
    title: "Many small tensors, cast to f32",
    layout: Layout::Small,
    ways: &[limits::SMALL_CAST, VAR_BUILDER, OUR_LOAD, CANDLE_MMAP, CANDLE_BUFFERED],
    ..CAST
};

pub(crate) const VAR_BUILDER: Way = Way {
    name: "weighbridge",
    title: "**weighbridge** `var_builder`",
    side: Side::Ours,
    run: |job| {
        in_candle(job, || {
            let checkpoint = Checkpoint::open(&job.directory)?;
            collect(&Loader::new(&checkpoint).dtype(job.work.dtype).var_builder()?, &job.tensors)
        })
    },
};

pub(crate) const OUR_LOAD: Way = Way {
    name: "weighbridge-load",
    title: "**weighbridge** `load`",
    side: Side::Ours,
    run: |job| in_candle(job, || ours(&job.directory, job.work.dtype, PageCache::Keep)),
};

pub(crate) const CANDLE_MMAP: Way = Way {
    name: "candle-mmap",
    title: "candle `VarBuilder::from_mmaped_safetensors`",
    side: Side::Peer,
    run: |job| in_candle(job, || collect(&candle_mapped(&job.files, job.work.dtype)?, &job.tensors)),
};

const CANDLE_BUFFERED: Way = Way {
    name: "candle-buffered",
    title: "candle `VarBuilder::from_buffered_safetensors`",
    side: Side::Peer,
    run: |job| {
        in_candle(job, || {
            let bytes = std::fs::read(&job.files[0])?;
            let builder = VarBuilder::from_buffered_safetensors(bytes, job.work.dtype, &Device::Cpu)?;
            collect(&builder, &job.tensors)
        })
    },
};

pub(crate) const CANDLE_LOAD: Way = Way {
    name: "candle-load",
    title: "candle `safetensors::load`",
    side: Side::Peer,
    run: |job| in_candle(job, || candle_load(&job.files)),
};

const OFFICIAL_READ: Way = Way {
    name: "safetensors-read",
    title: "safetensors: `fs::read`, `deserialize`, `to_vec` of each",
    side: Side::Peer,
    run: |job| {
        let load = || {
            let bytes = std::fs::read(&job.files[0])?;
            let tensors = SafeTensors::deserialize(&bytes)?.tensors();
            let owned = tensors.into_iter().map(|(name, view)| (name, view.data().to_vec()));
            Ok(owned.collect::<HashMap<_, _>>())
        };
        measure(load, |tensors| size(tensors.values().map(|bytes| bytes.len() as u64).sum()))
    },
};

const OFFICIAL_TOUCH: Way = Way {
    name: "safetensors-touch",
    title: "safetensors: mapped, one byte of each page read, nothing copied",
    side: Side::Peer,
    run: |job| {
        let touch = || {
            let file = map(&job.files[0])?;
            let tensors = SafeTensors::deserialize(&file)?.tensors();
            let pages = tensors.iter().flat_map(|(_, view)| view.data().iter().step_by(4096));
            let sum = pages.fold(0_u64, |sum, &byte| sum + u64::from(byte));
            ensure!(std::hint::black_box(sum) > 0, "only zeros");
            Ok(file)
        };
        measure(touch, |file| size(file.len() as u64))
    },
};

/// Where all that was stored is in memory afterwards.
fn size(bytes: u64) -> Size {
    Size { tensors: bytes, moved: bytes }
}

/// Measures what ends in Candle's tensors.
pub(crate) fn in_candle(job: &Job, load: impl FnOnce() -> Result<Vec<Tensor>>) -> Result<Measure> {
    measure(load, |tensors| {
        let elements: u64 = tensors.iter().map(|tensor| tensor.elem_count() as u64).sum();
        // Every checkpoint is stored in two bytes an element.
        Size { tensors: elements * job.work.dtype.size_in_bytes() as u64, moved: 2 * elements }
    })
}
