//! Tiny checkpoints in temporary directories, and the program run on them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};

/// A Llama of two layers over a vocabulary of 40 words, `w0` to `w39`.
pub(crate) struct Tiny {
    directory: tempfile::TempDir,
}

impl Tiny {
    /// Writes a checkpoint with this configuration and this number of shards.
    pub(crate) fn new(config: &Value, shards: usize) -> Self {
        let tiny = Self { directory: tempfile::tempdir().unwrap() };
        tiny.write("config.json", config.to_string());
        tiny.write("tokenizer.json", tokenizer().to_string());
        tiny.write_weights(config, shards);
        tiny
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        fs::write(self.path().join(name), contents).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.path().join(name)).unwrap();
    }

    /// Runs the program on this checkpoint.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        run(&[&["--model", self.path().to_str().unwrap()], args].concat())
    }

    fn write_weights(&self, config: &Value, shards: usize) {
        let tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = tensors(config)
            .into_iter()
            .map(|(name, shape)| {
                let data = weights(&name, shape.iter().product());
                (name, (shape, data))
            })
            .collect();
        let view = |name: &str| {
            let (shape, data) = &tensors[name];
            TensorView::new(Dtype::F32, shape.clone(), data).unwrap()
        };
        let names: Vec<_> = tensors.keys().map(String::as_str).collect();
        if shards == 1 {
            let path = self.path().join("model.safetensors");
            serialize_to_file(names.iter().map(|name| (*name, view(name))), None, &path).unwrap();
            return;
        }
        let mut weight_map = serde_json::Map::new();
        for (number, part) in names.chunks(names.len().div_ceil(shards)).enumerate() {
            let file = format!("model-{:05}-of-{shards:05}.safetensors", number + 1);
            let part = part.iter().map(|name| (*name, view(name)));
            serialize_to_file(part.clone(), None, &self.path().join(&file)).unwrap();
            weight_map.extend(part.map(|(name, _)| (name.to_owned(), json!(file))));
        }
        let index = json!({"metadata": {}, "weight_map": weight_map});
        self.write("model.safetensors.index.json", index.to_string());
    }
}

/// Runs the program. Its output must be that of a program which ends of its own accord.
pub(crate) fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_candle-llama")).args(args).env("RUST_BACKTRACE", "1").output().unwrap()
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

/// The sample checkpoint of this repository.
pub(crate) fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../samples/adder")
}

fn tokenizer() -> Value {
    let vocabulary: serde_json::Map<_, _> = (0..40).map(|id| (format!("w{id}"), json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}
    })
}

fn tensors(config: &Value) -> Vec<(String, Vec<usize>)> {
    let size = |key: &str| usize::try_from(config[key].as_u64().unwrap()).unwrap();
    let (hidden, inner, vocabulary) = (size("hidden_size"), size("intermediate_size"), size("vocab_size"));
    let key_value = hidden / size("num_attention_heads") * size("num_key_value_heads");
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if config["tie_word_embeddings"] != json!(true) {
        tensors.push(("lm_head.weight".to_owned(), vec![vocabulary, hidden]));
    }
    for layer in 0..size("num_hidden_layers") {
        for (part, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![key_value, hidden]),
            ("self_attn.v_proj", vec![key_value, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ] {
            tensors.push((format!("model.layers.{layer}.{part}.weight"), shape));
        }
    }
    tensors
}

/// Numbers in [-0.5, 0.5) that depend on the name only, exact in f32, so that any language can make
/// the same checkpoint: see `reference.py`.
fn weights(name: &str, count: usize) -> Vec<u8> {
    let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut bytes = Vec::with_capacity(4 * count);
    for _ in 0..count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let value = (state >> 40) as f32 / 16_777_216.0 - 0.5;
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes
}
