//! What the configurations of most families have in common.

use anyhow::{Result, anyhow, bail, ensure};
use candle_nn::Activation;
use examples_support::{Fields, mismatch};
use serde_json::Value;

/// Sizes of a stack of transformer layers.
#[derive(Clone, Debug)]
pub(super) struct Stack {
    /// Whose code it is, for messages: `Candle's BERT`.
    pub(super) who: &'static str,
    pub(super) vocabulary: usize,
    pub(super) hidden: usize,
    pub(super) inner: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    /// So many tokens texts have at most, as the model was trained.
    pub(super) positions: Option<usize>,
    /// So many tokens a text can have; `None` where positions are rotations.
    pub(super) limit: Option<usize>,
}

impl Stack {
    /// Reads what transformers calls by the same names in most models.
    pub(super) fn read(fields: Fields<'_>, who: &'static str, positions: usize) -> Result<Self> {
        let positions = fields.size("max_position_embeddings")?.unwrap_or(positions);
        Self {
            who,
            vocabulary: fields.required_size("vocab_size")?,
            hidden: fields.required_size("hidden_size")?,
            inner: fields.required_size("intermediate_size")?,
            layers: fields.required_size("num_hidden_layers")?,
            heads: fields.required_size("num_attention_heads")?,
            positions: Some(positions),
            limit: Some(positions),
        }
        .check()
    }

    pub(super) fn check(self) -> Result<Self> {
        let Self { hidden, heads, .. } = self;
        ensure!(
            hidden.is_multiple_of(heads),
            "hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads})"
        );
        Ok(self)
    }

    /// For models that rotate heads.
    pub(super) fn rotates(mut self, fields: Fields<'_>) -> Result<Self> {
        let (who, size) = (self.who, self.hidden / self.heads);
        let head_dim = fields.size("head_dim")?.unwrap_or(size);
        ensure!(
            head_dim == size,
            "head_dim is {head_dim}, {who} computes only hidden_size / num_attention_heads = {size}"
        );
        ensure!(size.is_multiple_of(2), "heads have {size} elements, rotary embeddings need an even number");
        self.limit = None;
        Ok(self)
    }
}

/// Refuses decoders, and positions of other kinds.
pub(super) fn encoder(fields: Fields<'_>, who: &str, positions: &str) -> Result<()> {
    refuse(fields, who, &["is_decoder", "add_cross_attention"])?;
    expect(fields, who, "position_embedding_type", positions)
}

/// Refuses flags that are set.
pub(super) fn refuse(fields: Fields<'_>, who: &str, keys: &[&str]) -> Result<()> {
    for key in keys {
        ensure!(!fields.flag(key)?, "{key} is true, {who} computes without");
    }
    Ok(())
}

/// Refuses another text than this; none is the same.
pub(super) fn expect(fields: Fields<'_>, who: &str, key: &str, expected: &str) -> Result<()> {
    let found = fields.text(key)?.unwrap_or(expected);
    ensure!(found == expected, "{key} is \"{found}\", {who} computes \"{expected}\"");
    Ok(())
}

/// A size that can be zero.
pub(super) fn size_or_zero(fields: Fields<'_>, key: &str, default: usize) -> Result<usize> {
    match fields.get(key) {
        Some(Value::Number(number)) if number.as_u64() == Some(0) => Ok(0),
        _ => Ok(fields.size(key)?.unwrap_or(default)),
    }
}

/// A token that config.json names.
pub(super) fn token(fields: Fields<'_>, key: &str, default: u32) -> Result<u32> {
    match fields.get(key) {
        None => Ok(default),
        Some(value) => value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| mismatch(key, "a token id", value)),
    }
}

/// The small number in norms, which has to be one.
pub(super) fn eps(fields: Fields<'_>, key: &str, default: f64) -> Result<f64> {
    match fields.number(key)?.unwrap_or(default) {
        eps if eps.is_finite() && eps >= 0.0 => Ok(eps),
        eps => Err(anyhow!("{key} is {eps}, norms need a number that is not negative")),
    }
}

pub(super) fn activation(fields: Fields<'_>, key: &str, default: &'static str) -> Result<Activation> {
    Ok(match fields.text(key)?.unwrap_or(default) {
        "gelu" | "gelu_python" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluPytorchTanh,
        "relu" => Activation::Relu,
        "silu" | "swish" => Activation::Silu,
        other => bail!(
            "{key} is \"{other}\", this program computes \"gelu\", \"gelu_new\", \"gelu_pytorch_tanh\", \"relu\" and \
             \"silu\""
        ),
    })
}
