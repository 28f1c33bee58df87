//! ModernBERT.

use anyhow::{Result, bail, ensure};
use candle_transformers::models::modernbert::{Config, ModernBert};
use examples_support::Fields;
use examples_support::rope::Rope;
use examples_support::weights::Origin;
use serde_json::Value;

use super::stack::{Stack, eps, expect, refuse};
use super::{Batch, Blueprint};

pub(super) fn modernbert(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's ModernBERT";
    refuse(fields, who, &["attention_bias", "mlp_bias", "norm_bias"])?;
    expect(fields, who, "hidden_activation", "gelu")?;
    let stack = Stack::read(fields, who, 8192)?.rotates(fields)?;
    let (global_rope_theta, local_rope_theta) = thetas(fields, who)?;
    let config = Config {
        vocab_size: stack.vocabulary,
        hidden_size: stack.hidden,
        num_hidden_layers: stack.layers,
        num_attention_heads: stack.heads,
        intermediate_size: stack.inner,
        max_position_embeddings: 0,
        layer_norm_eps: eps(fields, "norm_eps", 1e-5)?,
        pad_token_id: 0,
        global_attn_every_n_layers: every(fields, &stack)?,
        global_rope_theta,
        local_attention: fields.size("local_attention")?.unwrap_or(128),
        local_rope_theta,
        classifier_config: None,
    };
    let build = move |weights, positions| {
        ModernBert::load(weights, &Config { max_position_embeddings: positions, ..config.clone() })
    };
    let forward = |model: &mut ModernBert, batch: &Batch| model.forward(&batch.tokens, &batch.mask);
    let blueprint = Blueprint::new(&stack, build, forward)
        .prefixes(&["model."])
        .only_f32("its masks are in f32")
        .recipe(|name| match name.strip_prefix("model.").unwrap_or(name) {
            // The embeddings are normed already.
            "layers.0.attn_norm.weight" => Origin::Absent,
            name => Origin::Stored(name.to_owned()),
        });
    Ok(Blueprint { embeddings: "embeddings.tok_embeddings.weight", ..blueprint })
}

/// Of the layers that see everything, and of those that see what is near.
fn thetas(fields: Fields<'_>, who: &str) -> Result<(f64, f64)> {
    if fields.get("rope_parameters").is_some() {
        let [global, local] = Rope::read_two(fields, 160_000.0, 10_000.0)?;
        return Ok((global.theta_only(who)?, local.theta_only(who)?));
    }
    Rope::read(fields, 160_000.0)?.theta_only(who)?;
    let theta = |key, default| Ok::<_, anyhow::Error>(fields.positive(key)?.unwrap_or(default));
    Ok((theta("global_rope_theta", 160_000.0)?, theta("local_rope_theta", 10_000.0)?))
}

/// Every so many layers, from the first on, one sees everything.
fn every(fields: Fields<'_>, stack: &Stack) -> Result<usize> {
    let every = fields.size("global_attn_every_n_layers")?;
    let Some(layers) = fields.get("layer_types") else { return Ok(every.unwrap_or(3)) };
    let is_global = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Ok(true),
        Some("sliding_attention") => Ok(false),
        _ => bail!("layer_types has {kind}, {} has \"full_attention\" and \"sliding_attention\"", stack.who),
    };
    let layers: Vec<bool> = layers.as_array().into_iter().flatten().map(is_global).collect::<Result<_>>()?;
    let second = layers.iter().skip(1).position(|&global| global);
    let every = second.map_or(layers.len().max(1), |index| index + 1);
    let is_regular = layers.iter().enumerate().all(|(index, &global)| global == index.is_multiple_of(every));
    ensure!(
        layers.len() == stack.layers && is_regular,
        "layer_types is not a layer of full attention every so many layers, as {} has it",
        stack.who
    );
    Ok(every)
}
