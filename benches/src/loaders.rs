//! Ways to bring a file's tensors into memory.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use memmap2::{Advice, MmapMut};
use serde_json::{Value, json};
use weighbridge::Checkpoint;

/// What one load took.
#[derive(Clone, Debug)]
pub(crate) struct Measure {
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
    /// Of resident memory.
    pub(crate) peak_bytes: f64,
    /// Of the tensors that were made.
    pub(crate) tensor_bytes: f64,
    pub(crate) page_faults: f64,
}

impl Measure {
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "peak_bytes": self.peak_bytes,
            "tensor_bytes": self.tensor_bytes,
            "page_faults": self.page_faults,
        })
    }

    pub(crate) fn from_json(value: &Value) -> Option<Self> {
        let figure = |name| value[name].as_f64();
        Some(Self {
            seconds: figure("seconds")?,
            cpu_seconds: figure("cpu_seconds")?,
            peak_bytes: figure("peak_bytes")?,
            tensor_bytes: figure("tensor_bytes")?,
            page_faults: figure("page_faults")?,
        })
    }
}

/// A way to load; those with `F32` cast to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loader {
    /// Loads nothing; see [`warm`].
    Warm,
    Limit,
    VarBuilder,
    VarBuilderF32,
    Load,
    CandleMmap,
    CandleMmapF32,
    CandleLoad,
}

impl Loader {
    pub(crate) const ALL: [Self; 7] = [
        Self::Limit,
        Self::VarBuilder,
        Self::Load,
        Self::CandleMmap,
        Self::CandleLoad,
        Self::VarBuilderF32,
        Self::CandleMmapF32,
    ];

    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Warm].into_iter().chain(Self::ALL).find(|loader| loader.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Limit => "limit",
            Self::VarBuilder => "weighbridge",
            Self::VarBuilderF32 => "weighbridge-f32",
            Self::Load => "weighbridge-load",
            Self::CandleMmap => "candle-mmap",
            Self::CandleMmapF32 => "candle-mmap-f32",
            Self::CandleLoad => "candle-load",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Warm => "nothing",
            Self::Limit => "the limit of a copy: 2 threads, `pread`, huge pages",
            Self::VarBuilder => "**weighbridge** `var_builder`",
            Self::VarBuilderF32 => "**weighbridge** `var_builder`, cast to f32",
            Self::Load => "**weighbridge** `load`",
            Self::CandleMmap => "candle `VarBuilder::from_mmaped_safetensors`",
            Self::CandleMmapF32 => "candle `VarBuilder::from_mmaped_safetensors`, cast to f32",
            Self::CandleLoad => "candle `safetensors::load`",
        }
    }

    /// Whether the table's ratios are to this one, or its twin that casts.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::VarBuilder | Self::VarBuilderF32)
    }

    pub(crate) fn casts(self) -> bool {
        matches!(self, Self::VarBuilderF32 | Self::CandleMmapF32)
    }

    /// Loads in this process, from opening the file to the last tensor.
    pub(crate) fn measure(self, file: &Path) -> Result<Measure> {
        let names: Vec<String> = Checkpoint::open(file)?.tensors().map(|t| t.name().to_owned()).collect();
        let start = Instant::now();
        let cpu = cpu_seconds()?;
        let tensor_bytes = match self {
            Self::Warm => warm(file)?,
            Self::Limit => limit(file)?,
            Self::VarBuilder => ours(file, &names, DType::BF16)?,
            Self::VarBuilderF32 => ours(file, &names, DType::F32)?,
            Self::Load => {
                let ckpt = Checkpoint::open(file)?;
                let loaded = weighbridge_candle::Loader::new(&ckpt).load()?;
                total(loaded.tensors.values())
            }
            Self::CandleMmap => candle_mmap(file, &names, DType::BF16)?,
            Self::CandleMmapF32 => candle_mmap(file, &names, DType::F32)?,
            Self::CandleLoad => total(candle_core::safetensors::load(file, &Device::Cpu)?.values()),
        };
        Ok(Measure {
            seconds: start.elapsed().as_secs_f64(),
            cpu_seconds: cpu_seconds()? - cpu,
            peak_bytes: peak_bytes()?,
            tensor_bytes: tensor_bytes as f64,
            page_faults: stat_field(9)?,
        })
    }
}

fn ours(file: &Path, names: &[String], dtype: DType) -> Result<usize> {
    let ckpt = Checkpoint::open(file)?;
    let vb = weighbridge_candle::Loader::new(&ckpt).dtype(dtype).var_builder()?;
    collect(&vb, names)
}

#[allow(unsafe_code)]
fn candle_mmap(file: &Path, names: &[String], dtype: DType) -> Result<usize> {
    // SAFETY: the file is ours, and nobody changes it while it is mapped.
    let vb = unsafe { VarBuilder::from_mmaped_safetensors(&[file], dtype, &Device::Cpu) }?;
    collect(&vb, names)
}

fn collect(vb: &VarBuilder<'_>, names: &[String]) -> Result<usize> {
    let tensors = names.iter().map(|name| vb.get_unchecked_dtype(name, vb.dtype()));
    let tensors = tensors.collect::<candle_core::Result<Vec<_>>>()?;
    // Candle's own `get_unchecked` ignores the dtype.
    let tensors: Vec<_> = tensors.iter().map(|t| t.to_dtype(vb.dtype())).collect::<Result<_, _>>()?;
    Ok(total(tensors.iter()))
}

fn total<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> usize {
    tensors.map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum()
}

/// What no loader that copies can beat: two threads that read halves of the file into one huge-page buffer.
fn limit(file: &Path) -> Result<usize> {
    let file = std::fs::File::open(file)?;
    let len = file.metadata()?.len() as usize;
    let mut memory = MmapMut::map_anon(len)?;
    memory.advise(Advice::HugePage)?;
    let middle = len / 2;
    let (first, second) = memory.split_at_mut(middle);
    let read = |memory: &mut [u8], start: usize| -> Result<()> {
        for (number, chunk) in memory.chunks_mut(4 << 20).enumerate() {
            let offset = (start + number * (4 << 20)) as u64;
            std::os::unix::fs::FileExt::read_exact_at(&file, chunk, offset)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| read(second, middle));
        read(first, 0)?;
        other.join().unwrap_or_else(|_| anyhow::bail!("a thread panicked"))
    })?;
    Ok(len)
}

/// Touches as much memory as the hungriest loader will, so that a virtual machine has it from its host before a
/// measurement, and the file, so that it is in the page cache.
fn warm(file: &Path) -> Result<usize> {
    let len = limit(file)?;
    let mut memory = MmapMut::map_anon(len * 7 / 2)?;
    memory.advise(Advice::HugePage)?;
    memory.chunks_mut(4096).for_each(|page| page[0] = 1);
    Ok(memory.len())
}

fn peak_bytes() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0)
}

fn cpu_seconds() -> Result<f64> {
    // In ticks, a hundred a second on every Linux.
    Ok((stat_field(13)? + stat_field(14)?) / 100.0)
}

/// A field of `/proc/self/stat`, counted from 0.
fn stat_field(number: usize) -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(") ").context("no fields")?;
    Ok(fields.split(' ').nth(number - 2).context("no such field")?.parse()?)
}
