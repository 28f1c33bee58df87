//! What `config.json` says, as transformers 4 and 5 write it, and what the model here cannot
//! compute.
//!
//! Candle has a `LlamaConfig` of its own that derives `Deserialize`. It is not used, because it
//! knows neither the `rope_parameters` of transformers 5, where it silently takes a theta of 10000,
//! nor the keys that change the computation (`attention_bias`, `head_dim`, ...): such a checkpoint
//! loads and answers nonsense. Here each of them is read, or refused by name.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_transformers::models::llama::{Config, Llama3RopeConfig, Llama3RopeType, LlamaEosToks};
use examples_support::{Fields, mismatch};
use serde_json::{Map, Value};

/// The attention of candle 0.11.1 compares the number of key-value heads with this and narrows the
/// wrong dimension when it is smaller; and transformers generates past the nominal limit. So there
/// is none.
const UNLIMITED: usize = usize::MAX / 4;

/// Reads `config.json`, and for the tokens that end a text `generation_config.json`, from a
/// checkpoint's directory.
///
/// The limit of positions in the result is out of reach on purpose: the number of positions belongs
/// to one prompt, and `generate` sets it there.
///
/// # Errors
///
/// One line that names the file and the key.
pub(crate) fn read(directory: &Path) -> Result<Config> {
    let path = directory.join("config.json");
    let config = read_object(&path)?;
    let at = || path.display().to_string();

    let mut config = parse(&config).with_context(at)?;
    if let Some(eos) = eos_of_generation_config(directory)? {
        config.eos_token_id = eos;
    }
    Ok(config)
}

/// The tokens after which a text ends.
pub(crate) fn eos_tokens(config: &Config) -> &[u32] {
    match &config.eos_token_id {
        None => &[],
        Some(LlamaEosToks::Single(token)) => std::slice::from_ref(token),
        Some(LlamaEosToks::Multiple(tokens)) => tokens,
    }
}

/// Where `generation_config.json` exists, it alone decides, even when it names no token: that is
/// what transformers does (tried with 5.23). `None` if there is no such file.
fn eos_of_generation_config(directory: &Path) -> Result<Option<Option<LlamaEosToks>>> {
    let path = directory.join("generation_config.json");
    if !path.exists() {
        return Ok(None);
    }
    let generation = read_object(&path)?;
    let eos = eos(Fields(&generation)).with_context(|| path.display().to_string())?;
    Ok(Some(eos))
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let at = || path.display().to_string();
    let bytes = fs::read(path).with_context(at)?;
    let value: Value = serde_json::from_slice(&bytes).with_context(at)?;
    match value {
        Value::Object(map) => Ok(map),
        _ => bail!("{}: not a JSON object", path.display()),
    }
}

fn parse(config: &Map<String, Value>) -> Result<Config> {
    let fields = Fields(config);
    refuse_other_models(fields)?;

    let hidden_size = fields.required_size("hidden_size")?;
    let heads = fields.required_size("num_attention_heads")?;
    let key_value_heads = fields.size("num_key_value_heads")?.unwrap_or(heads);
    ensure!(
        hidden_size % heads == 0,
        "hidden_size ({hidden_size}) is not a multiple of num_attention_heads ({heads})"
    );
    ensure!(
        heads % key_value_heads == 0,
        "num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({key_value_heads})"
    );
    let head_dim = fields.size("head_dim")?.unwrap_or(hidden_size / heads);
    ensure!(
        head_dim == hidden_size / heads,
        "head_dim is {head_dim}, Candle's Llama computes only hidden_size / num_attention_heads = {}",
        hidden_size / heads
    );
    ensure!(head_dim % 2 == 0, "head_dim is {head_dim}, rotary embeddings need an even number");

    let rope = Rope::parse(fields)?;
    Ok(Config {
        hidden_size,
        intermediate_size: fields.required_size("intermediate_size")?,
        vocab_size: fields.required_size("vocab_size")?,
        num_hidden_layers: fields.required_size("num_hidden_layers")?,
        num_attention_heads: heads,
        num_key_value_heads: key_value_heads,
        use_flash_attn: false,
        rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6),
        rope_theta: rope.theta,
        bos_token_id: None,
        eos_token_id: eos(fields)?,
        rope_scaling: rope.scaling,
        max_position_embeddings: UNLIMITED,
        tie_word_embeddings: fields.flag("tie_word_embeddings")?,
    })
}

