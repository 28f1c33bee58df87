//! `weighbridge stat`: figures of the values of each tensor.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;
use weighbridge::{Checkpoint, TensorRef};

use crate::dense::{ADVICE, Dense};
use crate::dtype::can_read;
use crate::figures::{self, Figures, Number};
use crate::load;
use crate::outcome::Outcome;
use crate::pattern;
use crate::select::Select;
use crate::show::{self, safe};
use crate::term::Term;

/// Shows figures of each tensor's values: extremes, mean, deviation, zeros, NaN and infinities
///
/// Extremes, mean and standard deviation are those of the finite values; of complex numbers both parts are
/// looked at. Every byte is read once.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge stat model.safetensors
  weighbridge stat model.safetensors --only '*.q_proj.weight'
  weighbridge stat Qwen3-8B-FP8 --dense
  weighbridge stat a.safetensors b.safetensors --format json | jq '.checkpoints[].tensors[] | select(.nans > 0)'")]
pub(crate) struct Stat {
    /// Files, directories, indexes or ids of repositories in the cache; what `convert` reads is seen as
    /// it would be written
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,

    #[command(flatten)]
    select: Select,

    #[command(flatten)]
    dense: Dense,

    /// The form of the output
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// A table
    Text,
    /// JSON, with histograms
    Json,
}

/// What JSON says: `docs/json.md` explains it.
#[derive(Serialize)]
struct Output<'a> {
    schema: &'static str,
    checkpoints: Vec<OfCheckpoint<'a>>,
}

#[derive(Serialize)]
struct OfCheckpoint<'a> {
    path: String,
    tensors: Vec<OfTensor<'a>>,
}

#[derive(Serialize)]
struct OfTensor<'a> {
    name: &'a str,
    dtype: &'static str,
    shape: &'a [usize],
    elements: u64,
    figures: Option<Figures>,
}

impl Stat {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        let names = self.select.names()?;
        let look = |path| Ok(self.dense.of(load::look(path, term)?, &names, ADVICE)?);
        let checkpoints = self.paths.iter().map(|path| look(path)).collect::<Result<Vec<_>>>()?;
        let known: Vec<_> = checkpoints.iter().flat_map(pattern::names).collect();
        self.select.check(&self.paths[0], &known, term)?;
        let mut output = Output { schema: "weighbridge.stat/1", checkpoints: Vec::new() };
        for (path, checkpoint) in self.paths.iter().zip(&checkpoints) {
            let mut tensors = load::by_name(checkpoint);
            tensors.retain(|tensor| names.contains(tensor.name()));
            if tensors.is_empty() && !self.select.is_all() {
                term.warn(format_args!("{}: no tensor has such a name", path.display()));
            }
            output.checkpoints.push(OfCheckpoint {
                path: path.to_string_lossy().into_owned(),
                tensors: of_tensors(&tensors, checkpoint, term)?,
            });
        }
        match self.format {
            Format::Text => self.table(&output, term.text())?,
            Format::Json => {
                let mut out = term.raw();
                serde_json::to_writer_pretty(&mut out, &output)?;
                writeln!(out)?;
                out.flush()?;
            }
        }
        Ok(Outcome::Clean)
    }

    fn table(&self, output: &Output<'_>, mut out: impl Write) -> Result<()> {
        const TITLES: [&str; 10] =
            ["tensor", "dtype", "elements", "min", "max", "mean", "std", "zeros", "nan", "inf"];
        for (place, checkpoint) in output.checkpoints.iter().enumerate() {
            if output.checkpoints.len() > 1 {
                let gap = if place > 0 { "\n" } else { "" };
                writeln!(out, "{gap}{}", safe(&checkpoint.path))?;
            }
            let rows: Vec<_> = checkpoint.tensors.iter().map(row).collect();
            let bold = anstyle::Style::new().bold();
            let titles = TITLES.map(str::to_owned);
            let widths: [usize; 10] = std::array::from_fn(|column| {
                rows.iter().chain([&titles]).map(|row| row[column].chars().count()).max().unwrap_or(0)
            });
            writeln!(out, "{bold}{}{bold:#}", line(&titles, &widths))?;
            for row in &rows {
                writeln!(out, "{}", line(row, &widths))?;
            }
        }
        Ok(out.flush()?)
    }
}

fn of_tensors<'c>(
    tensors: &[TensorRef<'c>],
    checkpoint: &Checkpoint,
    term: &Term,
) -> Result<Vec<OfTensor<'c>>> {
    let bytes = tensors.iter().map(TensorRef::byte_len).sum();
    let bar = term.bar("reading", bytes);
    let unread = tensors.iter().filter(|tensor| !can_read(tensor.dtype())).count();
    if unread > 0 {
        let them = show::plural(unread, "tensor");
        let shard = checkpoint.shards().first().map(|shard| shard.name()).unwrap_or_default();
        term.warn(format_args!("{shard}: {them} not read: values of 6 bits have no agreed packing"));
    }
    let figures = figures::of(tensors, &bar)?;
    let row = |(tensor, figures): (&TensorRef<'c>, _)| OfTensor {
        name: tensor.name(),
        dtype: tensor.dtype().name(),
        shape: tensor.shape(),
        elements: tensor.elements(),
        figures,
    };
    Ok(tensors.iter().zip(figures).map(row).collect())
}

/// The name to the left, numbers to the right.
fn line(cells: &[String; 10], widths: &[usize; 10]) -> String {
    let mut line = format!("{:<1$}  {2:<3$}", cells[0], widths[0], cells[1], widths[1]);
    for (cell, width) in cells.iter().zip(widths).skip(2) {
        line += &format!("  {cell:>width$}");
    }
    line
}

fn row(tensor: &OfTensor<'_>) -> [String; 10] {
    let name = safe(tensor.name).into_owned();
    let (dtype, elements) = (tensor.dtype.to_owned(), show::count(tensor.elements));
    let Some(figures) = &tensor.figures else {
        return std::array::from_fn(|column| match column {
            0 => name.clone(),
            1 => dtype.clone(),
            2 => elements.clone(),
            _ => "-".to_owned(),
        });
    };
    let number = |number: Option<Number>| match number {
        None => "-".to_owned(),
        Some(Number::Signed(value)) => value.to_string(),
        Some(Number::Unsigned(value)) => value.to_string(),
        Some(Number::Real(value)) => real(value),
    };
    let mean = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), real);
    let infinities = match (figures.infinities, figures.negative_infinities) {
        (positive, 0) => show::count(positive),
        (0, negative) => format!("-{}", show::count(negative)),
        (positive, negative) => format!("{} -{}", show::count(positive), show::count(negative)),
    };
    [
        name,
        dtype,
        elements,
        number(figures.min),
        number(figures.max),
        mean(figures.mean),
        mean(figures.std),
        show::count(figures.zeros),
        show::count(figures.nans),
        infinities,
    ]
}

/// Five digits, with an exponent where there would be many zeros.
fn real(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-4..1e6).contains(&size) {
        return format!("{value:.4e}");
    }
    let before = if size < 1.0 { 0 } else { size.log10() as usize };
    let text = format!("{value:.*}", 5_usize.saturating_sub(before).max(1));
    if size == 0.0 { "0".to_owned() } else { text }
}
