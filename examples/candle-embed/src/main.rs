//! Embeds sentences with any sentence-transformers model that Candle computes, loaded through weighbridge: ranks sentences
//! by meaning, finds the nearest lines of a file, or writes the vectors.
//!
//! A sentence becomes tokens ([`text`]), these become vectors, the model's last hidden states ([`family`] has what each
//! kind of model needs of its `config.json`, [`model`] the few lines that are about weights), and these become one vector
//! ([`head`]), as the JSON files of sentence-transformers say ([`files`], [`sentence`]). [`mod@embed`] does that for many
//! texts at a time; [`mod@search`] compares vectors, [`mod@index`] keeps them.
//!
//! Standard output carries the results, or with `--json` one object a query; everything else goes to standard error. A
//! failure is one line there and exit code 1.

mod cli;
mod embed;
mod family;
mod files;
mod head;
mod index;
mod model;
mod report;
mod search;
mod sentence;
mod text;

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use candle_core::DType;
use examples_support::{note, one_line};

use crate::cli::Cli;
use crate::embed::Embedder;
use crate::head::Head;
use crate::index::MadeOf;
use crate::model::{Found, Loaded};
use crate::sentence::Role;
use crate::text::Text;

fn main() -> ExitCode {
    let cli = match Cli::checked() {
        Ok(cli) => cli,
        Err(usage) => usage.exit(),
    };
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has had enough of it: `candle-embed ... | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            note(&format!("error: {}", one_line(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let found = Found::open(&cli.model, &cli.adapters()?)?;
    let text = Text::open(&found.files, &found.sentence, &found.blueprint, cli.max_length)?;
    if cli.embed { embed(cli, &found, &text) } else { search(cli, &found, &text) }
}

/// Writes the vectors of texts.
fn embed(cli: &Cli, found: &Found, text: &Text) -> Result<()> {
    let texts = match &cli.file {
        Some(path) => lines(path)?,
        None => cli.texts.clone(),
    };
    let tokens = Tokens::of(Role::Text, &texts, cli, found, text)?;
    let (mut embedder, loaded) = load(cli, found, &[&tokens])?;
    let embeddings = embedder.embed(&tokens.texts, tokens.skipped)?;
    report::print_loaded(&cli.model, &loaded);
    match &cli.output {
        Some(path) => index::save(path, &embeddings, &made_of(cli, found, text, Role::Text, &texts)?),
        None => report::print_embeddings(&texts, &embeddings),
    }
}

/// Ranks texts by how near they are to queries.
fn search(cli: &Cli, found: &Found, text: &Text) -> Result<()> {
    let (queries, texts) = match &cli.file {
        Some(path) => (&cli.texts[..], lines(path)?),
        None => (&cli.texts[..1], cli.texts[1..].to_vec()),
    };
    let made_of = made_of(cli, found, text, Role::Document, &texts)?;
    let kept = match &cli.index {
        Some(path) => index::load(path, &made_of)?,
        None => None,
    };
    let asked = Tokens::of(Role::Query, queries, cli, found, text)?;
    // Where vectors were kept, the first text is enough, to see whether the model is still the same.
    let needed = if kept.is_some() { &texts[..1] } else { &texts[..] };
    let tokens = Tokens::of(Role::Document, needed, cli, found, text)?;
    let (mut embedder, loaded) = load(cli, found, &[&asked, &tokens])?;

    let queries_embedded = embedder.embed(&asked.texts, asked.skipped)?;
    let mut embeddings = embedder.embed(&tokens.texts, tokens.skipped)?;
    match (&cli.index, kept) {
        (Some(path), Some(kept)) => {
            index::check(path, &kept, &embeddings)?;
            embeddings = kept;
        }
        (Some(path), None) => index::save(path, &embeddings, &made_of)?,
        (None, _) => {}
    }
    if !cli.json {
        report::print_loaded(&cli.model, &loaded);
    }
    let similarity = cli.similarity.unwrap_or(found.sentence.similarity);
    for (query, vector) in queries.iter().zip(queries_embedded.rows()) {
        let ranking = search::nearest(vector, &embeddings, similarity, cli.top());
        if cli.json {
            report::print_json(query, &texts, &ranking, &loaded)?;
        } else {
            report::print_text(query, &texts, &ranking)?;
        }
    }
    Ok(())
}

/// Texts as the model sees them.
struct Tokens {
    texts: Vec<Vec<u32>>,
    /// So many of the first tokens of each are not pooled.
    skipped: usize,
}

impl Tokens {
    fn of(role: Role, texts: &[String], cli: &Cli, found: &Found, text: &Text) -> Result<Self> {
        let prompt = cli.prompt(role, &found.sentence)?;
        let skipped = if found.sentence.pools_prompt { 0 } else { text.prompt_len(prompt)? };
        Ok(Self { texts: text.encode(prompt, texts)?, skipped })
    }
}

/// Loads the model for the longest of these texts. All that can be wrong with them is known before.
fn load(cli: &Cli, found: &Found, texts: &[&Tokens]) -> Result<(Embedder, Loaded)> {
    let lengths = texts.iter().flat_map(|tokens| tokens.texts.iter().map(Vec::len));
    let device = cli.device.open()?;
    let blueprint = &found.blueprint;
    let head = Head::load(&found.files, &found.sentence, blueprint.hidden, cli.dimensions, &device)?;
    let (encoder, loaded) = found.load(lengths.max().unwrap_or(1), cli.dtype.map(DType::from), &device)?;
    for line in &found.sentence.notes {
        note(&format!("note: {line}"));
    }
    for warning in &loaded.warnings {
        note(&format!("warning: {warning}"));
    }
    let embedder = Embedder {
        encoder,
        head,
        device,
        padding: blueprint.padding,
        masks_padding: blueprint.masks_padding,
        batch_size: cli.batch_size,
    };
    Ok((embedder, loaded))
}

/// What the vectors of texts depend on.
fn made_of(cli: &Cli, found: &Found, text: &Text, role: Role, texts: &[String]) -> Result<MadeOf> {
    let (tensors, bytes) = found.size();
    let settings = serde_json::json!({
        "tensors": tensors,
        "bytes": bytes,
        "adapters": format!("{:?}", cli.adapters()?),
        "dtype": cli.dtype.map(|dtype| DType::from(dtype).as_str()),
        "prompt": cli.prompt(role, &found.sentence)?,
        "max_length": text.max_tokens,
        "dimensions": cli.dimensions,
    });
    Ok(MadeOf::new(settings.to_string(), texts))
}

/// The lines of a file, or of standard input.
fn lines(path: &Path) -> Result<Vec<String>> {
    let at = || path.display().to_string();
    let all = if path == Path::new("-") {
        let mut all = String::new();
        io::stdin().lock().read_to_string(&mut all).context("standard input")?;
        all
    } else {
        fs::read_to_string(path).with_context(at)?
    };
    let lines: Vec<String> = all.lines().map(str::to_owned).collect();
    ensure!(!lines.is_empty(), "{}: has no lines", at());
    Ok(lines)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
