//! `weighbridge plan`: which rank reads what.

use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::json;
use weighbridge::parallel::{Held, Ranks};
use weighbridge::{Checkpoint, Names};
use weighbridge_page::Survey;

use super::inspect::page;
use crate::load::{look, name_of};
use crate::outcome::Outcome;
use crate::parallel::{Parallel, RULES};
use crate::show::{bytes, plural, safe};
use crate::term::Term;

/// Shows what each rank of tensor and pipeline parallelism reads of a checkpoint, before anything is read
///
/// Only headers are read. What is shown is what `weighbridge shard` writes for each rank, and what loads of a rank read:
/// the stored bytes of its parts and no others.
#[derive(Debug, Args)]
#[command(after_help = format!("{RULES}\n\n{EXAMPLES}"))]
pub(crate) struct Plan {
    /// The checkpoint: a file, a directory, an index, or a repository in the cache
    #[arg(value_name = "MODEL")]
    input: PathBuf,

    #[command(flatten)]
    parallel: Parallel,

    /// List the tensors of this rank instead: what it has of them, by which rule
    #[arg(long, value_name = "RANK", conflicts_with = "html")]
    rank: Option<usize>,

    /// The form of the output
    #[arg(long, value_enum, default_value = "text", conflicts_with = "html")]
    format: Format,

    /// Write one page for browsers instead: a map of all ranks, each in a colour of its own
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Replace the page that is there already
    #[arg(long, requires = "html")]
    force: bool,
}

const EXAMPLES: &str = "\
Examples:
  weighbridge plan Llama-3.1-70B --tp 8
  weighbridge plan Llama-3.1-70B --tp 4 --pp 2 --html ranks.html
  weighbridge plan Mixtral-8x7B --tp 8 --rank 3
  weighbridge plan my-model --plan tp.rules --rule '*.router.weight: replicated'";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs; its fields are described in docs/json.md
    Json,
}

impl Plan {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        if let Some(html) = &self.html {
            page::check(html, self.force)?;
        }
        let ranks = self.parallel.ranks(&self.input, &look(&self.input, term)?)?;
        self.rank.map_or(Ok(()), |rank| ranks.require(rank))?;
        match (&self.html, self.rank, self.format) {
            (Some(html), ..) => map(html, &self.input, &ranks, term)?,
            (None, None, Format::Text) => table(&ranks, term)?,
            (None, Some(rank), Format::Text) => tensors(&ranks, rank, term)?,
            (None, rank, Format::Json) => document(&ranks, rank, term)?,
        }
        Ok(Outcome::Clean)
    }
}

/// `12.5 %`.
#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / (whole as f64).max(1.0))
}

/// `0-15`, `7`, or nothing.
fn shown(layers: &Range<usize>) -> String {
    match layers.len() {
        0 => "-".to_owned(),
        1 => layers.start.to_string(),
        _ => format!("{}-{}", layers.start, layers.end - 1),
    }
}

