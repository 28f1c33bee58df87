//! `weighbridge diff`: how two checkpoints differ, whatever their shards.

mod page;
mod renamed;
mod structure;
pub(super) mod values;

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::inspect;
use crate::dense::{ADVICE, Dense};
use crate::load;
use crate::outcome::Outcome;
use crate::pattern;
use crate::select::Select;
use crate::show::{self, safe};
use crate::term::Term;
use structure::Structure;
use values::{Moved, Tolerance};

/// Compares two checkpoints: names, dtypes, shapes, metadata, and with --data all values
///
/// How the tensors lie in shards makes no difference. Values of different dtypes are compared as numbers.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 when they are the same, 1 when they differ, 2 on errors.

Examples:
  weighbridge diff a.safetensors b.safetensors
  weighbridge diff base/ tuned/ --data --top 10
  weighbridge diff base/ tuned/ --data --html moved.html
  weighbridge diff model.safetensors model-bf16.safetensors --data --rtol 0.01 --ignore dtype
  weighbridge diff Qwen3-8B-FP8 Qwen3-8B --dense --data --top 10")]
pub(crate) struct Diff {
    /// A file, a directory, an index or the id of a repository in the cache
    a: PathBuf,

    /// What to compare it with
    b: PathBuf,

    #[command(flatten)]
    select: Select,

    #[command(flatten)]
    dense: Dense,

    /// Compare the values, too: bit for bit, if no tolerance is given
    #[arg(long)]
    data: bool,

    /// Values a and b are equal when |a - b| <= atol + rtol * |b|; NaN equals NaN
    #[arg(long, value_name = "NUMBER", requires = "data", value_parser = tolerance)]
    rtol: Option<f64>,

    /// See --rtol
    #[arg(long, value_name = "NUMBER", requires = "data", value_parser = tolerance)]
    atol: Option<f64>,

    /// Show this many of the tensors that moved most
    #[arg(long, value_name = "N", default_value = "20", requires = "data")]
    top: usize,

    /// What may differ; may be given several times
    #[arg(long, value_enum, value_name = "WHAT")]
    ignore: Vec<Ignore>,

    /// The form of the output
    #[arg(long, value_enum, default_value = "text")]
    format: Format,

    /// Write one page for browsers instead: what differs, layers by modules; with --data how far weights moved
    #[arg(long, value_name = "FILE", conflicts_with_all = ["format", "top"])]
    html: Option<PathBuf>,

    /// Replace the page that is there already
    #[arg(long, requires = "html")]
    force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Ignore {
    /// Dtypes: values are compared as numbers
    Dtype,
    /// The entries of the headers' metadata
    Metadata,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Lines and a table
    Text,
    /// JSON, with all tensors that differ
    Json,
}

fn tolerance(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| *number >= 0.0 && number.is_finite());
    number.ok_or_else(|| "a number of 0 or more is wanted".to_owned())
}

/// What JSON says: `docs/json.md` explains it.
#[derive(Serialize)]
struct Output<'a> {
    schema: &'static str,
    a: String,
    b: String,
    same: bool,
    #[serde(flatten)]
    structure: Structure<'a>,
    /// `None` if they were not compared.
    values: Option<Vec<Moved<'a>>>,
}

impl Diff {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        if let Some(html) = &self.html {
            inspect::page::check(html, self.force)?;
        }
        let names = self.select.names()?;
        let look = |path| Ok(self.dense.of(load::look(path, term)?, &names, ADVICE)?);
        let [a, b]: [Result<_>; 2] = [look(&self.a), look(&self.b)];
        let (a, b) = (a?, b?);
        self.select.check(&self.a, &[pattern::names(&a), pattern::names(&b)].concat(), term)?;
        let mut structure = Structure::of(&a, &b, &names)?;
        if self.ignore.contains(&Ignore::Dtype) {
            structure.dtypes.clear();
        }
        if self.ignore.contains(&Ignore::Metadata) || !self.select.is_all() {
            structure.metadata.clear();
        }
        let tolerance = match (self.rtol, self.atol) {
            (None, None) => Tolerance::Bits,
            (rtol, atol) => Tolerance::Within { rtol: rtol.unwrap_or(0.0), atol: atol.unwrap_or(0.0) },
        };
        let values = self.data.then(|| values::compare(&structure.pairs, tolerance, term)).transpose()?;
        let differs = |moved: &Moved<'_>| moved.differing > 0;
        let same = structure.is_same() && values.as_ref().is_none_or(|values| !values.iter().any(differs));
        let outcome = if same { Outcome::Clean } else { Outcome::Findings };
        if let Some(html) = &self.html {
            page::write(html, [(&self.a, &a), (&self.b, &b)], &structure, values.as_deref(), &names, term)?;
            return Ok(outcome);
        }
        let values = values.map(|values| values.into_iter().filter(differs).collect());
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        let (a, b) = (text(&self.a), text(&self.b));
        let output = Output { schema: "weighbridge.diff/1", a, b, same, structure, values };
        match self.format {
            Format::Text => self.print(&output, term)?,
            Format::Json => {
                let mut out = term.raw();
                serde_json::to_writer_pretty(&mut out, &output)?;
                writeln!(out)?;
                out.flush()?;
            }
        }
        Ok(outcome)
    }

    fn print(&self, output: &Output<'_>, term: &Term) -> Result<()> {
        let mut out = term.text();
        output.structure.print(&mut out)?;
        if let Some(moved) = &output.values {
            self.table(moved, &mut out)?;
        }
        out.flush()?;
        if output.same {
            let what = if self.data { "values" } else { "names, dtypes and shapes; --data compares values" };
            let tensors = show::plural(output.structure.pairs.len(), "tensor");
            term.note(format_args!("{tensors}: the same {what}"));
        }
        Ok(())
    }

    /// The tensors that moved most.
    fn table(&self, moved: &[Moved<'_>], out: &mut impl Write) -> Result<()> {
        const TITLES: [&str; 5] = ["differing", "of", "max abs", "max rel", "moved"];
        let shown = &moved[..moved.len().min(self.top)];
        if shown.is_empty() {
            return Ok(());
        }
        let number =
            |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3e}"));
        let row = |moved: &Moved<'_>| {
            let counts = [show::count(moved.differing), show::count(moved.values)];
            let errors = [moved.max_absolute, moved.max_relative, moved.moved].map(number);
            let [differing, of] = counts;
            let [absolute, relative, moved_by] = errors;
            (safe(moved.name).into_owned(), [differing, of, absolute, relative, moved_by])
        };
        let rows: Vec<_> = shown.iter().map(row).collect();
        let name_width = rows.iter().map(|row| row.0.chars().count()).max().unwrap_or(0).max("tensor".len());
        let widths: [usize; 5] = std::array::from_fn(|column| {
            rows.iter().map(|row| row.1[column].len()).max().unwrap_or(0).max(TITLES[column].len())
        });
        let line = |name: &str, cells: &[String; 5]| {
            let cells = cells.iter().zip(widths).map(|(cell, width)| format!("  {cell:>width$}"));
            format!("{name:<name_width$}{}", cells.collect::<String>())
        };
        let bold = anstyle::Style::new().bold();
        writeln!(out, "{bold}{}{bold:#}", line("tensor", &TITLES.map(str::to_owned)))?;
        for (name, cells) in &rows {
            writeln!(out, "{}", line(name, cells))?;
        }
        if moved.len() > shown.len() {
            let more = show::plural(moved.len() - shown.len(), "more tensor");
            writeln!(out, "and {more}; --top shows them")?;
        }
        Ok(())
    }
}
