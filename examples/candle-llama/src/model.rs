//! From a checkpoint to a model: the part of this program that weighbridge is for.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Config, Llama};
use indicatif::{ProgressBar, ProgressStyle};
use weighbridge::Checkpoint;
use weighbridge_candle::Loader;

use crate::{config, inventory};

/// Below this a load is over before a progress bar can be read.
const LARGE: u64 = 1 << 30;

/// A model on its device, and what is known of the checkpoint it came from.
pub(crate) struct Model {
    pub(crate) llama: Llama,
    pub(crate) config: Config,
    /// Where `tokenizer.json` lies.
    pub(crate) directory: PathBuf,
    pub(crate) device: Device,
    pub(crate) dtype: DType,
    pub(crate) loaded: Loaded,
}

/// What a load moved, and how long it took.
pub(crate) struct Loaded {
    pub(crate) tensors: usize,
    pub(crate) shards: usize,
    /// Number of tensors by stored dtype.
    pub(crate) dtypes: BTreeMap<String, usize>,
    pub(crate) bytes: u64,
    /// From opening the checkpoint to the model built.
    pub(crate) seconds: f64,
    /// What is not as it should be in the files, but did not stand in the way.
    pub(crate) warnings: Vec<String>,
}

impl Model {
    /// Loads a Llama. `dtype` is what it computes in; without one, f32 on the CPU, where it is both
    /// exact and fastest, and elsewhere the type that most of the checkpoint is stored in.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with the checkpoint, its `config.json`, or the two together, before data
    /// moves; a failed read after that.
    pub(crate) fn load(path: &Path, dtype: Option<DType>, device: &Device) -> Result<Self> {
        let start = Instant::now();
        let checkpoint = Checkpoint::open(path)?.dequantized()?;
        if let Some(codes) = checkpoint.quantized().next() {
            return Err(codes.refusal(&codes.weight(), "this program computes with weights").into());
        }
        let directory = checkpoint
            .directory()
            .ok_or_else(|| anyhow!("{}: there is no directory to look for config.json in", path.display()))?
            .to_owned();
        let mut config = config::read(&directory)?;
        // As in transformers 5, an output projection that is in the checkpoint is used.
        config.tie_word_embeddings &= checkpoint.tensor(inventory::LM_HEAD).is_none();
        inventory::check(&checkpoint, &config).with_context(|| path.display().to_string())?;

        let mut loader = Loader::new(&checkpoint).device(device);
        if let Some(dtype) = dtype.or(device.is_cpu().then_some(DType::F32)) {
            loader = loader.dtype(dtype);
        }
        let bar = progress_bar(checkpoint.byte_len());
        if let Some(bar) = bar.clone() {
            loader = loader.progress(move |progress| bar.set_position(progress.bytes_done));
        }
        let weights = loader.var_builder()?;
        let dtype = weights.dtype();
        let built = build(weights, &config);
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let llama = built.with_context(|| path.display().to_string())?;
        device.synchronize()?;

        Ok(Self {
            llama,
            config,
            directory,
            device: device.clone(),
            dtype,
            loaded: Loaded::new(&checkpoint, start.elapsed().as_secs_f64()),
        })
    }
}

impl Loaded {
    fn new(checkpoint: &Checkpoint, seconds: f64) -> Self {
        let mut dtypes = BTreeMap::new();
        for tensor in checkpoint.tensors() {
            *dtypes.entry(tensor.dtype().to_string()).or_default() += 1;
        }
        Self {
            tensors: checkpoint.len(),
            shards: checkpoint.shards().len(),
            dtypes,
            bytes: checkpoint.byte_len(),
            seconds,
            warnings: checkpoint.warnings().to_vec(),
        }
    }
}

/// Builds the model. Its layers unwrap: what [`inventory`] cannot foresee, a read that fails, comes
/// as a panic and goes on as the error that it was.
fn build(weights: VarBuilder<'_>, config: &Config) -> Result<Llama> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| Llama::load(weights, config)));
    panic::set_hook(hook);

    let payload = match outcome {
        Ok(built) => return Ok(built?),
        Err(payload) => payload,
    };
    let message = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("building the model failed");
    // `Result::unwrap` puts this before the error.
    let (_, cause) = message.split_once("` on an `Err` value: ").unwrap_or(("", message));
    bail!("{cause}")
}

/// A bar on the terminal, for a load that takes a while.
fn progress_bar(bytes: u64) -> Option<ProgressBar> {
    if bytes < LARGE || !std::io::stderr().is_terminal() {
        return None;
    }
    let style = "{bar:40} {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}";
    let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
    Some(ProgressBar::new(bytes).with_style(style))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_nn::VarMap;
    use candle_nn::var_builder::SimpleBackend;

    /// Fails where a disk would: in a read of a layer's tensor, which `Llama::load` unwraps.
    struct Failing(VarBuilder<'static>);

    impl SimpleBackend for Failing {
        fn get(
            &self,
            shape: candle_core::Shape,
            name: &str,
            init: candle_nn::Init,
            dtype: DType,
            _: &Device,
        ) -> candle_core::Result<candle_core::Tensor> {
            if name.contains("layers.1.mlp") {
                candle_core::bail!("shard.safetensors: input/output error");
            }
            self.0.get_with_hints_dtype(shape, name, init, dtype)
        }

        fn get_unchecked(
            &self,
            name: &str,
            dtype: DType,
            _: &Device,
        ) -> candle_core::Result<candle_core::Tensor> {
            self.0.get_unchecked_dtype(name, dtype)
        }

        fn contains_tensor(&self, _: &str) -> bool {
            true
        }
    }

    #[test]
    fn a_read_that_fails_in_a_layer_is_an_error() {
        let config = Config {
            hidden_size: 8,
            intermediate_size: 12,
            vocab_size: 20,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            ..Config::config_7b_v1(false)
        };
        let weights = VarBuilder::from_varmap(&VarMap::new(), DType::F32, &Device::Cpu);
        assert!(build(weights.clone(), &config).is_ok());

        let failing = VarBuilder::from_backend(Box::new(Failing(weights)), DType::F32, Device::Cpu);
        let error = build(failing, &config).unwrap_err();
        assert!(error.to_string().starts_with("shard.safetensors: input/output error"), "{error}");
    }
}
