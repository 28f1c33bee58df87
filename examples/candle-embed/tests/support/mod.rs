//! Tiny checkpoints in temporary directories, and the program run on them.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};

/// A BERT of two layers over a vocabulary of 40 words, `w0` to `w39`; `w1` and `w2` surround a
/// text.
pub(crate) struct Tiny {
    directory: tempfile::TempDir,
}

impl Tiny {
    /// Writes a checkpoint whose tensors are called what `rename` makes of their names.
    pub(crate) fn new(config: &Value, rename: impl Fn(&str) -> String) -> Self {
        let tiny = Self { directory: tempfile::tempdir().unwrap() };
        tiny.write("config.json", config.to_string());
        tiny.write("tokenizer.json", tokenizer().to_string());
        let tensors: Vec<_> = tensors(config)
            .into_iter()
            .map(|(name, shape)| {
                let data = weights(&name, &shape);
                (rename(&name), shape, data)
            })
            .collect();
        let views = tensors
            .iter()
            .map(|(name, shape, data)| (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
        serialize_to_file(views, None, &tiny.path().join("model.safetensors")).unwrap();
        tiny
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.path().join(name)).unwrap();
    }

    /// Runs the program on this checkpoint.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        run(&[&["--model", self.path().to_str().unwrap()], args].concat())
    }
}

/// Runs the program.
pub(crate) fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_candle-embed")).args(args).env("RUST_BACKTRACE", "1").output().unwrap()
}

/// Standard output of a run that succeeded, as JSON.
pub(crate) fn json_of(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The one line on standard error of a run that failed.
pub(crate) fn error_of(output: &Output) -> String {
    let line = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert!(line.starts_with("error: "), "{line}");
    assert!(!line.contains("panicked"), "{line}");
    assert_eq!(line.trim_end().lines().count(), 1, "{line}");
    line.trim_end().to_owned()
}

/// With a padding and a truncation that have to be overridden, like those of all-MiniLM-L6-v2.
fn tokenizer() -> Value {
    let vocabulary: serde_json::Map<_, _> = (0..40).map(|id| (format!("w{id}"), json!(id))).collect();
    let special = |word: &str, id: u32| json!({"id": word, "ids": [id], "tokens": [word]});
    json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "decoder": null,
        "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {
            "strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "w0"
        },
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "w1", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "w2", "type_id": 0}}
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"w1": special("w1", 1), "w2": special("w2", 2)}
        },
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}
    })
}

fn tensors(config: &Value) -> Vec<(String, Vec<usize>)> {
    let size = |key: &str| usize::try_from(config[key].as_u64().unwrap()).unwrap();
    let (hidden, inner) = (size("hidden_size"), size("intermediate_size"));
    let mut tensors: Vec<(String, Vec<usize>)> = [
        ("word_embeddings.weight", vec![size("vocab_size"), hidden]),
        ("position_embeddings.weight", vec![size("max_position_embeddings"), hidden]),
        ("token_type_embeddings.weight", vec![size("type_vocab_size"), hidden]),
        ("LayerNorm.weight", vec![hidden]),
        ("LayerNorm.bias", vec![hidden]),
    ]
    .map(|(part, shape)| (format!("embeddings.{part}"), shape))
    .into();
    for layer in 0..size("num_hidden_layers") {
        for (part, shape) in [
            ("attention.self.query", vec![hidden, hidden]),
            ("attention.self.key", vec![hidden, hidden]),
            ("attention.self.value", vec![hidden, hidden]),
            ("attention.output.dense", vec![hidden, hidden]),
            ("attention.output.LayerNorm", vec![hidden]),
            ("intermediate.dense", vec![inner, hidden]),
            ("output.dense", vec![hidden, inner]),
            ("output.LayerNorm", vec![hidden]),
        ] {
            let name = format!("encoder.layer.{layer}.{part}");
            tensors.push((format!("{name}.bias"), vec![shape[0]]));
            tensors.push((format!("{name}.weight"), shape));
        }
    }
    tensors
}

/// Numbers in [-0.5, 0.5), or [-2, 2) in matrices, that depend on the name only and are exact in
/// f32, so that any language can make the same checkpoint: see `reference.py`.
fn weights(name: &str, shape: &[usize]) -> Vec<u8> {
    let count = shape.iter().product();
    let scale = if shape.len() == 2 { 4.0 } else { 1.0 };
    let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut bytes = Vec::with_capacity(4 * count);
    for _ in 0..count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let value = ((state >> 40) as f32 / 16_777_216.0 - 0.5) * scale;
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes
}
