//! Llama, and others of its kind: SmolLM3, Helium.

use anyhow::{Result, bail};
use candle_nn::Activation;
use candle_transformers::models::llama::{Cache, Config, Llama, Llama3RopeConfig, Llama3RopeType};
use candle_transformers::models::{helium as helium_model, smol::smollm3 as smollm3_model};
use examples_support::Fields;
use serde_json::Value;

use super::decoder::{Decoder, Defaults, full_attention, refuse, window};
use super::{Blueprint, Cached, cached};
use examples_support::rope::{Rope, Scaling};

/// The attention of candle 0.11.1 compares the number of key-value heads with this and narrows the wrong dimension
/// when it is smaller; and transformers generates past the nominal limit. So there is none.
pub(super) const UNLIMITED: usize = usize::MAX / 4;

struct WithCache {
    llama: Llama,
    cache: Cache,
    empty: Cache,
}

pub(super) fn llama(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's Llama";
    refuse(fields, who, &["attention_bias", "mlp_bias"])?;
    full_attention(fields, who)?;
    let decoder =
        Decoder::read(fields, who, &Defaults::default())?.usual_heads()?.only(Activation::Silu, "silu")?;
    let rope = Rope::read(fields, 10_000.0)?;
    rope.whole_heads(who)?;
    Ok(like_llama(&decoder, llama_config(&decoder, &rope)?))
}

/// The configuration of a Llama with this rope.
#[expect(clippy::cast_possible_truncation, reason = "Candle's configuration holds f32")]
pub(super) fn llama_config(decoder: &Decoder, rope: &Rope) -> Result<Config> {
    let who = decoder.who;
    let rope_scaling = match &rope.scaling {
        Scaling::None => None,
        Scaling::Llama3(scaling) => Some(Llama3RopeConfig {
            factor: scaling.factor as f32,
            low_freq_factor: scaling.low_freq_factor as f32,
            high_freq_factor: scaling.high_freq_factor as f32,
            original_max_position_embeddings: scaling.original_max_position_embeddings,
            rope_type: Llama3RopeType::Llama3,
        }),
        Scaling::LongRope(_) => {
            bail!("the rope type is \"longrope\", {who} computes \"default\" and \"llama3\"")
        }
        Scaling::Other(kind) => {
            bail!("the rope type is \"{kind}\", {who} computes \"default\" and \"llama3\"")
        }
    };
    Ok(Config {
        hidden_size: decoder.hidden,
        intermediate_size: decoder.inner,
        vocab_size: decoder.vocabulary,
        num_hidden_layers: decoder.layers,
        num_attention_heads: decoder.heads,
        num_key_value_heads: decoder.key_value_heads,
        use_flash_attn: false,
        rms_norm_eps: decoder.eps,
        rope_theta: rope.theta as f32,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling,
        max_position_embeddings: UNLIMITED,
        // The weights are tied by name.
        tie_word_embeddings: false,
    })
}

pub(super) fn like_llama(decoder: &Decoder, config: Config) -> Blueprint {
    Blueprint::new(decoder, move |weights, positions| {
        let (dtype, device) = (weights.dtype(), weights.device().clone());
        let table = Config { max_position_embeddings: positions, ..config.clone() };
        let cache = Cache::new(true, dtype, &table, &device)?;
        let model = WithCache { llama: Llama::load(weights, &config)?, empty: cache.clone(), cache };
        Ok(Cached {
            model,
            device,
            forward: |model, tokens, position| model.llama.forward(tokens, position, &mut model.cache),
            reset: |model| {
                model.cache = model.empty.clone();
                Ok(())
            },
        })
    })
}

pub(super) fn smollm3(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's SmolLM3";
    let defaults = Defaults { tied: true, ..Defaults::default() };
    let decoder = Decoder::read(fields, who, &defaults)?.usual_heads()?;
    let theta = decoder.theta(fields, 2_000_000.0)?;
    let config = smollm3_model::Config {
        vocab_size: decoder.vocabulary,
        hidden_size: decoder.hidden,
        intermediate_size: decoder.inner,
        num_hidden_layers: decoder.layers,
        num_attention_heads: decoder.heads,
        num_key_value_heads: decoder.key_value_heads,
        max_position_embeddings: 0,
        tie_word_embeddings: false,
        rope_theta: theta,
        rms_norm_eps: decoder.eps,
        hidden_act: decoder.activation,
        rope_scaling: None,
        bos_token_id: None,
        eos_token_id: None,
        pad_token_id: None,
        max_window_layers: None,
        attention_bias: Some(fields.flag("attention_bias")?),
        attention_dropout: None,
        mlp_bias: Some(fields.flag("mlp_bias")?),
        sliding_window: None,
        use_sliding_window: None,
        no_rope_layers: rotating_layers(fields)?,
        // Every fourth, where config.json does not say it.
        no_rope_layer_interval: Some(fields.size("no_rope_layer_interval")?.unwrap_or(4)),
    };
    let window = window(fields, who, true)?;
    Ok(Blueprint::new(&decoder, move |weights, positions| {
        let config = smollm3_model::Config { max_position_embeddings: positions, ..config.clone() };
        cached!(weights, smollm3_model::ModelForCausalLM::new(&config, weights))
    })
    .window(window, who))
}

/// A list with a 1 for each layer that has rotary embeddings, and a 0 for the others.
fn rotating_layers(fields: Fields<'_>) -> Result<Option<Vec<usize>>> {
    let Some(value) = fields.get("no_rope_layers") else { return Ok(None) };
    let layer = |value: &Value| value.as_u64().and_then(|flag| usize::try_from(flag).ok());
    match value.as_array().and_then(|list| list.iter().map(layer).collect::<Option<Vec<_>>>()) {
        Some(list) => Ok(Some(list)),
        None => bail!("no_rope_layers: expected a list of 0 and 1, found {value}"),
    }
}

pub(super) fn helium(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's Helium";
    refuse(fields, who, &["attention_bias"])?;
    full_attention(fields, who)?;
    let defaults = Defaults { eps: ("rms_norm_eps", 1e-8), head_dim: Some(128), ..Defaults::default() };
    let decoder = Decoder::read(fields, who, &defaults)?.usual_heads()?;
    let config = helium_model::Config {
        attention_bias: false,
        bos_token_id: 0,
        eos_token_id: 0,
        head_dim: decoder.head_dim,
        hidden_act: decoder.activation,
        hidden_size: decoder.hidden,
        intermediate_size: decoder.inner,
        max_position_embeddings: 0,
        mlp_bias: fields.flag("mlp_bias")?,
        num_attention_heads: decoder.heads,
        num_hidden_layers: decoder.layers,
        num_key_value_heads: decoder.key_value_heads,
        rms_norm_eps: decoder.eps,
        rope_theta: decoder.theta(fields, 100_000.0)?,
        tie_word_embeddings: false,
        vocab_size: decoder.vocabulary,
        use_flash_attn: false,
    };
    Ok(Blueprint::new(&decoder, move |weights, positions| {
        let config = helium_model::Config { max_position_embeddings: positions, ..config.clone() };
        cached!(weights, helium_model::Model::new(&config, weights))
    }))
}
