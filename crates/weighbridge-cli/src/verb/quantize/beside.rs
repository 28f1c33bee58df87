//! What belongs to a checkpoint beside its tensors: config.json, tokenizer, templates.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use weighbridge::Checkpoint;
use weighbridge::write::OutputFile;

use crate::beside::{Home, is_of_model};
use crate::destination::Destination;
use crate::term::Term;

const CONFIG: &str = "config.json";

/// The directories that files are taken from and go to.
pub(super) struct Beside {
    from: Option<Home>,
    /// `None` where a file is written, or nothing at all.
    to: Option<PathBuf>,
    to_file: bool,
    config: Option<Value>,
    forced: bool,
}

impl Beside {
    pub(super) fn of(checkpoint: &Checkpoint, destination: &Destination) -> Result<Self> {
        let from = Home::of(checkpoint);
        let config = from.as_ref().map(|from| from.path(CONFIG)).transpose()?.flatten();
        let config = config.map(|path| read(&path)).transpose()?;
        let to = destination.directory().map(Path::to_owned);
        let to_file = destination.file().is_some();
        Ok(Self { from, to, to_file, config, forced: destination.is_forced() })
    }

    /// Fails where a config.json would be replaced unasked, and for models that no library loads quantised.
    pub(super) fn check(&self) -> Result<()> {
        let model = self.config.as_ref().and_then(|config| config.get("model_type")).and_then(Value::as_str);
        if let Some(model @ ("gpt2" | "openai-gpt" | "imagegpt" | "decision_transformer")) = model {
            bail!(
                "config.json: the weights of {model} are stored transposed (Conv1D), which libraries do not load \
                 quantised"
            );
        }
        let config = self.to.as_ref().filter(|_| self.config.is_some()).map(|to| to.join(CONFIG));
        match config {
            Some(config) if !self.forced && config.try_exists()? => {
                bail!("{}: it is there already; --force replaces it", config.display())
            }
            _ => Ok(()),
        }
    }

    /// Writes config.json with the `quantization_config`, and copies what else the model needs.
    pub(super) fn write(&self, quantization: &Value, term: &Term) -> Result<()> {
        let Some(to) = &self.to else {
            if self.to_file {
                term.note(
                    "no config.json goes with a file; -o DIR writes one with the `quantization_config`",
                );
            }
            return Ok(());
        };
        let Some(Value::Object(config)) = &self.config else {
            term.warn(format_args!(
                "there is no config.json; the model's needs this `quantization_config`: {quantization}"
            ));
            return Ok(());
        };
        let mut config = config.clone();
        config.insert("quantization_config".to_owned(), quantization.clone());
        let path = to.join(CONFIG);
        let mut file = OutputFile::atomic(&path)?;
        let text = serde_json::to_string_pretty(&config)? + "\n";
        file.write_all(text.as_bytes()).with_context(|| path.display().to_string())?;
        file.commit()?;
        self.copy(to)
    }

    fn copy(&self, to: &Path) -> Result<()> {
        let Some(from) = &self.from else { return Ok(()) };
        if from.is(to)? {
            return Ok(());
        }
        for name in from.names()? {
            let target = to.join(&name);
            let belongs = name != CONFIG && is_of_model(Path::new(&name));
            if belongs
                && (self.forced || !target.try_exists()?)
                && let Some(source) = from.path(&name)?
            {
                fs::copy(&source, &target).with_context(|| source.display().to_string())?;
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let config: Value =
        serde_json::from_str(&text).with_context(|| format!("{}: it is not valid JSON", path.display()))?;
    if !config.is_object() {
        bail!("{}: it is not a JSON object", path.display());
    }
    Ok(config)
}
