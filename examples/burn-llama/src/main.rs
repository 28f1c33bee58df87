//! Trains a small Llama in Burn, or starts from a Hugging Face checkpoint, and exports it for every program that reads
//! such checkpoints.
//!
//! Three parts of this program are about weights: [`source`] brings a checkpoint into the model, [`train`] keeps the
//! training state, [`export`] writes the model. None of them names a tensor, because the fields of burn-lm's model are called
//! as Hugging Face calls them. The rest is what every training program needs: [`cli`] the options, [`settings`] what
//! a run was begun with, [`tokens`] and [`data`] the sums to learn, [`progress`] what is shown meanwhile, [`evaluate`]
//! whether it adds, [`report`] what is printed. With `--prompt` it is burn-lm.
//!
//! The same seed gives the same bytes, whether a run was interrupted or not: the batches of an epoch follow from the
//! seed and the number of the epoch alone, and model, optimizer and learning rate go on from the checkpoint exactly.
//!
//! Standard output carries the answers, or with `--json` one object; everything else goes to standard error. A failure
//! is one line there and exit code 1.

mod cli;
mod data;
mod evaluate;
mod export;
mod progress;
mod report;
mod settings;
mod source;
mod tokens;
mod train;

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use burn::module::Module;
use burn::tensor::Device;
use burn_lm::model::Llama;
use clap::Parser;
use examples_support::note;

use crate::cli::Cli;
use crate::report::Summary;
use crate::settings::Run;
use crate::source::Source;
use crate::tokens::Tokens;
use crate::train::{Outcome, Training};

fn main() -> ExitCode {
    // To continue a text is burn-lm's.
    let is_prompt = |argument: OsString| {
        argument.to_str().is_some_and(|text| text == "--prompt" || text.starts_with("--prompt="))
    };
    if env::args_os().any(is_prompt) {
        return burn_lm::main();
    }
    burn_lm::exit_code(run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<()> {
    let start = Instant::now();
    let device = Device::flex();
    let run = Run::read(cli)?;
    let source = match &run.settings.from {
        Some(from) => Source::open(from)?,
        None => Source::sample()?,
    };
    let tokens = Arc::new(Tokens::new(&source)?);
    let model = initial(&source, &run, &device)?;

    let outcome = if cli.epochs > 0 || cli.resume {
        if source.checkpoint.is_some() && run.latest.is_none() {
            let score = evaluate::score(&model.valid(), &tokens, cli.prompts, &device)?;
            note(&format!("before training: {score}"));
        }
        Training { cli, run: &run, tokens: &tokens, device: &device }.run(model)?
    } else {
        Outcome::untrained(model.valid())
    };

    let score = evaluate::score(&outcome.model, &tokens, cli.prompts, &device)?;
    let logits = match &cli.logits {
        Some(prompt) => Some(evaluate::logits(&outcome.model, &tokens, prompt, &device)?),
        None => None,
    };
    let exported = match &cli.export {
        Some(directory) => Some(export::export(&outcome.model, &source, directory, cli.max_shard_size)?),
        None => None,
    };
    let summary = Summary::new(&run, &outcome, &score, exported.as_ref(), logits, start.elapsed());
    if cli.json { summary.print_json() } else { summary.print_text(&score) }
}

/// The model before this run's first step: loaded, or drawn from the seed.
fn initial(source: &Source, run: &Run, device: &Device) -> Result<Llama> {
    let mut model = Llama::new(&source.config, &device.clone().autodiff());
    match &source.checkpoint {
        Some(checkpoint) => note(&format!("{}: {}", source.name, source::load(checkpoint, &mut model)?)),
        None => {
            device.seed(run.settings.seed);
            model.initialise();
            note(&format!("a new model of {} parameters", model.num_params()));
        }
    }
    Ok(model)
}
