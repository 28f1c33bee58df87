//! The JSON files beside the weights.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use examples_support::Fields;
use serde_json::{Map, Value};

use crate::family::{self, Blueprint};
use crate::model::Beside;

/// Reads `config.json`, and the tokens that end a text.
///
/// # Errors
///
/// One line that names the file and the key.
pub(crate) fn read(beside: &Beside, place: &Path) -> Result<(Blueprint, Vec<u32>)> {
    let at = || place.join("config.json").display().to_string();
    let config = read_object(beside, "config.json")?
        .ok_or_else(|| anyhow!("there is no such file beside the weights"))
        .with_context(at)?;
    let blueprint = family::read(Fields(&config)).with_context(at)?;
    let eos = match eos(beside)? {
        Some(eos) => eos,
        None => Fields(&config).tokens("eos_token_id").with_context(at)?.unwrap_or_default(),
    };
    Ok((blueprint, eos))
}

/// The tokens that end a text, as `generation_config.json` has them. Where that exists, it alone decides, even when
/// it names no token: that is what transformers does (tried with 5.23). `None` if there is no such file.
pub(crate) fn eos(beside: &Beside) -> Result<Option<Vec<u32>>> {
    let name = "generation_config.json";
    let Some(says) = read_object(beside, name)? else { return Ok(None) };
    Ok(Some(Fields(&says).tokens("eos_token_id").context(name)?.unwrap_or_default()))
}

/// A JSON file beside the weights, if there is one.
///
/// # Errors
///
/// One line that names a file that cannot be read, or is no JSON object.
pub(crate) fn read_object(beside: &Beside, name: &str) -> Result<Option<Map<String, Value>>> {
    let Some(path) = beside.find(name)? else { return Ok(None) };
    let at = || path.display().to_string();
    let bytes = fs::read(&path).with_context(at)?;
    match serde_json::from_slice(&bytes).with_context(at)? {
        Value::Object(map) => Ok(Some(map)),
        _ => bail!("{}: not a JSON object", path.display()),
    }
}
