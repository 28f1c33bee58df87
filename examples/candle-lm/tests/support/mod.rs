//! Tiny checkpoints in temporary directories, and the program run on them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;

use examples_support::testing::{self, Directory, weights};
pub(crate) use examples_support::testing::{error_of, json_of};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};

/// A model of two layers over a vocabulary of 40 words, `w0` to `w39`.
pub(crate) struct Tiny {
    directory: Directory,
}

impl Tiny {
    /// Writes a checkpoint with this configuration and this number of shards.
    pub(crate) fn new(config: &Value, shards: usize) -> Self {
        let tiny = Self { directory: Directory::new() };
        tiny.write("config.json", config.to_string());
        tiny.write("tokenizer.json", tokenizer().to_string());
        tiny.write_weights(config, shards);
        tiny
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        self.directory.write(name, contents);
    }

    pub(crate) fn remove(&self, name: &str) {
        self.directory.remove(name);
    }

    /// What names this checkpoint on the command line.
    pub(crate) fn args(&self) -> [&str; 2] {
        ["--model", self.path().to_str().unwrap()]
    }

    /// Runs the program on this checkpoint.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        run(&[&self.args(), args].concat())
    }

    fn write_weights(&self, config: &Value, shards: usize) {
        let tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = tensors(config)
            .into_iter()
            .map(|(name, shape)| {
                let data = weights(&name, shape.iter().product(), 1.0);
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

/// Runs the program that the tests are of.
pub(crate) fn run(args: &[&str]) -> Output {
    testing::run(crate::PROGRAM, args)
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
    if config["model_type"] == "falcon" {
        return falcon(config);
    }
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
            let has_bias = ["q_proj", "k_proj", "v_proj"].iter().any(|end| part.ends_with(end));
            if config["model_type"] == "qwen2" && has_bias {
                tensors.push((format!("model.layers.{layer}.{part}.bias"), shape[..1].to_vec()));
            }
            tensors.push((format!("model.layers.{layer}.{part}.weight"), shape));
        }
    }
    tensors
}

/// With tied embeddings, without biases of projections.
fn falcon(config: &Value) -> Vec<(String, Vec<usize>)> {
    let size = |key: &str| usize::try_from(config[key].as_u64().unwrap()).unwrap();
    let (hidden, inner) = (size("hidden_size"), size("ffn_hidden_size"));
    let head = hidden / size("num_attention_heads");
    let mut tensors = vec![
        ("word_embeddings.weight".to_owned(), vec![size("vocab_size"), hidden]),
        ("ln_f.weight".to_owned(), vec![hidden]),
        ("ln_f.bias".to_owned(), vec![hidden]),
    ];
    for layer in 0..size("num_hidden_layers") {
        for (part, shape) in [
            ("input_layernorm.weight", vec![hidden]),
            ("input_layernorm.bias", vec![hidden]),
            ("self_attention.query_key_value.weight", vec![hidden + 2 * head, hidden]),
            ("self_attention.dense.weight", vec![hidden, hidden]),
            ("mlp.dense_h_to_4h.weight", vec![inner, hidden]),
            ("mlp.dense_4h_to_h.weight", vec![hidden, inner]),
        ] {
            tensors.push((format!("h.{layer}.{part}"), shape));
        }
    }
    tensors.into_iter().map(|(name, shape)| (format!("transformer.{name}"), shape)).collect()
}
