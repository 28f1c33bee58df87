//! The loaders: ours, and burn-store.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use burn::tensor::{DType, Device};
use burn_store::{ModuleSnapshot, PyTorchToBurnAdapter, SafetensorsStore};
use gpu_check_common::checkpoint::{Float, Model};
use gpu_check_common::run::{Measured, measure};
use weighbridge::{Checkpoint, SafeTensors};

use crate::model::Llama;

/// What loads, or saves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loader {
    /// `weighbridge_burn::load`, from PyTorch's layout.
    Load,
    /// `weighbridge_burn::save` to memory, to PyTorch's layout.
    Save,
    /// burn-store's `SafetensorsStore` with its `PyTorchToBurnAdapter`.
    Store,
}

impl Loader {
    pub(crate) const ALL: [Self; 3] = [Self::Load, Self::Save, Self::Store];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Load => "weighbridge load",
            Self::Save => "weighbridge save to memory",
            Self::Store => "burn-store SafetensorsStore",
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
        let dtype = match model.float {
            Float::Bf16 => DType::BF16,
            Float::F32 => DType::F32,
        };
        let settle = || device.sync().map_err(|error| anyhow!("{error:?}"));
        let has_dtype = device.supports_dtype(dtype);
        let ours = || -> Result<Llama> {
            let mut module = Llama::new(model, device);
            weighbridge_burn::load(&Checkpoint::open(file)?).pytorch().into(&mut module)?;
            synced(module, device)
        };
        match self {
            Self::Load => measure(repeat, settle, ours, |module| module.verify(model)),
            Self::Save => {
                let module = ours()?;
                let save = || Ok(weighbridge_burn::save(&module).pytorch().bytes()?);
                let verify = |saved: Vec<u8>| {
                    let saved = SafeTensors::parse(&saved)?;
                    model.verify_all(|name| {
                        // The norms have PyTorch's name.
                        let name = name.replace("norm.gamma", "norm.weight");
                        Ok(saved.tensor(&name).with_context(|| format!("no {name}"))?.bytes().to_vec())
                    })
                };
                measure(repeat, settle, save, verify)
            }
            Self::Store => {
                anyhow::ensure!(has_dtype, "the device has no {dtype:?}, and burn-store does not cast it");
                let load = || {
                    let mut module = Llama::new(model, device);
                    let mut store = SafetensorsStore::from_file(file).with_from_adapter(PyTorchToBurnAdapter);
                    module.load_from(&mut store).map_err(|error| anyhow!("{error:?}"))?;
                    synced(module, device)
                };
                measure(repeat, settle, load, |module| module.verify(model))
            }
        }
    }
}

/// What was loaded when it is there.
fn synced(module: Llama, device: &Device) -> Result<Llama> {
    device.sync().map_err(|error| anyhow!("{error:?}"))?;
    Ok(module)
}
