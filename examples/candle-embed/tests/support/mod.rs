//! Tiny checkpoints in temporary directories, and the program run on them.

use std::path::Path;
use std::process::Output;

use examples_support::testing::{self, Directory, weights};
#[allow(unused_imports)] // Not by each of the test programs.
pub(crate) use examples_support::testing::{error_of, json_of};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};

/// A BERT of two layers over a vocabulary of 40 words, `w0` to `w39`; `w1` and `w2` surround a
/// text.
pub(crate) struct Tiny {
    directory: Directory,
}

impl Tiny {
    /// Writes a checkpoint whose tensors are called what `rename` makes of their names.
    pub(crate) fn new(config: &Value, rename: impl Fn(&str) -> String) -> Self {
        Self::with(config, rename, |_, data| data)
    }

    /// The same, with what `change` makes of the data of each.
    pub(crate) fn with(
        config: &Value,
        rename: impl Fn(&str) -> String,
        change: impl Fn(&str, Vec<u8>) -> Vec<u8>,
    ) -> Self {
        let tiny = Self { directory: Directory::new() };
        tiny.write("config.json", config.to_string());
        tiny.write("tokenizer.json", tokenizer().to_string());
        let tensors: Vec<_> = tensors(config)
            .into_iter()
            .map(|(name, shape)| {
                // Matrices have larger numbers.
                let scale = if shape.len() == 2 { 4.0 } else { 1.0 };
                let data = weights(&name, shape.iter().product(), scale);
                (rename(&name), shape, change(&name, data))
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
        self.directory.write(name, contents);
    }

    pub(crate) fn remove(&self, name: &str) {
        self.directory.remove(name);
    }

    /// Runs the program on this checkpoint.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        run(&[&["--model", self.path().to_str().unwrap()], args].concat())
    }
}

/// Its configuration.
pub(crate) fn bert() -> Value {
    json!({
        "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "vocab_size": 40,
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 24, "type_vocab_size": 2, "layer_norm_eps": 1e-12
    })
}

pub(crate) fn same(name: &str) -> String {
    name.to_owned()
}

/// Runs the program.
pub(crate) fn run(args: &[&str]) -> Output {
    testing::run(env!("CARGO_BIN_EXE_candle-embed"), args)
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
