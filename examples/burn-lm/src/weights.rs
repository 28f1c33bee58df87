//! From a checkpoint to a model: the part of this program that weighbridge is for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::tensor::{DType, Device};
use examples_support::lm::{Loaded, Progress, Text};
use serde_json::{Map, Value};
use weighbridge_burn::weighbridge::{Checkpoint, Dtype};

use crate::config::LlamaConfig;
use crate::model::Llama;

/// The name of the output projection, which a checkpoint with tied embeddings leaves out.
const LM_HEAD: &str = "lm_head.weight";

/// A checkpoint whose `config.json` is understood.
pub struct Found {
    /// As it was asked for.
    pub place: PathBuf,
    /// The weights.
    pub checkpoint: Checkpoint,
    /// What `config.json` and `generation_config.json` say.
    pub config: LlamaConfig,
    /// `config.json`, as it is.
    pub raw_config: Map<String, Value>,
    /// What is to be merged into the weights, and how much each counts.
    adapters: Vec<(Checkpoint, f32)>,
    start: Instant,
}

impl Found {
    /// Opens a checkpoint, and the adapters that are to be merged into it, each with its weight. None of the tensors is
    /// read.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with the files, or is not computed here.
    pub fn open(place: &Path, adapters: &[(PathBuf, f32)]) -> Result<Self> {
        let start = Instant::now();
        let checkpoint = Checkpoint::open(place)?.dequantized()?;
        if let Some(codes) = checkpoint.quantized().next() {
            return Err(codes.refusal(&codes.weight(), "this program computes with weights").into());
        }
        let open = |(adapter, weight): &(PathBuf, f32)| Ok((Checkpoint::open(adapter)?, *weight));
        let adapters = adapters.iter().map(open).collect::<Result<_>>()?;

        let at = || place.join("config.json").display().to_string();
        let raw_config = read_object(&checkpoint, "config.json")?
            .ok_or_else(|| anyhow!("there is no such file beside the weights"))
            .with_context(at)?;
        let generation = read_object(&checkpoint, "generation_config.json")?;
        let mut config = LlamaConfig::parse(&raw_config, generation.as_ref()).with_context(at)?;
        // As in transformers 5, an output projection that is in the checkpoint is used.
        config.tied &= checkpoint.tensor(LM_HEAD).is_none();
        // A nonsensical number of layers must not become a nonsensical model.
        let (layers, tensors) = (config.layers, checkpoint.len());
        ensure!(
            layers <= tensors,
            "{}: num_hidden_layers is {layers}, but the checkpoint has only {tensors} tensors",
            at()
        );
        Ok(Self { place: place.to_owned(), checkpoint, config, raw_config, adapters, start })
    }

    /// The tokenizer that lies beside the weights.
    ///
    /// # Errors
    ///
    /// There is none, or it is wrong.
    pub fn text(&self) -> Result<Text> {
        Text::open(self.checkpoint.beside("tokenizer.json")?, &self.place, self.config.vocabulary)
    }

    /// Loads the model. Without a `dtype` it computes in f32 on the CPU, and elsewhere in what most of the checkpoint is
    /// stored in.
    ///
    /// # Errors
    ///
    /// A tensor is missing or has another shape, the device does not compute in this dtype, a read fails. The first two are
    /// known before anything is read.
    pub fn load(&self, dtype: Option<DType>, device: &Device) -> Result<(Llama, Loaded)> {
        let dtype = dtype.unwrap_or_else(|| if is_cpu(device) { DType::F32 } else { self.stored_dtype() });
        let mut model = Llama::new(&self.config, device);
        let mut loader = weighbridge_burn::load(&self.checkpoint).pytorch().dtype(dtype);
        for (adapter, weight) in &self.adapters {
            loader = loader.adapter(adapter, *weight);
        }
        if let Some(mut shown) = Progress::of(self.checkpoint.byte_len()) {
            loader = loader.progress(move |progress| shown.show(progress.bytes_done));
        }
        let mut unread = loader.into(&mut model).with_context(|| self.place.display().to_string())?.unused;
        // Older files have the frequencies of rotary embeddings, which follow from config.json.
        unread.retain(|name| !name.ends_with("rotary_emb.inv_freq"));
        Ok((model, self.loaded(dtype, &unread)))
    }

    /// The dtype of most bytes, of those that models compute in.
    fn stored_dtype(&self) -> DType {
        let bytes = |dtype| -> u64 {
            let tensors = self.checkpoint.tensors().filter(|tensor| tensor.dtype() == dtype);
            tensors.map(|tensor| tensor.byte_len()).sum()
        };
        let pairs = [(Dtype::F32, DType::F32), (Dtype::F16, DType::F16), (Dtype::BF16, DType::BF16)];
        let most = pairs.into_iter().max_by_key(|(stored, _)| bytes(*stored));
        most.map_or(DType::F32, |(_, dtype)| dtype)
    }

    fn loaded(&self, dtype: DType, unread: &[String]) -> Loaded {
        let mut dtypes = BTreeMap::new();
        for tensor in self.checkpoint.tensors() {
            *dtypes.entry(tensor.dtype().to_string()).or_default() += 1;
        }
        let mut warnings = self.checkpoint.warnings().to_vec();
        warnings.extend(Loaded::unread(unread));
        Loaded {
            tensors: self.checkpoint.len(),
            shards: self.checkpoint.file_count(),
            dtypes,
            bytes: self.checkpoint.byte_len(),
            dtype: dtype.name(),
            seconds: self.start.elapsed().as_secs_f64(),
            warnings,
        }
    }
}

fn is_cpu(device: &Device) -> bool {
    device.clone().without_autodiff() == Device::flex()
}

/// A JSON file beside the weights, if there is one.
fn read_object(checkpoint: &Checkpoint, name: &str) -> Result<Option<Map<String, Value>>> {
    let Some(path) = checkpoint.beside(name)? else { return Ok(None) };
    let at = || path.display().to_string();
    let bytes = std::fs::read(&path).with_context(at)?;
    match serde_json::from_slice(&bytes).with_context(at)? {
        Value::Object(map) => Ok(Some(map)),
        _ => bail!("{}: not a JSON object", path.display()),
    }
}
