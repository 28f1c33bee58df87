//! What the JSON files beside a sentence embedding checkpoint say, and what the model here cannot
//! compute.
//!
//! `config.json` is transformers'; `modules.json`, `sentence_bert_config.json` and
//! `1_Pooling/config.json` are sentence-transformers' and need not be there. Candle's own `Config`
//! derives `Deserialize`, but would not read every activation's name and would not see the keys
//! that change the computation.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_transformers::models::bert;
use examples_support::Fields;
use serde_json::Value;

/// How the vectors of a sentence's tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pooling {
    Mean,
    /// The vector of the first token.
    Cls,
}

/// All that the JSON files say.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) bert: bert::Config,
    pub(crate) pooling: Pooling,
    /// Longer texts are cut to so many tokens, those that the tokenizer adds included.
    pub(crate) max_tokens: usize,
}

/// Reads all of them from a checkpoint's directory.
///
/// # Errors
///
/// One line that names the file and the key.
pub(crate) fn read(directory: &Path) -> Result<Settings> {
    let bert = with_path(&directory.join("config.json"), parse_bert)?
        .ok_or_else(|| anyhow!("{}: there is no config.json", directory.display()))?;
    refuse_other_modules(&directory.join("modules.json"))?;
    let pooling = with_path(&directory.join("1_Pooling/config.json"), parse_pooling)?;
    let max_tokens =
        with_path(&directory.join("sentence_bert_config.json"), |fields| fields.size("max_seq_length"))?;
    Ok(Settings {
        pooling: pooling.unwrap_or(Pooling::Mean),
        max_tokens: max_tokens.flatten().unwrap_or(512).min(bert.max_position_embeddings),
        bert,
    })
}

