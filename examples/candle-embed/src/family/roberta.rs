//! RoBERTa, XLM-RoBERTa and CamemBERT, which differ in their tokens only.

use anyhow::{Result, anyhow};
use candle_transformers::models::xlm_roberta::{Config, XLMRobertaModel};
use examples_support::Fields;

use super::stack::{Stack, activation, encoder, eps, token};
use super::{Batch, Blueprint};

pub(super) fn roberta(fields: Fields<'_>) -> Result<Blueprint> {
    let who = "Candle's XLM-RoBERTa";
    encoder(fields, who, "absolute")?;
    let mut stack = Stack::read(fields, who, 512)?;
    let padding = token(fields, "pad_token_id", 1)?;
    let max_position_embeddings = stack.positions.unwrap_or(512);
    // The first token has the position after that of padding, which is numbered as its token is.
    let positions = max_position_embeddings.checked_sub(padding as usize + 1).filter(|&count| count > 0);
    let too_few = || {
        anyhow!(
            "max_position_embeddings ({max_position_embeddings}) is too small for pad_token_id ({padding})"
        )
    };
    stack.limit = Some(positions.ok_or_else(too_few)?);
    let config = Config {
        hidden_size: stack.hidden,
        layer_norm_eps: eps(fields, "layer_norm_eps", 1e-12)?,
        attention_probs_dropout_prob: 0.0,
        hidden_dropout_prob: 0.0,
        num_attention_heads: stack.heads,
        position_embedding_type: "absolute".to_owned(),
        intermediate_size: stack.inner,
        hidden_act: activation(fields, "hidden_act", "gelu")?,
        num_hidden_layers: stack.layers,
        vocab_size: stack.vocabulary,
        max_position_embeddings,
        type_vocab_size: fields.size("type_vocab_size")?.unwrap_or(2),
        pad_token_id: padding,
    };
    let forward = |model: &mut XLMRobertaModel, batch: &Batch| {
        model.forward(&batch.tokens, &batch.mask, &batch.tokens.zeros_like()?, None, None, None)
    };
    let blueprint = Blueprint::new(&stack, move |weights, _| XLMRobertaModel::new(&config, weights), forward)
        .prefixes(&["roberta.", "camembert."])
        .only_f32("it counts positions in the dtype of the weights");
    Ok(Blueprint { padding, ..blueprint })
}
