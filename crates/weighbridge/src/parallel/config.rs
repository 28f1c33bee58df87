//! What a model's `config.json` says about how it can be cut.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::heads::Heads;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::side_file::read_json;

/// A larger file is none.
const MOST: u64 = 64 << 20;

/// The configuration of a model; empty if there is none.
#[derive(Debug, Default)]
pub(super) struct Config {
    path: PathBuf,
    fields: Map<String, Value>,
}

impl Config {
    pub(super) fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let Some(path) = checkpoint.beside("config.json")? else { return Ok(Self::default()) };
        match read_json(&path, MOST)? {
            Some(Value::Object(fields)) => Ok(Self { path, fields }),
            _ => Ok(Self::default()),
        }
    }

    /// Says in which file something is wrong.
    pub(super) fn names(&self, error: Error) -> Error {
        error.in_file(&self.path)
    }

    /// A field of the language model.
    fn field(&self, names: &[&str]) -> Option<&Value> {
        let text = ["text_config", "llm_config", "language_config"];
        let inner = text.iter().find_map(|name| self.fields.get(*name)?.as_object());
        let sections = inner.into_iter().chain([&self.fields]);
        sections.into_iter().find_map(|section| names.iter().find_map(|name| section.get(*name)))
    }

    fn number(&self, names: &[&str]) -> Option<usize> {
        usize::try_from(self.field(names)?.as_u64()?).ok()
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.field(&[name])?.as_bool()
    }

    /// The kind of model.
    pub(super) fn model_type(&self) -> &str {
        self.field(&["model_type"]).and_then(Value::as_str).unwrap_or("")
    }

    /// The attention heads, where they are said and fit each other.
    pub(super) fn heads(&self) -> Option<Heads> {
        let query =
            self.number(&["num_attention_heads", "n_head", "n_heads", "num_heads"]).or_else(|| {
                let [encoder, decoder] =
                    ["encoder_attention_heads", "decoder_attention_heads"].map(|name| self.number(&[name]));
                encoder.filter(|_| encoder == decoder)
            })?;
        let several = self.number(&["num_key_value_heads", "num_kv_heads", "n_head_kv"]);
        // Falcon counts heads that it does not have.
        let kv = match (self.model_type(), self.flag("multi_query"), self.flag("new_decoder_architecture")) {
            ("falcon" | "RefinedWebModel" | "RefinedWeb", Some(true), Some(false) | None) => 1,
            ("falcon" | "RefinedWebModel", _, Some(false) | None) => query,
            _ => several.unwrap_or(query),
        };
        Heads::new(query, kv).ok()
    }

    /// Whether queries, keys and values of Falcon lie in groups.
    pub(super) fn has_groups(&self) -> bool {
        self.flag("new_decoder_architecture") == Some(true) || self.flag("multi_query") != Some(true)
    }

    /// Whether the model says that embedding and head are not the same.
    pub(super) fn is_untied(&self) -> bool {
        self.flag("tie_word_embeddings") == Some(false)
    }

    /// The plan of transformers.
    pub(super) fn tp_plan(&self) -> Option<&Map<String, Value>> {
        self.field(&["base_model_tp_plan"])?.as_object().filter(|plan| !plan.is_empty())
    }
}
