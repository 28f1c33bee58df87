//! `weighbridge inspect`: what is in a checkpoint.

mod json;
pub(super) mod page;
mod quantised;
mod run;
mod table;
mod text;
mod values;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use weighbridge::{Checkpoint, TensorRef};
use weighbridge_page::tree::{Sort, position};
use weighbridge_page::{Shown, Survey};

use crate::dense::Dense;
use crate::outcome::Outcome;
use crate::pattern;
use crate::select::Select;
use crate::show::safe;
use crate::term::Term;
use crate::{figures, load};

/// Shows what is in a checkpoint: a tree of modules with dtypes, shapes and sizes, totals, metadata and
/// shards
///
/// Layers that are equal but for their number are one line: `layers.[0-31]`. Sizes count all tensors that a
/// line stands for. Only headers are read, unless --stats asks for the values. Of quantised modules it is said
/// by which method, with how many bits a weight, and how many bytes they are as they are stored and as weights.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge inspect model.safetensors
  weighbridge inspect meta-llama/Llama-3.2-1B --depth 2
  weighbridge inspect model.safetensors --flat --sort size --only '*.mlp.*'
  weighbridge inspect model.safetensors --html model.html --stats
  weighbridge inspect my-run --html run.html
  weighbridge inspect Llama-3.1-8B-GPTQ --dense
  weighbridge inspect model.safetensors --format json | jq '.checkpoints[].dtypes'")]
pub(crate) struct Inspect {
    /// Files, directories, indexes or ids of repositories in the cache; what `convert` reads is seen as
    /// it would be written
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,

    /// List the tensors instead of the tree
    #[arg(long, conflicts_with = "depth")]
    flat: bool,

    /// Show this many levels of the tree
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    depth: Option<u16>,

    /// The order of siblings in the tree, and of the list
    #[arg(long, value_enum, default_value = "name")]
    sort: Order,

    /// Read the values, too: their extremes, mean, NaN, and histograms in the page
    #[arg(long)]
    stats: bool,

    /// The form of the output
    #[arg(long, value_enum, default_value = "text")]
    format: Format,

    /// Write one page for browsers instead: a map of the checkpoint, a table of its tensors, its shards; of a
    /// directory of training checkpoints charts of the numbers that they keep and of norms of their weights
    #[arg(long, value_name = "FILE", conflicts_with_all = ["format", "flat", "depth", "sort"])]
    html: Option<PathBuf>,

    /// Replace the page that is there already
    #[arg(long, requires = "html")]
    force: bool,

    #[command(flatten)]
    dense: Dense,

    #[command(flatten)]
    select: Select,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs; its fields are described in docs/json.md
    Json,
}

/// The order of siblings, and of tensors in a list.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Order {
    /// By name, numbers in it by value
    Name,
    /// The most bytes first
    Size,
    /// As the data lies in the files
    Offset,
}

impl From<Order> for Sort {
    fn from(order: Order) -> Self {
        match order {
            Order::Name => Self::Name,
            Order::Size => Self::Size,
            Order::Offset => Self::Offset,
        }
    }
}

impl Inspect {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        let chosen = self.select.names()?;
        if let Some(html) = &self.html {
            page::check(html, self.force)?;
            if self.paths.len() > 1 {
                bail!("{}: a page shows one checkpoint; make one for each", html.display());
            }
            if let [path] = &*self.paths
                && run::is_run(path)
            {
                run::write(html, path, &chosen, term)?;
                return Ok(Outcome::Clean);
            }
        }
        let seen: Vec<Seen> = self.paths.iter().map(|path| self.look(path, term)).collect::<Result<_>>()?;
        let known: Vec<_> = seen.iter().flat_map(|seen| pattern::names(&seen.stored)).collect();
        self.select.check(&self.paths[0], &known, term)?;
        let looked = self.paths.iter().zip(&seen).map(|(path, seen)| {
            let (name, shown) = (load::name_of(path), seen.shown(self.dense.dense));
            let told = if self.dense.dense { Shown::Weights } else { Shown::Stored };
            let survey =
                Survey::new(name, path.display().to_string(), shown, &seen.stored, &chosen).showing(told);
            if !self.select.is_all() && survey.tensors().is_empty() && !seen.stored.is_empty() {
                term.warn(format_args!("{}: no tensor has such a name", path.display()));
            }
            let survey = if self.stats { read(survey, term)? } else { survey };
            let quantised = quantised::modules(&seen.stored, seen.weights.as_ref(), &chosen);
            Ok(Looked { survey, quantised })
        });
        let looked: Vec<Looked<'_>> = looked.collect::<Result<_>>()?;
        let sort = self.sort.into();
        match (&self.html, self.format) {
            (Some(html), _) => looked.iter().try_for_each(|looked| {
                page::write(html, term, |mut out| {
                    Ok(weighbridge_page::inspect::write(&mut out, &looked.survey)?)
                })
            })?,
            (None, Format::Json) => {
                let depth = self.depth.map_or(usize::MAX, usize::from);
                let shape = json::Shape { tree: (!self.flat).then_some(depth), sort };
                let mut out = term.raw();
                json::Document::of(looked.iter(), shape).write(&mut out)?;
                out.flush()?;
            }
            (None, Format::Text) => {
                let depth = self.depth.map_or(usize::MAX, usize::from);
                let view = if self.flat { text::View::Flat } else { text::View::Tree { depth } };
                let mut out = term.text();
                for (number, looked) in looked.iter().enumerate() {
                    if number > 0 {
                        writeln!(out)?;
                    }
                    text::write(&mut out, looked, view, sort)?;
                }
                out.flush()?;
            }
        }
        Ok(Outcome::Clean)
    }

    fn look(&self, path: &Path, term: &Term) -> Result<Seen> {
        let stored = load::look(path, term)?;
        let weights = match stored.dequantized() {
            Ok(weights) => Some(weights),
            Err(error) if self.dense.dense => return Err(error.into()),
            Err(_) if stored.quantized().len() == 0 => None,
            Err(error) => {
                term.warn(format_args!(
                    "{}: it cannot be dequantised: {}",
                    path.display(),
                    safe(&error.to_string())
                ));
                None
            }
        };
        Ok(Seen { stored, weights })
    }
}

/// A checkpoint, and its weights if it is quantised.
struct Seen {
    stored: Checkpoint,
    weights: Option<Checkpoint>,
}

impl Seen {
    /// What is looked at.
    fn shown(&self, dense: bool) -> &Checkpoint {
        self.weights.as_ref().filter(|_| dense).unwrap_or(&self.stored)
    }
}

/// What is shown of a checkpoint.
struct Looked<'c> {
    survey: Survey<'c>,
    quantised: Vec<quantised::Module<'c>>,
}

/// Reads all data, in the order in which it lies.
fn read<'c>(survey: Survey<'c>, term: &Term) -> Result<Survey<'c>> {
    let mut order: Vec<usize> = (0..survey.tensors().len()).collect();
    order.sort_by_key(|&place| position(&survey.tensors()[place]));
    let tensors: Vec<_> = order.iter().map(|&place| survey.tensors()[place]).collect();
    let bytes = tensors.iter().map(TensorRef::byte_len).sum();
    let read = figures::of(&tensors, &term.bar("reading", bytes))?;
    let mut figures = vec![None; read.len()];
    for (place, read) in order.into_iter().zip(read) {
        figures[place] = read;
    }
    Ok(survey.with_figures(figures))
}
