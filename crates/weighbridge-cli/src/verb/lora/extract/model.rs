//! Which tensors of a model adapters have products for.

use anyhow::Result;
use weighbridge::{Checkpoint, TensorRef};

/// What a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind<'n> {
    /// The weight of a linear layer or a convolution.
    Weight { module: &'n str, is_transposed: bool },
    /// Something else that a module has.
    Other,
    /// It is in no module.
    Alone,
}

/// What is known of the layers of a model.
pub(super) struct Layers {
    /// Whether layers of these names are stored the other way round.
    is_conv1d: bool,
}

/// What layers of the class `Conv1D` are called, of GPT-2 and its like.
const CONV1D: &[&str] = &["c_attn", "c_proj", "c_fc", "q_attn"];

impl Layers {
    pub(super) fn of(base: &Checkpoint, pairs: &[(TensorRef<'_>, TensorRef<'_>)]) -> Result<Self> {
        // Both have more outputs than inputs, whichever model they belong to.
        let is_wide = |tensor: &TensorRef<'_>| {
            let last = tensor.name().strip_suffix(".weight").and_then(|module| module.rsplit('.').next());
            matches!(last, Some("c_attn" | "c_fc"))
                && matches!(tensor.shape(), [rows, columns] if rows < columns)
        };
        let is_conv1d = base.tensors().any(|tensor| is_wide(&tensor)) && !pairs.is_empty();
        Ok(Self { is_conv1d })
    }

    /// Whether any of its layers is stored the other way round.
    pub(super) fn has_transposed(&self) -> bool {
        self.is_conv1d
    }

    pub(super) fn kind<'n>(&self, tensor: &TensorRef<'n>) -> Kind<'n> {
        let name = tensor.name();
        let Some((module, parameter)) = name.rsplit_once('.') else { return Kind::Alone };
        let last = module.rsplit('.').next().unwrap_or(module);
        let dtype = tensor.dtype();
        let is_float =
            dtype.is_float() && matches!(dtype.name(), "F32" | "F16" | "BF16" | "F8_E4M3" | "F8_E5M2");
        let is_matrix = matches!(tensor.shape().len(), 2..=5) && tensor.shape().iter().all(|&dim| dim > 0);
        if parameter != "weight" || !is_matrix || !is_float || is_embedding(last) || last.ends_with("norm") {
            return Kind::Other;
        }
        Kind::Weight { module, is_transposed: self.is_conv1d && CONV1D.contains(&last) }
    }
}

/// Whether a module of this name looks rows up.
fn is_embedding(last: &str) -> bool {
    const NAMES: &[&str] = &["wte", "wpe", "shared", "tok_embeddings", "relative_attention_bias", "emb"];
    let is_linear = last.ends_with("_proj") || last.contains("projection");
    NAMES.contains(&last)
        || (!is_linear
            && (last.starts_with("embed") || last.ends_with("embedding") || last.ends_with("embeddings")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_are_no_weights_of_layers() {
        let embeddings = ["embed_tokens", "wte", "wpe", "word_embeddings", "position_embedding", "embed_in"];
        assert!(embeddings.iter().all(|name| is_embedding(name)));
        let others = ["q_proj", "lm_head", "embedding_hidden_mapping_in_proj", "embed_proj", "fc1", "0"];
        assert!(others.iter().all(|name| !is_embedding(name)));
    }
}
