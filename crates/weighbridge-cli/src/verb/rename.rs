//! `weighbridge rename`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use crate::destination::Destination;
use crate::load::open;
use crate::outcome::Outcome;
use crate::rename::Renaming;
use crate::reshape::{self, Reshape};
use crate::show::plural;
use crate::term::Term;

/// Gives tensors other names
///
/// Rules are applied in the order given, each to what the ones before it made. Two tensors that would get one
/// name are an error. Bytes are copied by the kernel and do not pass through the program.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge rename model.safetensors --rename-prefix 'module.=' -o model-fixed.safetensors
  weighbridge rename bert/ --rename '*.gamma=*.weight' --rename '*.beta=*.bias' -o bert-fixed/
  weighbridge rename model.safetensors --rename-regex '^h\\.(\\d+)\\.=layers.$1.' --dry-run
  weighbridge rename model.safetensors --rename-map names.json -o renamed.safetensors")]
pub(crate) struct Rename {
    /// The checkpoint: a file, a directory, an index, or a repository in the cache
    #[arg(value_name = "PATH")]
    input: PathBuf,

    #[command(flatten)]
    renaming: Renaming,

    #[command(flatten)]
    destination: Destination,
}

impl Rename {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        if self.renaming.is_none() {
            bail!("no rule is given: --rename, --rename-prefix, --rename-regex or --rename-map");
        }
        let checkpoint = open(&self.input, term)?;
        let idle =
            self.renaming.idle(&checkpoint.tensors().map(|tensor| tensor.name()).collect::<Vec<_>>())?;
        match &idle.said[..] {
            [first, ..] if idle.are_all => bail!("{}: {first}", self.input.display()),
            said => said.iter().for_each(|said| term.warn(format_args!("{}: {said}", self.input.display()))),
        }
        let reshape = Reshape { renames: self.renaming.renames()?, ..Reshape::default() };
        let plan = reshape.plan(&checkpoint)?;
        let names = checkpoint.tensors().map(|tensor| tensor.name()).zip(plan.entries());
        let changed = names.filter(|(old, entry)| *old != entry.name()).count();
        let outcome = reshape::write(&[plan], &self.destination, term)?;
        term.note(format_args!("{} renamed", plural(changed, "tensor")));
        Ok(outcome)
    }
}
