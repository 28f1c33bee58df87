//! The command line: what all verbs share, and the list of verbs.

use clap::{Parser, Subcommand};

use crate::global::Global;
use crate::outcome::Outcome;
use crate::term::Term;
use crate::verb;

/// Looks at, verifies, compares and reshapes safetensors checkpoints, without loading them into memory.
///
/// A checkpoint is a file, a directory, an index (`model.safetensors.index.json`), the id of a repository in the local
/// Hugging Face cache (`org/name`, `org/name@revision`), or an address: `hf://org/name[@revision][/path]`,
/// `https://host/model.safetensors`, `s3://bucket/prefix`, `gs://...`, `az://...`, of which only what is needed is read.
#[derive(Debug, Parser)]
#[command(name = "weighbridge", version, max_term_width = 100, propagate_version = true)]
#[command(after_help = "\
Exit status: 0 when all is well, 1 when something was found (a difference, a broken file), 2 on errors.

Examples:
  weighbridge inspect model.safetensors          what is in it
  weighbridge verify meta-llama/Llama-3.2-1B     may it be trusted
  weighbridge cast model.safetensors --to bf16 -o model-bf16.safetensors
  weighbridge inspect hf://org/name              the same without downloading it

`weighbridge help VERB` has more of them.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,

    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Inspect(verb::inspect::Inspect),
    Verify(verb::verify::Verify),
    Repair(verb::repair::Repair),
    Diff(verb::diff::Diff),
    Hash(verb::hash::Hash),
    Cat(verb::cat::Cat),
    Stat(verb::stat::Stat),
    Meta(verb::meta::Meta),
    Cast(verb::cast::Cast),
    Dequantize(verb::dequantize::Dequantize),
    Quantize(verb::quantize::Quantize),
    Lora(verb::lora::Lora),
    Share(verb::share::Share),
    Split(verb::split::Split),
    Merge(verb::merge::Merge),
    Blend(verb::blend::Blend),
    Consolidate(verb::consolidate::Consolidate),
    Plan(verb::plan::Plan),
    Shard(verb::shard::Shard),
    Rename(verb::rename::Rename),
    Filter(verb::filter::Filter),
    Convert(verb::convert::Convert),
    Scan(verb::scan::Scan),
    #[cfg(feature = "remote")]
    Fetch(verb::fetch::Fetch),
    #[cfg(feature = "remote")]
    Cache(verb::cache::Cache),
    Generate(verb::generate::Generate),
    Version(verb::version::Version),
}

impl Verb {
    pub(crate) fn run(&self, term: &Term) -> anyhow::Result<Outcome> {
        match self {
            Self::Inspect(verb) => verb.run(term),
            Self::Verify(verb) => verb.run(term),
            Self::Repair(verb) => verb.run(term),
            Self::Diff(verb) => verb.run(term),
            Self::Hash(verb) => verb.run(term),
            Self::Cat(verb) => verb.run(term),
            Self::Stat(verb) => verb.run(term),
            Self::Meta(verb) => verb.run(term),
            Self::Cast(verb) => verb.run(term),
            Self::Dequantize(verb) => verb.run(term),
            Self::Quantize(verb) => verb.run(term),
            Self::Lora(verb) => verb.run(term),
            Self::Share(verb) => verb.run(term),
            Self::Split(verb) => verb.run(term),
            Self::Merge(verb) => verb.run(term),
            Self::Blend(verb) => verb.run(term),
            Self::Consolidate(verb) => verb.run(term),
            Self::Plan(verb) => verb.run(term),
            Self::Shard(verb) => verb.run(term),
            Self::Rename(verb) => verb.run(term),
            Self::Filter(verb) => verb.run(term),
            Self::Convert(verb) => verb.run(term),
            Self::Scan(verb) => verb.run(term),
            #[cfg(feature = "remote")]
            Self::Fetch(verb) => verb.run(term),
            #[cfg(feature = "remote")]
            Self::Cache(verb) => verb.run(term),
            Self::Generate(verb) => verb.run(term),
            Self::Version(verb) => verb.run(term),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
