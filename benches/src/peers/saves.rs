//! A model in memory into a file that is on the disk when the clock stops.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use candle_core::Tensor;
use safetensors::tensor::TensorView;
use weighbridge::Checkpoint;
use weighbridge::write::Save;
use weighbridge_candle::{Loader, Saver};

use crate::limits;
use crate::loads::LOAD;
use crate::measure::{Measure, Size, measure};
use crate::work::{Column, Job, Side, Way, Work};

pub(crate) const SAVE: Work = Work {
    name: "save",
    title: "The same Llama from memory into a file, fsync included",
    python: false,
    ways: &[
        limits::SAVE,
        Way {
            name: "sequential",
            title: "as many bytes in order, 1 MiB at a time, and `fsync`, as `dd` does",
            side: Side::Machine,
            run: sequential,
        },
        Way {
            name: "weighbridge",
            title: "**weighbridge** `Saver`: temporary file, `fsync`, rename",
            side: Side::Ours,
            run: |job| candle(job, |tensors, file| Ok(Saver::new().file(file, tensors)?)),
        },
        Way {
            name: "weighbridge-unprotected",
            title: "**weighbridge** `Saver`, unprotected, and `fsync`",
            side: Side::Ours,
            run: |job| {
                candle(job, |tensors, file| {
                    Saver::new().with(Save::new().unprotected()).file(file, tensors)?;
                    Ok(File::open(file)?.sync_all()?)
                })
            },
        },
        Way {
            name: "candle",
            title: "candle `safetensors::save`, and `fsync`",
            side: Side::Peer,
            run: |job| {
                candle(job, |tensors, file| {
                    candle_core::safetensors::save(tensors, file)?;
                    Ok(File::open(file)?.sync_all()?)
                })
            },
        },
        Way {
            name: "safetensors",
            title: "safetensors `serialize_to_file` of plain bytes, and `fsync`",
            side: Side::Peer,
            run: official,
        },
    ],
    columns: &[Column::Speed, Column::Cpu, Column::Peak, Column::Faults],
    ..LOAD
};

/// Where a save goes; gone again at the end.
pub(crate) struct Destination(PathBuf);

impl Destination {
    pub(crate) fn of(job: &Job) -> Result<Self> {
        // In a directory of its own: it is none of the checkpoint's files.
        let directory = job.directory.join("saved");
        std::fs::create_dir_all(&directory)?;
        Ok(Self(directory.join("model.safetensors")))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Measures a save of Candle's tensors, which are in memory before.
fn candle(job: &Job, save: fn(&HashMap<String, Tensor>, &Path) -> Result<()>) -> Result<Measure> {
    let tensors = Loader::new(&Checkpoint::open(&job.directory)?).load()?.tensors;
    let bytes = tensors.values().map(|t| (t.elem_count() * t.dtype().size_in_bytes()) as u64).sum();
    let to = Destination::of(job)?;
    measure(|| save(&tensors, &to.0), |()| Size { tensors: bytes, moved: bytes })
}

/// Measures a save of bytes without a framework.
fn official(job: &Job) -> Result<Measure> {
    let bytes = std::fs::read(&job.files[0])?;
    let tensors = safetensors::SafeTensors::deserialize(&bytes)?.tensors();
    let to = Destination::of(job)?;
    let save = || {
        let tensors = tensors.iter().map(|(name, view): &(String, TensorView<'_>)| (name, view));
        safetensors::serialize_to_file(tensors, None, &to.0)?;
        Ok(File::open(&to.0)?.sync_all()?)
    };
    let len = bytes.len() as u64;
    measure(save, |()| Size { tensors: len, moved: len })
}

pub(crate) fn sequential(job: &Job) -> Result<Measure> {
    let len = job.byte_len()?;
    let piece = vec![0x3C; 1 << 20];
    let to = Destination::of(job)?;
    let write = || {
        let mut file = File::create(&to.0)?;
        let mut left = usize::try_from(len)?;
        while left > 0 {
            let part = left.min(piece.len());
            file.write_all(&piece[..part])?;
            left -= part;
        }
        Ok(file.sync_all()?)
    };
    measure(write, |()| Size { tensors: 0, moved: len })
}
