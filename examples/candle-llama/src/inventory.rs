//! The tensors that Candle's Llama asks for, and whether the checkpoint has them.
//!
//! `Llama::load` unwraps the result of every layer, so that a missing tensor there is a panic.
//! Everything it will ask for follows from the configuration; so it is compared with the headers
//! first, and all that is wrong is in one message before a byte of data moves.

use anyhow::Result;
use candle_transformers::models::llama::Config;
use examples_support::Inventory;
use weighbridge::Checkpoint;

/// The name of the output projection, which a checkpoint with tied embeddings leaves out.
pub(crate) const LM_HEAD: &str = "lm_head.weight";

/// Checks that every tensor of the model is there in its shape.
///
/// # Errors
///
/// One line with the first few tensors that are missing or have another shape.
pub(crate) fn check(checkpoint: &Checkpoint, config: &Config) -> Result<()> {
    compare(config, checkpoint.len(), |name| checkpoint.tensor(name).map(|tensor| tensor.shape().to_vec()))
}

fn compare(config: &Config, tensors: usize, stored: impl Fn(&str) -> Option<Vec<usize>>) -> Result<()> {
    let inventory = Inventory::take(config.num_hidden_layers, tensors, expected(config), stored)?;
    let untied = "config.json does not tie the embeddings (tie_word_embeddings)";
    let hint = inventory.lacks_only(LM_HEAD).then_some(untied);
    inventory.check(hint)
}

/// Every name and shape, in the order in which a file usually has them.
fn expected(config: &Config) -> impl Iterator<Item = (String, Vec<usize>)> {
    let (hidden, inner, vocabulary) = (config.hidden_size, config.intermediate_size, config.vocab_size);
    let key_value = hidden / config.num_attention_heads * config.num_key_value_heads;

    let ends = [
        ("model.embed_tokens.weight", vec![vocabulary, hidden]),
        ("model.norm.weight", vec![hidden]),
        (LM_HEAD, vec![vocabulary, hidden]),
    ];
    let ends = ends
        .into_iter()
        .filter(|(name, _)| !(config.tie_word_embeddings && *name == LM_HEAD))
        .map(|(name, shape)| (name.to_owned(), shape));

    let layers = (0..config.num_hidden_layers).flat_map(move |layer| {
        [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![key_value, hidden]),
            ("self_attn.v_proj", vec![key_value, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ]
        .map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape))
    });
    ends.chain(layers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn config() -> Config {
        Config {
            hidden_size: 8,
            intermediate_size: 12,
            vocab_size: 20,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            tie_word_embeddings: true,
            ..Config::config_7b_v1(false)
        }
    }

    fn compare_with(config: &Config, stored: &HashMap<String, Vec<usize>>) -> String {
        compare(config, stored.len(), |name| stored.get(name).cloned())
            .err()
            .map_or(String::new(), |error| error.to_string())
    }

    #[test]
    fn a_whole_checkpoint_fits() {
        let stored: HashMap<_, _> = expected(&config()).collect();
        assert_eq!(stored.len(), 2 + 2 * 9);
        assert_eq!(stored["model.layers.1.self_attn.k_proj.weight"], [4, 8]);
        assert_eq!(stored["model.layers.1.mlp.down_proj.weight"], [8, 12]);
        assert_eq!(compare_with(&config(), &stored), "");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let mut stored: HashMap<_, _> = expected(&config()).collect();
        stored.remove("model.layers.1.mlp.up_proj.weight");
        stored.insert("model.norm.weight".into(), vec![9]);
        assert_eq!(
            compare_with(&config(), &stored),
            "the checkpoint does not fit its config.json: 1 tensor is missing: \
             \"model.layers.1.mlp.up_proj.weight\"; 1 tensor has another shape: \
             \"model.norm.weight\" is [9], the model needs [8]"
        );
    }

    #[test]
    fn untied_embeddings_need_an_output_projection() {
        let stored: HashMap<_, _> = expected(&config()).collect();
        let untied = Config { tie_word_embeddings: false, ..config() };
        let message = compare_with(&untied, &stored);
        assert!(message.contains("\"lm_head.weight\"; config.json does not tie"), "{message}");
    }

    #[test]
    fn many_problems_are_counted() {
        let stored = HashMap::from([("a".into(), vec![1]), ("b".into(), vec![1])]);
        let message = compare_with(&config(), &stored);
        assert!(message.contains("20 tensors are missing: "), "{message}");
        assert!(message.ends_with(", ..."), "{message}");
    }

    #[test]
    fn a_nonsensical_number_of_layers_ends_at_once() {
        let many = Config { num_hidden_layers: usize::MAX, ..config() };
        let message = compare_with(&many, &expected(&config()).collect());
        assert!(message.contains("num_hidden_layers"), "{message}");
    }
}
