//! The program as its users run it: right scores, the promised output, and errors of one line.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests are not tests themselves")]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::{Tiny, bert as config, error_of, json_of, run, same};

fn with(key: &str, value: Value) -> Value {
    let mut config = config();
    config[key] = value;
    config
}

/// What `reference.py` asks.
const TEXTS: [&str; 5] =
    ["w5 w9 w31 w7", "w5 w9 w31 w8", "w20", "w12 w12 w13 w14 w15 w16 w17 w18 w19 w20", ""];

/// The scores of all but the first text against that, in their order.
fn scores(tiny: &Tiny) -> Vec<f64> {
    let json = json_of(&tiny.run(&[&TEXTS[..], &["--json"]].concat()));
    assert_eq!(json["query"], TEXTS[0]);
    let results = json["results"].as_array().unwrap();
    let mut scores = vec![f64::NAN; TEXTS.len() - 1];
    for pair in results.windows(2) {
        assert!(pair[0]["score"].as_f64() >= pair[1]["score"].as_f64(), "{json}");
    }
    for result in results {
        let index = usize::try_from(result["index"].as_u64().unwrap()).unwrap();
        assert_eq!(result["sentence"], TEXTS[index + 1]);
        scores[index] = result["score"].as_f64().unwrap();
    }
    scores
}

fn assert_close(scores: &[f64], expected: [f64; 4]) {
    assert_eq!(scores.len(), expected.len());
    for (score, expected) in scores.iter().zip(expected) {
        assert!((score - expected).abs() < 1e-5, "{scores:?}, expected {expected:?}");
    }
}

const MEAN: [f64; 4] = [0.997106, 0.990446, 0.971258, 0.994727];

