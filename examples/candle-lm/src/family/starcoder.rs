//! StarCoder 1 (GPT-BigCode) and 2.

use anyhow::{Result, ensure};
use candle_nn::VarBuilder;
use candle_transformers::models::{bigcode as bigcode_model, starcoder2 as starcoder2_model};
use examples_support::Fields;
use serde_json::json;

use super::decoder::{Decoder, Defaults, flag_or, refuse, window};
use super::mistral::from_json;
use super::{Blueprint, Cached, cached};

pub(super) fn starcoder2(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's StarCoder2";
    let defaults = Defaults {
        eps: ("norm_epsilon", 1e-5),
        activation: ("hidden_act", "gelu_pytorch_tanh"),
        tied: true,
        ..Defaults::default()
    };
    let decoder = Decoder::read(fields, who, &defaults)?.usual_heads()?;
    let theta = decoder.theta(fields, 10_000.0)?;
    let bias = flag_or(fields, "use_bias", true)?;
    let shape = decoder.clone();
    Ok(Blueprint::new(&decoder, move |weights, positions| {
        let config: starcoder2_model::Config = from_json(json!({
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.inner,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_value_heads,
            "hidden_act": shape.activation,
            "max_position_embeddings": positions,
            "norm_epsilon": shape.eps,
            "rope_theta": theta,
            "use_bias": bias,
            "sliding_window": null,
        }))?;
        cached!(weights, starcoder2_model::Model::new(&config, weights))
    })
    .always_ties()
    .window(window(fields, who, false)?, who))
}

struct BigCode {
    model: bigcode_model::GPTBigCode,
    config: Sizes,
    weights: VarBuilder<'static>,
}

#[derive(Clone, Copy)]
struct Sizes {
    vocabulary: usize,
    positions: usize,
    layers: usize,
    hidden: usize,
    inner: Option<usize>,
    heads: usize,
    eps: f64,
}

impl Sizes {
    fn load(self, weights: VarBuilder<'static>) -> candle_core::Result<bigcode_model::GPTBigCode> {
        let config = bigcode_model::Config {
            vocab_size: self.vocabulary,
            max_position_embeddings: self.positions,
            num_hidden_layers: self.layers,
            hidden_size: self.hidden,
            layer_norm_epsilon: self.eps,
            n_inner: self.inner,
            num_attention_heads: self.heads,
            multi_query: true,
            use_cache: true,
        };
        bigcode_model::GPTBigCode::load(weights, config)
    }
}

pub(super) fn gpt_bigcode(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's GPT-BigCode";
    refuse(fields, who, &["add_cross_attention"])?;
    ensure!(flag_or(fields, "multi_query", true)?, "multi_query is false, {who} computes with one key head");
    ensure!(flag_or(fields, "scale_attn_weights", true)?, "scale_attn_weights is false, {who} scales them");
    let activation = fields.text("activation_function")?.unwrap_or("gelu_pytorch_tanh");
    ensure!(
        matches!(activation, "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast"),
        "activation_function is \"{activation}\", {who} computes \"gelu_pytorch_tanh\""
    );
    let (hidden, heads) = (fields.required_size("n_embd")?, fields.required_size("n_head")?);
    ensure!(hidden.is_multiple_of(heads), "n_embd ({hidden}) is not a multiple of n_head ({heads})");
    let sizes = Sizes {
        vocabulary: fields.required_size("vocab_size")?,
        positions: fields.required_size("n_positions")?,
        layers: fields.required_size("n_layer")?,
        hidden,
        inner: fields.size("n_inner")?,
        heads,
        eps: fields.number("layer_norm_epsilon")?.unwrap_or(1e-5),
    };
    // It makes a mask of all positions at once.
    ensure!(sizes.positions <= 1 << 14, "n_positions is {}, {who} has a mask of its square", sizes.positions);
    let decoder = Decoder {
        who,
        hidden,
        inner: sizes.inner.unwrap_or(4 * hidden),
        vocabulary: sizes.vocabulary,
        layers: sizes.layers,
        heads,
        key_value_heads: 1,
        head_dim: hidden / heads,
        eps: sizes.eps,
        activation: candle_nn::Activation::GeluPytorchTanh,
        tied: flag_or(fields, "tie_word_embeddings", true)?,
    };
    let mut blueprint = Blueprint::new(&decoder, move |weights, _| {
        let device = weights.device().clone();
        Ok(Cached {
            model: BigCode { model: sizes.load(weights.clone())?, config: sizes, weights },
            device,
            forward: |with, tokens, position| with.model.forward(tokens, position),
            reset: |with| {
                with.model = with.config.load(with.weights.clone())?;
                Ok(())
            },
        })
    })
    .always_ties();
    blueprint.is_rebuilt = true;
    blueprint.limit = Some((sizes.positions, format!("n_positions is {}", sizes.positions)));
    Ok(blueprint)
}
