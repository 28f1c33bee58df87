//! BERT, and what has the same layers.

use anyhow::{Result, bail, ensure};
use candle_nn::Activation;
use candle_nn::Module;
use candle_transformers::models::{bert as bert_model, jina_bert as jina_model};
use examples_support::Fields;
use examples_support::weights::Origin;

use super::stack::{Stack, activation, encoder, eps, expect, refuse};
use super::{Batch, Blueprint};

/// Candle makes its mask of the smallest `f32`, which is infinite in 16 bits, and of zero times that, which is no number.
const MASK: &str = "its mask is not a number in 16 bits";

pub(super) fn bert(fields: Fields<'_>) -> Result<Blueprint> {
    if fields.text("position_embedding_type")? == Some("alibi") {
        return jina(fields);
    }
    let who = "Candle's BERT";
    encoder(fields, who, "absolute")?;
    let stack = Stack::read(fields, who, 512)?;
    let types = fields.size("type_vocab_size")?.unwrap_or(2);
    let config = config(fields, &stack, types, "hidden_act")?;
    Ok(blueprint(&stack, config).prefixes(&["bert."]))
}

/// A BERT, if its embeddings are as wide as its layers.
pub(super) fn electra(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's BERT";
    encoder(fields, who, "absolute")?;
    let stack = Stack::read(fields, who, 512)?;
    let width = fields.size("embedding_size")?.unwrap_or(128);
    ensure!(
        width == stack.hidden,
        "embedding_size is {width}, {who} has embeddings of hidden_size ({})",
        stack.hidden
    );
    let types = fields.size("type_vocab_size")?.unwrap_or(2);
    let config = config(fields, &stack, types, "hidden_act")?;
    Ok(blueprint(&stack, config).prefixes(&["electra."]))
}

/// A BERT without types of tokens, under other names. Candle's own code for it approximates GELU.
pub(super) fn distilbert(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's BERT";
    refuse(fields, who, &["sinusoidal_pos_embds"])?;
    let positions = fields.size("max_position_embeddings")?.unwrap_or(512);
    let size = |key, default| Ok::<_, anyhow::Error>(fields.size(key)?.unwrap_or(default));
    let stack = Stack {
        who,
        vocabulary: fields.required_size("vocab_size")?,
        hidden: size("dim", 768)?,
        inner: size("hidden_dim", 3072)?,
        layers: size("n_layers", 6)?,
        heads: size("n_heads", 12)?,
        positions: Some(positions),
        limit: Some(positions),
    }
    .check()?;
    let config = bert_model::Config { layer_norm_eps: 1e-12, ..config(fields, &stack, 1, "activation")? };
    Ok(blueprint(&stack, config).prefixes(&["distilbert."]).recipe(|name| {
        if name == "embeddings.token_type_embeddings.weight" {
            return Origin::Zeros;
        }
        let mut name = name.replace("encoder.layer.", "transformer.layer.");
        for (of_bert, of_distilbert) in [
            ("attention.self.query", "attention.q_lin"),
            ("attention.self.key", "attention.k_lin"),
            ("attention.self.value", "attention.v_lin"),
            ("attention.output.dense", "attention.out_lin"),
            ("attention.output.LayerNorm", "sa_layer_norm"),
            ("intermediate.dense", "ffn.lin1"),
            ("output.dense", "ffn.lin2"),
            ("output.LayerNorm", "output_layer_norm"),
        ] {
            name = name.replace(of_bert, of_distilbert);
        }
        Origin::Stored(name)
    }))
}

fn config(fields: Fields<'_>, stack: &Stack, types: usize, act: &str) -> Result<bert_model::Config> {
    let hidden_act = match activation(fields, act, "gelu")? {
        Activation::Gelu => bert_model::HiddenAct::Gelu,
        Activation::GeluPytorchTanh => bert_model::HiddenAct::GeluApproximate,
        Activation::Relu => bert_model::HiddenAct::Relu,
        _ => bail!("{act} is \"silu\", {} computes \"gelu\", \"gelu_new\" and \"relu\"", stack.who),
    };
    Ok(bert_model::Config {
        vocab_size: stack.vocabulary,
        hidden_size: stack.hidden,
        num_hidden_layers: stack.layers,
        num_attention_heads: stack.heads,
        intermediate_size: stack.inner,
        hidden_act,
        max_position_embeddings: stack.positions.unwrap_or(512),
        type_vocab_size: types,
        layer_norm_eps: eps(fields, "layer_norm_eps", 1e-12)?,
        // Candle would try names with this before the weights' own.
        model_type: None,
        ..bert_model::Config::default()
    })
}

fn blueprint(stack: &Stack, config: bert_model::Config) -> Blueprint {
    let forward = |model: &mut bert_model::BertModel, batch: &Batch| {
        model.forward(&batch.tokens, &batch.tokens.zeros_like()?, Some(&batch.mask))
    };
    Blueprint::new(stack, move |weights, _| bert_model::BertModel::load(weights, &config), forward)
        .only_f32(MASK)
}

/// Jina's, version 2: a BERT with gates, whose attention fades with distance.
fn jina(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's JinaBERT";
    encoder(fields, who, "alibi")?;
    expect(fields, who, "feed_forward_type", "geglu")?;
    let stack = Stack { limit: None, ..Stack::read(fields, who, 512)? };
    let code = fields.get("auto_map").map(ToString::to_string).unwrap_or_default();
    ensure!(!code.contains("qk-post-norm"), "auto_map norms queries and keys, {who} computes without");
    let config = jina_model::Config {
        vocab_size: stack.vocabulary,
        hidden_size: stack.hidden,
        num_hidden_layers: stack.layers,
        num_attention_heads: stack.heads,
        intermediate_size: stack.inner,
        hidden_act: Activation::Gelu,
        max_position_embeddings: 0,
        type_vocab_size: fields.size("type_vocab_size")?.unwrap_or(2),
        layer_norm_eps: eps(fields, "layer_norm_eps", 1e-12)?,
        position_embedding_type: jina_model::PositionEmbeddingType::Alibi,
        ..jina_model::Config::v2_base()
    };
    // The table of distances has the square of so many elements for each head.
    let build = move |weights, positions| {
        let config = jina_model::Config { max_position_embeddings: positions, ..config.clone() };
        jina_model::BertModel::new(weights, &config)
    };
    let forward = |model: &mut jina_model::BertModel, batch: &Batch| Module::forward(model, &batch.tokens);
    let blueprint = Blueprint::new(&stack, build, forward).prefixes(&["bert."]);
    Ok(Blueprint { masks_padding: false, ..blueprint.only_f32("its table of distances is in f32") })
}
