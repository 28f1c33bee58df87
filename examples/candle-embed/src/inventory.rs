//! The tensors that Candle's BERT asks for, and whether the checkpoint has them.
//!
//! Comparing them with the headers first puts all that is wrong into one message, before a byte of
//! data moves.

use anyhow::Result;
use candle_transformers::models::bert::Config;
use examples_support::Inventory;
use weighbridge::Checkpoint;

/// Checks that every tensor of the model is there in its shape, and returns the prefix of their
/// names.
///
/// # Errors
///
/// One line with the first few tensors that are missing or have another shape.
pub(crate) fn check(checkpoint: &Checkpoint, config: &Config) -> Result<&'static str> {
    compare(config, checkpoint.len(), |name| checkpoint.tensor(name).map(|tensor| tensor.shape().to_vec()))
}

fn compare(
    config: &Config,
    tensors: usize,
    stored: impl Fn(&str) -> Option<Vec<usize>>,
) -> Result<&'static str> {
    // A checkpoint of the bare model has no prefix; with a head for a task, it has.
    let prefix = match stored("bert.embeddings.word_embeddings.weight") {
        Some(_) => "bert",
        None => "",
    };
    let named = |(name, shape)| match prefix {
        "" => (name, shape),
        prefix => (format!("{prefix}.{name}"), shape),
    };
    let stored = |name: &str| stored(name).or_else(|| stored(&old_name(name)?));
    let inventory = Inventory::take(config.num_hidden_layers, tensors, expected(config).map(named), stored)?;
    inventory.check(None)?;
    Ok(prefix)
}

/// Google's first checkpoints, `bert-base-uncased` among them, name the parts of a norm like this;
/// Candle finds those, too.
fn old_name(name: &str) -> Option<String> {
    let (norm, part) = name.rsplit_once("LayerNorm.")?;
    let old = if part == "weight" { "gamma" } else { "beta" };
    Some(format!("{norm}LayerNorm.{old}"))
}

/// Every name, without a prefix, and shape.
fn expected(config: &Config) -> impl Iterator<Item = (String, Vec<usize>)> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let embeddings = [
        ("word_embeddings.weight", vec![config.vocab_size, hidden]),
        ("position_embeddings.weight", vec![config.max_position_embeddings, hidden]),
        ("token_type_embeddings.weight", vec![config.type_vocab_size, hidden]),
        ("LayerNorm.weight", vec![hidden]),
        ("LayerNorm.bias", vec![hidden]),
    ]
    .map(|(part, shape)| (format!("embeddings.{part}"), shape));

    let layers = (0..config.num_hidden_layers).flat_map(move |layer| {
        [
            ("attention.self.query", hidden, Some(hidden)),
            ("attention.self.key", hidden, Some(hidden)),
            ("attention.self.value", hidden, Some(hidden)),
            ("attention.output.dense", hidden, Some(hidden)),
            ("attention.output.LayerNorm", hidden, None),
            ("intermediate.dense", inner, Some(hidden)),
            ("output.dense", hidden, Some(inner)),
            ("output.LayerNorm", hidden, None),
        ]
        .into_iter()
        .flat_map(move |(part, outputs, inputs)| {
            let name = format!("encoder.layer.{layer}.{part}");
            let weight = std::iter::once(outputs).chain(inputs).collect();
            [(format!("{name}.weight"), weight), (format!("{name}.bias"), vec![outputs])]
        })
    });
    embeddings.into_iter().chain(layers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn config() -> Config {
        Config {
            vocab_size: 20,
            hidden_size: 8,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            intermediate_size: 12,
            max_position_embeddings: 16,
            ..Config::default()
        }
    }

    fn compare_with(stored: &HashMap<String, Vec<usize>>) -> Result<&'static str, String> {
        compare(&config(), stored.len(), |name| stored.get(name).cloned()).map_err(|error| error.to_string())
    }

    #[test]
    fn with_and_without_prefix_and_with_old_names() {
        let bare: HashMap<_, _> = expected(&config()).collect();
        assert_eq!(bare.len(), 5 + 2 * 16);
        assert_eq!(bare["encoder.layer.1.output.dense.weight"], [8, 12]);
        assert_eq!(compare_with(&bare), Ok(""));

        let prefixed = bare.iter().map(|(name, shape)| (format!("bert.{name}"), shape.clone()));
        assert_eq!(compare_with(&prefixed.collect()), Ok("bert"));

        let old = bare.iter().map(|(name, shape)| {
            let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
            (name.replace("LayerNorm.bias", "LayerNorm.beta"), shape.clone())
        });
        assert_eq!(compare_with(&old.collect()), Ok(""));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let mut stored: HashMap<_, _> = expected(&config()).collect();
        stored.remove("encoder.layer.0.attention.output.LayerNorm.bias");
        stored.insert("embeddings.word_embeddings.weight".into(), vec![21, 8]);
        assert_eq!(
            compare_with(&stored).unwrap_err(),
            "the checkpoint does not fit its config.json: 1 tensor is missing: \
             \"encoder.layer.0.attention.output.LayerNorm.bias\"; 1 tensor has another shape: \
             \"embeddings.word_embeddings.weight\" is [21, 8], the model needs [20, 8]"
        );
    }
}
