//! `weighbridge shard`: a checkpoint for each rank.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use weighbridge::parallel::{MODEL_KEY, RANK_KEY, Ranks};
use weighbridge::write::{Save, Split, parse_size};
use weighbridge::{Checkpoint, Plan};

use crate::beside::Beside;
use crate::dense;
use crate::destination::Destination;
use crate::load::{below, look};
use crate::metadata;
use crate::outcome::Outcome;
use crate::parallel::{Parallel, RULES};
use crate::show::{bytes, plural};
use crate::term::Term;

/// Cuts a checkpoint for the ranks of tensor and pipeline parallelism: a checkpoint for each
///
/// Writes rank-00000, rank-00001 and so on, each a directory with its parts under the names of the tensors, and with
/// config.json and the other files of the model. `weighbridge plan` shows what they will be. Their metadata says what each
/// has, so that `weighbridge consolidate` makes the checkpoint of them again. Memory stays the same however large it is.
/// Of quantised modules the weights are written that they stand for.
///
/// `split` makes the files of one model smaller, `shard` makes checkpoints of ranks, `consolidate` joins them.
#[derive(Debug, Args)]
#[command(after_help = format!("{RULES}\n\n{EXAMPLES}"))]
pub(crate) struct Shard {
    /// The checkpoint: a file, a directory, an index, or a repository in the cache
    #[arg(value_name = "PATH")]
    input: PathBuf,

    #[command(flatten)]
    parallel: Parallel,

    /// Write only this rank; several processes may write one each. May be given several times
    #[arg(long, value_name = "RANK")]
    rank: Vec<usize>,

    /// The directory for those of the ranks
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    /// Replace what is there already
    #[arg(long)]
    force: bool,

    /// The most bytes of tensors in a file, such as 500MiB; 5GB otherwise
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_shard_size: Option<u64>,
}

const EXAMPLES: &str = "\
Examples:
  weighbridge shard Llama-3.1-70B --tp 8 -o sharded
  weighbridge shard Llama-3.1-70B --plan tp.rules --tp 4 --pp 2 -o sharded
  weighbridge shard Llama-3.1-70B --tp 8 --rank 3 -o sharded
  weighbridge consolidate sharded -o Llama-again";

impl Shard {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        let checkpoint = look(&self.input, term)?;
        let ranks = self.parallel.ranks(&self.input, &checkpoint)?;
        if checkpoint.quantized().len() > 0 {
            term.note("its quantised modules are written as the weights that they stand for");
        }
        let chosen = match &*self.rank {
            [] => (0..ranks.len()).collect(),
            some => some.to_vec(),
        };
        chosen.iter().try_for_each(|rank| ranks.require(*rank))?;
        let beyond = below(&self.output, &format!("rank-{:05}", ranks.len()));
        if beyond.try_exists()? {
            bail!(
                "{}: it is of a cut for more ranks; remove it, or name another directory",
                beyond.display()
            );
        }
        // Whatever is wrong with a rank is found before anything is written.
        let destinations =
            chosen.iter().map(|&rank| self.prepare(&ranks, rank)).collect::<Result<Vec<_>>>()?;
        let model = fingerprint(&checkpoint)?;
        for (rank, directory, own) in &destinations {
            let save =
                metadata::with(Save::new(), metadata::without_codes(metadata::union(&[own], term), &[own]));
            let save = save.metadata(RANK_KEY, ranks.record(*rank)).metadata(MODEL_KEY, &model);
            self.write(save, directory, own, &checkpoint, term)?;
        }
        term.note(format_args!(
            "{}: {}, {} together",
            self.output.display(),
            plural(chosen.len(), "rank"),
            bytes(chosen.iter().map(|&rank| ranks.held_byte_len(rank)).sum())
        ));
        Ok(Outcome::Clean)
    }

    fn prepare(&self, ranks: &Ranks, rank: usize) -> Result<(usize, PathBuf, Checkpoint)> {
        let directory = below(&self.output, &format!("rank-{rank:05}"));
        let own = ranks.checkpoint(rank).map_err(|error| error.in_file(&self.input))?;
        Destination::new(&directory, self.force).check(&directory)?;
        Ok((rank, directory, own))
    }

    fn write(
        &self,
        save: Save,
        directory: &Path,
        own: &Checkpoint,
        stored: &Checkpoint,
        term: &Term,
    ) -> Result<()> {
        let destination = Destination::new(directory, self.force)
            .in_shards_of(self.max_shard_size.unwrap_or(Split::DEFAULT_SIZE));
        let destination = Beside::of(&self.input, stored)?.into(&destination, None)?;
        let plan = Plan::of(own).build()?;
        dense::save(&plan, save, &destination, term).map(drop)
    }
}

/// What tells a model from another one: a hash (FNV-1a) of the names, dtypes and shapes of its tensors, and of some bytes
/// from the middle of each.
fn fingerprint(checkpoint: &Checkpoint) -> Result<String> {
    const SOME: u64 = 64;
    let mut hash = 0xCBF2_9CE4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
        }
    };
    for tensor in checkpoint.tensors() {
        add(format!("{} {} {:?}", tensor.name(), tensor.dtype(), tensor.shape()).as_bytes());
        let range = tensor.info().file_range();
        let start = range.start + (range.end - range.start).saturating_sub(SOME) / 2;
        let mut bytes = [0; SOME as usize];
        let bytes = &mut bytes[..(range.end - start).min(SOME) as usize];
        let read = tensor.shard().source().read_at(start, bytes);
        read.with_context(|| format!("{}: {:?}", tensor.shard().name(), tensor.name()))?;
        add(bytes);
    }
    Ok(format!("{hash:016x}"))
}
