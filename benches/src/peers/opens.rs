//! How long until something is there: the headers, and a first tensor.

use anyhow::{Context, Result};
use benches::checkpoint::Layout;
use benches::loaders::candle_mapped;
use candle_core::Device;
use candle_core::safetensors::MmapedSafetensors;
use candle_nn::VarBuilder;
use weighbridge::Checkpoint;
use weighbridge_candle::Loader;

use crate::burn;
use crate::loads::{LOAD, in_candle};
use crate::measure::Measure;
use crate::opening::{TENSOR, opened};
use crate::work::{Column, Job, Side, Way, Work};

pub(crate) const HEADERS: Work = Work {
    name: "open-headers",
    title: "Opening a checkpoint of many tensors: headers only",
    layout: Layout::Small,
    python: false,
    ways: &[
        Way {
            name: "weighbridge",
            title: "**weighbridge** `Checkpoint::open`",
            side: Side::Ours,
            run: |job| opened(job, || Ok(Checkpoint::open(&job.directory)?), Checkpoint::len),
        },
        Way {
            name: "candle-mmap",
            title: "candle `MmapedSafetensors::multi`",
            side: Side::Peer,
            run: |job| opened(job, || map(job), |files| files.tensors().len()),
        },
        burn::OPEN,
    ],
    columns: &[Column::Cpu, Column::Peak, Column::Faults],
    ..LOAD
};

pub(crate) const FIRST: Work = Work {
    name: "open-first",
    title: "Until the first tensor of a Llama is there",
    layout: Layout::Llama,
    ways: &[
        Way {
            name: "weighbridge",
            title: "**weighbridge** `var_builder`, which reads ahead meanwhile",
            side: Side::Ours,
            run: |job| {
                first(job, || {
                    let checkpoint = Checkpoint::open(&job.directory)?;
                    Ok(Loader::new(&checkpoint).dtype(job.work.dtype).var_builder()?)
                })
            },
        },
        Way {
            name: "weighbridge-alone",
            title: "**weighbridge** `var_builder` with `read_ahead(0)`",
            side: Side::Ours,
            run: |job| {
                first(job, || {
                    let checkpoint = Checkpoint::open(&job.directory)?;
                    Ok(Loader::new(&checkpoint).dtype(job.work.dtype).read_ahead(0).var_builder()?)
                })
            },
        },
        Way {
            name: "candle-mmap",
            title: "candle `VarBuilder::from_mmaped_safetensors`",
            side: Side::Peer,
            run: |job| first(job, || candle_mapped(&job.files, job.work.dtype)),
        },
        Way {
            name: "candle-buffered",
            title: "candle `VarBuilder::from_buffered_safetensors`",
            side: Side::Peer,
            run: |job| {
                first(job, || {
                    let bytes = std::fs::read(&job.files[0])?;
                    Ok(VarBuilder::from_buffered_safetensors(bytes, job.work.dtype, &Device::Cpu)?)
                })
            },
        },
        burn::FIRST,
    ],
    ..HEADERS
};

fn first(job: &Job, open: impl FnOnce() -> Result<VarBuilder<'static>>) -> Result<Measure> {
    let (name, shape) = job.tensors.iter().find(|tensor| tensor.0 == TENSOR).context("no such tensor")?;
    // The builder lives on: what it reads ahead, and what it takes to stop that, is not part of the work.
    let mut vb = None;
    in_candle(job, || {
        let vb = vb.insert(open()?);
        Ok(vec![vb.get(&**shape, name)?])
    })
}

#[allow(unsafe_code)]
fn map(job: &Job) -> Result<MmapedSafetensors> {
    // SAFETY: the files are ours, and nobody changes them while they are mapped.
    Ok(unsafe { MmapedSafetensors::multi(&job.files) }?)
}
