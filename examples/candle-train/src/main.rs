//! Trains a small Llama in Candle to add two numbers, from scratch or from a checkpoint, and exports it.
//!
//! [`train`] is the loop, with all that is about checkpoints; [`model`] is what is trained, [`data`] the
//! sums, [`export`] the directory that other programs read.
//!
//! The same seed gives the same bytes, whether a run was interrupted or not: the batch of a step follows from
//! the seed and the number of the step alone, and weights, optimizer, learning rate and average go on from
//! the checkpoint exactly.
//!
//! What is reported goes to standard error. A failure is one line there and exit code 1.

mod data;
mod export;
mod model;
mod train;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use examples_support::{note, one_line};

/// Trains a small Llama to add two numbers. Checkpoints are saved as it goes, and `--resume` goes on from the
/// last one.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  candle-train run --export adder          a new model; candle-lm --model adder --prompt 17+25=
  candle-train run --resume                goes on where the run was stopped
  candle-train run --from samples/adder    goes on with the weights of a checkpoint"
)]
pub(crate) struct Cli {
    /// The directory of the run's checkpoints, configuration and tokenizer
    run: PathBuf,

    /// Go on from the last checkpoint of the run
    #[arg(long)]
    resume: bool,

    /// Begin with the weights of this Llama, and not with random ones
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    from: Option<PathBuf>,

    /// How many steps the whole run has [default: 2000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    steps: Option<u64>,

    /// Stop after this step of the run; `--resume` goes on
    #[arg(long, value_name = "N")]
    until: Option<u64>,

    /// Sums in a batch [default: 128]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 16))]
    batch: Option<u64>,

    /// Where the random numbers start [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Save a checkpoint every so many steps
    #[arg(long, value_name = "N", default_value_t = 100)]
    every: u64,

    /// Keep so many checkpoints, the last ones; `weighbridge inspect RUN --html` shows them
    #[arg(long, value_name = "N", default_value_t = 2)]
    keep: usize,

    /// Write the averaged weights as a checkpoint for other programs
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
}

fn main() -> ExitCode {
    match train::run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note(&format!("error: {}", one_line(&error)));
            ExitCode::FAILURE
        }
    }
}
