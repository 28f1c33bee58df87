//! Gemma 1, 2 and 3 (text only).

use anyhow::{Result, bail, ensure};
use candle_transformers::models::{gemma as gemma_model, gemma2 as gemma2_model, gemma3 as gemma3_model};
use examples_support::Fields;
use examples_support::weights::Origin;
use serde_json::Value;
use std::sync::Arc;

use super::decoder::{Decoder, Defaults, refuse, window};
use super::{Blueprint, cached};
use examples_support::rope::Rope;

const DEFAULTS: Defaults = Defaults {
    eps: ("rms_norm_eps", 1e-6),
    activation: ("hidden_activation", "gelu_pytorch_tanh"),
    head_dim: Some(256),
    tied: true,
};

pub(super) fn gemma(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's Gemma";
    refuse(fields, who, &["use_bidirectional_attention"])?;
    // Transformers computes with `hidden_act`; `hidden_activation`, which some files have beside it, it ignores.
    let defaults = Defaults { activation: ("hidden_act", "gelu_pytorch_tanh"), ..DEFAULTS };
    let decoder = Decoder::read(fields, who, &defaults)?;
    let config = gemma_model::Config {
        attention_bias: fields.flag("attention_bias")?,
        head_dim: decoder.head_dim,
        hidden_act: Some(decoder.activation),
        hidden_activation: None,
        hidden_size: decoder.hidden,
        intermediate_size: decoder.inner,
        num_attention_heads: decoder.heads,
        num_hidden_layers: decoder.layers,
        num_key_value_heads: decoder.key_value_heads,
        rms_norm_eps: decoder.eps,
        rope_theta: decoder.theta(fields, 10_000.0)?,
        vocab_size: decoder.vocabulary,
        max_position_embeddings: 0,
    };
    Ok(Blueprint::new(&decoder, move |weights, positions| {
        let config = gemma_model::Config { max_position_embeddings: positions, ..config.clone() };
        cached!(weights, gemma_model::Model::new(false, &config, weights))
    })
    .always_ties())
}

pub(super) fn gemma2(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's Gemma2";
    refuse(fields, who, &["use_bidirectional_attention"])?;
    let decoder = Decoder::read(fields, who, &DEFAULTS)?;
    let scale = query_scale(fields, &decoder)?;
    let config = gemma2_model::Config {
        attention_bias: fields.flag("attention_bias")?,
        head_dim: decoder.head_dim,
        hidden_activation: decoder.activation,
        hidden_size: decoder.hidden,
        intermediate_size: decoder.inner,
        num_attention_heads: decoder.heads,
        num_hidden_layers: decoder.layers,
        num_key_value_heads: decoder.key_value_heads,
        rms_norm_eps: decoder.eps,
        rope_theta: decoder.theta(fields, 10_000.0)?,
        vocab_size: decoder.vocabulary,
        final_logit_softcapping: cap(fields, "final_logit_softcapping", Some(30.0))?,
        attn_logit_softcapping: cap(fields, "attn_logit_softcapping", Some(50.0))?,
        query_pre_attn_scalar: 0,
        sliding_window: None,
        max_position_embeddings: 0,
    };
    let mut blueprint = Blueprint::new(&decoder, move |weights, positions| {
        let config = gemma2_model::Config { max_position_embeddings: positions, ..config.clone() };
        cached!(weights, gemma2_model::Model::new(false, &config, weights))
    })
    .always_ties()
    .window(window(fields, who, false)?, who);
    if scale != 1.0 {
        blueprint.recipe = Arc::new(move |name| {
            if name.contains(".q_proj.") {
                Origin::scaled(name, scale)
            } else {
                Origin::Stored(name.to_owned())
            }
        });
    }
    Ok(blueprint)
}

