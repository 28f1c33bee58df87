//! What `config.json` says, as transformers 4 and 5 write it, and what the model here does not compute.

use anyhow::{Context, Result, bail, ensure};
use examples_support::Fields;
use examples_support::attention::{flag_or, full_attention, window};
use examples_support::rope::Rope;
use serde_json::{Map, Value};

use crate::model::speeds;

/// The model here, for messages.
const WHO: &str = "this program";

/// The `model_type`s of config.json that are computed.
const FAMILIES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

/// The shape of a Llama, and how it computes.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// The number of tokens that it knows.
    pub vocabulary: usize,
    pub(crate) hidden: usize,
    /// Inside of a feed-forward block.
    pub(crate) inner: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) key_value_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) norm_epsilon: f64,
    /// By how much positions turn each pair of a head's elements.
    pub(crate) speeds: Vec<f32>,
    pub(crate) qkv_bias: bool,
    pub(crate) o_bias: bool,
    pub(crate) mlp_bias: bool,
    /// The queries and keys of each head are normed.
    pub(crate) head_norms: bool,
    /// The output projection is the embedding.
    pub tied: bool,
    /// The standard deviation of new weights.
    pub(crate) spread: f64,
    /// So many tokens are right, where some layers attend to the last ones only.
    pub(crate) window: Option<usize>,
    /// The tokens after which a text ends.
    pub ends: Vec<u32>,
}

