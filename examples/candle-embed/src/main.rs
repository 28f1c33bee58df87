//! Ranks sentences by meaning with a BERT checkpoint, loaded through weighbridge into Candle.
//!
//! A sentence becomes a vector: the model's last hidden states, pooled; the score of two sentences
//! is the cosine of their vectors. [`config`] reads the handful of JSON files that say how,
//! [`inventory`] compares them with the tensors, [`embed`] loads the model and computes.
//!
//! Standard output carries the ranking, or with `--json` one object; everything else goes to
//! standard error. A failure is one line there and exit code 1.

mod config;
mod embed;
mod inventory;
mod report;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use examples_support::{note, one_line};

use crate::embed::Embedder;

const EXAMPLES: &str = "\
Example:
  candle-embed --model sentence-transformers/all-MiniLM-L6-v2 'How do I weigh a truck?' \\
      'A weighbridge weighs whole vehicles.' 'The cat sleeps on the mat.'";

/// Ranks sentences by how close they are to a query in meaning, with a BERT checkpoint
/// (safetensors) made for sentence embeddings, such as all-MiniLM-L6-v2.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    /// A directory, a safetensors or index file, or the id (`org/name[@revision]`) of a repository
    /// in the local Hugging Face cache
    #[arg(long, value_name = "DIR|ID")]
    model: PathBuf,

    /// Print one JSON object: query, results, load_seconds, tensors, bytes
    #[arg(long)]
    json: bool,

    /// The text to compare with
    query: String,

    /// The texts to rank
    #[arg(value_name = "SENTENCE", required = true)]
    sentences: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
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
    let embedder = Embedder::load(&cli.model)?;
    for warning in &embedder.loaded.warnings {
        writeln!(io::stderr(), "warning: {warning}")?;
    }
    let ranking = embedder.rank(&cli.query, &cli.sentences)?;
    if cli.json {
        report::print_json(&cli.query, &ranking, &embedder.loaded)
    } else {
        report::print_loaded(&cli.model, &embedder.loaded)?;
        report::print_text(&cli.query, &ranking)
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        let parse = |args: &[&str]| Cli::try_parse_from([&["candle-embed"], args].concat());
        assert!(parse(&["--model", "m", "query", "sentence", "--json"]).is_ok());
        assert!(parse(&["--model", "m", "query"]).is_err());
        assert!(parse(&["query", "sentence"]).is_err());
    }
}