fn table(ranks: &Ranks, term: &Term) -> Result<()> {
    /// Characters of the longest bar.
    const WIDE: u64 = 24;
    let reads: Vec<u64> = (0..ranks.len()).map(|rank| ranks.byte_len(rank)).collect();
    let (most, whole) = (reads.iter().copied().max().unwrap_or(0), ranks.whole().byte_len());
    let mut out = term.text();
    writeln!(
        out,
        "{:>4}  {:>5}  {:>7}  {:>7}  {:>9}  {:>6}",
        "rank", "stage", "layers", "tensors", "reads", "of all"
    )?;
    for (rank, &read) in reads.iter().enumerate() {
        let count = ranks.tensors().filter(|tensor| tensor.held(rank).is_some()).count();
        let long = (u128::from(read) * u128::from(WIDE)).div_ceil(u128::from(most.max(1))) as usize;
        let (stage, layers) = (ranks.stage(rank), shown(&ranks.layers(rank)));
        let (size, part) = (bytes(read), percent(read, whole));
        let bar = "█".repeat(long);
        writeln!(out, "{rank:>4}  {stage:>5}  {layers:>7}  {count:>7}  {size:>9}  {part:>6}  {bar}")?;
    }
    let all = reads.iter().fold(0_u64, |sum, read| sum.saturating_add(*read));
    writeln!(out)?;
    writeln!(
        out,
        "{} read {} together, of {} in {}: {} times the model. Headers are {} more for each.",
        plural(ranks.len(), "rank"),
        bytes(all),
        bytes(whole),
        plural(ranks.whole().len(), "tensor"),
        times(all, whole),
        bytes(ranks.header_len())
    )?;
    let padding: u64 =
        (0..ranks.len()).map(|rank| ranks.held_byte_len(rank).saturating_sub(reads[rank])).sum();
    let computed = ranks.whole().shards().iter().any(|shard| shard.path().is_none());
    if padding > 0 && !computed {
        writeln!(out, "Rows of zeros that are added: {}.", bytes(padding))?;
    }
    Ok(out.flush()?)
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn times(all: u64, whole: u64) -> String {
    format!("{:.3}", all as f64 / (whole as f64).max(1.0))
}

/// `all`, `0:[0..512, 4096..4608]`.
fn part(held: &Held) -> String {
    match held {
        Held::Part { dim, ranges, padding } => {
            let ranges: Vec<_> =
                ranges.iter().map(|range| format!("{}..{}", range.start, range.end)).collect();
            let zeros = if *padding > 0 { format!(" + {padding} of zeros") } else { String::new() };
            format!("dim {dim}: {}{zeros}", ranges.join(", "))
        }
        _ => "all".to_owned(),
    }
}

fn tensors(ranks: &Ranks, rank: usize, term: &Term) -> Result<()> {
    let mut out = term.text();
    for tensor in ranks.tensors() {
        let (Some(held), Some(shape)) = (tensor.held(rank), tensor.shape(rank)) else { continue };
        let (name, dtype, read) = (safe(tensor.name()), tensor.whole().dtype(), tensor.byte_len(rank));
        writeln!(out, "{name}\t{dtype}\t{shape:?}\t{}\t{}\t{read}", tensor.share(), part(held))?;
    }
    Ok(out.flush()?)
}

fn document(ranks: &Ranks, only: Option<usize>, term: &Term) -> Result<()> {
    let of_rank = |rank: usize| {
        let layers = ranks.layers(rank);
        let mut value = json!({
            "rank": rank, "stage": ranks.stage(rank), "layers": [layers.start, layers.end],
            "read_bytes": ranks.byte_len(rank), "held_bytes": ranks.held_byte_len(rank),
        });
        if only.is_some() {
            let tensors = ranks.tensors().filter_map(|tensor| {
                let held = match tensor.held(rank)? {
                    Held::Part { dim, ranges, padding } => {
                        let ranges: Vec<_> = ranges.iter().map(|range| [range.start, range.end]).collect();
                        json!({ "dim": dim, "ranges": ranges, "padding": padding })
                    }
                    _ => json!("all"),
                };
                Some(json!({
                    "name": tensor.name(), "dtype": tensor.whole().dtype().name(), "shape": tensor.shape(rank),
                    "whole": tensor.whole().shape(), "rule": tensor.share().to_string(), "part": held,
                    "read_bytes": tensor.byte_len(rank),
                }))
            });
            value["tensors"] = tensors.collect();
        }
        value
    };
    let chosen: Vec<_> =
        (0..ranks.len()).filter(|rank| only.is_none_or(|only| only == *rank)).map(of_rank).collect();
    let document = json!({
        "schema": "weighbridge.plan/1",
        "tensor_parallel": ranks.tensor_parallel(), "pipeline_parallel": ranks.pipeline_parallel(),
        "bytes": ranks.whole().byte_len(), "header_bytes": ranks.header_len(), "ranks": chosen,
    });
    let mut out = term.raw();
    writeln!(out, "{document}")?;
    Ok(out.flush()?)
}

/// Writes the page: the tensors of all ranks, under `rank 0` and so on.
fn map(html: &Path, input: &Path, ranks: &Ranks, term: &Term) -> Result<()> {
    let of_rank = |rank: usize| Ok((format!("rank {rank}."), ranks.checkpoint(rank)?));
    let all = Checkpoint::union((0..ranks.len()).map(of_rank).collect::<weighbridge::Result<Vec<_>>>()?)?;
    let path = input.display().to_string();
    let survey =
        Survey::new(name_of(input), path, &all, ranks.whole(), &Names::all()).with_ranks(ranks.len());
    page::write(html, term, |mut out| Ok(weighbridge_page::inspect::write(&mut out, &survey)?))
}
