//! What is printed: the ranking, as text or JSON, and errors.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::embed::{Loaded, Ranked};

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
pub(crate) fn print_loaded(model: &Path, loaded: &Loaded) -> Result<()> {
    let shards = if loaded.shards == 1 { "shard" } else { "shards" };
    Ok(writeln!(
        io::stderr(),
        "{}: {} tensors in {} {shards}, {:.2} MB, loaded in {:.3} s, {:.2} GB/s",
        model.display(),
        loaded.tensors,
        loaded.shards,
        loaded.bytes as f64 / 1e6,
        loaded.seconds,
        loaded.bytes as f64 / 1e9 / loaded.seconds.max(1e-9)
    )?)
}

pub(crate) fn print_text(query: &str, ranking: &[Ranked<'_>]) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{query}")?;
    for ranked in ranking {
        writeln!(out, "  {:>6.3}  {}", ranked.score, ranked.sentence)?;
    }
    Ok(())
}

pub(crate) fn print_json(query: &str, ranking: &[Ranked<'_>], loaded: &Loaded) -> Result<()> {
    let results = ranking.iter().map(|ranked| JsonResult {
        sentence: ranked.sentence,
        score: ranked.score,
        index: ranked.index,
    });
    let json = Json {
        query,
        results: results.collect(),
        load_seconds: loaded.seconds,
        tensors: loaded.tensors,
        bytes: loaded.bytes,
    };
    let mut line = serde_json::to_string(&json)?;
    line.push('\n');
    Ok(io::stdout().write_all(line.as_bytes())?)
}

#[derive(Serialize)]
struct Json<'a> {
    query: &'a str,
    results: Vec<JsonResult<'a>>,
    load_seconds: f64,
    tensors: usize,
    bytes: u64,
}

#[derive(Serialize)]
struct JsonResult<'a> {
    sentence: &'a str,
    score: f32,
    index: usize,
}
