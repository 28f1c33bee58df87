//! Phi 1 to 3, StableLM, and Falcon.

use std::sync::Arc;

use anyhow::{Result, ensure};
use candle_nn::VarBuilder;
use candle_transformers::models::{phi as phi_model, phi3 as phi3_model, stable_lm as stablelm_model};
use examples_support::Fields;
use examples_support::weights::Origin;
use serde_json::json;

use super::decoder::{Decoder, Defaults, flag_or, full_attention, refuse, window};
use super::mistral::from_json;
use super::{Blueprint, Cached, cached};
use examples_support::rope::{LongRope, Rope, Scaling};

pub(super) fn phi(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's Phi";
    // It norms all heads as if they were one.
    refuse(fields, who, &["qk_layernorm"])?;
    full_attention(fields, who)?;
    let defaults = Defaults {
        eps: ("layer_norm_eps", 1e-5),
        activation: ("hidden_act", "gelu_new"),
        ..Defaults::default()
    };
    let decoder = Decoder::read(fields, who, &defaults)?.usual_heads()?;
    let (partial, theta) = Rope::read(fields, 10_000.0)?.part(decoder.head_dim, 0.5, who)?;
    Ok(like_phi(&decoder, partial, theta))
}

fn like_phi(decoder: &Decoder, partial: f64, theta: f64) -> Blueprint {
    let shape = decoder.clone();
    Blueprint::new(decoder, move |weights, positions| {
        let config: phi_model::Config = from_json(json!({
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.inner,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_value_heads,
            "hidden_act": shape.activation,
            "max_position_embeddings": positions,
            "layer_norm_eps": shape.eps,
            "tie_word_embeddings": false,
            "rope_theta": theta,
            "partial_rotary_factor": partial,
            "qk_layernorm": false,
        }))?;
        let device = weights.device().clone();
        Ok(Cached {
            model: phi_model::Model::new(&config, weights)?,
            device,
            forward: |model, tokens, _| model.forward(tokens),
            reset: |model| {
                model.clear_kv_cache();
                Ok(())
            },
        })
    })
}

#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub(super) fn phi3(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's Phi3";
    refuse(fields, who, &["attention_bias"])?;
    let defaults = Defaults { eps: ("rms_norm_eps", 1e-5), ..Defaults::default() };
    let decoder = Decoder::read(fields, who, &defaults)?.usual_heads()?;
    let mut rope = Rope::read(fields, 10_000.0)?;
    let long = match std::mem::replace(&mut rope.scaling, Scaling::None) {
        Scaling::LongRope(long) => Some(long),
        other => {
            rope.scaling = other;
            None
        }
    };
    let (partial, rope_theta) = rope.part(decoder.head_dim, 1.0, who)?;
    let config = phi3_model::Config {
        vocab_size: decoder.vocabulary,
        hidden_act: decoder.activation,
        hidden_size: decoder.hidden,
        intermediate_size: decoder.inner,
        num_hidden_layers: decoder.layers,
        num_attention_heads: decoder.heads,
        num_key_value_heads: decoder.key_value_heads,
        rms_norm_eps: decoder.eps,
        rope_theta,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: long.as_ref().map(rope_scaling),
        max_position_embeddings: 0,
        original_max_position_embeddings: None,
        partial_rotary_factor: (partial != 1.0).then_some(partial),
        tie_word_embeddings: false,
    };
    let mut blueprint = Blueprint::new(&decoder, move |weights, positions| {
        let config = phi3_model::Config { max_position_embeddings: positions, ..config.clone() };
        cached!(weights, phi3_model::Model::new(&config, weights))
    })
    .window(window(fields, who, false)?, who);
    if let Some(long) = long {
        let waves = (partial * decoder.head_dim as f64) as usize / 2;
        let factors = long.short_factor.len();
        ensure!(factors == waves, "short_factor has {factors} numbers, {waves} waves turn a head");
        ensure!(
            partial == 1.0 || long.magnitude == 1.0,
            "partial_rotary_factor is {partial} with rope type \"longrope\", {who} has no magnitude for a part of a head"
        );
        // Queries and keys are multiplied with the magnitude: here the queries are with its square.
        let (rows, factor) = (decoder.heads * decoder.head_dim, long.magnitude * long.magnitude);
        blueprint.recipe = Arc::new(move |name| match name.ends_with(".qkv_proj.weight") {
            true => Origin::ScaledRows { name: name.to_owned(), rows, factor },
            false => Origin::Stored(name.to_owned()),
        });
        let most = long.original_max_position_embeddings;
        if blueprint.limit.as_ref().is_none_or(|(limit, _)| *limit > most) {
            let why = format!(
                "beyond original_max_position_embeddings ({most}) the rope type \"longrope\" has other waves"
            );
            blueprint.limit = Some((most, why));
        }
    }
    Ok(blueprint)
}

/// Candle multiplies frequencies with the factors that they are to be divided by.
#[expect(clippy::cast_possible_truncation, reason = "Candle's configuration holds f32")]
fn rope_scaling(long: &LongRope) -> phi3_model::RopeScaling {
    let inverse: Vec<f32> = long.short_factor.iter().map(|factor| (1.0 / factor) as f32).collect();
    phi3_model::RopeScaling {
        long_factor: inverse.clone(),
        short_factor: inverse,
        type_: phi3_model::RopeScalingType::LongRope,
    }
}

