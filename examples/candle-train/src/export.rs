//! The model as a checkpoint that other programs read.

use std::fs;
use std::path::{Path, absolute};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use weighbridge_candle::weighbridge::write::Save;
use weighbridge_candle::{Ema, Saver};

/// What describes a model beside its weights; all but the first two may be missing.
const BESIDE: [&str; 4] =
    ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"];

/// Keeps what describes the model of `source` in the directory of the run, which is made.
pub(crate) fn describe(source: &Path, run: &Path) -> Result<()> {
    fs::create_dir_all(run).with_context(|| run.display().to_string())?;
    if !is_same(source, run) {
        for name in BESIDE {
            copy(source, run, name)?;
        }
    }
    Ok(())
}

/// Fails where an export would write over what the run is made of.
pub(crate) fn check(directory: &Path, run: &Path, source: Option<&Path>) -> Result<()> {
    if is_same(directory, run) {
        bail!("{}: it is the directory of the run; export to another one", directory.display());
    }
    if source.is_some_and(|source| is_same(directory, source)) {
        bail!("{}: it is what the run begins with; export to another one", directory.display());
    }
    Ok(())
}

/// Writes the average, and beside it the configuration and the tokenizer of the run.
pub(crate) fn export(ema: &Ema, run: &Path, directory: &Path) -> Result<()> {
    let save = Save::new().metadata("format", "pt");
    Saver::new().with(save).directory(directory, "model", ema.tensors())?;
    let path = run.join("config.json");
    let at = || path.display().to_string();
    let mut config: Value = serde_json::from_slice(&fs::read(&path).with_context(at)?).with_context(at)?;
    config["dtype"] = "float32".into();
    let to = directory.join("config.json");
    fs::write(&to, format!("{config:#}\n")).with_context(|| to.display().to_string())?;
    for name in BESIDE.iter().skip(1) {
        copy(run, directory, name)?;
    }
    Ok(())
}

/// Whether both are one directory, however they are written.
fn is_same(one: &Path, other: &Path) -> bool {
    // One that is not there yet is named by its path alone.
    let whole = |path: &Path| fs::canonicalize(path).or_else(|_| absolute(path));
    matches!((whole(one), whole(other)), (Ok(one), Ok(other)) if one == other)
}

/// Copies a file if it is there. It is read before the other one is written, which may be a link to it.
fn copy(from: &Path, to: &Path, name: &str) -> Result<()> {
    let (from, to) = (from.join(name), to.join(name));
    if from.exists() {
        let bytes = fs::read(&from).with_context(|| from.display().to_string())?;
        fs::write(&to, bytes).with_context(|| to.display().to_string())?;
    }
    Ok(())
}
