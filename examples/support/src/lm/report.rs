//! What is printed: the summary of a load, as text or JSON, and answers.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use super::text::Answer;
use crate::numbers::{bytes, per_second, plural, rate};

/// Below this a load is over before its progress can be read.
const LARGE: u64 = 1 << 30;

/// The time from one line of progress to the next.
const BETWEEN: Duration = Duration::from_millis(100);

/// What a load moved, and how long it took.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The number of stored tensors.
    pub tensors: usize,
    /// The number of files that have them.
    pub shards: usize,
    /// Number of tensors by stored dtype.
    pub dtypes: BTreeMap<String, usize>,
    /// Of all that is stored.
    pub bytes: u64,
    /// What the model computes in.
    pub dtype: &'static str,
    /// From opening the checkpoint to the model built.
    pub seconds: f64,
    /// What is not as it should be in the files, but did not stand in the way.
    pub warnings: Vec<String>,
}

impl Loaded {
    /// The warning for tensors that a model does not read, if there are any.
    pub fn unread(names: &[String]) -> Option<String> {
        if names.is_empty() {
            return None;
        }
        let shown: Vec<_> = names.iter().take(3).map(|name| format!("\"{name}\"")).collect();
        let more = if names.len() > shown.len() { ", ..." } else { "" };
        let count = names.len();
        Some(format!("the model does not read {count} of the tensors: {}{more}", shown.join(", ")))
    }
}

/// What was loaded, from where to where.
#[derive(Clone, Debug)]
pub struct Summary<'a> {
    /// The checkpoint, as it was asked for.
    pub model: String,
    /// Where the model computes.
    pub device: String,
    /// The rest.
    pub loaded: &'a Loaded,
}

impl Summary<'_> {
    /// Three lines for people.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn print_text(&self, out: &mut dyn Write) -> Result<()> {
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
            loaded.dtype
        )?;
        Ok(())
    }

    /// Prints one JSON object. Its keys are the same when nothing was asked; the text is empty
    /// then.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn print_json(&self, answered: Option<(&str, &Answer)>) -> Result<()> {
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
            dtype: loaded.dtype,
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

/// How fast tokens came.
pub fn speed(answer: &Answer) -> String {
    let (tokens, seconds) = (answer.tokens.len(), answer.seconds);
    let count = plural(tokens, "token");
    format!("{count} in {seconds:.3} s, {:.1} tokens/s", per_second(tokens, seconds))
}

/// Writes a piece of text to standard output at once.
///
/// # Errors
///
/// It cannot be written.
pub fn show(piece: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(piece.as_bytes())?;
    Ok(out.flush()?)
}

/// How far a load is, on one line of the terminal that is written over and over.
#[derive(Debug)]
pub struct Progress {
    bytes: u64,
    shown: Instant,
}

impl Progress {
    /// For a load of so many bytes; none where it is over before a line can be read, or nobody reads.
    pub fn of(bytes: u64) -> Option<Self> {
        (bytes >= LARGE && io::stderr().is_terminal()).then(|| Self { bytes, shown: Instant::now() })
    }

    /// Shows that so many bytes are done, but not too often.
    pub fn show(&mut self, done: u64) {
        if self.shown.elapsed() >= BETWEEN {
            self.shown = Instant::now();
            let mut out = io::stderr();
            let _ =
                write!(out, "\r\x1b[2K{} of {}", bytes(done), bytes(self.bytes)).and_then(|()| out.flush());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let _ = write!(io::stderr(), "\r\x1b[2K");
    }
}