/// Refuses every key with which transformers computes something else than Candle's Llama.
fn refuse_other_models(fields: Fields<'_>) -> Result<()> {
    match fields.text("model_type")? {
        Some("llama") => {}
        Some(other) => bail!("model_type is \"{other}\", this program runs \"llama\""),
        None => bail!("there is no model_type, this program runs \"llama\""),
    }
    for key in ["attention_bias", "mlp_bias"] {
        ensure!(!fields.flag(key)?, "{key} is true, Candle's Llama has no such biases");
    }
    let activation = fields.text("hidden_act")?.unwrap_or("silu");
    ensure!(
        matches!(activation, "silu" | "swish"),
        "hidden_act is \"{activation}\", Candle's Llama computes \"silu\""
    );
    if fields.get("use_sliding_window") != Some(&Value::Bool(false)) {
        ensure!(
            fields.get("sliding_window").is_none(),
            "sliding_window is set, Candle's Llama attends to everything"
        );
    }
    if let Some(Value::Array(types)) = fields.get("layer_types") {
        for kind in types {
            ensure!(
                kind == "full_attention",
                "layer_types has {kind}, Candle's Llama has \"full_attention\" only"
            );
        }
    }
    Ok(())
}

/// Rotary position embeddings.
struct Rope {
    theta: f32,
    scaling: Option<Llama3RopeConfig>,
}

impl Rope {
    /// Transformers 5 writes one dictionary, `rope_parameters`; transformers 4 writes `rope_theta`
    /// beside a `rope_scaling` that is null or a dictionary, whose `rope_type` was once called
    /// `type`. Who wins where several are there is as in transformers 5
    /// (`convert_rope_params_to_dict`).
    fn parse(fields: Fields<'_>) -> Result<Self> {
        let dictionary = |key| match fields.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some((key, map)).filter(|(_, map)| !map.is_empty())),
            Some(other) => Err(mismatch(key, "an object", other)),
        };
        let nothing = Map::new();
        let (name, parameters) = match dictionary("rope_scaling")? {
            Some(found) => found,
            None => dictionary("rope_parameters")?.unwrap_or(("rope_parameters", &nothing)),
        };
        if let Some((layers, _)) = parameters.iter().find(|(_, value)| value.is_object()) {
            bail!("{name} has parameters for \"{layers}\" alone, Candle's Llama has the same for all layers");
        }
        let parameters = Fields(parameters);

        for partial in [parameters, fields] {
            if let Some(factor) = partial.number("partial_rotary_factor")? {
                ensure!(
                    factor == 1.0,
                    "partial_rotary_factor is {factor}, Candle's Llama rotates all of a head"
                );
            }
        }
        let theta = match positive(parameters, "rope_theta").context(name)? {
            Some(theta) => theta,
            None => positive(fields, "rope_theta")?.unwrap_or(10_000.0),
        };
        let kind = match parameters.text("rope_type").context(name)? {
            Some(kind) => Some(kind),
            None => parameters.text("type").context(name)?,
        };
        let scaling = match kind {
            None | Some("default") => None,
            Some("llama3") => Some(llama3(fields, parameters).context(name)?),
            Some(other) => {
                bail!(
                    "{name}: the rope type is \"{other}\", Candle's Llama computes \"default\" and \"llama3\""
                )
            }
        };
        Ok(Self { theta, scaling })
    }
}

