//! What the configurations of most families have in common.

use anyhow::{Result, bail, ensure};
use candle_nn::Activation;
use examples_support::Fields;
pub(crate) use examples_support::attention::{flag_or, full_attention, window};

use examples_support::rope::Rope;

/// Sizes and numbers of a stack of transformer layers.
#[derive(Clone, Debug)]
pub(crate) struct Decoder {
    /// Whose code it is, for messages: `Candle's Llama`.
    pub(crate) who: &'static str,
    pub(crate) hidden: usize,
    pub(crate) inner: usize,
    pub(crate) vocabulary: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) key_value_heads: usize,
    pub(crate) head_dim: usize,
    /// Of the norms.
    pub(crate) eps: f64,
    pub(crate) activation: Activation,
    pub(crate) tied: bool,
}

/// What transformers takes for what is not said.
pub(crate) struct Defaults {
    pub(crate) eps: (&'static str, f64),
    pub(crate) activation: (&'static str, &'static str),
    pub(crate) head_dim: Option<usize>,
    pub(crate) tied: bool,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { eps: ("rms_norm_eps", 1e-6), activation: ("hidden_act", "silu"), head_dim: None, tied: false }
    }
}

impl Decoder {
    pub(crate) fn read(fields: Fields<'_>, who: &'static str, defaults: &Defaults) -> Result<Self> {
        let hidden = fields.required_size("hidden_size")?;
        let heads = fields.required_size("num_attention_heads")?;
        let key_value_heads = fields.size("num_key_value_heads")?.unwrap_or(heads);
        ensure!(
            heads.is_multiple_of(key_value_heads),
            "num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({key_value_heads})"
        );
        let head_dim = match fields.size("head_dim")?.or(defaults.head_dim) {
            Some(head_dim) => head_dim,
            None => {
                ensure!(
                    hidden.is_multiple_of(heads),
                    "hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads})"
                );
                hidden / heads
            }
        };
        ensure!(head_dim.is_multiple_of(2), "head_dim is {head_dim}, rotary embeddings need an even number");
        let (key, eps) = defaults.eps;
        Ok(Self {
            who,
            hidden,
            inner: fields.required_size("intermediate_size")?,
            vocabulary: fields.required_size("vocab_size")?,
            layers: fields.required_size("num_hidden_layers")?,
            heads,
            key_value_heads,
            head_dim,
            eps: fields.number(key)?.unwrap_or(eps),
            activation: activation(fields, defaults.activation)?,
            tied: flag_or(fields, "tie_word_embeddings", defaults.tied)?,
        })
    }

    /// For models of Candle's that have no head size of their own.
    pub(crate) fn usual_heads(self) -> Result<Self> {
        let Self { who, hidden, heads, head_dim, .. } = self;
        ensure!(
            head_dim * heads == hidden,
            "head_dim is {head_dim}, {who} computes only hidden_size / num_attention_heads = {}",
            hidden / heads
        );
        Ok(self)
    }

    /// For models of Candle's that compute with one activation.
    pub(crate) fn only(self, activation: Activation, name: &str) -> Result<Self> {
        let same = self.activation == activation
            || (self.activation == Activation::Swish && activation == Activation::Silu);
        ensure!(same, "hidden_act is {:?}, {} computes \"{name}\"", self.activation, self.who);
        Ok(self)
    }

    /// Theta, for models that rotate whole heads, by nothing but theta.
    pub(crate) fn theta(&self, fields: Fields<'_>, default: f64) -> Result<f64> {
        Rope::read(fields, default)?.theta_only(self.who)
    }
}

fn activation(fields: Fields<'_>, (key, default): (&str, &'static str)) -> Result<Activation> {
    Ok(match fields.text(key)?.unwrap_or(default) {
        "silu" => Activation::Silu,
        "swish" => Activation::Swish,
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluPytorchTanh,
        "relu" => Activation::Relu,
        "relu2" => Activation::Relu2,
        "sigmoid" => Activation::Sigmoid,
        other => bail!("{key} is \"{other}\", which is none of the activations that Candle computes"),
    })
}

/// Refuses flags that are set.
pub(crate) fn refuse(fields: Fields<'_>, who: &str, keys: &[&str]) -> Result<()> {
    for key in keys {
        ensure!(!fields.flag(key)?, "{key} is true, {who} computes without");
    }
    Ok(())
}
