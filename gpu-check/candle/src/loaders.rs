//! The loaders: ours, and Candle's.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::cpu_backend::CpuStorage;
use candle_core::{DType, Device, Storage, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::Shard;
use gpu_check_common::checkpoint::{Float, Model};
use gpu_check_common::run::{Measured, measure};
use weighbridge::{Checkpoint, Names};
use weighbridge_candle::{Saver, Staging};

/// What loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loader {
    /// From the page cache to the device with nothing in between, in slabs of 2 MiB.
    #[cfg(feature = "cuda")]
    Limit,
    /// The same in slabs of 4 MiB.
    #[cfg(feature = "cuda")]
    LimitInLarge,
    /// `Loader::load`, each time with staging memory of its own.
    Load,
    /// `Loader::load` with staging memory that is kept.
    Kept,
    /// `Loader::var_builder`, asked for all tensors in order.
    VarBuilder,
    /// The second half of the rows of each tensor, as a rank of two asks for it.
    Rows,
    /// The same, said before, so that it is read ahead.
    DeclaredRows,
    /// The second half of the columns of each matrix.
    Columns,
    /// `Loader::load` in the other dtype.
    Cast,
    /// What was loaded, saved to memory again.
    Save,
    /// The same to a file.
    SaveFile,
    /// As many bytes, from memory to a file.
    #[cfg(feature = "cuda")]
    SaveLimit,
    /// Candle's `VarBuilder::from_mmaped_safetensors`.
    Mapped,
    /// Candle's `safetensors::load`.
    Whole,
}

impl Loader {
    pub(crate) const ALL: &[Self] = &[
        #[cfg(feature = "cuda")]
        Self::Limit,
        #[cfg(feature = "cuda")]
        Self::LimitInLarge,
        Self::Load,
        Self::Kept,
        Self::VarBuilder,
        Self::Rows,
        Self::DeclaredRows,
        Self::Columns,
        Self::Cast,
        Self::SaveFile,
        #[cfg(feature = "cuda")]
        Self::SaveLimit,
        Self::Save,
        Self::Mapped,
        Self::Whole,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Load => "weighbridge load",
            Self::Kept => "weighbridge load, staging kept",
            Self::VarBuilder => "weighbridge var_builder",
            #[cfg(feature = "cuda")]
            Self::Limit => "limit: page cache to device, 2 MiB",
            #[cfg(feature = "cuda")]
            Self::LimitInLarge => "limit: page cache to device, 4 MiB",
            Self::Rows => "weighbridge rows of a rank",
            Self::DeclaredRows => "weighbridge rows of a rank, declared",
            Self::Columns => "weighbridge columns of a rank",
            Self::Cast => "weighbridge load, cast",
            Self::Save => "weighbridge save to memory",
            Self::SaveFile => "weighbridge save to a file",
            #[cfg(feature = "cuda")]
            Self::SaveLimit => "save limit: memory to a file",
            Self::Mapped => "candle from_mmaped_safetensors",
            Self::Whole => "candle safetensors::load",
        }
    }

    pub(crate) fn named(name: &str) -> Result<Self> {
        let found = Self::ALL.iter().find(|loader| loader.name() == name);
        found.copied().with_context(|| format!("no {name}"))
    }

    pub(crate) fn measure(
        self,
        file: &Path,
        model: &Model,
        device: &Device,
        repeat: usize,
    ) -> Result<Measured> {
        let staging = Staging::new();
        let settle = || Ok(device.synchronize()?);
        let ours = || weighbridge_candle::Loader::new(&Checkpoint::open(file)?).device(device).loaded();
        let verify = |tensors: HashMap<String, Tensor>| {
            model.verify_all(|name| bytes(tensors.get(name).with_context(|| format!("no {name}"))?))
        };
        match self {
            #[cfg(feature = "cuda")]
            Self::Limit => crate::limit::load(file, model, 2 << 20, repeat),
            #[cfg(feature = "cuda")]
            Self::LimitInLarge => crate::limit::load(file, model, 4 << 20, repeat),
            #[cfg(feature = "cuda")]
            Self::SaveLimit => crate::limit::save(file, model, repeat),
            Self::Load => measure(repeat, settle, || synced(ours()?, device), verify),
            Self::Kept => {
                let load = || {
                    let ckpt = Checkpoint::open(file)?;
                    let loader = weighbridge_candle::Loader::new(&ckpt).device(device).staging(&staging);
                    synced(loader.loaded()?, device)
                };
                measure(repeat, settle, load, verify)
            }
            Self::VarBuilder => {
                let load = || {
                    let ckpt = Checkpoint::open(file)?;
                    let builder = weighbridge_candle::Loader::new(&ckpt).device(device).var_builder()?;
                    synced(build(&builder, model)?, device)
                };
                measure(repeat, settle, load, verify)
            }
            Self::Rows => halves(file, model, device, repeat, Half { dim: 0, is_declared: false }),
            Self::DeclaredRows => halves(file, model, device, repeat, Half { dim: 0, is_declared: true }),
            Self::Columns => halves(file, model, device, repeat, Half { dim: 1, is_declared: false }),
            Self::Cast => {
                let other = if model.float == Float::Bf16 { DType::F32 } else { DType::BF16 };
                let load = || {
                    let ckpt = Checkpoint::open(file)?;
                    let loader = weighbridge_candle::Loader::new(&ckpt).device(device).dtype(other);
                    synced(loader.loaded()?, device)
                };
                let verify = |cast: HashMap<String, Tensor>| {
                    // As Candle casts it on the host.
                    let whole = candle_core::safetensors::load(file, &Device::Cpu)?;
                    for (name, tensor) in cast {
                        let expected = whole.get(&name).context("no such tensor")?.to_dtype(other)?;
                        anyhow::ensure!(bytes(&tensor)? == bytes(&expected)?, "{name} differs");
                    }
                    Ok(())
                };
                measure(repeat, settle, load, verify)
            }
            Self::Save => {
                let tensors = ours()?;
                let save = || Ok(Saver::new().staging(&staging).bytes(&tensors)?);
                measure(repeat, settle, save, |saved| verify_saved(model, &saved))
            }
            Self::SaveFile => {
                let tensors = ours()?;
                let path = file.with_file_name("saved.safetensors");
                let save = || Ok(Saver::new().staging(&staging).file(&path, &tensors)?);
                let measured =
                    measure(repeat, settle, save, |()| verify_saved(model, &std::fs::read(&path)?));
                let _ = std::fs::remove_file(&path);
                measured
            }
            Self::Mapped => {
                let dtype = match model.float {
                    Float::Bf16 => DType::BF16,
                    Float::F32 => DType::F32,
                };
                let load = || {
                    #[allow(unsafe_code)]
                    // SAFETY: the file was made by this program, and nobody changes it.
                    let builder = unsafe { VarBuilder::from_mmaped_safetensors(&[file], dtype, device) }?;
                    synced(build(&builder, model)?, device)
                };
                measure(repeat, settle, load, verify)
            }
            Self::Whole => measure(
                repeat,
                settle,
                || synced(candle_core::safetensors::load(file, device)?, device),
                verify,
            ),
        }
    }
}

