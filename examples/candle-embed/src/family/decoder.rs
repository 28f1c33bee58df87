//! Language models whose last hidden states are embeddings, and encoders that have the same layers.

use anyhow::{Result, ensure};
use candle_transformers::models::{qwen2 as qwen2_model, qwen3 as qwen3_model};
use examples_support::Fields;
use examples_support::rope::Rope;
use examples_support::weights::Origin;
use serde_json::Value;

use super::stack::{Stack, activation, eps, refuse};
use super::{Batch, Blueprint};

const WHO: &str = "Candle's Qwen2";

pub(super) fn qwen2(fields: Fields<'_>) -> Result<Blueprint> {
    let stack = Stack::read(fields, WHO, 32_768)?.rotates(fields)?;
    let stack = window(fields, stack, fields.flag("use_sliding_window")?)?;
    layers(fields, &stack, &Kind { biases: true, is_causal: is_causal(fields)?, eps: 1e-6 })
}

pub(super) fn llama(fields: Fields<'_>) -> Result<Blueprint> {
    refuse(fields, WHO, &["attention_bias", "mlp_bias"])?;
    let stack = Stack::read(fields, WHO, 2048)?.rotates(fields)?;
    layers(fields, &stack, &Kind { biases: false, is_causal: is_causal(fields)?, eps: 1e-6 })
}

pub(super) fn mistral(fields: Fields<'_>) -> Result<Blueprint> {
    let stack = Stack::read(fields, WHO, 131_072)?.rotates(fields)?;
    let stack = window(fields, stack, true)?;
    layers(fields, &stack, &Kind { biases: false, is_causal: is_causal(fields)?, eps: 1e-6 })
}

/// A Llama whose tokens see all others.
pub(super) fn eurobert(fields: Fields<'_>) -> Result<Blueprint> {
    refuse(fields, WHO, &["attention_bias", "mlp_bias"])?;
    let stack = Stack::read(fields, WHO, 8192)?.rotates(fields)?;
    layers(fields, &stack, &Kind { biases: false, is_causal: false, eps: 1e-5 })
}

pub(super) fn qwen3(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's Qwen3";
    ensure!(is_causal(fields)?, "is_causal is false, {who} sees what is before a token only");
    let stack = Stack { limit: None, ..Stack::read(fields, who, 32_768)? };
    let stack = window(fields, stack, fields.flag("use_sliding_window")?)?;
    let head_dim = fields.size("head_dim")?.unwrap_or(128);
    ensure!(head_dim.is_multiple_of(2), "head_dim is {head_dim}, rotary embeddings need an even number");
    let config = qwen3_model::Config {
        vocab_size: stack.vocabulary,
        hidden_size: stack.hidden,
        intermediate_size: stack.inner,
        num_hidden_layers: stack.layers,
        num_attention_heads: stack.heads,
        head_dim,
        attention_bias: fields.flag("attention_bias")?,
        num_key_value_heads: key_value_heads(fields, &stack)?,
        max_position_embeddings: 0,
        sliding_window: None,
        max_window_layers: 0,
        tie_word_embeddings: false,
        rope_theta: Rope::read(fields, 10_000.0)?.theta_only(who)?,
        rms_norm_eps: eps(fields, "rms_norm_eps", 1e-6)?,
        use_sliding_window: false,
        hidden_act: activation(fields, "hidden_act", "silu")?,
    };
    let build = move |weights, positions| {
        let config = qwen3_model::Config { max_position_embeddings: positions, ..config.clone() };
        qwen3_model::Model::new(&config, weights)
    };
    // It cannot be told to forget; a clone, which shares the weights, remembers nothing.
    let forward = |model: &mut qwen3_model::Model, batch: &Batch| model.clone().forward(&batch.tokens, 0);
    Ok(bare(Blueprint { is_causal: true, ..Blueprint::new(&stack, build, forward) }, true))
}

/// What Candle's Qwen 2 can be told.
struct Kind {
    /// Queries, keys and values have them.
    biases: bool,
    is_causal: bool,
    eps: f64,
}

