//! Granite: a Llama with four multipliers. Candle's Granite has none of them, so they are put into the weights of a
//! Llama. Candle's Granite-MoE-hybrid has them, and only the layers with attention.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use candle_nn::Activation;
use candle_transformers::models::granitemoehybrid::{
    GraniteMoeHybrid, GraniteMoeHybridCache, GraniteMoeHybridInternalConfig, GraniteMoeHybridLayerType,
};
use examples_support::Fields;
use examples_support::weights::Origin;
use serde_json::Value;

use super::decoder::{Decoder, Defaults, full_attention, refuse};
use super::llama::{UNLIMITED, like_llama, llama_config};
use super::{Blueprint, Cached};
use examples_support::rope::Rope;

/// The four multipliers.
struct Multipliers {
    embedding: f64,
    attention: f64,
    residual: f64,
    logits: f64,
}

impl Multipliers {
    fn read(fields: Fields<'_>) -> Result<Self> {
        let number = |key| Ok::<_, anyhow::Error>(fields.positive(key)?.unwrap_or(1.0));
        Ok(Self {
            embedding: number("embedding_multiplier")?,
            attention: number("attention_multiplier")?,
            residual: number("residual_multiplier")?,
            logits: 1.0 / number("logits_scaling")?,
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a size of a head")]
pub(super) fn granite(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's Llama, which Granite is computed with,";
    refuse(fields, who, &["attention_bias", "mlp_bias"])?;
    full_attention(fields, who)?;
    let decoder =
        Decoder::read(fields, who, &Defaults::default())?.usual_heads()?.only(Activation::Silu, "silu")?;
    let rope = Rope::read(fields, 10_000.0)?;
    rope.whole_heads(who)?;
    let multipliers = Multipliers::read(fields)?;

    let mut blueprint = like_llama(&decoder, llama_config(&decoder, &rope)?);
    blueprint.logit_scale = multipliers.logits;
    blueprint.embedding_scale = multipliers.embedding;
    // Llama divides by the root of the head size.
    let query = multipliers.attention * (decoder.head_dim as f64).sqrt();
    blueprint.recipe = Arc::new(move |name| {
        let factor = if name == "model.embed_tokens.weight" {
            multipliers.embedding
        } else if name.ends_with(".q_proj.weight") {
            query
        } else if name.ends_with(".o_proj.weight") || name.ends_with(".down_proj.weight") {
            multipliers.residual
        } else {
            1.0
        };
        if factor == 1.0 { Origin::Stored(name.to_owned()) } else { Origin::scaled(name, factor) }
    });
    Ok(blueprint)
}

struct WithCache {
    model: GraniteMoeHybrid,
    cache: GraniteMoeHybridCache,
    empty: GraniteMoeHybridCache,
}

#[expect(clippy::cast_possible_truncation, reason = "Candle's configuration holds f32")]
pub(super) fn granitemoehybrid(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's Granite-MoE-hybrid";
    refuse(fields, who, &["attention_bias"])?;
    for key in ["layer_types", "layers_block_type"] {
        if let Some(Value::Array(kinds)) = fields.get(key) {
            for kind in kinds {
                let is_attention = kind == "attention" || kind == "full_attention";
                ensure!(is_attention, "{key} has {kind}, {who} has layers of \"attention\" only");
            }
        }
    }
    if fields.get("layer_types").or(fields.get("layers_block_type")).is_none() {
        bail!("there is no layer_types: all layers are \"mamba\", {who} has layers of \"attention\" only");
    }
    ensure!(
        fields.get("num_local_experts").is_some_and(|experts| experts == 0),
        "num_local_experts is not 0, {who} has no experts"
    );
    let positions = fields.text("position_embedding_type")?;
    ensure!(
        positions == Some("rope"),
        "position_embedding_type is {}, {who} computes \"rope\"",
        fields.get("position_embedding_type").unwrap_or(&Value::Null)
    );
    let decoder =
        Decoder::read(fields, who, &Defaults::default())?.usual_heads()?.only(Activation::Silu, "silu")?;
    let multipliers = Multipliers::read(fields)?;
    let config = GraniteMoeHybridInternalConfig {
        hidden_size: decoder.hidden,
        intermediate_size: decoder.inner,
        shared_intermediate_size: fields.size("shared_intermediate_size")?.unwrap_or(1024),
        vocab_size: decoder.vocabulary,
        num_hidden_layers: decoder.layers,
        num_attention_heads: decoder.heads,
        num_key_value_heads: decoder.key_value_heads,
        use_flash_attn: false,
        rms_norm_eps: decoder.eps,
        rope_theta: decoder.theta(fields, 10_000.0)? as f32,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: None,
        max_position_embeddings: UNLIMITED,
        layer_types: Vec::new(),
        attention_multiplier: multipliers.attention as f32,
        embedding_multiplier: multipliers.embedding as f32,
        residual_multiplier: multipliers.residual as f32,
        logits_scaling: (1.0 / multipliers.logits) as f32,
    };
    Ok(Blueprint::new(&decoder, move |weights, positions| {
        let (dtype, device) = (weights.dtype(), weights.device().clone());
        let table = GraniteMoeHybridInternalConfig { max_position_embeddings: positions, ..config.clone() };
        let cache = GraniteMoeHybridCache::new(true, dtype, &table, &device)?;
        let layer_types = vec![GraniteMoeHybridLayerType::Attention; config.num_hidden_layers];
        let config = GraniteMoeHybridInternalConfig { layer_types, ..config.clone() };
        let model = GraniteMoeHybrid::load(weights, &config)?;
        Ok(Cached {
            model: WithCache { model, empty: cache.clone(), cache },
            device,
            forward: |with, tokens, position| with.model.forward(tokens, position, &mut with.cache),
            reset: |with| {
                with.cache = with.empty.clone();
                Ok(())
            },
        })
    })
    .always_ties())
}
