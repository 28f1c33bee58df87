//! The families of models that this program runs: the code is Candle's, what is here is what each needs of config.json,
//! and what it refuses.
//!
//! Candle's configurations derive `Deserialize`. That is not used, because they do not know the keys that change the
//! computation, nor the `rope_parameters` of transformers 5: such a model would load, and embed nonsense. Here each of
//! them is read, or refused by name.

mod bert;
mod decoder;
mod gte;
mod modern;
mod nomic;
mod roberta;
mod stack;
mod t5;

use std::sync::Arc;

use anyhow::{Result, bail};
use candle_core::Tensor;
use candle_nn::VarBuilder;
use examples_support::Fields;
use examples_support::weights::{self, Names, Origin, Recipe};
use weighbridge::Checkpoint;

type Read = fn(Fields<'_>) -> Result<Blueprint>;

/// The `model_type` of config.json, and what reads the rest of it.
const FAMILIES: &[(&str, Read)] = &[
    ("bert", bert::bert),
    ("camembert", roberta::roberta),
    ("distilbert", bert::distilbert),
    ("electra", bert::electra),
    ("eurobert", decoder::eurobert),
    ("gte", gte::gte),
    ("llama", decoder::llama),
    ("mistral", decoder::mistral),
    ("modernbert", modern::modernbert),
    ("new", gte::new),
    ("nomic_bert", nomic::nomic),
    ("qwen2", decoder::qwen2),
    ("qwen3", decoder::qwen3),
    ("roberta", roberta::roberta),
    ("t5", t5::t5),
    ("xlm-roberta", roberta::roberta),
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
    match FAMILIES.iter().find(|(name, _)| *name == model_type) {
        Some((_, read)) => read(config),
        None => bail!("model_type is \"{model_type}\", this program runs {}", known()),
    }
}

/// Texts of one length, or padded to it at the end.
pub(crate) struct Batch {
    /// A row for each text.
    pub(crate) tokens: Tensor,
    /// 1 for a token, 0 for padding.
    pub(crate) mask: Tensor,
}

/// A model that looks at all tokens of a text.
pub(crate) trait Encoder {
    /// The last hidden states: a vector for each token of each text.
    fn forward(&mut self, batch: &Batch) -> candle_core::Result<Tensor>;
}

/// A model of Candle's, and how it is called.
struct Called<M, F> {
    model: M,
    forward: F,
}

impl<M, F: Fn(&mut M, &Batch) -> candle_core::Result<Tensor>> Encoder for Called<M, F> {
    fn forward(&mut self, batch: &Batch) -> candle_core::Result<Tensor> {
        (self.forward)(&mut self.model, batch)
    }
}

type Build = Box<dyn Fn(VarBuilder<'static>, usize) -> candle_core::Result<Box<dyn Encoder>> + Send + Sync>;

/// How to make a model of weights.
pub(crate) struct Blueprint {
    /// Whose code it is, for messages: `Candle's BERT`.
    pub(crate) who: &'static str,
    pub(crate) vocabulary: usize,
    pub(crate) layers: usize,
    /// The length of the vectors.
    pub(crate) hidden: usize,
    /// So many tokens a text has at most, unless sentence-transformers or the command line say otherwise.
    pub(crate) positions: Option<usize>,
    /// So many it can have; `None` where any number will do.
    pub(crate) limit: Option<usize>,
    /// The token that fills up a batch.
    pub(crate) padding: u32,
    /// Candle's model masks padding, so that texts of different lengths can be in one batch.
    pub(crate) masks_padding: bool,
    /// Why it is right in `f32` only.
    pub(crate) only_f32: Option<&'static str>,
    /// A token sees those before it only.
    pub(crate) is_causal: bool,
    /// What the names that Candle's model asks for stand for, without a prefix.
    recipe: Recipe,
    /// The stored name of the embeddings, and what can be before all names.
    embeddings: &'static str,
    prefixes: &'static [&'static str],
    build: Build,
}

impl Blueprint {
    /// `build` gets the weights and the number of positions that will be used.
    fn new<M: 'static>(
        stack: &stack::Stack,
        build: impl Fn(VarBuilder<'static>, usize) -> candle_core::Result<M> + Send + Sync + 'static,
        forward: fn(&mut M, &Batch) -> candle_core::Result<Tensor>,
    ) -> Self {
        Self {
            who: stack.who,
            vocabulary: stack.vocabulary,
            layers: stack.layers,
            hidden: stack.hidden,
            positions: stack.positions,
            limit: stack.limit,
            padding: 0,
            masks_padding: true,
            only_f32: None,
            is_causal: false,
            recipe: weights::as_stored(),
            embeddings: "embeddings.word_embeddings.weight",
            prefixes: &[],
            build: Box::new(move |weights, positions| {
                let model = build(weights, positions)?;
                Ok(Box::new(Called { model, forward }) as Box<dyn Encoder>)
            }),
        }
    }

    fn recipe(mut self, recipe: impl Fn(&str) -> Origin + Send + Sync + 'static) -> Self {
        self.recipe = Arc::new(recipe);
        self
    }

    fn prefixes(mut self, prefixes: &'static [&'static str]) -> Self {
        self.prefixes = prefixes;
        self
    }

    fn only_f32(mut self, why: &'static str) -> Self {
        self.only_f32 = Some(why);
        self
    }

    /// What the model's requests mean in this checkpoint: the bare model has no prefix before its names, with a head for
    /// a task it has one. Google's first checkpoints have other names for the parts of a norm.
    pub(crate) fn names(&self, checkpoint: &Checkpoint) -> Names {
        let has = |prefix: &&&str| checkpoint.tensor(&format!("{prefix}{}", self.embeddings)).is_some();
        let prefix = self.prefixes.iter().find(has).copied().unwrap_or_default();
        let (recipe, checkpoint) = (self.recipe.clone(), checkpoint.clone());
        Names::new(Arc::new(move |name| match recipe(name) {
            Origin::Stored(name) => {
                let name = format!("{prefix}{name}");
                let old = name.replace("LayerNorm.weight", "LayerNorm.gamma");
                let old = old.replace("LayerNorm.bias", "LayerNorm.beta");
                let is_old = checkpoint.tensor(&name).is_none() && checkpoint.tensor(&old).is_some();
                Origin::Stored(if is_old { old } else { name })
            }
            other => other,
        }))
    }

    /// Compares what the model needs with the checkpoint, and returns the names of the tensors that it does not.
    pub(crate) fn survey(&self, checkpoint: &Checkpoint) -> Result<Vec<String>> {
        weights::survey(checkpoint, self.layers, &self.names(checkpoint), |store| self.build(store, 1))
    }

    pub(crate) fn build(
        &self,
        weights: VarBuilder<'static>,
        positions: usize,
    ) -> candle_core::Result<Box<dyn Encoder>> {
        (self.build)(weights, positions)
    }
}
