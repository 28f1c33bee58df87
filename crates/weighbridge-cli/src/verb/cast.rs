//! `weighbridge cast`.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use clap::Args;
use weighbridge::Entry;

use crate::casts::Casts;
use crate::dense;
use crate::destination::Destination;
use crate::load::open;
use crate::outcome::Outcome;
use crate::pattern;
use crate::reshape::{self, Reshape};
use crate::show::plural;
use crate::term::Term;

/// Casts tensors to other dtypes
///
/// Values are rounded to nearest, ties to even, as PyTorch does. A value outside the range of the new dtype
/// is an error, and nothing is written, unless `--overflow` says what becomes of it; NaN stays NaN. Quantised
/// modules become the weights that they stand for, made in F32 and rounded once. Memory stays the same however large the checkpoint is.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge cast model.safetensors --to bf16 -o model-bf16.safetensors
  weighbridge cast Llama-3.2-1B --to f16 --keep '*norm*' -o llama-f16
  weighbridge cast Qwen3-8B-FP8 --to bf16 -o qwen-bf16
  weighbridge cast model.safetensors --to bf16 --to '*.router.*=f32' -o mixed.safetensors
  weighbridge cast model.safetensors --to f8_e4m3 --overflow saturate -o model-f8.safetensors")]
pub(crate) struct Cast {
    /// The checkpoint: a file, a directory, an index, or a repository in the cache
    #[arg(value_name = "PATH")]
    input: PathBuf,

    #[command(flatten)]
    casts: Casts,

    #[command(flatten)]
    destination: Destination,
}

impl Cast {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        if self.casts.is_none() {
            bail!("no dtype is given to cast to: --to bf16");
        }
        let checkpoint = open(&self.input, term)?;
        self.casts.check(&self.input, &pattern::names(&checkpoint), term)?;
        let reshape = Reshape { casts: self.casts.rules()?, ..Reshape::default() };
        let plan = reshape.plan(&checkpoint)?;
        let dequantised: HashSet<_> =
            plan.checkpoints().iter().flat_map(|weights| dense::dequantised(&checkpoint, weights)).collect();
        let is_as_before = |entry: &&Arc<Entry>| {
            let stored = checkpoint.tensor(entry.name());
            stored.is_some_and(|stored| stored.dtype() == entry.dtype())
                && !dequantised.contains(entry.name())
        };
        let as_before = plan.entries().iter().filter(is_as_before).count();
        let cast = plan.entries().len() - as_before - dequantised.len();
        let outcome = reshape::write(&[plan], &self.destination, term)?;
        let dequantised = match dequantised.len() {
            0 => String::new(),
            weights => format!("{} dequantised, ", plural(weights, "weight")),
        };
        term.note(format_args!("{dequantised}{} cast, {as_before} as before", plural(cast, "tensor")));
        Ok(outcome)
    }
}
