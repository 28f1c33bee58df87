//! GLM 4 (0414 and later).

use anyhow::Result;
use candle_transformers::models::glm4_new as glm4_model;
use examples_support::Fields;

use super::decoder::{Decoder, Defaults, flag_or, full_attention};
use super::{Blueprint, cached};
use examples_support::rope::Rope;

#[expect(clippy::cast_possible_truncation, reason = "Candle's configuration holds f32")]
pub(super) fn glm4(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's GLM4";
    full_attention(fields, who)?;
    let defaults = Defaults { eps: ("rms_norm_eps", 1.5625e-7), head_dim: Some(128), ..Defaults::default() };
    let decoder = Decoder::read(fields, who, &defaults)?;
    let (partial, rope_theta) = Rope::read(fields, 10_000.0)?.part(decoder.head_dim, 0.5, who)?;
    let config = glm4_model::Config {
        vocab_size: decoder.vocabulary,
        hidden_size: decoder.hidden,
        intermediate_size: decoder.inner,
        num_hidden_layers: decoder.layers,
        num_attention_heads: decoder.heads,
        head_dim: Some(decoder.head_dim),
        partial_rotary_factor: Some(partial as f32),
        attention_bias: Some(flag_or(fields, "attention_bias", true)?),
        num_key_value_heads: decoder.key_value_heads,
        max_position_embeddings: 0,
        sliding_window: None,
        tie_word_embeddings: false,
        rope_theta,
        rms_norm_eps: decoder.eps,
        hidden_act: decoder.activation,
        eos_token_id: None,
    };
    Ok(Blueprint::new(&decoder, move |weights, positions| {
        let config = glm4_model::Config { max_position_embeddings: positions, ..config.clone() };
        cached!(weights, glm4_model::ModelForCausalLM::new(&config, weights))
    }))
}
