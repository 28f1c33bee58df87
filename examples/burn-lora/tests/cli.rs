//! The program as its users run it: only factors learn, interruption changes nothing, and the adapter is what was learned.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests are not tests themselves")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use burn::tensor::Device;
use burn_lm::model::Cache;
use burn_lm::weights::Found;
use serde_json::{Value, json};
use weighbridge_burn::weighbridge::Checkpoint;

/// Few and small steps.
const SMALL: [&str; 6] = ["--batch-size", "8", "--every", "2", "--rank", "4"];

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../samples/adder")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs the program, in a directory of its own.
fn run(args: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_burn-lora"));
    command.current_dir(directory.path()).args(args).env("RUST_BACKTRACE", "1").output().unwrap()
}

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
    lines.lines().last().unwrap().to_owned()
}

/// Trains and exports.
fn train(directory: &Path, export: &Path, more: &[&str]) -> Value {
    let places = ["--checkpoint-dir", text(directory), "--export", text(export)];
    json_of(&[&places, &SMALL[..], more].concat())
}

/// What the model with an adapter gives for the token after a prompt.
fn logits(adapter: &Path, prompt: &str) -> Vec<f32> {
    let found = Found::open(&sample(), &[(adapter.to_owned(), 1.0)]).unwrap();
    let (model, _) = found.load(None, &Device::flex()).unwrap();
    let tokens = found.text().unwrap().encode(prompt).unwrap();
    model.next(&tokens, &mut Cache::default()).unwrap()
}

/// The directory of the last checkpoint.
fn newest(run: &Path) -> PathBuf {
    let entries = fs::read_dir(run).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_dir()).max().unwrap()
}

fn furthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn the_adapter_is_what_was_learned() {
    let target = tempfile::tempdir().unwrap();
    let (checkpoints, export) = (target.path().join("run"), target.path().join("export"));
    let more = ["--steps", "5", "--targets", "q_proj,down_proj", "--alpha", "6", "--logits", "123+456="];
    let json = train(&checkpoints, &export, &more);
    assert_eq!((&json["steps"], &json["rank"], &json["asked"]), (&json!(5), &json!(4), &json!(200)));
    // Four layers; queries of 128 from 128, and 128 from 352.
    assert_eq!(json["parameters"], 4 * 4 * (128 + 128 + 352 + 128));

    let adapter = Checkpoint::open(&export).unwrap();
    assert_eq!(adapter.len(), 4 * 2 * 2);
    let name = "base_model.model.model.layers.3.mlp.down_proj.lora_A.weight";
    assert_eq!(adapter.tensor(name).unwrap().shape(), [4, 352]);
    let config: Value =
        serde_json::from_slice(&fs::read(export.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(
        (&config["r"], &config["lora_alpha"], &config["peft_type"]),
        (&json!(4), &json!(6), &json!("LORA"))
    );

    // Merged by the loader, it is the model beside which the factors learned.
    let learned: Vec<f32> = serde_json::from_value(json["logits"].clone()).unwrap();
    let merged = logits(&export, "123+456=");
    assert!(furthest(&learned, &merged) < 1e-4, "{learned:?} {merged:?}");
    let before = json_of(&["--steps", "0", "--logits", "123+456="]);
    let before: Vec<f32> = serde_json::from_value(before["logits"].clone()).unwrap();
    assert!(furthest(&learned, &before) > 1e-2, "{learned:?} {before:?}");

    // Nothing but factors is kept.
    let kept = Checkpoint::open(newest(&checkpoints).join("model.safetensors")).unwrap();
    assert_eq!(kept.len(), 4 * 2 * 2);
    assert!(kept.tensors().all(|tensor| tensor.name().contains(".lora_")));
}

#[test]
fn the_loss_falls() {
    let target = tempfile::tempdir().unwrap();
    let to = |steps| {
        let options = ["--steps", steps, "--every", "10", "--batch-size", "16", "--rate", "0.01", "--resume"];
        let first = steps == "10";
        let options =
            [&options[..options.len() - usize::from(first)], &["--checkpoint-dir", text(target.path())]];
        json_of(&options.concat())["loss"].as_f64().unwrap()
    };
    let (first, later) = (to("10"), to("50"));
    assert!(later < 0.7 * first, "{first} {later}");
}

#[test]
fn an_interrupted_run_exports_the_same_bytes() {
    let target = tempfile::tempdir().unwrap();
    let path = |name: &str| target.path().join(name);
    let weights = |name: &str| fs::read(path(name).join("adapter_model.safetensors")).unwrap();
    let once = train(&path("a"), &path("once"), &["--steps", "5", "--seed", "7"]);
    train(&path("b"), &path("first"), &["--steps", "3", "--seed", "7"]);
    let resumed = train(&path("b"), &path("twice"), &["--steps", "5", "--seed", "7", "--resume"]);
    assert_eq!((&resumed["steps"], &resumed["right"]), (&json!(5), &once["right"]));
    assert!(weights("once") == weights("twice"));
    assert!(weights("once") != weights("first"));

    // Nothing is left to train, and nothing changes.
    let again = train(&path("b"), &path("again"), &["--steps", "4", "--seed", "7", "--resume"]);
    assert_eq!((&again["steps"], &again["loss"]), (&json!(5), &Value::Null));
    assert!(weights("once") == weights("again"));

    // A run is not replaced unasked.
    let error = error_of(&["--steps", "5", "--checkpoint-dir", text(&path("b"))]);
    assert!(
        error.ends_with("b: there is a run already; --resume goes on with it, --force replaces it"),
        "{error}"
    );
    train(&path("b"), &path("kept"), &["--steps", "5", "--seed", "7", "--resume"]);
    assert!(weights("once") == weights("kept"));
    train(&path("b"), &path("anew"), &["--steps", "3", "--seed", "7", "--force"]);
    assert!(weights("first") == weights("anew"));

    let directory = path("b");
    let resume = [&SMALL[..4], &["--checkpoint-dir", text(&directory), "--resume"]].concat();
    let error = error_of(&[&resume[..], &["--rank", "4", "--seed", "8"]].concat());
    assert!(error.contains("--seed is not that which the run to resume was begun with"), "{error}");
    let error = error_of(&[&resume[..], &["--seed", "7", "--rank", "4", "--targets", "q_proj"]].concat());
    assert!(error.contains("--targets is not that which"), "{error}");
    let error = error_of(&[&resume[..], &["--seed", "7", "--rank", "5"]].concat());
    assert!(error.contains("the checkpoint to resume from") && error.contains("lora_a"), "{error}");
    let part = newest(&directory).join("optimizer.safetensors");
    let bytes = fs::read(&part).unwrap();
    fs::write(&part, &bytes[1..]).unwrap();
    let error = error_of(&[&resume[..], &["--seed", "7", "--rank", "4"]].concat());
    assert!(error.contains("optimizer.safetensors"), "{error}");
}

#[test]
fn what_is_wrong_is_named() {
    let target = tempfile::tempdir().unwrap();
    let error = error_of(&["--base", "/no/such/checkpoint"]);
    assert!(error.contains("/no/such/checkpoint"), "{error}");
    let error = error_of(&["--checkpoint-dir", text(target.path()), "--resume"]);
    assert!(error.ends_with("there is no checkpoint to resume from"), "{error}");
    let file = target.path().join("file");
    fs::write(&file, "").unwrap();
    let below = file.join("below");
    let error = error_of(&["--steps", "1", "--batch-size", "1", "--checkpoint-dir", text(&below)]);
    assert!(error.contains("below"), "{error}");
    let output = run(&["--targets", "lm_head"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}
