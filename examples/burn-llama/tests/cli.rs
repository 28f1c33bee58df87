//! The program as its users run it: conversion, accuracy, interruption, and errors of one line.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests are not tests themselves")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{DType, Device, Tensor};
use candle_transformers::models::llama::{Cache, Config, Llama, Llama3RopeConfig};
use serde_json::{Value, json};
use weighbridge_burn::weighbridge::write::{Save, Values};
use weighbridge_burn::weighbridge::{Checkpoint, Dtype, Plan};
use weighbridge_candle::Loader;

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../samples/adder")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs the program, in a directory of its own.
fn run(args: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_burn-llama"));
    command.current_dir(directory.path()).args(args).env("RUST_BACKTRACE", "1").output().unwrap()
}

/// Standard output of a run that succeeded: one JSON object and nothing else.
fn json_of(args: &[&str]) -> Value {
    let output = run(&[args, &["--json"]].concat());
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The last line on standard error of a run that failed.
fn error_of(args: &[&str]) -> String {
    let output = run(args);
    let lines = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{lines}");
    assert!(output.stdout.is_empty() && !lines.contains("panicked"), "{lines}");
    let errors: Vec<_> = lines.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{lines}");
    assert_eq!(lines.lines().last(), errors.last().copied(), "{lines}");
    errors[0].to_owned()
}

/// The bytes of all tensors by their names, with dtypes and shapes.
fn tensors(directory: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let ckpt = Checkpoint::open(directory).unwrap();
    let session = Plan::of(&ckpt).build().unwrap().session().start().unwrap();
    let bytes = |name: &str| session.take(name, None).unwrap().1.as_bytes().to_vec();
    ckpt.tensors()
        .map(|tensor| {
            let name = tensor.name().to_owned();
            (name, (tensor.dtype(), tensor.shape().to_vec(), bytes(tensor.name())))
        })
        .collect()
}

/// The files of a directory by their names.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_checkpoint_is_converted() {
    let target = tempfile::tempdir().unwrap();
    let export = target.path().join("export");
    let sample = sample();
    let args = ["--from", text(&sample), "--epochs", "0", "--prompts", "4", "--export", text(&export)];
    let json = json_of(&args);
    assert_eq!(json["epochs"], 0);
    assert_eq!(json["loss"], Value::Null);
    assert_eq!(json["export"]["directory"], text(&export));
    let listed: Vec<String> = serde_json::from_value(json["export"]["files"].clone()).unwrap();
    assert_eq!(listed, files(&export).into_keys().collect::<Vec<_>>());
    assert!(listed.contains(&"model.safetensors.index.json".to_owned()), "{listed:?}");

    let (stored, exported) = (tensors(&sample), tensors(&export));
    assert!(stored.keys().eq(exported.keys()));
    for (name, (dtype, shape, bytes)) in exported {
        let (_, stored_shape, stored) = &stored[&name];
        assert_eq!((dtype, &shape), (Dtype::F32, stored_shape), "{name}");
        // A bf16 is the upper half of an f32.
        let widened: Vec<u8> = stored.chunks(2).flat_map(|half| [0, 0, half[0], half[1]]).collect();
        assert!(bytes == widened, "{name}");
    }

    let mut config = read_json(&sample.join("config.json"));
    config["dtype"] = json!("float32");
    config["torch_dtype"] = json!("float32");
    assert_eq!(read_json(&export.join("config.json")), config);
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        assert!(fs::read(sample.join(name)).unwrap() == fs::read(export.join(name)).unwrap(), "{name}");
    }
}

#[test]
fn the_sample_is_right_at_once() {
    let sample = sample();
    let json = json_of(&["--from", text(&sample), "--epochs", "0"]);
    assert_eq!((&json["accuracy"], &json["right"], &json["asked"]), (&json!(1.0), &json!(200), &json!(200)));

    let output = run(&["--from", text(&sample), "--epochs", "0", "--prompts", "3"]);
    let lines = String::from_utf8(output.stdout).unwrap();
    assert_eq!(lines.lines().count(), 4, "{lines}");
    assert!(lines.lines().take(3).all(|line| line.ends_with("  right")), "{lines}");
    assert!(lines.ends_with("3 of 3 held-out sums right (100.0 %)\n"), "{lines}");
}

