//! `weighbridge consolidate`: what ranks wrote becomes one checkpoint.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use weighbridge::parallel::{self, ParallelPlan};
use weighbridge::{Checkpoint, Names, Plan};
use weighbridge_convert::{Aliases, Foreign, Format, Options, open_any};

use crate::beside::Beside;
use crate::casts::Rules as Casts;
use crate::destination::Destination;
use crate::load::tell;
use crate::outcome::Outcome;
use crate::pattern;
use crate::rename::Renaming;
use crate::reshape::{self, Reshape};
use crate::select::Select;
use crate::show::plural;
use crate::term::Term;
use crate::verb::convert::report;

/// Makes one checkpoint of what the ranks of a distributed run wrote
///
/// Reads PyTorch's distributed checkpoints (`.metadata` and `*.distcp`), directories of HuggingFaceStorageWriter
/// (safetensors with DCP_SHARDING_INFO), of DeepSpeed's ZeRO (the F32 weights that zero_to_fp32.py makes), what `weighbridge
/// shard` wrote, and checkpoints of ranks by rules. None of their code is run, and memory stays the same however large the
/// checkpoint is. The chunks of a tensor must cover it exactly.
/// Values that are no tensors, such as counts of steps, are left out and listed.
///
/// `merge` joins the files of one model, `blend` averages models, `consolidate` joins rank shards, `shard` makes them.
#[derive(Debug, Args)]
#[command(after_help = "\
A file of rules has a line for each: a glob of names, and how the ranks have these tensors. The first rule that
matches counts.
  *.{q,k,v,gate,up}_proj.weight: column
  *.gate_up_proj.weight: column packed 2
  *.{o,down}_proj.weight: row
  *norm.weight: replicated
A dimension, counted from 0, may stand in the place of `column` and `row`. `weighbridge plan --help` has them all.

Examples:
  weighbridge consolidate step-1000 -o model
  weighbridge consolidate run/global_step500 -o model
  weighbridge consolidate step-1000 --only 'model.*' --rename-prefix 'model.=' -o model.safetensors
  weighbridge consolidate rank0.safetensors rank1.safetensors --rules tp.rules -o model.safetensors
  weighbridge consolidate sharded -o model")]
pub(crate) struct Consolidate {
    /// The directory that the ranks wrote; or the checkpoint of each rank: with --rules in the order of the ranks, without
    /// it those that `weighbridge shard` wrote
    #[arg(value_name = "PATH", required = true)]
    inputs: Vec<PathBuf>,

    /// Joins the given checkpoints by the rules in this file, or by a plan of transformers
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,

    /// Read objects of this class in the metadata, or of all classes that match a glob, as plain records of their
    /// contents; none of their code is run. May be given several times
    #[arg(long, value_name = "MODULE.CLASS|GLOB", conflicts_with = "rules")]
    allow_global: Vec<String>,

    #[command(flatten)]
    select: Select,

    #[command(flatten)]
    renaming: Renaming,

    #[command(flatten)]
    destination: Destination,
}