pub(super) fn gemma3(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's Gemma3";
    refuse(fields, who, &["use_bidirectional_attention"])?;
    let decoder = Decoder::read(fields, who, &DEFAULTS)?;
    let scale = query_scale(fields, &decoder)?;
    if let Some(cap) = cap(fields, "attn_logit_softcapping", None)? {
        bail!("attn_logit_softcapping is {cap}: of Gemma 3, transformers' own kernels disagree about it");
    }
    let [global, local] = Rope::read_two(fields, 1_000_000.0, 10_000.0)?;
    let window = window(fields, who, false)?;
    let config = gemma3_model::Config {
        attention_bias: fields.flag("attention_bias")?,
        head_dim: decoder.head_dim,
        hidden_activation: decoder.activation,
        hidden_size: decoder.hidden,
        intermediate_size: decoder.inner,
        num_attention_heads: decoder.heads,
        num_hidden_layers: decoder.layers,
        num_key_value_heads: decoder.key_value_heads,
        rms_norm_eps: decoder.eps,
        rope_theta: global.theta_only(who)?,
        rope_local_base_freq: local.theta_only(who)?,
        vocab_size: decoder.vocabulary,
        final_logit_softcapping: cap(fields, "final_logit_softcapping", None)?,
        attn_logit_softcapping: None,
        query_pre_attn_scalar: 0,
        sliding_window: 0,
        sliding_window_pattern: pattern(fields, decoder.layers)?,
        max_position_embeddings: 0,
    };
    let mut blueprint = Blueprint::new(&decoder, move |weights, positions| {
        let config = gemma3_model::Config {
            max_position_embeddings: positions,
            // A window is allocated as a whole.
            sliding_window: window.unwrap_or(positions).min(positions),
            ..config.clone()
        };
        cached!(weights, gemma3_model::Model::new(false, &config, weights))
    })
    .always_ties();
    // A longer batch would be masked with a window that is larger by one; and Candle's cache does not take several
    // tokens of several heads.
    blueprint.longest_batch = if decoder.key_value_heads > 1 { 1 } else { window.unwrap_or(usize::MAX) };
    if scale != 1.0 {
        // The queries are normed after their projection, by weights to which 1 is added.
        blueprint.recipe = Arc::new(move |name| {
            if name.ends_with(".q_norm.weight") {
                Origin::Scaled { name: name.to_owned(), factor: scale, plus: scale - 1.0 }
            } else {
                Origin::Stored(name.to_owned())
            }
        });
    }
    Ok(blueprint)
}

/// Candle divides queries by the root of the head size, and not by that of `query_pre_attn_scalar`; what is between
/// these belongs into the weights.
#[expect(clippy::cast_precision_loss, reason = "a size of a head")]
fn query_scale(fields: Fields<'_>, decoder: &Decoder) -> Result<f64> {
    let scalar = fields.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    Ok((decoder.head_dim as f64 / scalar).sqrt())
}

/// A soft cap: null is none, absence the default.
fn cap(fields: Fields<'_>, key: &str, default: Option<f64>) -> Result<Option<f64>> {
    match fields.0.get(key) {
        None => Ok(default),
        Some(_) => fields.positive(key),
    }
}

/// Every how many layers there is one without a window.
fn pattern(fields: Fields<'_>, layers: usize) -> Result<usize> {
    let Some(kinds) = fields.get("layer_types").and_then(Value::as_array) else {
        for key in ["sliding_window_pattern", "_sliding_window_pattern"] {
            if let Some(pattern) = fields.size(key)? {
                return Ok(pattern);
            }
        }
        return Ok(6);
    };
    ensure!(kinds.len() == layers, "layer_types has {} layers, num_hidden_layers is {layers}", kinds.len());
    let is_full = |kind: &Value| kind == "full_attention";
    let pattern = kinds.iter().position(is_full).map_or(layers + 1, |first| first + 1);
    if kinds.iter().enumerate().any(|(layer, kind)| is_full(kind) != (layer + 1).is_multiple_of(pattern)) {
        bail!("layer_types does not repeat itself: Candle's Gemma3 has full attention in every n-th layer");
    }
    Ok(pattern)
}
