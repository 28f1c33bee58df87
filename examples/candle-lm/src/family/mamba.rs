//! Mamba: no attention, and a state instead of a cache.

use std::sync::Arc;

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_transformers::models::mamba::{Config, Model, State};
use examples_support::Fields;
use examples_support::weights::Origin;

use super::decoder::{Decoder, flag_or, refuse};
use super::{Blueprint, LanguageModel};

/// Candle's model, which takes a token at a time.
struct Mamba {
    model: Model,
    config: Config,
    state: State,
    dtype: DType,
    device: Device,
}

pub(super) fn mamba(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's Mamba";
    refuse(fields, who, &["use_bias"])?;
    ensure!(flag_or(fields, "use_conv_bias", true)?, "use_conv_bias is false, {who} has these biases");
    let hidden = fields.required_size("hidden_size")?;
    let fixed = [
        ("state_size", 16),
        ("conv_kernel", 4),
        ("intermediate_size", 2 * hidden),
        ("time_step_rank", hidden.div_ceil(16)),
    ];
    for (key, value) in fixed {
        // "auto" is what Candle computes.
        if fields.get(key).is_some_and(|found| found == "auto") {
            continue;
        }
        if let Some(found) = fields.size(key)? {
            ensure!(found == value, "{key} is {found}, {who} computes with {value}");
        }
    }
    if let Some(expand) = fields.number("expand")? {
        ensure!(expand == 2.0, "expand is {expand}, {who} computes with 2");
    }
    let eps = fields.number("layer_norm_epsilon")?.unwrap_or(1e-5);
    ensure!(eps == 1e-5, "layer_norm_epsilon is {eps}, {who} computes with 1e-5");
    let activation = fields.text("hidden_act")?.unwrap_or("silu");
    ensure!(
        matches!(activation, "silu" | "swish"),
        "hidden_act is \"{activation}\", {who} computes \"silu\""
    );
    let config = Config {
        d_model: hidden,
        n_layer: fields.required_size("num_hidden_layers")?,
        vocab_size: fields.required_size("vocab_size")?,
        // Transformers' number is that of the rows, padding included.
        pad_vocab_size_multiple: 1,
    };
    let decoder = Decoder {
        who,
        hidden,
        inner: 2 * hidden,
        vocabulary: config.vocab_size,
        layers: config.n_layer,
        heads: 1,
        key_value_heads: 1,
        head_dim: hidden,
        eps,
        activation: candle_nn::Activation::Silu,
        tied: flag_or(fields, "tie_word_embeddings", true)?,
    };
    let mut blueprint = Blueprint::new(&decoder, move |weights, _| {
        let (dtype, device) = (weights.dtype(), weights.device().clone());
        let model = Model::new(&config, weights)?;
        let state = State::new(1, &config, dtype, &device)?;
        Ok(Mamba { model, config: config.clone(), state, dtype, device })
    })
    .always_ties();
    blueprint.recipe = Arc::new(|name| match name {
        "embedding.weight" => Origin::Stored("backbone.embeddings.weight".into()),
        _ => Origin::Stored(format!("backbone.{name}")),
    });
    Ok(blueprint)
}

impl LanguageModel for Mamba {
    fn reset(&mut self) -> candle_core::Result<()> {
        self.state = State::new(1, &self.config, self.dtype, &self.device)?;
        Ok(())
    }

    fn forward(&mut self, tokens: &[u32], _: usize) -> candle_core::Result<Tensor> {
        let mut logits = None;
        for token in tokens {
            let token = Tensor::new(&[*token], &self.device)?;
            logits = Some(self.model.forward(&token, &mut self.state)?);
        }
        match logits {
            Some(logits) => logits.flatten_all(),
            None => candle_core::bail!("no tokens"),
        }
    }
}