impl Consolidate {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        match (&self.rules, &*self.inputs) {
            (Some(rules), _) => self.by_rules(rules, term),
            (None, [input]) => match of_shard(input)? {
                Some(ranks) => self.by_records(&ranks, term),
                None => self.directory(input, term),
            },
            (None, several) => self.by_records(several, term),
        }
    }

    /// What `weighbridge shard` wrote.
    fn by_records(&self, inputs: &[PathBuf], term: &Term) -> Result<Outcome> {
        let ranks = inputs.iter().map(|input| open_rank(input)).collect::<Result<Vec<_>>>()?;
        // Each has the files of the model beside it.
        let destination = Beside::of(&inputs[0], &ranks[0])?.into(&self.destination, None)?;
        let join = |names: &Names| parallel::join(&ranks, names);
        self.write_joined(&join, &inputs[0], ranks.len(), &destination, term)
    }

    fn directory(&self, input: &Path, term: &Term) -> Result<Outcome> {
        let foreign = self.open(input, &self.select)?;
        let all = || Ok(self.open(input, &Select::default())?.checkpoint().clone());
        let plan = self.plan(foreign.checkpoint(), input, all, term)?;
        let outcome = reshape::write(std::slice::from_ref(&plan), &self.destination, term)?;
        report(foreign.notes(), term);
        Ok(outcome)
    }

    fn open(&self, input: &Path, select: &Select) -> Result<Foreign> {
        let options = Options::new().aliases(Aliases::Each);
        let options = if select.is_all() { options } else { options.only(select.names()?) };
        let options = self.allow_global.iter().fold(options, Options::allow_global);
        match Format::of_file(input)? {
            Some(Format::Distributed | Format::DistributedSafetensors | Format::DeepSpeedZero) => {
                Ok(weighbridge_convert::open(input, &options)?)
            }
            Some(format) => bail!(
                "{}: {format}, which is no set of rank shards; `weighbridge convert` makes safetensors of it",
                input.display()
            ),
            None => bail!("{}: {}", input.display(), unknown(input)),
        }
    }

    fn by_rules(&self, file: &Path, term: &Term) -> Result<Outcome> {
        let plan = ParallelPlan::read(file)?;
        let mut checkpoints = Vec::with_capacity(self.inputs.len());
        for input in &self.inputs {
            let checkpoint = open_any(input)?;
            tell(input, &checkpoint, term);
            checkpoints.push(checkpoint);
        }
        let join = |names: &Names| plan.join(&checkpoints, names);
        self.write_joined(&join, file, checkpoints.len(), &self.destination, term)
    }

    fn write_joined(
        &self,
        join: &dyn Fn(&Names) -> weighbridge::Result<Checkpoint>,
        named: &Path,
        ranks: usize,
        destination: &Destination,
        term: &Term,
    ) -> Result<Outcome> {
        let joined = join(&self.select.names()?)?;
        let plan = self.plan(&joined, named, || Ok(join(&Names::all())?), term)?;
        let outcome = reshape::write(std::slice::from_ref(&plan), destination, term)?;
        term.note(format_args!("from {}", plural(ranks, "rank")));
        Ok(outcome)
    }

    /// What is written of a checkpoint that has the chosen tensors; `all` opens it with the others.
    fn plan(
        &self,
        checkpoint: &Checkpoint,
        named: &Path,
        all: impl FnOnce() -> Result<Checkpoint>,
        term: &Term,
    ) -> Result<Plan> {
        let chosen = pattern::names(checkpoint);
        self.select.check_chosen(named, &chosen, || {
            Ok(all()?.tensors().map(|tensor| tensor.name().to_owned()).collect())
        })?;
        self.renaming.warn(named, &chosen, term)?;
        if checkpoint.is_empty() {
            bail!("{}: no tensor of it is selected", named.display());
        }
        let (names, renames) = (self.select.names()?, self.renaming.renames()?);
        let plan = Reshape { names, renames, casts: Casts::default() }.plan(checkpoint);
        Ok(plan.map_err(|error| error.in_file(named))?)
    }
}

/// What to do with what is no set of ranks.
fn unknown(input: &Path) -> &'static str {
    let holds = |ending: &str| {
        let entries = input.read_dir().into_iter().flatten().flatten();
        let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.any(|name| name.ends_with(ending))
    };
    if holds(".metadata") {
        "its ranks were saved without coordination, each with metadata of its own; load and save them in PyTorch"
    } else if Checkpoint::open(input).is_ok() {
        "it is one safetensors checkpoint already; the files of ranks are joined by --rules FILE"
    } else {
        "it is nothing that ranks write: .metadata, safetensors with DCP_SHARDING_INFO, *_optim_states.pt; the files \
         of ranks are joined by --rules FILE"
    }
}

/// The checkpoints in a directory that `weighbridge shard` wrote; `None` if it is none.
fn of_shard(directory: &Path) -> Result<Option<Vec<PathBuf>>> {
    let mut ranks = Vec::new();
    if !directory.is_dir() {
        return Ok(None);
    }
    for entry in directory.read_dir().with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        let number =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("rank-"));
        if number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit())) && path.is_dir() {
            ranks.push(path);
        }
    }
    ranks.sort();
    Ok(Some(ranks).filter(|ranks| !ranks.is_empty()))
}

/// A rank of those that `weighbridge shard` wrote.
fn open_rank(input: &Path) -> Result<Checkpoint> {
    let checkpoint = open_any(input)?;
    if !parallel::has_record(&checkpoint) {
        bail!(
            "{}: nothing in it says which rank it is of; --rules FILE says how several checkpoints are joined; of what \
             PyTorch's distributed code wrote, name the directory",
            input.display()
        );
    }
    Ok(checkpoint)
}