#[test]
fn scores_are_those_of_transformers() {
    assert_close(&scores(&Tiny::new(&config(), same)), MEAN);
    let tiny = Tiny::new(&config(), same);
    tiny.write("1_Pooling/config.json", r#"{"pooling_mode_cls_token": true}"#);
    assert_close(&scores(&tiny), [0.997296, 0.988093, 0.97116, 0.995185]);
    assert_close(
        &scores(&Tiny::new(&with("hidden_act", json!("gelu_new")), same)),
        [0.997107, 0.990448, 0.971259, 0.994724],
    );
    assert_close(
        &scores(&Tiny::new(&with("hidden_act", json!("relu")), same)),
        [0.996817, 0.992035, 0.974566, 0.994215],
    );
}

#[test]
fn names_have_a_prefix_or_old_endings() {
    let prefixed = |name: &str| format!("bert.{name}");
    assert_close(&scores(&Tiny::new(&config(), prefixed)), MEAN);
    let old = |name: &str| {
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
        format!("bert.{}", name.replace("LayerNorm.bias", "LayerNorm.beta"))
    };
    assert_close(&scores(&Tiny::new(&config(), old)), MEAN);
}

#[test]
fn long_texts_are_cut() {
    let tiny = Tiny::new(&config(), same);
    tiny.write("sentence_bert_config.json", r#"{"max_seq_length": 6}"#);
    let json = json_of(&tiny.run(&["w5 w6 w7 w8", "w5 w6 w7 w8 w9", "w5 w6 w7 w9", "--json"]));
    let results = json["results"].as_array().unwrap();
    assert_eq!(results[0]["index"], 0);
    assert!((results[0]["score"].as_f64().unwrap() - 1.0).abs() < 1e-6, "{json}");
    assert!(results[1]["score"].as_f64().unwrap() < 0.9999, "{json}");

    let long = "w3 ".repeat(1000);
    json_of(&tiny.run(&["w5", &long, "--json"]));
    tiny.remove("sentence_bert_config.json");
    json_of(&tiny.run(&["w5", &long, "--json"]));

    tiny.write("sentence_bert_config.json", r#"{"max_seq_length": 2}"#);
    let error = error_of(&tiny.run(&["w5", "w6"]));
    assert!(error.contains("tokenizer.json: ") && error.contains("cut to 2 tokens"), "{error}");
}

#[test]
fn the_ranking_is_readable_and_stable() {
    let tiny = Tiny::new(&config(), same);
    let output = tiny.run(&["w5 w9", "w20", "w5 w9", "w20"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..2], ["w5 w9", "   1.000  w5 w9"], "{text}");
    assert_eq!(lines.len(), 4);
    let loaded = String::from_utf8(output.stderr).unwrap();
    assert!(loaded.contains("37 tensors in 1 shard"), "{loaded}");

    let json = json_of(&tiny.run(&["w5 w9", "w20", "w5 w9", "w20", "--json"]));
    let order: Vec<_> = json["results"].as_array().unwrap().iter().map(|r| r["index"].clone()).collect();
    assert_eq!(order, [1, 0, 2]);
    assert_eq!(json["tensors"], 37);
    assert!(json["bytes"].as_u64().unwrap() > 10_000);
    assert!(json["load_seconds"].as_f64().unwrap() > 0.0);
}

#[test]
fn what_is_no_checkpoint_is_named() {
    let error = error_of(&run(&["--model", "/no/such/checkpoint", "w1", "w2"]));
    assert!(error.contains("/no/such/checkpoint"), "{error}");

    let empty = tempfile::tempdir().unwrap();
    let path = empty.path().to_str().unwrap();
    assert!(error_of(&run(&["--model", path, "w1", "w2"])).contains(path));

    let tiny = Tiny::new(&config(), same);
    let whole = fs::read(tiny.path().join("model.safetensors")).unwrap();
    for bytes in [&whole[..whole.len() - 1], &whole[..40], b"PK\x03\x04\x00\x00\x08\x08 archive/data.pkl"] {
        tiny.write("model.safetensors", bytes);
        assert!(error_of(&tiny.run(&["w1", "w2"])).contains("model.safetensors: "));
    }
}

#[test]
fn what_the_model_cannot_compute_is_named() {
    let tiny = Tiny::new(&config(), same);
    for (key, value, expected) in [
        ("model_type", json!("mpnet"), "\"mpnet\""),
        ("hidden_act", json!("silu"), "\"silu\""),
        ("position_embedding_type", json!("relative_key"), "\"relative_key\""),
        ("num_hidden_layers", json!(3), "encoder.layer.2."),
        ("num_hidden_layers", json!(u64::MAX), "num_hidden_layers"),
        ("vocab_size", json!(30), "embeddings.word_embeddings.weight"),
    ] {
        tiny.write("config.json", with(key, value).to_string());
        let error = error_of(&tiny.run(&["w1", "w2"]));
        assert!(error.contains(tiny.path().to_str().unwrap()) && error.contains(expected), "{error}");
    }
    tiny.write("config.json", config().to_string());
    tiny.write("1_Pooling/config.json", r#"{"pooling_mode": "attention"}"#);
    let error = error_of(&tiny.run(&["w1", "w2"]));
    assert!(error.contains("1_Pooling/config.json: ") && error.contains("\"attention\""), "{error}");
}

#[test]
fn files_that_are_missing_are_named() {
    for name in ["config.json", "tokenizer.json"] {
        let tiny = Tiny::new(&config(), same);
        tiny.remove(name);
        assert!(error_of(&tiny.run(&["w1", "w2"])).contains(name));
    }
    let tiny = Tiny::new(&config(), same);
    let json = fs::read_to_string(tiny.path().join("tokenizer.json")).unwrap();
    tiny.write("tokenizer.json", json.replace("\"w39\":39", "\"w39\":40"));
    let error = error_of(&tiny.run(&["w1", "w39"]));
    assert!(error.contains("token 40") && error.contains("vocab_size"), "{error}");
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for args in [&["query", "sentence"][..], &["--model", "x", "query"], &["--model", "x"]] {
        assert_eq!(run(args).status.code(), Some(2));
    }
}
