//! `weighbridge merge`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use weighbridge::parallel::has_record;
use weighbridge::{Checkpoint, Names};
use weighbridge_convert::ranks::is_of_rank;

use crate::destination::Destination;
use crate::load::open;
use crate::outcome::Outcome;
use crate::reshape::{self, Reshape};
use crate::show::{plural, safe};
use crate::term::Term;

/// Makes one checkpoint of several, or one file of shards
///
/// Bytes are copied by the kernel and do not pass through the program.
///
/// `merge` joins the files of one model, `blend` averages models, `consolidate` joins rank shards.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge merge Llama-3.2-1B -o llama.safetensors
  weighbridge merge encoder.safetensors decoder.safetensors -o model.safetensors
  weighbridge merge base.safetensors patch.safetensors --on-duplicate last -o patched.safetensors")]
pub(crate) struct Merge {
    /// The checkpoints: files, directories, indexes, or repositories in the cache
    #[arg(value_name = "PATH", required = true)]
    inputs: Vec<PathBuf>,

    /// What becomes of a name that several checkpoints have
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    on_duplicate: OnDuplicate,

    #[command(flatten)]
    destination: Destination,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum OnDuplicate {
    /// Fail, and write nothing
    #[default]
    Error,
    /// The tensor of the first one counts
    First,
    /// The tensor of the last one counts
    Last,
}

impl Merge {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        let checkpoints = self.inputs.iter().map(|input| open(input, term)).collect::<Result<Vec<_>>>()?;
        self.inputs.iter().zip(&checkpoints).try_for_each(|(input, opened)| refuse_ranks(input, opened))?;
        let owners = self.owners(&checkpoints)?;
        let mut plans = Vec::with_capacity(checkpoints.len());
        let mut left_out = 0;
        for (number, checkpoint) in checkpoints.iter().enumerate() {
            let lost = |name: &&str| owners.get(name) != Some(&number);
            let lost: Vec<_> = checkpoint.tensors().map(|tensor| tensor.name()).filter(lost).collect();
            left_out += lost.len();
            let names = Names::all().except(Names::list(lost));
            plans.push(Reshape { names, ..Reshape::default() }.plan(checkpoint)?);
        }
        let outcome = reshape::write(&plans, &self.destination.in_one_file(), term)?;
        if left_out > 0 {
            term.note(format_args!("{} left out for others of the same name", plural(left_out, "tensor")));
        }
        Ok(outcome)
    }

    /// Which checkpoint each tensor is taken from.
    fn owners<'c>(&self, checkpoints: &'c [Checkpoint]) -> Result<HashMap<&'c str, usize>> {
        let mut owners: HashMap<_, usize> = HashMap::new();
        for (number, checkpoint) in checkpoints.iter().enumerate() {
            for tensor in checkpoint.tensors() {
                match (owners.get(tensor.name()), self.on_duplicate) {
                    (Some(&first), OnDuplicate::Error) => bail!(
                        "{}: tensor {:?}: {} has one of that name, too; --on-duplicate says which counts, {}",
                        self.inputs[number].display(),
                        safe(tensor.name()),
                        self.inputs[first].display(),
                        other_verb(&checkpoints[first], &checkpoints[number])
                    ),
                    (Some(_), OnDuplicate::First) => {}
                    _ => drop(owners.insert(tensor.name(), number)),
                }
            }
        }
        Ok(owners)
    }
}

/// What is meant, perhaps, where two checkpoints have tensors of the same names.
fn other_verb(first: &Checkpoint, second: &Checkpoint) -> &'static str {
    let differs = |own: &[usize], other: &[usize]| {
        own.len() == other.len() && own.iter().zip(other).filter(|(own, other)| own != other).count() == 1
    };
    let is_rank = |checkpoint: &Checkpoint| {
        let names = checkpoint.shards().iter().filter_map(|shard| shard.path()?.file_stem()?.to_str());
        names.into_iter().any(|name| name.contains("rank") || name.contains("mp_"))
    };
    let mut pairs = first.tensors().filter_map(|tensor| Some((tensor, second.tensor(tensor.name())?)));
    match is_rank(first) && is_rank(second) || pairs.any(|(own, other)| differs(own.shape(), other.shape())) {
        true => "`weighbridge consolidate --rules FILE` joins shards of ranks",
        false => "`weighbridge blend` averages models",
    }
}

/// Fails for a file that says that its tensors are parts of others.
fn refuse_ranks(input: &Path, checkpoint: &Checkpoint) -> Result<()> {
    if has_record(checkpoint) {
        bail!(
            "{}: it has the parts of one rank, as `weighbridge shard` writes them; `weighbridge consolidate` joins the \
             directory",
            input.display()
        );
    }
    if is_of_rank(checkpoint) {
        bail!(
            "{}: it has the parts of one rank (DCP_SHARDING_INFO); `weighbridge consolidate` joins the directory",
            input.display()
        );
    }
    Ok(())
}