fn llama3(fields: Fields<'_>, parameters: Fields<'_>) -> Result<Llama3RopeConfig> {
    let required =
        |key| positive(parameters, key)?.ok_or_else(|| anyhow!("rope type \"llama3\" without {key}"));
    let (low, high) = (required("low_freq_factor")?, required("high_freq_factor")?);
    ensure!(low < high, "low_freq_factor ({low}) is not below high_freq_factor ({high})");
    let original = "original_max_position_embeddings";
    let original = match (fields.size(original)?, parameters.size(original)?) {
        (Some(length), _) | (None, Some(length)) => length,
        (None, None) => fields.size("max_position_embeddings")?.unwrap_or(2048),
    };
    Ok(Llama3RopeConfig {
        factor: required("factor")?,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: original,
        rope_type: Llama3RopeType::Llama3,
    })
}

/// The tokens that end a text.
fn eos(fields: Fields<'_>) -> Result<Option<LlamaEosToks>> {
    Ok(fields.tokens("eos_token_id")?.map(LlamaEosToks::Multiple))
}

/// A number above zero, as Candle's configuration holds it.
#[expect(clippy::cast_possible_truncation, reason = "Candle's configuration holds f32")]
fn positive(fields: Fields<'_>, key: &str) -> Result<Option<f32>> {
    Ok(fields.positive(key)?.map(|number| number as f32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// As transformers 4 wrote Llama 2.
    fn version_4() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "bos_token_id": 1,
            "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008,
            "max_position_embeddings": 4096,
            "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
            "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 500000.0, "tie_word_embeddings": false,
            "torch_dtype": "float16", "transformers_version": "4.31.0", "use_cache": true, "vocab_size": 32000
        })
    }

    /// As transformers 5.23 writes it.
    fn version_5() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
            "bos_token_id": 1, "dtype": "float32", "eos_token_id": [2, 7], "head_dim": 8,
            "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 48,
            "max_position_embeddings": 2048, "mlp_bias": false, "model_type": "llama",
            "num_attention_heads": 4, "num_hidden_layers": 1, "num_key_value_heads": 4,
            "pad_token_id": null, "pretraining_tp": 1, "rms_norm_eps": 1e-06,
            "rope_parameters": {"rope_theta": 250000.0, "rope_type": "default"},
            "tie_word_embeddings": true, "transformers_version": "5.23.0", "use_cache": true, "vocab_size": 64
        })
    }

    fn llama3_parameters() -> Value {
        json!({
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"
        })
    }

    fn parse(config: &Value) -> Result<Config> {
        super::parse(config.as_object().unwrap())
    }

    fn with(mut config: Value, key: &str, value: Value) -> Value {
        config[key] = value;
        config
    }

    fn without(mut config: Value, key: &str) -> Value {
        config.as_object_mut().unwrap().remove(key);
        config
    }

    fn refusal(config: &Value) -> String {
        format!("{:#}", parse(config).unwrap_err())
    }

    #[test]
    fn version_4_is_read() {
        let config = parse(&version_4()).unwrap();
        assert_eq!(config.rope_theta, 500_000.0);
        assert!(config.rope_scaling.is_none());
        assert_eq!(config.num_key_value_heads, 8);
        assert_eq!(config.rms_norm_eps, 1e-5);
        assert_eq!(eos_tokens(&config), [2]);
        assert!(!config.tie_word_embeddings);
    }

    #[test]
    fn version_5_is_read() {
        let config = parse(&version_5()).unwrap();
        assert_eq!(config.rope_theta, 250_000.0);
        assert!(config.rope_scaling.is_none());
        assert_eq!(eos_tokens(&config), [2, 7]);
        assert!(config.tie_word_embeddings);
    }

    #[test]
    fn what_is_not_said_has_the_value_of_transformers() {
        let mut config = version_4();
        for key in
            ["num_key_value_heads", "rms_norm_eps", "rope_theta", "rope_scaling", "tie_word_embeddings"]
        {
            config = without(config, key);
        }
        config = without(without(config, "eos_token_id"), "hidden_act");
        let config = parse(&config).unwrap();
        assert_eq!(config.num_key_value_heads, 32);
        assert_eq!(config.rms_norm_eps, 1e-6);
        assert_eq!(config.rope_theta, 10_000.0);
        assert!(!config.tie_word_embeddings);
        assert!(eos_tokens(&config).is_empty());
    }

    #[test]
    fn llama3_scaling_in_both_versions() {
        let old = with(version_4(), "rope_scaling", llama3_parameters());
        let older = with(old.clone(), "rope_scaling", {
            with(without(llama3_parameters(), "rope_type"), "type", json!("llama3"))
        });
        let new =
            with(version_5(), "rope_parameters", with(llama3_parameters(), "rope_theta", json!(500_000.0)));
        for config in [old, older, new] {
            let config = parse(&config).unwrap();
            assert_eq!(config.rope_theta, 500_000.0);
            let scaling = config.rope_scaling.unwrap();
            assert!(matches!(scaling.rope_type, Llama3RopeType::Llama3));
            assert_eq!(scaling.factor, 32.0);
            assert_eq!(scaling.low_freq_factor, 1.0);
            assert_eq!(scaling.high_freq_factor, 4.0);
            assert_eq!(scaling.original_max_position_embeddings, 8192);
        }
    }

    #[test]
    fn the_original_length_is_looked_for_where_transformers_does() {
        let original =
            |config: &Value| parse(config).unwrap().rope_scaling.unwrap().original_max_position_embeddings;
        let bare = without(llama3_parameters(), "original_max_position_embeddings");
        assert_eq!(original(&with(version_5(), "rope_parameters", bare)), 2048);
        let both = with(version_5(), "rope_parameters", llama3_parameters());
        assert_eq!(original(&with(both, "original_max_position_embeddings", json!(77))), 77);
    }

    #[test]
    fn a_dictionary_of_version_4_wins_over_one_of_version_5() {
        let config = with(version_5(), "rope_scaling", json!({"rope_type": "default", "rope_theta": 123.0}));
        assert_eq!(parse(&config).unwrap().rope_theta, 123.0);
        let config = with(version_5(), "rope_scaling", json!({}));
        assert_eq!(parse(&config).unwrap().rope_theta, 250_000.0);
    }

    #[test]
    fn every_refusal_names_the_key() {
        let rope = |value: Value| with(version_5(), "rope_parameters", value);
        let cases = [
            (with(version_4(), "model_type", json!("mistral")), "model_type is \"mistral\""),
            (without(version_4(), "model_type"), "no model_type"),
            (with(version_4(), "attention_bias", json!(true)), "attention_bias"),
            (with(version_4(), "mlp_bias", json!(true)), "mlp_bias"),
            (with(version_4(), "head_dim", json!(64)), "head_dim is 64"),
            (with(version_4(), "hidden_size", json!(32 * 5)), "head_dim is 5"),
            (with(version_4(), "hidden_size", json!(100)), "hidden_size (100)"),
            (with(version_4(), "hidden_size", json!(0)), "hidden_size: expected"),
            (with(version_4(), "num_key_value_heads", json!(5)), "num_key_value_heads (5)"),
            (with(version_4(), "num_attention_heads", json!(0)), "num_attention_heads: expected"),
            (with(version_4(), "num_hidden_layers", json!(-1)), "num_hidden_layers: expected"),
            (with(version_4(), "num_hidden_layers", json!("32")), "found \"32\""),
            (with(version_4(), "vocab_size", json!(1.5)), "vocab_size: expected"),
            (without(version_4(), "intermediate_size"), "no intermediate_size"),
            (with(version_4(), "hidden_act", json!("gelu")), "hidden_act is \"gelu\""),
            (with(version_4(), "rope_theta", json!(0)), "rope_theta: expected"),
            (with(version_4(), "rope_theta", json!("big")), "rope_theta: expected"),
            (with(version_4(), "rope_scaling", json!(2.0)), "rope_scaling: expected"),
            (with(version_4(), "rope_scaling", json!({"type": "linear", "factor": 2.0})), "\"linear\""),
            (with(version_4(), "rope_scaling", json!({"type": "dynamic", "factor": 2.0})), "\"dynamic\""),
            (rope(json!({"rope_type": "yarn", "factor": 4.0})), "\"yarn\""),
            (rope(json!({"rope_type": "longrope"})), "\"longrope\""),
            (rope(json!({"rope_type": "llama3"})), "without low_freq_factor"),
            (rope(with(llama3_parameters(), "factor", json!(0))), "factor: expected"),
            (rope(with(llama3_parameters(), "low_freq_factor", json!(4.0))), "low_freq_factor (4)"),
            (rope(json!({"full_attention": {"rope_theta": 1.0}})), "\"full_attention\""),
            (rope(json!({"rope_theta": 1e4, "partial_rotary_factor": 0.5})), "partial_rotary_factor is 0.5"),
            (with(version_4(), "partial_rotary_factor", json!(0.25)), "partial_rotary_factor is 0.25"),
            (with(version_4(), "sliding_window", json!(4096)), "sliding_window"),
            (with(version_4(), "layer_types", json!(["full_attention", "sliding_attention"])), "layer_types"),
            (with(version_4(), "eos_token_id", json!("</s>")), "eos_token_id: expected"),
            (with(version_4(), "eos_token_id", json!([1, -1])), "eos_token_id: expected"),
        ];
        for (config, expected) in cases {
            let message = refusal(&config);
            assert!(message.contains(expected), "{message:?} does not contain {expected:?}");
            assert!(!message.contains('\n'), "{message:?}");
        }
    }

    #[test]
    fn what_changes_nothing_is_not_refused() {
        for (key, value) in [
            ("sliding_window", json!(null)),
            ("head_dim", json!(128)),
            ("hidden_act", json!("swish")),
            ("partial_rotary_factor", json!(1.0)),
            ("quantization_config", json!({"quant_method": "gptq"})),
            ("layer_types", json!(["full_attention"])),
            ("rope_scaling", json!({"rope_type": "default"})),
            ("pretraining_tp", json!(2)),
        ] {
            parse(&with(version_4(), key, value)).unwrap();
        }
        parse(&with(with(version_4(), "sliding_window", json!(8)), "use_sliding_window", json!(false)))
            .unwrap();
    }

    #[test]
    fn generation_config_decides_about_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name, value: &Value| fs::write(directory.path().join(name), value.to_string()).unwrap();
        let eos = || eos_tokens(&read(directory.path()).unwrap()).to_vec();

        write("config.json", &version_5());
        assert_eq!(eos(), [2, 7]);
        for (generation, expected) in [
            (json!({"eos_token_id": 5}), vec![5]),
            (json!({"eos_token_id": [5, 6]}), vec![5, 6]),
            (json!({"eos_token_id": null}), vec![]),
            (json!({"bos_token_id": 1}), vec![]),
        ] {
            write("generation_config.json", &generation);
            assert_eq!(eos(), expected, "{generation}");
        }
    }

    #[test]
    fn errors_name_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let message = || format!("{:#}", read(directory.path()).unwrap_err());
        assert!(message().contains("config.json"), "{}", message());
        for text in ["", "{", "[]", "{}", "\u{0}"] {
            fs::write(directory.path().join("config.json"), text).unwrap();
            assert!(message().contains("config.json: "), "{}", message());
        }
        fs::write(directory.path().join("config.json"), version_5().to_string()).unwrap();
        fs::write(directory.path().join("generation_config.json"), "[").unwrap();
        assert!(message().contains("generation_config.json: "), "{}", message());
    }
}
