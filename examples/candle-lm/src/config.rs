//! The JSON files beside the weights.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use examples_support::Fields;
use serde_json::{Map, Value};
use weighbridge::Checkpoint;

use crate::family::{self, Blueprint};

/// Reads `config.json`, and for the tokens that end a text `generation_config.json`.
///
/// # Errors
///
/// One line that names the file and the key.
pub(crate) fn read(checkpoint: &Checkpoint, place: &Path) -> Result<(Blueprint, Vec<u32>)> {
    let at = || place.join("config.json").display().to_string();
    let config = read_object(checkpoint, "config.json")?
        .ok_or_else(|| anyhow!("there is no such file beside the weights"))
        .with_context(at)?;
    let blueprint = family::read(Fields(&config)).with_context(at)?;

    // Where generation_config.json exists, it alone decides, even when it names no token: that is what transformers
    // does (tried with 5.23).
    let (name, says) = match read_object(checkpoint, "generation_config.json")? {
        Some(generation) => ("generation_config.json", generation),
        None => ("config.json", config),
    };
    let eos = Fields(&says).tokens("eos_token_id").with_context(|| place.join(name).display().to_string())?;
    Ok((blueprint, eos.unwrap_or_default()))
}

/// A JSON file beside the weights, if there is one.
///
/// # Errors
///
/// One line that names a file that cannot be read, or is no JSON object.
pub(crate) fn read_object(checkpoint: &Checkpoint, name: &str) -> Result<Option<Map<String, Value>>> {
    let Some(path) = checkpoint.beside(name)? else { return Ok(None) };
    let at = || path.display().to_string();
    let bytes = fs::read(&path).with_context(at)?;
    match serde_json::from_slice(&bytes).with_context(at)? {
        Value::Object(map) => Ok(Some(map)),
        _ => bail!("{}: not a JSON object", path.display()),
    }
}
