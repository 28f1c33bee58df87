//! `weighbridge inspect`: what is in a checkpoint.

mod json;
mod page;
mod survey;
mod table;
#[cfg(test)]
mod tests;
mod text;
mod tree;
mod values;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use weighbridge::Checkpoint;

use crate::load;
use crate::outcome::Outcome;
use crate::select::Select;
use crate::term::Term;
use survey::Survey;
use tree::Sort;

/// Shows what is in a checkpoint: a tree of modules with dtypes, shapes and sizes, totals, metadata and
/// shards
///
/// Layers that are equal but for their number are one line: `layers.[0-31]`. Sizes count all tensors that a
/// line stands for. Only headers are read, unless --stats asks for the values.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge inspect model.safetensors
  weighbridge inspect meta-llama/Llama-3.2-1B --depth 2
  weighbridge inspect model.safetensors --flat --sort size --only '*.mlp.*'
  weighbridge inspect model.safetensors --html model.html --stats
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
    sort: Sort,

    /// Read the values, too: their extremes, mean, NaN, and histograms in the page
    #[arg(long)]
    stats: bool,

    /// The form of the output
    #[arg(long, value_enum, default_value = "text")]
    format: Format,

    /// Write one page for browsers instead: a map of the checkpoint, a table of its tensors, its shards
    #[arg(long, value_name = "FILE", conflicts_with_all = ["format", "flat", "depth", "sort"])]
    html: Option<PathBuf>,

    /// Replace the page that is there already
    #[arg(long, requires = "html")]
    force: bool,

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

impl Inspect {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        let chosen = self.select.names()?;
        if let Some(html) = &self.html {
            page::check(html, self.force)?;
            if self.paths.len() > 1 {
                bail!("{}: a page shows one checkpoint; make one for each", html.display());
            }
        }
        let open = |path| load::look(path, term);
        let checkpoints: Vec<Checkpoint> = self.paths.iter().map(|path| open(path)).collect::<Result<_>>()?;
        let surveys = self.paths.iter().zip(&checkpoints).map(|(path, checkpoint)| {
            let survey = Survey::new(path, checkpoint, &chosen);
            if !self.select.is_all() && survey.tensors.is_empty() && !checkpoint.is_empty() {
                term.warn(format_args!("{}: no tensor has such a name", path.display()));
            }
            if self.stats { survey.read(term) } else { Ok(survey) }
        });
        let surveys: Vec<Survey<'_>> = surveys.collect::<Result<_>>()?;
        match (&self.html, self.format) {
            (Some(html), _) => surveys.iter().try_for_each(|survey| page::write(html, survey, term))?,
            (None, Format::Json) => {
                let depth = self.depth.map_or(usize::MAX, usize::from);
                let shape = json::Shape { tree: (!self.flat).then_some(depth), sort: self.sort };
                let mut out = term.raw();
                json::Document::of(surveys.iter(), shape).write(&mut out)?;
                out.flush()?;
            }
            (None, Format::Text) => {
                let depth = self.depth.map_or(usize::MAX, usize::from);
                let view = if self.flat { text::View::Flat } else { text::View::Tree { depth } };
                let mut out = term.text();
                for (number, survey) in surveys.iter().enumerate() {
                    if number > 0 {
                        writeln!(out)?;
                    }
                    text::write(&mut out, survey, view, self.sort)?;
                }
                out.flush()?;
            }
        }
        Ok(Outcome::Clean)
    }
}
