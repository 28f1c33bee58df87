//! The model as Hugging Face lays one out.

use std::fmt;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use burn_lm::model::Llama;
use serde::Serialize;
use serde_json::json;
use weighbridge_burn::weighbridge::write::{OutputFile, Save};

use crate::source::{CONFIG, Source};

/// What was written.
#[derive(Debug, Serialize)]
pub(crate) struct Exported {
    directory: String,
    files: Vec<String>,
    /// Those of the tensors.
    bytes: u64,
}

/// Writes `config.json`, the weights with their index, and what else lay beside them where they came from. Files of these
/// names are replaced, the weights as a set.
pub(crate) fn export(
    model: &Llama,
    source: &Source,
    directory: &Path,
    max_shard_size: u64,
) -> Result<Exported> {
    let save = Save::new().max_shard_size(max_shard_size);
    let saved = weighbridge_burn::save(model).pytorch().with(save).directory(directory, "model")?;

    let mut config = source.raw_config.clone();
    config.entry("architectures").or_insert_with(|| json!(["LlamaForCausalLM"]));
    // The one is how transformers 5 calls it, the other how transformers 4 does.
    config.insert("dtype".to_owned(), json!("float32"));
    config.insert("torch_dtype".to_owned(), json!("float32"));
    config.insert("tie_word_embeddings".to_owned(), json!(source.config.tied));
    let config = serde_json::to_string_pretty(&config)? + "\n";

    let mut files: Vec<_> = saved.shards.iter().chain(&saved.index).map(|path| file_name(path)).collect();
    let others = source.companions.iter().map(|(name, bytes)| (&**name, &**bytes));
    for (name, bytes) in others.chain([(CONFIG, config.as_bytes())]) {
        write_file(&directory.join(name), bytes)?;
        files.push(name.to_owned());
    }
    files.sort();
    Ok(Exported { directory: directory.display().to_string(), files, bytes: saved.total_size })
}

/// Writes a file that is there when it is whole.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = OutputFile::atomic(path)?;
    file.write_all(bytes).with_context(|| path.display().to_string())?;
    Ok(file.commit()?)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl fmt::Display for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exported {} files to {}", self.files.len(), self.directory)
    }
}