struct StableLm {
    model: stablelm_model::Model,
    config: stablelm_model::Config,
    weights: VarBuilder<'static>,
}

pub(super) fn stablelm(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's StableLM";
    refuse(fields, who, &["qk_layernorm", "use_parallel_residual"])?;
    full_attention(fields, who)?;
    let defaults = Defaults { eps: ("layer_norm_eps", 1e-5), ..Defaults::default() };
    let decoder = Decoder::read(fields, who, &defaults)?.usual_heads()?;
    let (partial, theta) = Rope::read(fields, 10_000.0)?.part(decoder.head_dim, 0.25, who)?;
    let bias = fields.flag("use_qkv_bias")?;
    let shape = decoder.clone();
    let mut blueprint = Blueprint::new(&decoder, move |weights, positions| {
        let config: stablelm_model::Config = from_json(json!({
            "vocab_size": shape.vocabulary,
            "intermediate_size": shape.inner,
            "hidden_size": shape.hidden,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_value_heads,
            "hidden_act": shape.activation,
            "partial_rotary_factor": partial,
            "rope_theta": theta,
            "max_position_embeddings": positions,
            "layer_norm_eps": shape.eps,
            "use_cache": true,
            "use_qkv_bias": bias,
            "use_flash_attn": false,
        }))?;
        let device = weights.device().clone();
        let model = stablelm_model::Model::new(&config, weights.clone())?;
        Ok(Cached {
            model: StableLm { model, config, weights },
            device,
            forward: |with, tokens, position| with.model.forward(tokens, position),
            reset: |with| {
                with.model = stablelm_model::Model::new(&with.config, with.weights.clone())?;
                Ok(())
            },
        })
    });
    blueprint.is_rebuilt = true;
    Ok(blueprint)
}

/// Candle's Falcon computes an approximation of GELU. Phi has the same layers, the exact activation, and biases.
pub(super) fn falcon(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's Phi, which Falcon is computed with,";
    refuse(fields, who, &["alibi", "new_decoder_architecture"])?;
    full_attention(fields, who)?;
    ensure!(flag_or(fields, "parallel_attn", true)?, "parallel_attn is false, {who} computes in parallel");
    ensure!(
        flag_or(fields, "multi_query", true)?,
        "multi_query is false, {who} is not given heads whose keys and values are stored between the queries"
    );
    // The size of the inner layer has another name, and the number of key-value heads is one whatever is said.
    let hidden = fields.required_size("hidden_size")?;
    let inner = fields.size("ffn_hidden_size")?.unwrap_or(4 * hidden);
    let mut own = fields.0.clone();
    own.insert("intermediate_size".into(), json!(inner));
    own.insert("num_key_value_heads".into(), json!(1));
    let defaults = Defaults {
        eps: ("layer_norm_epsilon", 1e-5),
        activation: ("activation", "gelu"),
        tied: true,
        ..Defaults::default()
    };
    let decoder = Decoder::read(Fields(&own), who, &defaults)?.usual_heads()?;
    let theta = decoder.theta(fields, 10_000.0)?;
    let has_biases = fields.flag("bias")?;

    let mut blueprint = like_phi(&decoder, 1.0, theta);
    let rows = decoder.hidden + 2 * decoder.head_dim;
    let starts = [0, decoder.hidden, decoder.hidden + decoder.head_dim];
    blueprint.recipe = Arc::new(move |name| falcon_name(name, starts, rows, has_biases));
    Ok(blueprint)
}

/// As Phi asks for them.
const EMBEDDINGS: &str = "model.embed_tokens.weight";

/// What Falcon calls a tensor of Phi's. Queries, keys and values are rows of one tensor.
fn falcon_name(name: &str, starts: [usize; 3], rows: usize, has_biases: bool) -> Origin {
    let stored = |name: String| Origin::Stored(name);
    if name == EMBEDDINGS {
        return stored("transformer.word_embeddings.weight".into());
    }
    if name == "lm_head.bias" {
        return Origin::Zeros;
    }
    if let Some(kind) = name.strip_prefix("model.final_layernorm.") {
        return stored(format!("transformer.ln_f.{kind}"));
    }
    let Some((layer, part)) = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
        return stored(name.to_owned());
    };
    let Some((part, kind)) = part.rsplit_once('.') else { return stored(name.to_owned()) };
    let of_layer = |part: &str| format!("transformer.h.{layer}.{part}.{kind}");
    if part == "input_layernorm" {
        return stored(of_layer(part));
    }
    if kind == "bias" && !has_biases {
        return Origin::Zeros;
    }
    let start = match part {
        "mlp.fc1" => return stored(of_layer("mlp.dense_h_to_4h")),
        "mlp.fc2" => return stored(of_layer("mlp.dense_4h_to_h")),
        "self_attn.dense" => return stored(of_layer("self_attention.dense")),
        "self_attn.q_proj" => starts[0],
        "self_attn.k_proj" => starts[1],
        _ => starts[2],
    };
    Origin::Rows { name: of_layer("self_attention.query_key_value"), start, rows }
}
