//! What the command line of a program around a language model means.

use std::iter;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The sample checkpoint of this repository: a tiny Llama that adds two numbers.
const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder");

/// What the sample is asked when nothing else is.
const QUESTIONS: [&str; 5] = ["123+456=", "7+8=", "999+1=", "250+250=", "64+936="];

/// The checkpoint that was asked for, or the sample.
pub fn checkpoint(model: Option<&Path>) -> PathBuf {
    match model {
        Some(model) => model.to_owned(),
        // Without the `..` it reads better; where it does not exist, the error should name it
        // all the same.
        None => std::fs::canonicalize(SAMPLE).unwrap_or_else(|_| PathBuf::from(SAMPLE)),
    }
}

/// The prompts that were given, or the sample's; at least one.
pub fn prompts(given: &[String]) -> Vec<String> {
    if given.is_empty() { QUESTIONS.map(str::to_owned).to_vec() } else { given.to_vec() }
}

/// The adapters with what each counts: 1 where nothing is said.
///
/// # Errors
///
/// There are more weights than adapters.
pub fn weighted(adapters: &[PathBuf], weights: &[f32]) -> Result<Vec<(PathBuf, f32)>> {
    if weights.len() > adapters.len() {
        bail!("--adapter-weight is given {} times, --adapter {} times", weights.len(), adapters.len());
    }
    Ok(adapters.iter().cloned().zip(weights.iter().copied().chain(iter::repeat(1.0))).collect())
}

/// Reads a number of tokens. The bound keeps the table of rotary positions, which is as long as prompt and answer
/// together, from being asked of the allocator in sizes that no machine has.
///
/// # Errors
///
/// It is no number, or too large.
pub fn parse_token_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count <= 1_000_000 => Ok(count),
        _ => Err("expected a whole number from 0 to 1000000".into()),
    }
}

/// Reads what an adapter counts.
///
/// # Errors
///
/// It is no number, or not finite.
pub fn parse_weight(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|weight: &f32| weight.is_finite()).ok_or_else(|| "expected a number".into())
}
