//! The families of models that this program runs: the code is Candle's, what is here is what each needs of
//! config.json, and what it refuses.
//!
//! Candle's configurations derive `Deserialize`. That is not used, because they know neither the `rope_parameters` of
//! transformers 5, where they silently take a theta of 10000, nor the keys that change the computation
//! (`attention_bias`, `head_dim`, ...): such a checkpoint loads and answers nonsense. Here each of them is read, or
//! refused by name.

mod decoder;
mod gemma;
mod glm;
mod granite;
mod llama;
mod mamba;
mod mistral;
mod olmo;
mod phi;
mod qwen;
mod starcoder;

use anyhow::{Result, bail, ensure};
use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use examples_support::Fields;
use examples_support::weights::{self, Names, Recipe, as_stored};
use serde_json::Value;
use weighbridge::Checkpoint;

pub(crate) use decoder::Decoder;

type Read = fn(Fields<'_>) -> Result<Blueprint>;

/// The `model_type` of config.json, and what reads the rest of it.
const FAMILIES: &[(&str, Read)] = &[
    ("falcon", phi::falcon),
    ("gemma", gemma::gemma),
    ("gemma2", gemma::gemma2),
    ("gemma3_text", gemma::gemma3),
    ("glm4", glm::glm4),
    ("gpt_bigcode", starcoder::gpt_bigcode),
    ("granite", granite::granite),
    ("granitemoehybrid", granite::granitemoehybrid),
    ("helium", llama::helium),
    ("llama", llama::llama),
    ("mamba", mamba::mamba),
    ("mistral", mistral::mistral),
    ("mixtral", mistral::mixtral),
    ("olmo", olmo::olmo),
    ("olmo2", olmo::olmo2),
    ("phi", phi::phi),
    ("phi3", phi::phi3),
    ("qwen2", qwen::qwen2),
    ("qwen2_moe", qwen::qwen2_moe),
    ("qwen3", qwen::qwen3),
    ("qwen3_moe", qwen::qwen3_moe),
    ("smollm3", llama::smollm3),
    ("stablelm", phi::stablelm),
    ("starcoder2", starcoder::starcoder2),
];

/// What config.json describes.
///
/// # Errors
///
/// One line that names the key that Candle's model does not compute, or that is wrong.
pub(crate) fn read(config: Fields<'_>) -> Result<Blueprint> {
    let known = || FAMILIES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let Some(model_type) = config.text("model_type")? else {
        bail!("there is no model_type; this program runs {}", known());
    };
    if let Some(listed @ Value::Array(classes)) = config.get("architectures") {
        // Of models that classify, say, only the last layer is another one.
        let causal = |class: &Value| class.as_str().is_some_and(|name| name.ends_with("ForCausalLM"));
        ensure!(
            classes.is_empty() || classes.iter().any(causal),
            "architectures is {listed}, this program runs causal language models (...ForCausalLM)"
        );
    }
    match FAMILIES.iter().find(|(name, _)| *name == model_type) {
        Some((_, read)) => read(config),
        None => bail!("model_type is \"{model_type}\", this program runs {}", known()),
    }
}

/// A model that continues one text at a time.
pub(crate) trait LanguageModel {
    /// Forgets the text.
    fn reset(&mut self) -> candle_core::Result<()>;

    /// What comes after these tokens, which come after `position` others: a logit for each token of the vocabulary.
    fn forward(&mut self, tokens: &[u32], position: usize) -> candle_core::Result<Tensor>;
}

type Build =
    Box<dyn Fn(VarBuilder<'static>, usize) -> candle_core::Result<Box<dyn LanguageModel>> + Send + Sync>;

/// How to make a model of weights.
pub(crate) struct Blueprint {
    pub(crate) vocabulary: usize,
    pub(crate) layers: usize,
    /// What the names that Candle's model asks for stand for.
    pub(crate) recipe: Recipe,
    /// What the output projection is tied to.
    pub(crate) tied_to: Option<&'static str>,
    /// Candle's model always uses the embeddings as output projection.
    pub(crate) always_ties: bool,
    /// Candle's model cannot forget a text, and is built again.
    pub(crate) is_rebuilt: bool,
    /// What logits are multiplied with.
    pub(crate) logit_scale: f64,
    /// What the recipe multiplies embeddings with. Logits that are tied to them are divided by it.
    pub(crate) embedding_scale: f64,
    /// So many tokens of a prompt at a time are right.
    pub(crate) longest_batch: usize,
    /// So many positions are right, and why not more.
    pub(crate) limit: Option<(usize, String)>,
    build: Build,
}

impl Blueprint {
    /// The usual model. `build` gets the weights and the number of positions that will be used.
    pub(crate) fn new<M: LanguageModel + 'static>(
        decoder: &Decoder,
        build: impl Fn(VarBuilder<'static>, usize) -> candle_core::Result<M> + Send + Sync + 'static,
    ) -> Self {
        Self {
            vocabulary: decoder.vocabulary,
            layers: decoder.layers,
            recipe: as_stored(),
            tied_to: decoder.tied.then_some("model.embed_tokens.weight"),
            always_ties: false,
            is_rebuilt: false,
            logit_scale: 1.0,
            embedding_scale: 1.0,
            longest_batch: usize::MAX,
            limit: None,
            build: Box::new(move |weights, positions| {
                build(weights, positions).map(|model| Box::new(model) as Box<dyn LanguageModel>)
            }),
        }
    }

    /// For a model of Candle's that has no output projection of its own.
    pub(crate) fn always_ties(mut self) -> Self {
        self.always_ties = true;
        self
    }

    /// For a model of Candle's that attends to everything, where transformers' has a sliding window.
    pub(crate) fn window(mut self, window: Option<usize>, who: &str) -> Self {
        self.limit = window.map(|window| {
            (window, format!("beyond the sliding_window of {window} {who} attends to other tokens"))
        });
        self
    }

    /// What its requests mean.
    pub(crate) fn names(&self) -> Names {
        Names { recipe: self.recipe.clone(), tied_to: self.tied_to, keeps_all: self.is_rebuilt }
    }

    /// Compares what it needs with the checkpoint, and returns the names of the tensors that it does not.
    pub(crate) fn survey(&self, checkpoint: &Checkpoint) -> Result<Vec<String>> {
        weights::survey(checkpoint, self.layers, &self.names(), |store| self.build(store, 1))
    }

    pub(crate) fn build(
        &self,
        weights: VarBuilder<'static>,
        positions: usize,
    ) -> candle_core::Result<Box<dyn LanguageModel>> {
        (self.build)(weights, positions)
    }
}

/// A model of Candle's with what it remembers of a text.
pub(crate) struct Cached<M> {
    pub(crate) model: M,
    pub(crate) device: Device,
    pub(crate) forward: fn(&mut M, &Tensor, usize) -> candle_core::Result<Tensor>,
    pub(crate) reset: fn(&mut M) -> candle_core::Result<()>,
}

impl<M> LanguageModel for Cached<M> {
    fn reset(&mut self) -> candle_core::Result<()> {
        (self.reset)(&mut self.model)
    }

    fn forward(&mut self, tokens: &[u32], position: usize) -> candle_core::Result<Tensor> {
        let batch = Tensor::new(tokens, &self.device)?.unsqueeze(0)?;
        (self.forward)(&mut self.model, &batch, position)?.flatten_all()
    }
}

/// Wraps a model whose functions have the usual names.
macro_rules! cached {
    ($weights:expr, $model:expr) => {{
        let device = $weights.device().clone();
        Ok($crate::family::Cached {
            model: $model?,
            device,
            forward: |model, tokens, position| model.forward(tokens, position),
            reset: |model| {
                model.clear_kv_cache();
                Ok(())
            },
        })
    }};
}
pub(crate) use cached;