/// Reads a JSON object and takes something from it; `None` if there is no such file.
fn with_path<T>(path: &Path, parse: impl FnOnce(Fields<'_>) -> Result<T>) -> Result<Option<T>> {
    let at = || path.display().to_string();
    match read_json(path)? {
        None => Ok(None),
        Some(Value::Object(map)) => parse(Fields(&map)).map(Some).with_context(at),
        Some(_) => bail!("{}: not a JSON object", path.display()),
    }
}

fn read_json(path: &Path) -> Result<Option<Value>> {
    if !path.exists() {
        return Ok(None);
    }
    let at = || path.display().to_string();
    let bytes = fs::read(path).with_context(at)?;
    serde_json::from_slice(&bytes).map(Some).with_context(at)
}

fn parse_bert(fields: Fields<'_>) -> Result<bert::Config> {
    match fields.text("model_type")? {
        Some("bert") => {}
        Some(other) => bail!("model_type is \"{other}\", this program runs \"bert\""),
        None => bail!("there is no model_type, this program runs \"bert\""),
    }
    for key in ["is_decoder", "add_cross_attention"] {
        ensure!(!fields.flag(key)?, "{key} is true, this program runs encoders");
    }
    let positions = fields.text("position_embedding_type")?.unwrap_or("absolute");
    ensure!(
        positions == "absolute",
        "position_embedding_type is \"{positions}\", Candle's BERT computes \"absolute\""
    );
    let hidden_act = match fields.text("hidden_act")?.unwrap_or("gelu") {
        "gelu" | "gelu_python" => bert::HiddenAct::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" => bert::HiddenAct::GeluApproximate,
        "relu" => bert::HiddenAct::Relu,
        other => bail!(
            "hidden_act is \"{other}\", Candle's BERT computes \"gelu\", \"gelu_new\", \
             \"gelu_pytorch_tanh\" and \"relu\""
        ),
    };
    let hidden_size = fields.required_size("hidden_size")?;
    let heads = fields.required_size("num_attention_heads")?;
    ensure!(
        hidden_size % heads == 0,
        "hidden_size ({hidden_size}) is not a multiple of num_attention_heads ({heads})"
    );
    Ok(bert::Config {
        vocab_size: fields.required_size("vocab_size")?,
        hidden_size,
        num_hidden_layers: fields.required_size("num_hidden_layers")?,
        num_attention_heads: heads,
        intermediate_size: fields.required_size("intermediate_size")?,
        hidden_act,
        max_position_embeddings: fields.size("max_position_embeddings")?.unwrap_or(512),
        type_vocab_size: fields.size("type_vocab_size")?.unwrap_or(2),
        layer_norm_eps: fields.number("layer_norm_eps")?.unwrap_or(1e-12),
        // Candle would try names with this before the weights' own; `inventory` has found the
        // prefix.
        model_type: None,
        ..bert::Config::default()
    })
}

/// A sentence-transformers model is a chain of modules. A dense layer, say, after the pooling would
/// change every score.
fn refuse_other_modules(path: &Path) -> Result<()> {
    let Some(modules) = read_json(path)? else {
        return Ok(());
    };
    for module in modules.as_array().into_iter().flatten() {
        let kind = module.get("type").and_then(Value::as_str).unwrap_or_default();
        let name = kind.rsplit('.').next().unwrap_or_default();
        // Normalizing does not change a cosine.
        ensure!(
            matches!(name, "Transformer" | "Pooling" | "Normalize"),
            "{}: the model has a module of type \"{kind}\", which this program does not compute",
            path.display()
        );
    }
    Ok(())
}

/// Old versions of sentence-transformers write one flag per mode, new ones the mode's name.
fn parse_pooling(fields: Fields<'_>) -> Result<Pooling> {
    let prefix = "pooling_mode_";
    let modes: Vec<&str> = match fields.text("pooling_mode")? {
        Some(mode) => vec![mode],
        None => fields
            .0
            .iter()
            .filter(|(_, value)| **value == Value::Bool(true))
            .filter_map(|(key, _)| key.strip_prefix(prefix))
            .collect(),
    };
    match modes[..] {
        ["mean_tokens" | "mean"] => Ok(Pooling::Mean),
        ["cls_token" | "cls"] => Ok(Pooling::Cls),
        [] => bail!("no pooling mode is chosen"),
        [mode] => bail!("the pooling mode is \"{mode}\", this program computes \"mean\" and \"cls\""),
        _ => bail!(
            "several pooling modes are joined ({}), this program computes one, \"mean\" or \"cls\"",
            modes.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mini_lm() -> Value {
        json!({
            "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1, "hidden_size": 384, "initializer_range": 0.02,
            "intermediate_size": 1536, "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
            "model_type": "bert", "num_attention_heads": 12, "num_hidden_layers": 6, "pad_token_id": 0,
            "position_embedding_type": "absolute", "transformers_version": "4.8.2",
            "type_vocab_size": 2, "use_cache": true, "vocab_size": 30522
        })
    }

    fn with(key: &str, value: Value) -> Value {
        let mut config = mini_lm();
        config[key] = value;
        config
    }

    fn bert(config: &Value) -> Result<bert::Config> {
        parse_bert(Fields(config.as_object().unwrap()))
    }

    fn pooling(config: &Value) -> Result<Pooling> {
        parse_pooling(Fields(config.as_object().unwrap()))
    }

    #[test]
    fn a_config_is_read() {
        let config = bert(&mini_lm()).unwrap();
        assert_eq!(config.hidden_size, 384);
        assert_eq!(config.num_hidden_layers, 6);
        assert_eq!(config.hidden_act, bert::HiddenAct::Gelu);
        assert_eq!(config.layer_norm_eps, 1e-12);
    }

    #[test]
    fn activations_are_those_that_candle_computes() {
        let activation = |name: &str| bert(&with("hidden_act", json!(name))).unwrap().hidden_act;
        assert_eq!(activation("gelu_new"), bert::HiddenAct::GeluApproximate);
        assert_eq!(activation("gelu_pytorch_tanh"), bert::HiddenAct::GeluApproximate);
        assert_eq!(activation("relu"), bert::HiddenAct::Relu);
    }

    #[test]
    fn every_refusal_names_the_key() {
        for (key, value, expected) in [
            ("model_type", json!("roberta"), "model_type is \"roberta\""),
            ("model_type", json!(null), "no model_type"),
            ("is_decoder", json!(true), "is_decoder"),
            ("position_embedding_type", json!("relative_key"), "\"relative_key\""),
            ("hidden_act", json!("silu"), "hidden_act is \"silu\""),
            ("hidden_size", json!(100), "hidden_size (100)"),
            ("hidden_size", json!(null), "no hidden_size"),
            ("num_attention_heads", json!(0), "num_attention_heads: expected"),
        ] {
            let message = format!("{:#}", bert(&with(key, value)).unwrap_err());
            assert!(message.contains(expected), "{message:?} does not contain {expected:?}");
        }
    }

    #[test]
    fn pooling_by_flags_or_by_name() {
        let flags = |mean: bool, cls: bool, max: bool| {
            json!({
                "word_embedding_dimension": 384, "pooling_mode_cls_token": cls,
                "pooling_mode_mean_tokens": mean, "pooling_mode_max_tokens": max
            })
        };
        assert_eq!(pooling(&flags(true, false, false)).unwrap(), Pooling::Mean);
        assert_eq!(pooling(&flags(false, true, false)).unwrap(), Pooling::Cls);
        assert_eq!(pooling(&json!({"pooling_mode": "cls"})).unwrap(), Pooling::Cls);
        for (config, expected) in [
            (flags(false, false, true), "\"max_tokens\""),
            (flags(true, true, false), "several"),
            (flags(false, false, false), "no pooling mode"),
            (json!({"pooling_mode": "lasttoken"}), "\"lasttoken\""),
        ] {
            let message = pooling(&config).unwrap_err().to_string();
            assert!(message.contains(expected), "{message:?} does not contain {expected:?}");
        }
    }

    #[test]
    fn the_files_together() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let message = || format!("{:#}", read(directory.path()).unwrap_err());
        assert!(message().contains("config.json"), "{}", message());

        write("config.json", &mini_lm().to_string());
        let settings = read(directory.path()).unwrap();
        assert_eq!((settings.pooling, settings.max_tokens), (Pooling::Mean, 512));

        write("sentence_bert_config.json", r#"{"max_seq_length": 256}"#);
        write("1_Pooling/config.json", r#"{"pooling_mode_cls_token": true}"#);
        write("modules.json", r#"[{"idx": 0, "type": "sentence_transformers.models.Pooling"}]"#);
        let settings = read(directory.path()).unwrap();
        assert_eq!((settings.pooling, settings.max_tokens), (Pooling::Cls, 256));

        write("modules.json", r#"[{"idx": 2, "type": "sentence_transformers.models.Dense"}]"#);
        assert!(message().contains("models.Dense\""), "{}", message());
        write("modules.json", "[");
        assert!(message().contains("modules.json: "), "{}", message());
    }
}
