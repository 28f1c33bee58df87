//! Alibaba's GTE, version 1.5 and multilingual: `new` is its authors' name for it, `gte` that of transformers 5.

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_transformers::models::stella_en_v5::{Config, Model, ModelVariant};
use examples_support::Fields;
use examples_support::rope::Rope;
use examples_support::weights::Origin;
use serde_json::Value;

use super::stack::{Stack, activation, encoder, eps, expect, refuse, size_or_zero};
use super::{Batch, Blueprint};

const WHO: &str = "Candle's Stella";

pub(super) fn gte(fields: Fields<'_>) -> Result<Blueprint> {
    encoder(fields, WHO, "rope")?;
    let theta = Rope::read(fields, 160_000.0)?.theta_only(WHO)?;
    blueprint(fields, theta, 0.0, 1)
}

pub(super) fn new(fields: Fields<'_>) -> Result<Blueprint> {
    expect(fields, WHO, "position_embedding_type", "rope")?;
    expect(fields, WHO, "layer_norm_type", "layer_norm")?;
    refuse(fields, WHO, &["logn_attention_scale"])?;
    ensure!(fields.get("pack_qkv") != Some(&Value::Bool(false)), "pack_qkv is false, {WHO} has them packed");
    let theta = fields.positive("rope_theta")?.unwrap_or(10_000.0);
    let factor = match fields.get("rope_scaling") {
        None => 0.0,
        Some(Value::Object(scaling)) => ntk(Fields(scaling)).context("rope_scaling")?,
        Some(other) => bail!("rope_scaling is {other}, not an object"),
    };
    blueprint(fields, theta, factor, 0)
}

fn ntk(scaling: Fields<'_>) -> Result<f64> {
    let kind = scaling.text("type")?.unwrap_or_default();
    ensure!(kind == "ntk", "type is \"{kind}\", {WHO} computes \"ntk\"");
    ensure!(scaling.get("mixed_b").is_none(), "mixed_b is set, {WHO} computes without");
    scaling
        .positive("factor")?
        .filter(|&factor| factor > 1.0)
        .ok_or_else(|| anyhow!("there is no factor above 1"))
}

fn blueprint(fields: Fields<'_>, rope_theta: f64, scaling_factor: f64, types: usize) -> Result<Blueprint> {
    let stack = Stack::read(fields, WHO, 8192)?.rotates(fields)?;
    let types = size_or_zero(fields, "type_vocab_size", types)?;
    let config = Config {
        variant: ModelVariant::Small,
        vocab_size: stack.vocabulary,
        hidden_size: stack.hidden,
        intermediate_size: stack.inner,
        num_hidden_layers: stack.layers,
        num_attention_heads: stack.heads,
        max_position_embeddings: 0,
        rope_theta,
        norm_eps: eps(fields, "layer_norm_eps", 1e-12)?,
        activation_fn: activation(fields, "hidden_act", "gelu")?,
        type_vocab_size: types.max(1),
        scaling_factor,
        ..Config::default()
    };
    let build = move |weights, positions| {
        Model::new(&Config { max_position_embeddings: positions, ..config.clone() }, weights)
    };
    let forward = |model: &mut Model, batch: &Batch| model.forward(&batch.tokens, &batch.mask);
    Ok(Blueprint::new(&stack, build, forward)
        .prefixes(&["new.", "gte."])
        .only_f32("it computes rotary positions in the dtype of the weights")
        .recipe(move |name| match name.strip_prefix("new.").unwrap_or(name) {
            "embeddings.token_type_embeddings.weight" if types == 0 => Origin::Zeros,
            name => Origin::Stored(name.to_owned()),
        }))
}
