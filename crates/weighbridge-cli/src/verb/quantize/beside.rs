//! What belongs to a checkpoint beside its tensors: config.json, tokenizer, templates.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use weighbridge::Checkpoint;

use crate::beside::{Home, is_of_model};
use crate::destination::{Destination, Folder};
use crate::term::Term;

const CONFIG: &str = "config.json";

/// Where files are taken from and go to.
pub(super) struct Beside<'d> {
    from: Option<Home>,
    destination: &'d Destination,
    /// `None` where a file is written, or nothing at all.
    folder: Option<Folder<'d>>,
    config: Option<Value>,
}

impl<'d> Beside<'d> {
    pub(super) fn of(checkpoint: &Checkpoint, destination: &'d Destination) -> Result<Self> {
        let from = Home::of(checkpoint);
        let config = from.as_ref().map(|from| from.path(CONFIG)).transpose()?.flatten();
        let config = config.map(|path| read(&path)).transpose()?;
        Ok(Self { from, destination, folder: destination.folder()?, config })
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
        match self.folder.as_ref().filter(|_| self.config.is_some()) {
            Some(folder) if !self.destination.is_forced() && folder.has(CONFIG) => {
                bail!("{}: it is there already; --force replaces it", folder.path_of(CONFIG))
            }
            _ => Ok(()),
        }
    }

    /// The destination with config.json that has the `quantization_config`, and with what else the model needs.
    pub(super) fn destination(&self, quantization: &Value) -> Result<Destination> {
        let destination = self.destination.clone();
        let (Some(folder), Some(Value::Object(config))) = (&self.folder, &self.config) else {
            return Ok(destination);
        };
        let mut config = config.clone();
        config.insert("quantization_config".to_owned(), quantization.clone());
        let text = serde_json::to_string_pretty(&config)? + "\n";
        let mut files = self.others(folder)?;
        files.push((CONFIG.to_owned(), text.into_bytes()));
        Ok(destination.with_beside(files))
    }

    /// Says what was not written.
    pub(super) fn tell(&self, quantization: &Value, term: &Term) {
        match (&self.folder, &self.config) {
            (None, _) if self.destination.file().is_some() => {
                term.note(
                    "no config.json goes with a file; -o DIR writes one with the `quantization_config`",
                );
            }
            (Some(_), None) => term.warn(format_args!(
                "there is no config.json; the model's needs this `quantization_config`: {quantization}"
            )),
            _ => {}
        }
    }

    /// What else the model needs.
    fn others(&self, folder: &Folder<'_>) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = Vec::new();
        let Some(from) = &self.from else { return Ok(files) };
        if from.is(folder.path)? {
            return Ok(files);
        }
        for name in from.names()? {
            let belongs = name != CONFIG && is_of_model(Path::new(&name));
            if belongs
                && (self.destination.is_forced() || !folder.has(&name))
                && let Some(source) = from.path(&name)?
            {
                let content = fs::read(&source).with_context(|| source.display().to_string())?;
                files.push((name, content));
            }
        }
        Ok(files)
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
