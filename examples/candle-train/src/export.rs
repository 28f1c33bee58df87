//! The model as a checkpoint that other programs read.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use weighbridge_candle::weighbridge::write::Save;
use weighbridge_candle::{Ema, Saver};

/// Writes the average, and beside it the configuration and the tokenizer of `source`.
pub(crate) fn export(ema: &Ema, source: &Path, directory: &Path) -> Result<()> {
    let save = Save::new().metadata("format", "pt");
    Saver::new().with(save).directory(directory, "model", ema.tensors())?;
    let path = source.join("config.json");
    let at = || path.display().to_string();
    let mut config: Value = serde_json::from_slice(&fs::read(&path).with_context(at)?).with_context(at)?;
    config["dtype"] = "float32".into();
    let to = directory.join("config.json");
    fs::write(&to, format!("{config:#}\n")).with_context(|| to.display().to_string())?;
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        let (from, to) = (source.join(name), directory.join(name));
        if from.exists() && from != to {
            fs::copy(&from, &to).with_context(|| to.display().to_string())?;
        }
    }
    Ok(())
}
