//! The encoder of T5: Sentence-T5 and GTR.

use anyhow::{Result, bail, ensure};
use candle_nn::Activation;
use candle_transformers::models::t5::{ActivationWithOptionalGating, Config, T5EncoderModel};
use examples_support::Fields;

use super::stack::{Stack, eps, expect, refuse};
use super::{Batch, Blueprint};

pub(super) fn t5(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's T5";
    let stack = Stack {
        who,
        vocabulary: fields.required_size("vocab_size")?,
        hidden: fields.required_size("d_model")?,
        inner: fields.required_size("d_ff")?,
        layers: fields.required_size("num_layers")?,
        heads: fields.required_size("num_heads")?,
        // Distances are what it knows.
        positions: None,
        limit: None,
    };
    refuse(fields, who, &["is_decoder"])?;
    let (gated, activation, name) = match fields.text("feed_forward_proj")?.unwrap_or("relu") {
        "relu" => (false, Activation::Relu, "relu"),
        "gated-gelu" => (true, Activation::NewGelu, "gelu_new"),
        "gated-silu" => (true, Activation::Silu, "silu"),
        other => bail!(
            "feed_forward_proj is \"{other}\", {who} computes \"relu\", \"gated-gelu\" and \"gated-silu\""
        ),
    };
    // Transformers writes what follows from that, and reads it, too.
    expect(fields, who, "dense_act_fn", name)?;
    let is_gated = fields.get("is_gated_act").is_none() || fields.flag("is_gated_act")? == gated;
    ensure!(is_gated, "is_gated_act is not what feed_forward_proj says, which {who} goes by");
    let (buckets, far) = ("relative_attention_num_buckets", "relative_attention_max_distance");
    let config = Config {
        vocab_size: stack.vocabulary,
        d_model: stack.hidden,
        d_kv: fields.required_size("d_kv")?,
        d_ff: stack.inner,
        num_layers: stack.layers,
        num_heads: stack.heads,
        relative_attention_num_buckets: fields.size(buckets)?.unwrap_or(32),
        relative_attention_max_distance: fields.size(far)?.unwrap_or(128),
        layer_norm_epsilon: eps(fields, "layer_norm_epsilon", 1e-6)?,
        feed_forward_proj: ActivationWithOptionalGating { gated, activation },
        ..Config::default()
    };
    let (count, distance) = (config.relative_attention_num_buckets, config.relative_attention_max_distance);
    ensure!(
        count.is_multiple_of(4) && distance > count / 4,
        "{buckets} is {count} and {far} {distance}, {who} needs a multiple of 4 and more than a quarter of that"
    );
    let forward = |model: &mut T5EncoderModel, batch: &Batch| {
        model.clear_kv_cache();
        model.forward(&batch.tokens)
    };
    let blueprint = Blueprint::new(&stack, move |weights, _| T5EncoderModel::load(weights, &config), forward);
    Ok(Blueprint { masks_padding: false, ..blueprint })
}
