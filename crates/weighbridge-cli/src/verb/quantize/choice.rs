//! Which tensors are quantised.

use anyhow::Result;
use weighbridge::plan::QuantizeMethod;
use weighbridge::{Names, TensorRef};

/// What becomes of a tensor.
pub(super) enum Fate {
    Quantized,
    /// It stays as it is; why, if it would be quantised were it not for its shape.
    Kept(Option<String>),
}

pub(super) struct Choice {
    method: QuantizeMethod,
    /// Only these, if there are any.
    only: Vec<Names>,
    keep: Vec<Names>,
}

impl Choice {
    pub(super) fn new(method: QuantizeMethod, only: &[String], keep: &[String]) -> Result<Self> {
        let globs = |globs: &[String]| globs.iter().map(|glob| Names::glob(glob)).collect::<Result<_, _>>();
        Ok(Self { method, only: globs(only)?, keep: globs(keep)? })
    }

    pub(super) fn fate(&self, tensor: &TensorRef<'_>) -> Fate {
        let matches = |globs: &[Names]| globs.iter().any(|names| names.contains(tensor.name()));
        let chosen = match &self.only[..] {
            [] => is_linear(tensor.name()),
            only => matches(only),
        };
        let is_weight = tensor.name().ends_with(".weight") && tensor.shape().len() == 2;
        if !chosen || !is_weight || !tensor.dtype().is_float() || matches(&self.keep) {
            return Fate::Kept(None);
        }
        match self.method.takes(tensor.dtype(), tensor.shape()) {
            Ok(()) => Fate::Quantized,
            Err(why) => Fate::Kept(Some(why)),
        }
    }
}

/// Whether the name is not that of an embedding, the head, a norm or the router of experts, which lose too
/// much or which libraries do not load quantised.
fn is_linear(name: &str) -> bool {
    const HEADS: [&str; 8] =
        ["lm_head", "output", "embed_out", "score", "classifier", "cls", "vocab_head", "head"];
    const TABLES: [&str; 7] =
        ["wte", "wpe", "shared", "tok_embeddings", "position_bias", "patch_embed", "codebook"];
    const ROUTERS: [&str; 4] = ["gate", "router", "shared_expert_gate", "wg"];
    let Some(module) = name.strip_suffix(".weight") else { return false };
    let last = module.rsplit('.').next().unwrap_or(module);
    let is = |names: &[&str]| names.contains(&last);
    let speaks_of = |part: &str| last.contains(part);
    let in_router = module.split('.').any(|part| part == "router");
    let is_norm = speaks_of("norm") || last.starts_with("ln_") || last == "ln";
    // BERT's embeddings are parts of a module called so; what projects them is not one itself.
    let is_embedding = speaks_of("embed") || speaks_of("relative_attention_bias");
    !(is(&HEADS) || is(&TABLES) || is(&ROUTERS) || in_router || is_norm || is_embedding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_layers_are_told_from_the_rest() {
        for name in [
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.mlp.gate_proj.weight",
            "model.layers.0.mlp.experts.3.down_proj.weight",
            "model.layers.0.block_sparse_moe.experts.1.w2.weight",
            "bert.encoder.layer.0.attention.output.dense.weight",
            "transformer.h.0.mlp.dense_4h_to_h.weight",
        ] {
            assert!(is_linear(name), "{name}");
        }
        for name in [
            "model.embed_tokens.weight",
            "lm_head.weight",
            "transformer.wte.weight",
            "bert.embeddings.word_embeddings.weight",
            "model.layers.0.input_layernorm.weight",
            "transformer.h.0.ln_1.weight",
            "model.layers.0.mlp.gate.weight",
            "model.layers.0.mlp.shared_expert_gate.weight",
            "model.layers.0.mlp.router.weight",
            "model.layers.0.feed_forward.router.layer.weight",
            "model.layers.0.mlp.experts.down_proj",
            "model.layers.0.self_attn.q_proj.bias",
        ] {
            assert!(!is_linear(name), "{name}");
        }
    }
}
