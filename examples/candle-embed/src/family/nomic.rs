//! Nomic's BERT, whose configuration is its authors' own, or the one of transformers 5.

use anyhow::{Result, ensure};
use candle_transformers::models::nomic_bert::{Config, NomicBertModel};
use examples_support::Fields;
use examples_support::rope::Rope;

use super::stack::{Stack, encoder, eps, expect, refuse, size_or_zero};
use super::{Batch, Blueprint};

const WHO: &str = "Candle's NomicBERT";

pub(super) fn nomic(fields: Fields<'_>) -> Result<Blueprint> {
    let types = size_or_zero(fields, "type_vocab_size", 2)?;
    let common = Config { type_vocab_size: types, model_type: None, ..Config::default() };
    let (stack, config) =
        if fields.get("n_embd").is_some() { authors(fields, common)? } else { transformers(fields, common)? };
    let config = Config {
        vocab_size: stack.vocabulary,
        n_embd: stack.hidden,
        n_head: stack.heads,
        n_layer: stack.layers,
        n_inner: stack.inner,
        ..config
    };
    let build = move |weights, positions| {
        NomicBertModel::load(weights, &Config { n_positions: positions, ..config.clone() })
    };
    let forward =
        |model: &mut NomicBertModel, batch: &Batch| model.forward(&batch.tokens, None, Some(&batch.mask));
    Ok(Blueprint::new(&stack, build, forward).prefixes(&["bert.", "nomic_bert."]))
}

fn transformers(fields: Fields<'_>, common: Config) -> Result<(Stack, Config)> {
    encoder(fields, WHO, "rope")?;
    expect(fields, WHO, "hidden_act", "silu")?;
    let stack = Stack::read(fields, WHO, 2048)?.rotates(fields)?;
    let config = Config {
        layer_norm_epsilon: eps(fields, "layer_norm_eps", 1e-12)?,
        rotary_emb_base: Rope::read(fields, 1000.0)?.theta_only(WHO)?,
        ..common
    };
    Ok((stack, config))
}

fn authors(fields: Fields<'_>, common: Config) -> Result<(Stack, Config)> {
    expect(fields, WHO, "activation_function", "swiglu")?;
    refuse(fields, WHO, &["prenorm", "parallel_block", "use_rms_norm", "causal"])?;
    for key in ["moe_every_n_layers", "num_experts", "rotary_emb_scale_base"] {
        let found = fields.number(key)?.unwrap_or(0.0);
        ensure!(found == 0.0 || (key == "num_experts" && found == 1.0), "{key} is {found}, {WHO} has none");
    }
    let fraction = fields.number("rotary_emb_fraction")?.unwrap_or(0.0);
    ensure!(fraction == 1.0, "rotary_emb_fraction is {fraction}, {WHO} rotates all of a head");
    // Beyond what it was trained for, frequencies would depend on the length of the text.
    let scales = fields.get("rotary_scaling_factor").is_some();
    let trained = fields.size("max_trained_positions")?.unwrap_or(2048);
    let stack = Stack {
        who: WHO,
        vocabulary: fields.required_size("vocab_size")?,
        hidden: fields.required_size("n_embd")?,
        inner: fields.required_size("n_inner")?,
        layers: fields.required_size("n_layer")?,
        heads: fields.required_size("n_head")?,
        positions: Some(fields.size("n_positions")?.unwrap_or(2048)),
        limit: None,
    }
    .check()?
    .rotates(fields)?;
    let stack = Stack { limit: scales.then_some(trained), ..stack };
    let config = Config {
        layer_norm_epsilon: eps(fields, "layer_norm_epsilon", 1e-5)?,
        rotary_emb_base: fields.positive("rotary_emb_base")?.unwrap_or(10_000.0),
        rotary_emb_interleaved: fields.flag("rotary_emb_interleaved")?,
        qkv_proj_bias: fields.get("qkv_proj_bias").is_none() || fields.flag("qkv_proj_bias")?,
        mlp_fc1_bias: fields.get("mlp_fc1_bias").is_none() || fields.flag("mlp_fc1_bias")?,
        mlp_fc2_bias: fields.get("mlp_fc2_bias").is_none() || fields.flag("mlp_fc2_bias")?,
        ..common
    };
    Ok((stack, config))
}
