//! What is printed: the summary of a load, as text or JSON, and errors.

use std::collections::BTreeMap;
use std::io::{self, Write};

use anyhow::Result;
use examples_support::numbers::{bytes, per_second, plural, rate};
use serde::Serialize;

use crate::cli::Cli;
use crate::generate::Answer;
use crate::model::Loaded;

/// What was loaded, from where to where.
pub(crate) struct Summary<'a> {
    model: String,
    device: String,
    dtype: &'static str,
    loaded: &'a Loaded,
}

impl<'a> Summary<'a> {
    pub(crate) fn new(cli: &Cli, loaded: &'a Loaded) -> Self {
        Self {
            model: cli.checkpoint().display().to_string(),
            device: cli.device.to_string(),
            dtype: loaded.dtype.as_str(),
            loaded,
        }
    }

    pub(crate) fn print_text(&self, out: &mut dyn Write) -> Result<()> {
        let loaded = self.loaded;
        let dtypes: Vec<_> = loaded.dtypes.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
        writeln!(out, "checkpoint  {}", self.model)?;
        writeln!(
            out,
            "tensors     {} ({}) in {}, {}",
            loaded.tensors,
            dtypes.join(", "),
            plural(loaded.shards, "shard"),
            bytes(loaded.bytes)
        )?;
        writeln!(
            out,
            "loaded      in {:.3} s, {} (on {} as {})",
            loaded.seconds,
            rate(loaded.bytes, loaded.seconds),
            self.device,
            self.dtype
        )?;
        Ok(())
    }

    /// Prints one JSON object. Its keys are the same when nothing was asked; the text is empty
    /// then.
    pub(crate) fn print_json(&self, answered: Option<(&str, &Answer)>) -> Result<()> {
        let loaded = self.loaded;
        let json = Json {
            model: &self.model,
            prompt: answered.map(|(prompt, _)| prompt),
            text: answered.map_or("", |(_, answer)| &answer.text),
            tokens: answered.map_or(&[], |(_, answer)| &answer.tokens),
            tokens_per_second: answered.map(|(_, answer)| per_second(answer.tokens.len(), answer.seconds)),
            load_seconds: loaded.seconds,
            bytes: loaded.bytes,
            tensors: loaded.tensors,
            shards: loaded.shards,
            dtypes: &loaded.dtypes,
            device: &self.device,
            dtype: self.dtype,
        };
        let mut line = serde_json::to_string(&json)?;
        line.push('\n');
        Ok(io::stdout().write_all(line.as_bytes())?)
    }
}

#[derive(Serialize)]
struct Json<'a> {
    model: &'a str,
    /// Null where nothing was asked.
    prompt: Option<&'a str>,
    text: &'a str,
    tokens: &'a [u32],
    tokens_per_second: Option<f64>,
    load_seconds: f64,
    bytes: u64,
    tensors: usize,
    shards: usize,
    dtypes: &'a BTreeMap<String, usize>,
    device: &'a str,
    dtype: &'a str,
}

pub(crate) fn speed(answer: &Answer) -> String {
    let (tokens, seconds) = (answer.tokens.len(), answer.seconds);
    let count = plural(tokens, "token");
    format!("{count} in {seconds:.3} s, {:.1} tokens/s", per_second(tokens, seconds))
}
