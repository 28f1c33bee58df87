//! Loads a checkpoint of Llama's kind through weighbridge into Burn, and continues a prompt.
//!
//! Burn has no language models, so that this has one: [`model`]. The fields are called as Hugging Face calls them, and
//! therefore a few lines bring a checkpoint into it, in [`weights`]. The rest is what every program around a
//! language model needs: `cli` the options, [`config`] what `config.json` says, `generate` the tokens that follow. What
//! does not depend on the framework is in `examples/support`: the tokenizer, the choice of a token, what is printed.
//!
//! burn-llama trains the same model, and burn-lora what is added to it: for them there is `learn`.
//!
//! Standard output carries the answer, or with `--json` one object a prompt; everything else goes to standard error. A
//! failure is one line there and exit code 1.

mod cli;
pub mod config;
mod generate;
#[cfg(feature = "train")]
pub mod learn;
pub mod model;
pub mod weights;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use examples_support::lm::{Answer, Loaded, Summary, show, speed};
use examples_support::{note, one_line};

use crate::cli::Cli;
pub use crate::cli::DeviceChoice;
use crate::generate::Generator;
use crate::weights::Found;

/// The program.
pub fn main() -> ExitCode {
    exit_code(run(&Cli::parse()))
}

/// What a program says in the end.
pub fn exit_code(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has had enough of it: `burn-lm | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            note(&format!("error: {}", one_line(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let device = cli.device.open()?;
    let found = Found::open(&cli.checkpoint(), &cli.adapters()?)?;
    if cli.load_only {
        let (_, loaded) = found.load(cli.dtype(), &device)?;
        let summary = summary(cli, &loaded);
        return if cli.json { summary.print_json(None) } else { summary.print_text(&mut io::stdout()) };
    }

    // Text first: what is wrong with it is known before gigabytes are read.
    let text = found.text()?;
    let prompts = cli.prompts();
    let encoded = prompts.iter().map(|prompt| text.encode(prompt)).collect::<Result<Vec<_>>>()?;
    let longest = encoded.iter().map(Vec::len).max().unwrap_or(0);
    found.config.check_length(longest + cli.max_new_tokens)?;
    let (model, loaded) = found.load(cli.dtype(), &device)?;
    let summary = summary(cli, &loaded);

    let generator = Generator::new(&model, &text, &found.config.ends, cli);
    if cli.json {
        for (prompt, tokens) in prompts.iter().zip(&encoded) {
            let answer = generator.answer(tokens, |_| Ok(()))?;
            summary.print_json(Some((prompt, &answer)))?;
        }
        return Ok(());
    }
    // To the terminal's user this reads from top to bottom; to a pipe goes only the text.
    summary.print_text(&mut io::stderr())?;
    let mut all = Answer::default();
    for (prompt, tokens) in prompts.iter().zip(&encoded) {
        show(prompt)?;
        all.add(&generator.answer(tokens, show)?);
        show("\n")?;
    }
    writeln!(io::stderr(), "{}", speed(&all)).context("standard error")
}

fn summary<'a>(cli: &Cli, loaded: &'a Loaded) -> Summary<'a> {
    for warning in &loaded.warnings {
        note(&format!("warning: {warning}"));
    }
    Summary { model: cli.checkpoint().display().to_string(), device: cli.device.to_string(), loaded }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
