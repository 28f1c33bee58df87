//! `weighbridge split`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use crate::destination::Destination;
use crate::load::open;
use crate::outcome::Outcome;
use crate::reshape::{self, Reshape};
use crate::term::Term;

/// Cuts a checkpoint into shards with an index
///
/// Tensors are distributed as huggingface_hub does. Bytes are copied by the kernel and do not pass through
/// the program.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge split model.safetensors --max-shard-size 2GB -o sharded/
  weighbridge split Llama-3.2-1B --max-shard-size 500MiB -o resharded/")]
pub(crate) struct Split {
    /// The checkpoint: a file, a directory, an index, or a repository in the cache
    #[arg(value_name = "PATH")]
    input: PathBuf,

    #[command(flatten)]
    destination: Destination,
}

impl Split {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        if let Some(file) = self.destination.file() {
            bail!("{}: shards go into a directory", file.display());
        }
        let checkpoint = open(&self.input, term)?;
        reshape::write(&[Reshape::default().plan(&checkpoint)?], &self.destination, term)
    }
}