trait Load {
    fn loaded(self) -> Result<HashMap<String, Tensor>>;
}

impl Load for weighbridge_candle::Loader {
    fn loaded(self) -> Result<HashMap<String, Tensor>> {
        Ok(self.load()?.tensors)
    }
}

/// What was loaded when it is there.
fn synced<T>(loaded: T, device: &Device) -> Result<T> {
    device.synchronize()?;
    Ok(loaded)
}

fn build(builder: &VarBuilder<'_>, model: &Model) -> Result<HashMap<String, Tensor>> {
    let get = |(name, tensor): (&String, &gpu_check_common::checkpoint::Tensor)| {
        Ok((name.clone(), builder.get(tensor.shape.clone(), name)?))
    };
    model.tensors.iter().map(get).collect()
}

fn verify_saved(model: &Model, saved: &[u8]) -> Result<()> {
    let ckpt = weighbridge::SafeTensors::parse(saved)?;
    model.verify_all(|name| Ok(ckpt.tensor(name).with_context(|| format!("no {name}"))?.bytes().to_vec()))
}

/// Which half of each tensor, and whether the loader is told before.
#[derive(Clone, Copy)]
struct Half {
    dim: usize,
    is_declared: bool,
}

impl Half {
    fn shard(self, rank: usize) -> Shard {
        Shard { dim: self.dim.min(rank - 1), rank: 1, world_size: 2 }
    }
}

/// The second half of each tensor, compared with what Candle loads of it.
fn halves(file: &Path, model: &Model, device: &Device, repeat: usize, half: Half) -> Result<Measured> {
    let load = || {
        let ckpt = Checkpoint::open(file)?;
        let mut loader = weighbridge_candle::Loader::new(&ckpt).device(device);
        if half.is_declared {
            loader = loader.shard_for(Names::glob("*.weight")?, half.shard(2));
            loader = loader.shard_for(Names::glob("*.gamma")?, half.shard(1));
        }
        let builder = loader.sharded_var_builder()?;
        let get = |(name, tensor): (&String, &gpu_check_common::checkpoint::Tensor)| {
            Ok((name.clone(), builder.get_with_hints((), name, half.shard(tensor.shape.len()))?))
        };
        synced(model.tensors.iter().map(get).collect::<Result<HashMap<_, _>>>()?, device)
    };
    let verify = |halves: HashMap<String, Tensor>| {
        let whole = candle_core::safetensors::load(file, &Device::Cpu)?;
        for (name, part) in halves {
            let shard = half.shard(part.rank());
            let size = part.dim(shard.dim)?;
            let expected = whole.get(&name).context("no such tensor")?.narrow(shard.dim, size, size)?;
            anyhow::ensure!(bytes(&part)? == bytes(&expected.contiguous()?)?, "{name} differs");
        }
        Ok(())
    };
    let measured = measure(repeat, || Ok(device.synchronize()?), load, verify)?;
    Ok(Measured { bytes: Some(model.bytes() / 2), ..measured })
}

/// The bytes of a tensor, brought to the host by Candle.
pub(crate) fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.to_device(&Device::Cpu)?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("it is not on the host") };
    let (start, end) = layout.contiguous_offsets().context("it does not lie in one piece")?;
    Ok(match storage {
        CpuStorage::BF16(values) => {
            values[start..end].iter().flat_map(|value| value.to_bits().to_le_bytes()).collect()
        }
        CpuStorage::F32(values) => {
            values[start..end].iter().flat_map(|value| value.to_bits().to_le_bytes()).collect()
        }
        other => bail!("its dtype is {:?}", candle_core::backend::BackendStorage::dtype(other)),
    })
}
