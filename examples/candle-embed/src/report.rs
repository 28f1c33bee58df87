//! What is printed: rankings and vectors, as text or JSON.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::Result;
use examples_support::note;
use examples_support::numbers::{bytes, plural, rate};
use serde::Serialize;

use crate::embed::Embeddings;
use crate::model::Loaded;
use crate::search::Ranked;

pub(crate) fn print_loaded(model: &Path, loaded: &Loaded) {
    note(&format!(
        "{}: {} in {}, {}, loaded in {:.3} s, {}",
        model.display(),
        plural(loaded.tensors, "tensor"),
        plural(loaded.shards, "shard"),
        bytes(loaded.bytes),
        loaded.seconds,
        rate(loaded.bytes, loaded.seconds)
    ));
}

pub(crate) fn print_text(query: &str, texts: &[String], ranking: &[Ranked]) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{query}")?;
    for Ranked { index, score } in ranking {
        writeln!(out, "  {score:>6.3}  {}", texts[*index])?;
    }
    Ok(())
}

pub(crate) fn print_json(query: &str, texts: &[String], ranking: &[Ranked], loaded: &Loaded) -> Result<()> {
    let results =
        ranking.iter().map(|&Ranked { index, score }| JsonResult { sentence: &texts[index], score, index });
    let json = Json {
        query,
        results: results.collect(),
        load_seconds: loaded.seconds,
        tensors: loaded.tensors,
        bytes: loaded.bytes,
    };
    print_line(&mut io::stdout().lock(), &json)
}

pub(crate) fn print_embeddings(texts: &[String], embeddings: &Embeddings) -> Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    for (index, (text, embedding)) in texts.iter().zip(embeddings.rows()).enumerate() {
        print_line(&mut out, &JsonEmbedding { index, text, embedding })?;
    }
    Ok(out.flush()?)
}

fn print_line(out: &mut dyn Write, json: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_string(json)?;
    line.push('\n');
    Ok(out.write_all(line.as_bytes())?)
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

#[derive(Serialize)]
struct JsonEmbedding<'a> {
    index: usize,
    text: &'a str,
    embedding: &'a [f32],
}
