//! What `config.json` says, as transformers 4 and 5 write it, and what the model here does not compute.

use anyhow::{Context, Result, anyhow, bail, ensure};
use examples_support::{Fields, mismatch};
use serde_json::{Map, Value};

use crate::rotary::{Rope, Scaling};

/// The shape of a Llama, and how it computes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LlamaConfig {
    pub(crate) vocabulary: usize,
    pub(crate) hidden: usize,
    /// Inside of a feed-forward block.
    pub(crate) inner: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) key_value_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) norm_epsilon: f64,
    pub(crate) rope: Rope,
    pub(crate) attention_bias: bool,
    pub(crate) mlp_bias: bool,
    /// The output projection is the embedding.
    pub(crate) tied: bool,
    /// The standard deviation of new weights.
    pub(crate) spread: f64,
    /// The tokens after which a text ends, at least one.
    pub(crate) ends: Vec<u32>,
}

impl LlamaConfig {
    /// From the contents of `config.json` and, where there is one, of `generation_config.json`, which alone decides then
    /// what ends a text: that is what transformers does.
    ///
    /// # Errors
    ///
    /// One line that names the key.
    pub(crate) fn parse(
        config: &Map<String, Value>,
        generation: Option<&Map<String, Value>>,
    ) -> Result<Self> {
        let fields = Fields(config);
        refuse_other_models(fields)?;
        let hidden = fields.required_size("hidden_size")?;
        let heads = fields.required_size("num_attention_heads")?;
        let key_value_heads = fields.size("num_key_value_heads")?.unwrap_or(heads);
        ensure!(
            heads.is_multiple_of(key_value_heads),
            "num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({key_value_heads})"
        );
        let head_dim = match fields.size("head_dim")? {
            Some(head_dim) => head_dim,
            None => {
                ensure!(
                    hidden.is_multiple_of(heads),
                    "hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads})"
                );
                hidden / heads
            }
        };
        ensure!(head_dim.is_multiple_of(2), "head_dim is {head_dim}, rotary embeddings need an even number");
        let ends = match generation {
            Some(generation) => {
                Fields(generation).tokens("eos_token_id").context("generation_config.json")?
            }
            None => fields.tokens("eos_token_id")?,
        };
        let ends = ends.unwrap_or_default();
        ensure!(!ends.is_empty(), "there is no eos_token_id, so that no answer would end");
        Ok(Self {
            vocabulary: fields.required_size("vocab_size")?,
            hidden,
            inner: fields.required_size("intermediate_size")?,
            layers: fields.required_size("num_hidden_layers")?,
            heads,
            key_value_heads,
            head_dim,
            norm_epsilon: fields.positive("rms_norm_eps")?.unwrap_or(1e-6),
            rope: rope(fields)?,
            attention_bias: fields.flag("attention_bias")?,
            mlp_bias: fields.flag("mlp_bias")?,
            tied: fields.flag("tie_word_embeddings")?,
            spread: fields.positive("initializer_range")?.unwrap_or(0.02),
            ends,
        })
    }
}

/// Refuses every key with which transformers computes something else than the model here.
fn refuse_other_models(fields: Fields<'_>) -> Result<()> {
    match fields.text("model_type")? {
        Some("llama") => {}
        Some(other) => bail!("model_type is \"{other}\", this program has \"llama\""),
        None => bail!("there is no model_type, this program has \"llama\""),
    }
    let activation = fields.text("hidden_act")?.unwrap_or("silu");
    ensure!(
        matches!(activation, "silu" | "swish"),
        "hidden_act is \"{activation}\", this program computes \"silu\""
    );
    Ok(())
}

/// Transformers 5 writes one dictionary, `rope_parameters`; transformers 4 writes `rope_theta` beside a `rope_scaling`
/// that is null or a dictionary, whose `rope_type` was once called `type`.
fn rope(fields: Fields<'_>) -> Result<Rope> {
    let nothing = Map::new();
    let dictionary = |key| match fields.get(key) {
        None => Ok(None),
        Some(Value::Object(map)) => Ok(Some((key, map)).filter(|(_, map)| !map.is_empty())),
        Some(other) => Err(mismatch(key, "an object", other)),
    };
    let (name, parameters) = match dictionary("rope_scaling")? {
        Some(found) => found,
        None => dictionary("rope_parameters")?.unwrap_or(("rope_parameters", &nothing)),
    };
    let parameters = Fields(parameters);
    let kind = match parameters.text("rope_type").context(name)? {
        Some(kind) => Some(kind),
        None => parameters.text("type").context(name)?,
    };
    let scaling = match kind {
        None | Some("default") => None,
        Some("llama3") => Some(llama3(fields, parameters).context(name)?),
        Some(other) => {
            bail!("{name}: the rope type is \"{other}\", this program computes \"default\" and \"llama3\"")
        }
    };
    for partial in [parameters, fields] {
        let factor = partial.number("partial_rotary_factor")?.unwrap_or(1.0);
        ensure!(factor == 1.0, "partial_rotary_factor is {factor}, this program rotates all of a head");
    }
    let theta = match parameters.positive("rope_theta").context(name)? {
        Some(theta) => theta,
        None => fields.positive("rope_theta")?.unwrap_or(10_000.0),
    };
    Ok(Rope { theta, scaling })
}

