//! The loaders: ours, and Candle's.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::cpu_backend::CpuStorage;
use candle_core::{DType, Device, Storage, Tensor};
use candle_nn::VarBuilder;
use gpu_check_common::checkpoint::{Float, Model};
use gpu_check_common::run::{Measured, measure};
use weighbridge::Checkpoint;
use weighbridge_candle::{Saver, Staging};

/// What loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loader {
    /// `Loader::load`, each time with staging memory of its own.
    Load,
    /// `Loader::load` with staging memory that is kept.
    Kept,
    /// `Loader::var_builder`, asked for all tensors in order.
    VarBuilder,
    /// Every second half of each tensor, as a rank of two has it.
    Part,
    /// What was loaded, saved to memory again.
    Save,
    /// Candle's `VarBuilder::from_mmaped_safetensors`.
    Mapped,
    /// Candle's `safetensors::load`.
    Whole,
}

impl Loader {
    pub(crate) const ALL: [Self; 7] =
        [Self::Load, Self::Kept, Self::VarBuilder, Self::Part, Self::Save, Self::Mapped, Self::Whole];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Load => "weighbridge load",
            Self::Kept => "weighbridge load, staging kept",
            Self::VarBuilder => "weighbridge var_builder",
            Self::Part => "weighbridge half of each tensor",
            Self::Save => "weighbridge save to memory",
            Self::Mapped => "candle from_mmaped_safetensors",
            Self::Whole => "candle safetensors::load",
        }
    }

    pub(crate) fn named(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|loader| loader.name() == name).with_context(|| format!("no {name}"))
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
            Self::Part => {
                let load = || {
                    let ckpt = Checkpoint::open(file)?;
                    let builder = weighbridge_candle::Loader::new(&ckpt).device(device);
                    synced(halves(builder, model)?, device)
                };
                let verify = |halves: HashMap<String, Tensor>| {
                    // Against the other half of what Candle loads.
                    let whole = candle_core::safetensors::load(file, &Device::Cpu)?;
                    for (name, half) in halves {
                        let rows = half.dim(0)?;
                        let expected = whole.get(&name).context("no such tensor")?.narrow(0, rows, rows)?;
                        anyhow::ensure!(bytes(&half)? == bytes(&expected.contiguous()?)?, "{name} differs");
                    }
                    Ok(())
                };
                measure(repeat, settle, load, verify)
            }
            Self::Save => {
                let tensors = ours()?;
                let save = || Ok(Saver::new().staging(&staging).bytes(&tensors)?);
                let verify = |saved: Vec<u8>| {
                    let ckpt = weighbridge::SafeTensors::parse(&saved)?;
                    model.verify_all(|name| {
                        Ok(ckpt.tensor(name).with_context(|| format!("no {name}"))?.bytes().to_vec())
                    })
                };
                measure(repeat, settle, save, verify)
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

/// The second half of each tensor.
fn halves(loader: weighbridge_candle::Loader, model: &Model) -> Result<HashMap<String, Tensor>> {
    let builder = loader.sharded_var_builder()?;
    let second = candle_nn::var_builder::Shard { dim: 0, rank: 1, world_size: 2 };
    let get = |name: &String| Ok((name.clone(), builder.get_with_hints((), name, second)?));
    model.tensors.keys().map(get).collect()
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
