//! Qwen 2 and 3, with and without experts.

use anyhow::{Result, ensure};
use candle_transformers::models::{
    qwen2 as qwen2_model, qwen2_moe as qwen2_moe_model, qwen3 as qwen3_model, qwen3_moe as qwen3_moe_model,
};
use examples_support::Fields;
use serde_json::Value;

use super::decoder::{Decoder, Defaults, flag_or, window};
use super::mistral::experts;
use super::{Blueprint, cached};

pub(super) fn qwen2(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's Qwen2";
    let decoder = Decoder::read(fields, who, &Defaults::default())?.usual_heads()?;
    let config = qwen2_model::Config {
        vocab_size: decoder.vocabulary,
        hidden_size: decoder.hidden,
        intermediate_size: decoder.inner,
        num_hidden_layers: decoder.layers,
        num_attention_heads: decoder.heads,
        num_key_value_heads: decoder.key_value_heads,
        max_position_embeddings: 0,
        sliding_window: 0,
        max_window_layers: 0,
        tie_word_embeddings: decoder.tied,
        rope_theta: decoder.theta(fields, 10_000.0)?,
        rms_norm_eps: decoder.eps,
        use_sliding_window: false,
        hidden_act: decoder.activation,
    };
    Ok(Blueprint::new(&decoder, move |weights, positions| {
        // It masks with the window whatever `use_sliding_window` says, so that this has to hold all.
        let config = qwen2_model::Config {
            max_position_embeddings: positions,
            sliding_window: positions,
            ..config.clone()
        };
        cached!(weights, qwen2_model::ModelForCausalLM::new(&config, weights))
    })
    .window(window(fields, who, true)?, who))
}

pub(super) fn qwen2_moe(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's Qwen2-MoE";
    let decoder = Decoder::read(fields, who, &Defaults::default())?.usual_heads()?;
    ensure!(flag_or(fields, "qkv_bias", true)?, "qkv_bias is false, {who} always has these biases");
    let (num_experts, num_experts_per_tok) = experts(fields, &["num_experts", "num_local_experts"], 60, 4)?;
    every_layer_has_experts(fields, who)?;
    let config = qwen2_moe_model::Config {
        vocab_size: decoder.vocabulary,
        hidden_size: decoder.hidden,
        intermediate_size: decoder.inner,
        num_hidden_layers: decoder.layers,
        num_attention_heads: decoder.heads,
        num_key_value_heads: decoder.key_value_heads,
        max_position_embeddings: 0,
        sliding_window: 0,
        max_window_layers: 0,
        tie_word_embeddings: decoder.tied,
        rope_theta: decoder.theta(fields, 10_000.0)?,
        rms_norm_eps: decoder.eps,
        use_sliding_window: false,
        hidden_act: decoder.activation,
        decoder_sparse_step: fields.size("decoder_sparse_step")?.unwrap_or(1),
        moe_intermediate_size: fields.size("moe_intermediate_size")?.unwrap_or(1408),
        shared_expert_intermediate_size: fields.size("shared_expert_intermediate_size")?.unwrap_or(5632),
        num_experts_per_tok,
        num_experts,
        norm_topk_prob: fields.flag("norm_topk_prob")?,
    };
    Ok(Blueprint::new(&decoder, move |weights, positions| {
        let config = qwen2_moe_model::Config {
            max_position_embeddings: positions,
            sliding_window: positions,
            ..config.clone()
        };
        cached!(weights, qwen2_moe_model::Model::new(&config, weights))
    })
    .window(window(fields, who, true)?, who))
}

pub(super) fn qwen3(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's Qwen3";
    let decoder = Decoder::read(fields, who, &Defaults { head_dim: Some(128), ..Defaults::default() })?;
    let config = qwen3_model::Config {
        vocab_size: decoder.vocabulary,
        hidden_size: decoder.hidden,
        intermediate_size: decoder.inner,
        num_hidden_layers: decoder.layers,
        num_attention_heads: decoder.heads,
        head_dim: decoder.head_dim,
        attention_bias: fields.flag("attention_bias")?,
        num_key_value_heads: decoder.key_value_heads,
        max_position_embeddings: 0,
        sliding_window: None,
        max_window_layers: 0,
        tie_word_embeddings: false,
        rope_theta: decoder.theta(fields, 10_000.0)?,
        rms_norm_eps: decoder.eps,
        use_sliding_window: false,
        hidden_act: decoder.activation,
    };
    Ok(Blueprint::new(&decoder, move |weights, positions| {
        let config = qwen3_model::Config { max_position_embeddings: positions, ..config.clone() };
        cached!(weights, qwen3_model::ModelForCausalLM::new(&config, weights))
    })
    .window(window(fields, who, true)?, who))
}

pub(super) fn qwen3_moe(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's Qwen3-MoE";
    let decoder = Decoder::read(fields, who, &Defaults::default())?;
    // Transformers 5 writes the second key.
    let (num_experts, num_experts_per_tok) = experts(fields, &["num_experts", "num_local_experts"], 128, 8)?;
    every_layer_has_experts(fields, who)?;
    let config = qwen3_moe_model::Config {
        vocab_size: decoder.vocabulary,
        hidden_size: decoder.hidden,
        intermediate_size: decoder.inner,
        num_hidden_layers: decoder.layers,
        num_attention_heads: decoder.heads,
        head_dim: decoder.head_dim,
        attention_bias: fields.flag("attention_bias")?,
        num_key_value_heads: decoder.key_value_heads,
        max_position_embeddings: 0,
        sliding_window: None,
        max_window_layers: 0,
        tie_word_embeddings: false,
        rope_theta: decoder.theta(fields, 10_000.0)?,
        rms_norm_eps: decoder.eps,
        use_sliding_window: false,
        hidden_act: decoder.activation,
        decoder_sparse_step: fields.size("decoder_sparse_step")?.unwrap_or(1),
        moe_intermediate_size: fields.size("moe_intermediate_size")?.unwrap_or(768),
        num_experts_per_tok,
        num_experts,
        norm_topk_prob: fields.flag("norm_topk_prob")?,
    };
    Ok(Blueprint::new(&decoder, move |weights, positions| {
        let config = qwen3_moe_model::Config { max_position_embeddings: positions, ..config.clone() };
        cached!(weights, qwen3_moe_model::ModelForCausalLM::new(&config, weights))
    })
    .window(window(fields, who, true)?, who))
}

fn every_layer_has_experts(fields: Fields<'_>, who: &str) -> Result<()> {
    let exceptions = fields.get("mlp_only_layers");
    let none = exceptions.is_none_or(|value| value.as_array().is_some_and(Vec::is_empty));
    ensure!(none, "mlp_only_layers is {}, {who} has no such exceptions", exceptions.unwrap_or(&Value::Null));
    Ok(())
}
