//! Loads a Hugging Face Llama checkpoint through weighbridge into Candle and answers a prompt.
//!
//! Five lines of this program are about weights, in [`model`]; the rest is what every program
//! around a language model needs: [`cli`] the options, [`config`] what `config.json` says,
//! [`inventory`] the tensors that follow from it, [`generate`] the tokens, [`report`] what is
//! printed.
//!
//! Standard output carries the answer, or with `--json` one object; everything else goes to
//! standard error. A failure is one line there and exit code 1.

mod cli;
mod config;
mod generate;
mod inventory;
mod model;
mod report;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use examples_support::{note, one_line};

use crate::cli::Cli;
use crate::generate::Prompter;
use crate::model::Model;

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has had enough of it: `candle-llama | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            note(&format!("error: {}", one_line(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let device = cli.device.open()?;
    let model = Model::load(&cli.checkpoint(), cli.dtype.map(Into::into), &device)?;
    for warning in &model.loaded.warnings {
        writeln!(io::stderr(), "warning: {warning}")?;
    }
    let summary = report::Summary::new(cli, &model);

    if cli.load_only {
        return if cli.json { summary.print_json(None) } else { summary.print_text(&mut io::stdout()) };
    }

    let prompter = Prompter::new(&model, cli.sampling())?;
    if cli.json {
        let prompt = cli.prompts().remove(0);
        let answer = prompter.answer(&prompt, cli.max_new_tokens, |_| Ok(()))?;
        return summary.print_json(Some((&prompt, &answer)));
    }

    // To the terminal's user this reads from top to bottom; to a pipe goes only the text.
    summary.print_text(&mut io::stderr())?;
    let (mut tokens, mut seconds) = (0, 0.0);
    for prompt in cli.prompts() {
        let mut out = io::stdout().lock();
        let mut show = |piece: &str| -> Result<()> {
            out.write_all(piece.as_bytes())?;
            Ok(out.flush()?)
        };
        show(&prompt)?;
        let answer = prompter.answer(&prompt, cli.max_new_tokens, &mut show)?;
        show("\n")?;
        tokens += answer.tokens.len();
        seconds += answer.seconds;
    }
    writeln!(io::stderr(), "{}", report::speed(tokens, seconds)).context("standard error")
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
