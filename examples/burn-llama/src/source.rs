//! Where the model comes from: a checkpoint, or, for a new one, the sample that is compiled in.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::DType;
use burn_lm::config::LlamaConfig;
use burn_lm::model::Llama;
use burn_lm::weights::Found;
use serde_json::{Map, Value};
use weighbridge_burn::LoadReport;
use weighbridge_burn::weighbridge::Checkpoint;

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
        let raw_config = object(sample!("config.json"))?;
        let config = LlamaConfig::parse(&raw_config, Some(&object(sample!("generation_config.json"))?))?;
        Self::new("samples/adder".to_owned(), config, raw_config, companions, None)
    }

    /// The checkpoint at `path`, or of that id.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with its files or what they say; none of its tensors is read.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let found = Found::open(path, &[])?;
        let mut companions = Vec::new();
        for name in COMPANIONS {
            if let Some(file) = found.checkpoint.beside(name)? {
                let bytes = fs::read(&file).with_context(|| file.display().to_string())?;
                companions.push((name.to_owned(), bytes));
            }
        }
        let Found { place, checkpoint, config, raw_config, .. } = found;
        Self::new(place.display().to_string(), config, raw_config, companions, Some(checkpoint))
    }

    fn new(
        name: String,
        config: LlamaConfig,
        raw_config: Map<String, Value>,
        companions: Vec<(String, Vec<u8>)>,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Self> {
        ensure!(
            !config.ends.is_empty(),
            "{name}: {CONFIG}: there is no eos_token_id, so that no answer would end"
        );
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
