//! Mistral, and Mixtral with its experts.

use anyhow::{Result, ensure};
use candle_transformers::models::{mistral as mistral_model, mixtral as mixtral_model};
use examples_support::Fields;
use serde_json::json;

use super::decoder::{Decoder, Defaults, refuse, window};
use super::{Blueprint, Cached, cached};

pub(super) fn mistral(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's Mistral";
    refuse(fields, who, &["attention_bias"])?;
    let decoder = Decoder::read(fields, who, &Defaults::default())?;
    let config = mistral_model::Config {
        vocab_size: decoder.vocabulary,
        hidden_size: decoder.hidden,
        intermediate_size: decoder.inner,
        num_hidden_layers: decoder.layers,
        num_attention_heads: decoder.heads,
        head_dim: Some(decoder.head_dim),
        num_key_value_heads: decoder.key_value_heads,
        hidden_act: decoder.activation,
        max_position_embeddings: 0,
        rms_norm_eps: decoder.eps,
        rope_theta: decoder.theta(fields, 10_000.0)?,
        sliding_window: None,
        use_flash_attn: false,
    };
    Ok(Blueprint::new(&decoder, move |weights, positions| {
        let config = mistral_model::Config { max_position_embeddings: positions, ..config.clone() };
        cached!(weights, mistral_model::Model::new(&config, weights))
    })
    .window(window(fields, who, false)?, who))
}

pub(super) fn mixtral(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's Mixtral";
    let defaults = Defaults { eps: ("rms_norm_eps", 1e-5), ..Defaults::default() };
    let decoder = Decoder::read(fields, who, &defaults)?.usual_heads()?;
    let theta = decoder.theta(fields, 1_000_000.0)?;
    let (experts, chosen) = experts(fields, &["num_local_experts"], 8, 2)?;
    let shape = decoder.clone();
    Ok(Blueprint::new(&decoder, move |weights, positions| {
        // Its fields are private, and can be set like this only.
        let config: mixtral_model::Config = from_json(json!({
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.inner,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_value_heads,
            "hidden_act": shape.activation,
            "max_position_embeddings": positions,
            "rms_norm_eps": shape.eps,
            "rope_theta": theta,
            "sliding_window": positions,
            "num_experts_per_tok": chosen,
            "num_local_experts": experts,
            "use_flash_attn": false,
        }))?;
        let device = weights.device().clone();
        let model = mixtral_model::Model::new(&config, weights)?;
        Ok(Cached {
            // It cannot forget a text; its copy has not seen one. The weights are there once.
            model: (model.clone(), model),
            device,
            forward: |(model, _), tokens, position| model.forward(tokens, position),
            reset: |(model, fresh)| {
                *model = fresh.clone();
                Ok(())
            },
        })
    })
    .window(window(fields, who, false)?, who))
}

/// The number of experts, by the first key that there is, and how many compute each token.
pub(super) fn experts(
    fields: Fields<'_>,
    keys: &[&str],
    default: usize,
    chosen: usize,
) -> Result<(usize, usize)> {
    let mut experts = default;
    for key in keys {
        if let Some(number) = fields.size(key)? {
            experts = number;
            break;
        }
    }
    let chosen = fields.size("num_experts_per_tok")?.unwrap_or(chosen);
    ensure!(chosen <= experts, "num_experts_per_tok is {chosen}, but there are {experts} experts");
    Ok((experts, chosen))
}

/// A configuration of Candle's with private fields.
pub(super) fn from_json<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> candle_core::Result<T> {
    serde_json::from_value(value).map_err(candle_core::Error::wrap)
}
