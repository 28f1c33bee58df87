//! Fine-tunes a Llama in Burn by low-rank adaptation, and exports a PEFT adapter, which PEFT and transformers load, candle-lm
//! and burn-lm run (`--adapter`), and `weighbridge lora merge` merges.
//!
//! The model is that of burn-lm, and stays as it is; what learns is a module of its own, [`burn_lm::model::Lora`]. So the
//! checkpoints of a run hold the small matrices and nothing else. [`task`] is what is learned, [`train`] the loop
//! with its checkpoints, [`export`] the adapter, [`cli`] the options.
//!
//! The same options give the same bytes, whether a run was interrupted or not: the batch of a step follows from the seed
//! and the number of the step alone, and factors, optimizer and learning rate go on from the checkpoint exactly.
//!
//! Standard output carries the answers, or with `--json` one object; everything else goes to standard error. A failure
//! is one line there and exit code 1.

mod cli;
mod export;
mod task;
mod train;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, anyhow};
use burn::module::Module;
use burn_lm::learn::{indices, padded};
use burn_lm::model::{Lora, floats, initialise};
use burn_lm::weights::Found;
use clap::Parser;
use examples_support::note;
use serde::Serialize;

use crate::cli::Cli;
use crate::task::{Score, Task};
use crate::train::Training;

/// So many held-out sums are asked before and after.
const HELD_OUT: usize = 200;

fn main() -> ExitCode {
    burn_lm::exit_code(run(&Cli::parse()))
}

/// What a run did. These are the keys of the JSON object.
#[derive(Serialize)]
struct Summary {
    base: String,
    rank: usize,
    alpha: f64,
    /// How many numbers learn.
    parameters: usize,
    /// How many were done, those before `--resume` included.
    steps: u64,
    /// The mean of the steps since the last line of progress.
    loss: Option<f64>,
    /// How many answers were right before this run, and after it, and of how many.
    right_before: usize,
    right: usize,
    asked: usize,
    export: Option<String>,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    logits: Option<Vec<f32>>,
}

fn run(cli: &Cli) -> Result<()> {
    let start = Instant::now();
    let device = cli.device.open()?.autodiff();
    let found = Found::open(&cli.base(), &[])?;
    let task = Task::new(found.text()?, &found.config.ends)?;
    let (model, loaded) = found.load(None, &device)?;
    note(&format!("{}: {} tensors loaded in {:.2} s", found.place.display(), loaded.tensors, loaded.seconds));
    // It only passes gradients on.
    let model = model.no_grad();

    let lora = Lora::new(&found.config, &cli.targets, cli.rank, cli.alpha, &device);
    device.seed(cli.seed);
    initialise(&lora);
    let parameters = lora.num_params();
    note(&format!("{parameters} numbers learn, beside {} that stay", model.num_params()));

    let mut training = Training::new(cli, &model, &task, &device, lora)?;
    training.resume()?;
    let ask = |training: &Training<'_>| task.score(&model, &training.lora, HELD_OUT, &device);
    let before = ask(&training)?;
    note(&format!("before: {before}"));
    training.run()?;
    let after = ask(&training)?;

    let logits = match &cli.logits {
        Some(text) => {
            let tokens = task.text.encode(text)?;
            let last = indices(&[tokens.len() - 1], &device);
            Some(floats(model.logits_at(padded(&[&tokens], &device), last, Some(&training.lora)))?)
        }
        None => None,
    };
    if let Some(directory) = &cli.export {
        export::export(&training.lora, cli, &found.place, directory)?;
        note(&format!("exported an adapter to {}", directory.display()));
    }
    let summary = Summary {
        base: found.place.display().to_string(),
        rank: cli.rank,
        alpha: cli.alpha,
        parameters,
        steps: training.done,
        loss: training.loss,
        right_before: before.right,
        right: after.right,
        asked: after.asked,
        export: cli.export.as_ref().map(|directory| directory.display().to_string()),
        seconds: start.elapsed().as_secs_f64(),
        logits,
    };
    print(cli, &summary, &after)
}

fn print(cli: &Cli, summary: &Summary, score: &Score) -> Result<()> {
    let text = match cli.json {
        true => serde_json::to_string(summary).map_err(|error| anyhow!("{error}"))? + "\n",
        false => format!("{}{score}\n", score.examples.concat()),
    };
    Ok(io::stdout().write_all(text.as_bytes())?)
}
