//! OLMo 1 and 2.

use anyhow::Result;
use candle_transformers::models::{olmo as olmo_model, olmo2 as olmo2_model};
use examples_support::Fields;

use super::decoder::{Decoder, Defaults, full_attention};
use super::{Blueprint, cached};

pub(super) fn olmo(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's OLMo";
    full_attention(fields, who)?;
    let decoder = Decoder::read(fields, who, &Defaults::default())?.usual_heads()?;
    let config = olmo_model::Config {
        vocab_size: decoder.vocabulary,
        hidden_size: decoder.hidden,
        intermediate_size: decoder.inner,
        attention_bias: fields.flag("attention_bias")?,
        num_hidden_layers: decoder.layers,
        num_attention_heads: decoder.heads,
        num_key_value_heads: decoder.key_value_heads,
        hidden_act: decoder.activation,
        max_position_embeddings: 0,
        rope_theta: decoder.theta(fields, 10_000.0)?,
        tie_word_embeddings: false,
        clip_qkv: fields.positive("clip_qkv")?,
    };
    Ok(Blueprint::new(&decoder, move |weights, positions| {
        let config = olmo_model::Config { max_position_embeddings: positions, ..config.clone() };
        cached!(weights, olmo_model::Model::new(&config, weights))
    }))
}

pub(super) fn olmo2(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's OLMo2";
    full_attention(fields, who)?;
    let defaults = Defaults { eps: ("rms_norm_eps", 1e-5), ..Defaults::default() };
    let decoder = Decoder::read(fields, who, &defaults)?.usual_heads()?;
    let config = olmo2_model::Config {
        vocab_size: decoder.vocabulary,
        hidden_size: decoder.hidden,
        intermediate_size: decoder.inner,
        attention_bias: fields.flag("attention_bias")?,
        num_hidden_layers: decoder.layers,
        num_attention_heads: decoder.heads,
        num_key_value_heads: decoder.key_value_heads,
        rms_norm_eps: decoder.eps,
        hidden_act: decoder.activation,
        max_position_embeddings: 0,
        rope_theta: decoder.theta(fields, 10_000.0)?,
        tie_word_embeddings: false,
        clip_qkv: None,
    };
    Ok(Blueprint::new(&decoder, move |weights, positions| {
        let config = olmo2_model::Config { max_position_embeddings: positions, ..config.clone() };
        cached!(weights, olmo2_model::Model::new(&config, weights))
    }))
}