impl LlamaConfig {
    /// From the contents of `config.json` and, where there is one, of `generation_config.json`, which alone decides then
    /// what ends a text: that is what transformers does.
    ///
    /// # Errors
    ///
    /// One line that names the key.
    pub fn parse(config: &Map<String, Value>, generation: Option<&Map<String, Value>>) -> Result<Self> {
        let fields = Fields(config);
        let family = family(fields)?;
        let attention_bias = fields.flag("attention_bias")?;
        ensure!(
            !attention_bias || matches!(family, "llama" | "qwen3"),
            "attention_bias is true, {WHO} computes without for \"{family}\""
        );
        ensure!(
            !fields.flag("mlp_bias")? || family == "llama",
            "mlp_bias is true, {WHO} computes without for \"{family}\""
        );
        let hidden = fields.required_size("hidden_size")?;
        let heads = fields.required_size("num_attention_heads")?;
        let key_value_heads = fields.size("num_key_value_heads")?.unwrap_or(heads);
        ensure!(
            heads.is_multiple_of(key_value_heads),
            "num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({key_value_heads})"
        );
        let head_dim = match fields.size("head_dim")?.or((family == "qwen3").then_some(128)) {
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
        let window = match family {
            "llama" => full_attention(fields, WHO).map(|()| None)?,
            "mistral" => window(fields, WHO, false)?,
            _ => window(fields, WHO, true)?,
        };
        let ends = match generation {
            Some(generation) => {
                Fields(generation).tokens("eos_token_id").context("generation_config.json")?
            }
            None => fields.tokens("eos_token_id")?,
        };
        Ok(Self {
            vocabulary: fields.required_size("vocab_size")?,
            hidden,
            inner: fields.required_size("intermediate_size")?,
            layers: fields.required_size("num_hidden_layers")?,
            heads,
            key_value_heads,
            head_dim,
            norm_epsilon: fields.positive("rms_norm_eps")?.unwrap_or(1e-6),
            speeds: speeds(&Rope::read(fields, 10_000.0)?, head_dim, WHO)?,
            qkv_bias: attention_bias || family == "qwen2",
            o_bias: attention_bias,
            mlp_bias: fields.flag("mlp_bias")?,
            head_norms: family == "qwen3",
            tied: flag_or(fields, "tie_word_embeddings", false)?,
            spread: fields.positive("initializer_range")?.unwrap_or(0.02),
            window,
            ends: ends.unwrap_or_default(),
        })
    }

    /// Fails for texts of so many tokens that the model here is not the one that the checkpoint is for.
    ///
    /// # Errors
    ///
    /// One line that names the key.
    pub fn check_length(&self, tokens: usize) -> Result<()> {
        match self.window {
            Some(window) if tokens > window => bail!(
                "prompt and answer take up to {tokens} positions: beyond the sliding_window of {window} {WHO} attends to \
                 other tokens; --max-new-tokens says how many"
            ),
            _ => Ok(()),
        }
    }
}

/// The kind of model, unless transformers computes it with an activation or a last layer that is not here.
fn family(fields: Fields<'_>) -> Result<&str> {
    let known = FAMILIES.join(", ");
    let family = match fields.text("model_type")? {
        Some(family) if FAMILIES.contains(&family) => family,
        Some(other) => bail!("model_type is \"{other}\", {WHO} runs {known}"),
        None => bail!("there is no model_type; {WHO} runs {known}"),
    };
    if let Some(listed @ Value::Array(classes)) = fields.get("architectures") {
        // Of models that classify, say, only the last layer is another one.
        let causal = |class: &Value| class.as_str().is_some_and(|name| name.ends_with("ForCausalLM"));
        ensure!(
            classes.is_empty() || classes.iter().any(causal),
            "architectures is {listed}, {WHO} runs causal language models (...ForCausalLM)"
        );
    }
    let activation = fields.text("hidden_act")?.unwrap_or("silu");
    ensure!(
        matches!(activation, "silu" | "swish"),
        "hidden_act is \"{activation}\", {WHO} computes \"silu\""
    );
    Ok(family)
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
        assert_eq!((old.head_dim, old.key_value_heads), (8, 2));
        assert_eq!(old.speeds[1], 500_000_f32.powf(-0.25));
        assert_eq!((old.norm_epsilon, old.tied, &*old.ends), (1e-5, false, &[2][..]));

        let mut config = version_4();
        config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 256.0});
        config["head_dim"] = json!(16);
        let new = parse(&config).unwrap();
        assert_eq!((new.head_dim, new.speeds[4]), (16, 1.0 / 16.0));
    }

    #[test]
    fn llama3_scaling_is_read() {
        let mut config = version_4();
        config["rope_scaling"] = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192
        });
        let (scaled, plain) = (parse(&config).unwrap().speeds, parse(&version_4()).unwrap().speeds);
        assert_eq!((scaled[0], scaled[3]), (plain[0], plain[3] / 8.0));
        config["rope_scaling"]["low_freq_factor"] = json!(4.0);
        assert!(one_line(&parse(&config).unwrap_err()).contains("low_freq_factor (4) is not below"));
    }

    #[test]
    fn families_differ() {
        let of = |family: &str, more: Value| {
            let mut config = version_4();
            config["model_type"] = json!(family);
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            parse(&config)
        };
        let qwen2 = of("qwen2", json!({"sliding_window": 8, "use_sliding_window": false})).unwrap();
        assert!(qwen2.qkv_bias && !qwen2.o_bias && !qwen2.head_norms && qwen2.window.is_none());
        let qwen3 = of("qwen3", json!({"attention_bias": true})).unwrap();
        assert_eq!((qwen3.head_dim, qwen3.qkv_bias, qwen3.o_bias, qwen3.head_norms), (128, true, true, true));
        let mistral = of("mistral", json!({"sliding_window": 8})).unwrap();
        assert!(mistral.check_length(8).is_ok());
        assert!(one_line(&mistral.check_length(9).unwrap_err()).contains("beyond the sliding_window of 8"));
        let error = one_line(&of("mistral", json!({"attention_bias": true})).unwrap_err());
        assert!(error.contains("attention_bias is true"), "{error}");
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
            ("model_type", json!("gemma"), "model_type is \"gemma\""),
            ("architectures", json!(["LlamaForSequenceClassification"]), "architectures is"),
            ("hidden_act", json!("gelu"), "hidden_act is \"gelu\""),
            ("hidden_size", json!(0), "hidden_size: expected a whole number"),
            ("hidden_size", json!(63), "is not a multiple of num_attention_heads"),
            ("num_key_value_heads", json!(3), "is not a multiple of num_key_value_heads"),
            ("head_dim", json!(7), "head_dim is 7"),
            ("vocab_size", json!(1_u64 << 40), "vocab_size: expected"),
            ("sliding_window", json!(4), "sliding_window is set"),
            ("partial_rotary_factor", json!(0.5), "partial_rotary_factor is 0.5"),
            ("rope_scaling", json!({"type": "linear"}), "the rope type is \"linear\""),
            ("rms_norm_eps", json!("small"), "rms_norm_eps: expected a number above zero, found \"small\""),
        ] {
            let mut config = version_4();
            config[key] = value;
            let error = one_line(&parse(&config).unwrap_err());
            assert!(error.contains(message), "{key}: {error}");
        }
    }
}