fn llama3(fields: Fields<'_>, parameters: Fields<'_>) -> Result<Scaling> {
    let required =
        |key| parameters.positive(key)?.ok_or_else(|| anyhow!("rope type \"llama3\" without {key}"));
    let (low, high) = (required("low_freq_factor")?, required("high_freq_factor")?);
    ensure!(low < high, "low_freq_factor ({low}) is not below high_freq_factor ({high})");
    let original = "original_max_position_embeddings";
    let length = match (fields.size(original)?, parameters.size(original)?) {
        (Some(length), _) | (None, Some(length)) => length,
        (None, None) => fields.size("max_position_embeddings")?.unwrap_or(2048),
    };
    Ok(Scaling {
        factor: required("factor")?,
        low_freq_factor: low,
        high_freq_factor: high,
        original_length: length as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use examples_support::one_line;
    use serde_json::json;

    /// As transformers 4 wrote Llama 2.
    fn version_4() -> Value {
        json!({
            "model_type": "llama", "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 64,
            "intermediate_size": 96, "num_attention_heads": 8, "num_hidden_layers": 3, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 500000.0, "vocab_size": 100
        })
    }

    fn parse(config: &Value) -> Result<LlamaConfig> {
        LlamaConfig::parse(config.as_object().unwrap(), None)
    }

    #[test]
    fn both_versions_are_read() {
        let old = parse(&version_4()).unwrap();
        assert_eq!((old.head_dim, old.key_value_heads, old.rope.theta), (8, 2, 500_000.0));
        assert_eq!((old.norm_epsilon, old.tied, &*old.ends), (1e-5, false, &[2][..]));

        let mut config = version_4();
        config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 250.0});
        config["head_dim"] = json!(16);
        let new = parse(&config).unwrap();
        assert_eq!((new.head_dim, new.rope.theta), (16, 250.0));
        assert_eq!(new.rope.scaling, None);
    }

    #[test]
    fn llama3_scaling_is_read() {
        let mut config = version_4();
        config["rope_scaling"] = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192
        });
        let scaling = parse(&config).unwrap().rope.scaling.unwrap();
        assert_eq!((scaling.factor, scaling.high_freq_factor, scaling.original_length), (8.0, 4.0, 8192.0));
        config["rope_scaling"]["low_freq_factor"] = json!(4.0);
        assert!(one_line(&parse(&config).unwrap_err()).contains("low_freq_factor (4) is not below"));
    }

    #[test]
    fn generation_decides_what_ends_a_text() {
        let (config, generation) = (version_4(), json!({"eos_token_id": [7, 9]}));
        let both = LlamaConfig::parse(config.as_object().unwrap(), generation.as_object());
        assert_eq!(both.unwrap().ends, [7, 9]);
    }

    #[test]
    fn what_is_not_computed_is_refused() {
        for (key, value, message) in [
            ("model_type", json!("mistral"), "model_type is \"mistral\""),
            ("hidden_act", json!("gelu"), "hidden_act is \"gelu\""),
            ("hidden_size", json!(0), "hidden_size: expected a whole number"),
            ("hidden_size", json!(63), "is not a multiple of num_attention_heads"),
            ("num_key_value_heads", json!(3), "is not a multiple of num_key_value_heads"),
            ("head_dim", json!(7), "head_dim is 7"),
            ("vocab_size", json!(1_u64 << 40), "vocab_size: expected"),
            ("rope_scaling", json!({"type": "linear"}), "the rope type is \"linear\""),
            ("eos_token_id", json!(null), "there is no eos_token_id"),
            ("rms_norm_eps", json!("small"), "rms_norm_eps: expected a number above zero, found \"small\""),
        ] {
            let mut config = version_4();
            config[key] = value;
            let error = one_line(&parse(&config).unwrap_err());
            assert!(error.contains(message), "{key}: {error}");
        }
    }
}