#[test]
fn a_prompt_is_continued() {
    let output = run(&["--from", text(&sample()), "--prompt", "17+25=", "--max-tokens", "5"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "17+25=42\n");
}

/// What Candle's Llama gives for the token after a prompt.
fn candle_logits(directory: &Path, prompt: &[u32]) -> Vec<f32> {
    let config = read_json(&directory.join("config.json"));
    let size = |key: &str| usize::try_from(config[key].as_u64().unwrap()).unwrap();
    let config = Config {
        hidden_size: size("hidden_size"),
        intermediate_size: size("intermediate_size"),
        vocab_size: size("vocab_size"),
        num_hidden_layers: size("num_hidden_layers"),
        num_attention_heads: size("num_attention_heads"),
        num_key_value_heads: size("num_key_value_heads"),
        rms_norm_eps: config["rms_norm_eps"].as_f64().unwrap(),
        tie_word_embeddings: config["tie_word_embeddings"].as_bool().unwrap(),
        rope_scaling: config
            .get("rope_scaling")
            .map(|scaling| -> Llama3RopeConfig { serde_json::from_value(scaling.clone()).unwrap() }),
        ..Config::config_7b_v2(false)
    };
    let ckpt = Checkpoint::open(directory).unwrap();
    let weights = Loader::new(&ckpt).dtype(DType::F32).var_builder().unwrap();
    let llama = Llama::load(weights, &config).unwrap();
    let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
    let input = Tensor::new(prompt, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let logits = llama.forward(&input, 0, &mut cache).unwrap();
    logits.squeeze(0).unwrap().to_vec1().unwrap()
}

/// A checkpoint with another value in its configuration.
fn copy(from: &Path, to: &Path, key: &str, value: Value) {
    fs::create_dir(to).unwrap();
    for (name, bytes) in files(from) {
        fs::write(to.join(name), bytes).unwrap();
    }
    let mut config = read_json(&to.join("config.json"));
    config[key] = value;
    fs::write(to.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn candle_agrees() {
    let target = tempfile::tempdir().unwrap();
    let (sample, tied, scaled) = (sample(), target.path().join("tied"), target.path().join("scaled"));
    // The same without an output projection of its own.
    copy(&sample, &tied, "tie_word_embeddings", json!(true));
    for name in files(&tied).into_keys().filter(|name| name.starts_with("model")) {
        fs::remove_file(tied.join(name)).unwrap();
    }
    let kept: Vec<_> = tensors(&sample)
        .into_iter()
        .filter(|(name, _)| name != "lm_head.weight")
        .map(|(name, (_, shape, bytes))| {
            let values = bytes.chunks(2).map(|half| f32::from_le_bytes([0, 0, half[0], half[1]]));
            (name, shape, values.collect::<Vec<f32>>())
        })
        .collect();
    let kept = kept.iter().map(|(name, shape, values)| (name.clone(), Values::new(shape, values).unwrap()));
    Save::new().directory(&tied, "model", kept).unwrap();

    // And one that stretches slow turns, so early that it matters here.
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16
    });
    copy(&sample, &scaled, "rope_scaling", scaling);

    let mut all_logits = Vec::new();
    for (number, from) in [sample, tied, scaled].iter().enumerate() {
        let export = target.path().join(format!("export-{number}"));
        let options = ["--epochs", "0", "--prompts", "1", "--logits", "123+456=", "--max-shard-size", "2MB"];
        let json = json_of(&[&["--from", text(from), "--export", text(&export)], &options[..]].concat());
        let burn: Vec<f32> = serde_json::from_value(json["logits"].clone()).unwrap();
        // <bos> 1 2 3 + 4 5 6 =
        let candle = candle_logits(&export, &[1, 5, 6, 7, 14, 8, 9, 10, 15]);
        assert_eq!(burn.len(), candle.len());
        let furthest = burn.iter().zip(&candle).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(furthest < 1e-4, "{furthest}: {burn:?} {candle:?}");
        assert!(burn.iter().any(|logit| logit.abs() > 0.1), "{burn:?}");
        assert_eq!(tensors(&export).contains_key("lm_head.weight"), number != 1);
        all_logits.push(burn);
    }
    let moved = all_logits[0].iter().zip(&all_logits[2]).any(|(a, b)| (a - b).abs() > 1e-2);
    assert!(moved, "{all_logits:?}");
}

/// Trains and exports with few and small steps.
fn train(directory: &Path, export: &Path, more: &[&str]) -> Value {
    let args = ["--checkpoint-dir", text(directory), "--export", text(export), "--prompts", "2"];
    json_of(&[&args, more].concat())
}

#[test]
fn an_interrupted_run_exports_the_same_bytes() {
    let target = tempfile::tempdir().unwrap();
    let path = |name: &str| target.path().join(name);
    let small =
        |epochs, seed| ["--steps-per-epoch", "3", "--batch-size", "8", "--epochs", epochs, "--seed", seed];
    let once = train(&path("a"), &path("once"), &small("2", "5"));
    assert_eq!((&once["epochs"], &once["seed"]), (&json!(2), &json!(5)));
    assert!(once["loss"].as_f64().unwrap() > 0.0 && once["held_out_loss"].as_f64().unwrap() > 0.0);

    let first = train(&path("b"), &path("first"), &small("1", "5"));
    assert_eq!(first["epochs"], 1);
    let resumed = train(&path("b"), &path("twice"), &["--epochs", "2", "--resume"]);
    assert_eq!((&resumed["epochs"], &resumed["seed"]), (&json!(2), &json!(5)));
    assert_eq!(resumed["loss"], once["loss"]);
    assert!(files(&path("once")) == files(&path("twice")));
    assert!(files(&path("once")) != files(&path("first")));

    // Nothing is left to train, and nothing changes.
    let again = train(&path("b"), &path("again"), &["--epochs", "1", "--resume"]);
    assert_eq!((&again["epochs"], &again["loss"]), (&json!(2), &Value::Null));
    assert!(files(&path("once")) == files(&path("again")));

    let directory = path("b");
    let resume = ["--checkpoint-dir", text(&directory), "--resume"];
    let error = error_of(&[&resume[..], &["--seed", "6"]].concat());
    assert!(error.contains("--seed is 6, but the run to resume was begun with 5"), "{error}");
    let part = directory.join("epoch-00002/optimizer.safetensors");
    let bytes = fs::read(&part).unwrap();
    fs::write(&part, &bytes[1..]).unwrap();
    let error = error_of(&[&resume[..], &["--epochs", "3"]].concat());
    assert!(error.contains("optimizer.safetensors"), "{error}");

    // A run is not replaced unasked.
    let manifest = || fs::read(directory.join("checkpoints.json")).unwrap();
    let kept = manifest();
    let begin = [&resume[..2], &small("1", "6")].concat();
    let error = error_of(&begin);
    assert!(
        error.ends_with("b: there is a run already; --resume goes on with it, --force replaces it"),
        "{error}"
    );
    assert!(manifest() == kept);
    assert_eq!(run(&[&begin[..], &["--resume", "--force"]].concat()).status.code(), Some(2));

    // Where it is, the new one takes its place, and another seed is another run.
    let other = train(&path("b"), &path("other"), &[&small("1", "6")[..], &["--force"]].concat());
    assert_eq!(other["epochs"], 1);
    assert!(files(&path("other")) != files(&path("first")));
}

#[test]
fn training_goes_on_from_a_checkpoint() {
    let target = tempfile::tempdir().unwrap();
    let sample = sample();
    let args = ["--from", text(&sample), "--steps-per-epoch", "2", "--batch-size", "8", "--epochs", "1"];
    let json = train(&target.path().join("run"), &target.path().join("export"), &args);
    assert!(json["loss"].as_f64().unwrap() < 0.5, "{json}");
    assert_eq!(json["accuracy"], json!(1.0));
}

#[test]
fn what_is_wrong_is_named() {
    let target = tempfile::tempdir().unwrap();
    let path = text(target.path());
    let error = error_of(&["--from", "/no/such/checkpoint", "--epochs", "0"]);
    assert!(error.contains("/no/such/checkpoint"), "{error}");
    let error = error_of(&["--from", path, "--epochs", "0"]);
    assert!(error.contains(path), "{error}");
    let error = error_of(&["--checkpoint-dir", path, "--resume"]);
    assert!(error.ends_with("there is no checkpoint to resume from"), "{error}");

    for (key, value, message) in [
        ("model_type", json!("gpt2"), "model_type is \"gpt2\""),
        ("intermediate_size", json!(353), "mlp."),
        ("num_hidden_layers", json!(5), "layers.4."),
        ("num_hidden_layers", json!(1_000_000), "the checkpoint has only 39 tensors"),
        ("vocab_size", json!(15), "embed_tokens"),
    ] {
        for (name, bytes) in files(&sample()) {
            fs::write(target.path().join(name), bytes).unwrap();
        }
        let mut config = read_json(&target.path().join("config.json"));
        config[key] = value;
        fs::write(target.path().join("config.json"), config.to_string()).unwrap();
        let error = error_of(&["--from", path, "--epochs", "0"]);
        assert!(error.contains(message), "{key}: {error}");
    }

    let file = target.path().join("file");
    fs::write(&file, "").unwrap();
    let directory = file.join("below");
    let error = error_of(&["--epochs", "1", "--checkpoint-dir", text(&directory)]);
    assert!(error.contains("below"), "{error}");
}
