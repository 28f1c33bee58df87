//! What was learned, as PEFT saves it.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use burn_lm::model::Lora;
use weighbridge_burn::weighbridge::write::{OutputFile, Save};
use weighbridge_burn::weighbridge::{AdapterFormat, Dtype, LowRankProduct, NewAdapter};

use crate::cli::Cli;

/// Writes `adapter_config.json` and `adapter_model.safetensors`; files of these names are replaced.
pub(crate) fn export(lora: &Lora, cli: &Cli, base: &Path, directory: &Path) -> Result<()> {
    let mut adapter = NewAdapter::new(AdapterFormat::Peft);
    for (module, product) in lora.products() {
        let [up, down] = product.factors()?;
        let product = LowRankProduct::of_factors(up, down, cli.rank)?;
        adapter.product(&module, &product, cli.alpha, Dtype::F32)?;
    }
    let config = adapter.config(Some(&base.display().to_string()))?;

    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let weights = directory.join("adapter_model.safetensors");
    // Weights are never beside another adapter's configuration.
    if weights.try_exists()? {
        fs::remove_file(&weights).with_context(|| weights.display().to_string())?;
    }
    let path = directory.join("adapter_config.json");
    let mut file = OutputFile::atomic(&path)?;
    file.write_all(config.as_bytes()).with_context(|| path.display().to_string())?;
    file.commit()?;
    Save::new().metadata("format", "pt").file(&weights, adapter.tensors())?;
    Ok(())
}