/// Qwen 2's layers, which are Llama's with biases. Of Candle's models like this it is the one that gives hidden states,
/// and it takes a mask.
fn layers(fields: Fields<'_>, stack: &Stack, kind: &Kind) -> Result<Blueprint> {
    let config = qwen2_model::Config {
        vocab_size: stack.vocabulary,
        hidden_size: stack.hidden,
        intermediate_size: stack.inner,
        num_hidden_layers: stack.layers,
        num_attention_heads: stack.heads,
        num_key_value_heads: key_value_heads(fields, stack)?,
        max_position_embeddings: 0,
        sliding_window: 0,
        max_window_layers: 0,
        tie_word_embeddings: false,
        rope_theta: Rope::read(fields, 10_000.0)?.theta_only(stack.who)?,
        rms_norm_eps: eps(fields, "rms_norm_eps", kind.eps)?,
        use_sliding_window: false,
        hidden_act: activation(fields, "hidden_act", "silu")?,
    };
    let build = move |weights, positions| {
        // It masks with the window whatever `use_sliding_window` says, so that this has to hold all.
        let config = qwen2_model::Config {
            max_position_embeddings: positions,
            sliding_window: positions,
            ..config.clone()
        };
        qwen2_model::Model::new(&config, weights)
    };
    let forward = if kind.is_causal {
        // What is padded comes after all that a token sees.
        |model: &mut qwen2_model::Model, batch: &Batch| {
            model.clear_kv_cache();
            model.forward(&batch.tokens, 0, None)
        }
    } else {
        |model: &mut qwen2_model::Model, batch: &Batch| {
            model.clear_kv_cache();
            model.forward(&batch.tokens, 0, Some(&batch.mask))
        }
    };
    let blueprint = Blueprint::new(stack, build, forward)
        .only_f32("it computes rotary positions in the dtype of the weights");
    Ok(bare(Blueprint { is_causal: kind.is_causal, ..blueprint }, kind.biases))
}

/// Candle asks for the names of a model with a head, `model.layers...`; embedding models are stored without.
fn bare(blueprint: Blueprint, biases: bool) -> Blueprint {
    let blueprint = blueprint.prefixes(&["model."]).recipe(move |name| {
        let name = name.strip_prefix("model.").unwrap_or(name);
        match name.ends_with("_proj.bias") && !biases {
            true => Origin::Zeros,
            false => Origin::Stored(name.to_owned()),
        }
    });
    Blueprint { embeddings: "embed_tokens.weight", ..blueprint }
}

fn key_value_heads(fields: Fields<'_>, stack: &Stack) -> Result<usize> {
    let (heads, few) = (stack.heads, fields.size("num_key_value_heads")?.unwrap_or(stack.heads));
    ensure!(
        heads.is_multiple_of(few),
        "num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({few})"
    );
    Ok(few)
}

/// Whether tokens see those before them only. Authors whose code lets them see all say so here.
fn is_causal(fields: Fields<'_>) -> Result<bool> {
    if fields.get("is_causal").is_some() {
        return fields.flag("is_causal");
    }
    let code = fields.get("auto_map").and_then(|map| map.get("AutoModel"));
    ensure!(
        code.is_none(),
        "auto_map has code for the model, and there is no is_causal: what a token sees is not known"
    );
    Ok(true)
}

/// Within the window of its attention a model attends to everything, as Candle's does: texts end there.
fn window(fields: Fields<'_>, mut stack: Stack, slides: bool) -> Result<Stack> {
    if let Some(Value::Array(kinds)) = fields.get("layer_types") {
        for kind in kinds {
            ensure!(
                kind == "full_attention" || kind == "sliding_attention",
                "layer_types has {kind}, {} has \"full_attention\" and \"sliding_attention\"",
                stack.who
            );
        }
        if !kinds.iter().any(|kind| kind == "sliding_attention") {
            return Ok(stack);
        }
    }
    if slides && let Some(window) = fields.size("sliding_window")? {
        stack.limit = Some(window);
    }
    Ok(stack)
}
