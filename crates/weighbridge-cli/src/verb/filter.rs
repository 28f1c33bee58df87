//! `weighbridge filter`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use crate::destination::Destination;
use crate::load::open;
use crate::outcome::Outcome;
use crate::pattern;
use crate::reshape::{self, Reshape};
use crate::select::Select;
use crate::show::plural;
use crate::term::Term;

/// Keeps some tensors and leaves the others out
///
/// Bytes are copied by the kernel and do not pass through the program.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge filter model.safetensors --only 'encoder.*' -o encoder.safetensors
  weighbridge filter checkpoint/ --except '*optimizer*' --except '*.ema.*' -o slim.safetensors
  weighbridge filter model.safetensors --regex '^layers\\.[0-3]\\.' -o first-four.safetensors")]
pub(crate) struct Filter {
    /// The checkpoint: a file, a directory, an index, or a repository in the cache
    #[arg(value_name = "PATH")]
    input: PathBuf,

    #[command(flatten)]
    select: Select,

    #[command(flatten)]
    destination: Destination,
}

impl Filter {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        if self.select.is_all() {
            bail!("nothing says which tensors to keep: --only, --regex or --except");
        }
        let checkpoint = open(&self.input, term)?;
        self.select.check(&self.input, &pattern::names(&checkpoint), term)?;
        let reshape = Reshape { names: self.select.names()?, ..Reshape::default() };
        let plan = reshape.plan(&checkpoint)?;
        let (kept, all) = (plan.entries().len(), checkpoint.len());
        if kept == 0 {
            return Err(pattern::nothing_left(&self.input, all));
        }
        let outcome = reshape::write(&[plan], &self.destination, term)?;
        term.note(format_args!("{} left out", plural(all - kept, "tensor")));
        Ok(outcome)
    }
}
