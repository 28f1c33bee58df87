//! Where the model comes from: a checkpoint, or, for a new one, the sample that is compiled in.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::tensor::DType;
use serde_json::{Map, Value};
use weighbridge_burn::LoadReport;
use weighbridge_burn::weighbridge::Checkpoint;

use crate::config::LlamaConfig;
use crate::model::Llama;

/// What lies beside the weights and belongs into an export, besides `config.json`.
const COMPANIONS: [&str; 8] = [
    GENERATION_CONFIG,
    TOKENIZER,
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
];

pub(crate) const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";

/// The sample of this repository, so that the program works from any directory.
macro_rules! sample {
    ($name:literal) => {
        include_bytes!(concat!("../../../samples/adder/", $name))
    };
}

/// Everything but the weights.
pub(crate) struct Source {
    /// For people to read.
    pub(crate) name: String,
    pub(crate) config: LlamaConfig,
    /// `config.json`, as it is.
    pub(crate) raw_config: Map<String, Value>,
    /// The other files, by their names.
    pub(crate) companions: Vec<(String, Vec<u8>)>,
    /// The weights; without them the model is a new one.
    pub(crate) checkpoint: Option<Checkpoint>,
}

impl Source {
    /// A new model of the sample's size.
    pub(crate) fn sample() -> Result<Self> {
        let companions = [
            (GENERATION_CONFIG, sample!("generation_config.json").to_vec()),
            (TOKENIZER, sample!("tokenizer.json").to_vec()),
            ("tokenizer_config.json", sample!("tokenizer_config.json").to_vec()),
        ];
        let companions = Vec::from(companions.map(|(name, bytes)| (name.to_owned(), bytes)));
        Self::new("samples/adder".to_owned(), sample!("config.json"), companions, None)
    }

    /// The checkpoint at `path`, or of that id.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with its files or what they say; none of its tensors is read.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?.dequantized()?;
        if let Some(codes) = checkpoint.quantized().next() {
            return Err(codes.refusal(&codes.weight(), "this program computes with weights").into());
        }
        let directory = checkpoint
            .directory()
            .ok_or_else(|| anyhow!("{}: there is no directory to look for {CONFIG} in", path.display()))?
            .to_owned();
        let read = |name: &str| {
            let path = directory.join(name);
            fs::read(&path).map_err(|error| (path.display().to_string(), error))
        };
        let config = read(CONFIG).map_err(|(at, error)| anyhow!(error).context(at))?;
        let mut companions = Vec::new();
        for name in COMPANIONS {
            match read(name) {
                Ok(bytes) => companions.push((name.to_owned(), bytes)),
                Err((_, error)) if error.kind() == ErrorKind::NotFound => {}
                Err((at, error)) => return Err(anyhow!(error).context(at)),
            }
        }
        Self::new(directory.display().to_string(), &config, companions, Some(checkpoint))
    }

    fn new(
        name: String,
        config: &[u8],
        companions: Vec<(String, Vec<u8>)>,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Self> {
        let raw_config = object(config).with_context(|| format!("{name}: {CONFIG}"))?;
        let generation = match companions.iter().find(|(file, _)| file == GENERATION_CONFIG) {
            Some((file, bytes)) => Some(object(bytes).with_context(|| format!("{name}: {file}"))?),
            None => None,
        };
        let config = LlamaConfig::parse(&raw_config, generation.as_ref());
        let mut config = config.with_context(|| format!("{name}: {CONFIG}"))?;
        if let Some(checkpoint) = &checkpoint {
            // As in transformers 5, an output projection that is in the checkpoint is used.
            config.tied &= checkpoint.tensor("lm_head.weight").is_none();
            // A nonsensical number of layers must not become a nonsensical model.
            let (layers, tensors) = (config.layers, checkpoint.len());
            ensure!(
                layers <= tensors,
                "{name}: {CONFIG}: num_hidden_layers is {layers}, but the checkpoint has only {tensors} tensors"
            );
        }
        Ok(Self { name, config, raw_config, companions, checkpoint })
    }

    /// `tokenizer.json`.
    pub(crate) fn tokenizer(&self) -> Result<&[u8]> {
        match self.companions.iter().find(|(name, _)| name == TOKENIZER) {
            Some((_, bytes)) => Ok(bytes),
            None => bail!("{}: there is no {TOKENIZER}", self.name),
        }
    }
}

/// Brings a Hugging Face checkpoint into the model. It is computed in f32, whatever is stored.
pub(crate) fn load(checkpoint: &Checkpoint, model: &mut Llama) -> Result<LoadReport> {
    Ok(weighbridge_burn::load(checkpoint).pytorch().dtype(DType::F32).into(model)?)
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>> {
    match serde_json::from_slice(bytes)? {
        Value::Object(map) => Ok(map),
        _ => bail!("not a JSON object"),
    }
}
