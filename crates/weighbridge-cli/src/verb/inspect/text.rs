//! The report as text.

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

use anstyle::{AnsiColor, Style};
use anyhow::Result;
use weighbridge::{Dtype, TensorRef};
use weighbridge_page::Survey;
use weighbridge_page::tree::{Node, Sort};

use super::json::order;
use super::table::{Align, BOLD, Cell, DIM, PLAIN, Table, cell};
use super::values::Values;
use super::{Looked, quantised};
use crate::show::{self, safe};

/// Which picture of the tensors.
#[derive(Clone, Copy, Debug)]
pub(super) enum View {
    Flat,
    Tree { depth: usize },
}

/// So many shards are listed; of more, the first ones.
const MOST_SHARDS: usize = 16;
/// So many characters of a value of the metadata are shown.
const MOST_OF_VALUE: usize = 200;
const BAR: usize = 10;

pub(super) fn write(out: &mut impl Write, looked: &Looked<'_>, view: View, sort: Sort) -> Result<()> {
    let survey = &looked.survey;
    title(out, survey)?;
    if !survey.tensors().is_empty() {
        writeln!(out)?;
        tensors(out, survey, view, sort)?;
    }
    totals(out, survey)?;
    quantised::write(out, &looked.quantised)?;
    metadata(out, survey)
}

fn title(out: &mut impl Write, survey: &Survey<'_>) -> Result<()> {
    let (all, chosen) = (survey.checkpoint().len(), survey.tensors().len());
    let tensors = match chosen == all {
        true => show::plural(all, "tensor"),
        false => format!("{} of {}", show::count(chosen as u64), show::plural(all, "tensor")),
    };
    let shards = match survey.file_count() {
        1 => String::new(),
        several => format!(" in {}", show::plural(several, "shard")),
    };
    // A path such as `..` does not say what it is.
    let location = match Path::new(survey.path()).file_name() {
        Some(_) => survey.path(),
        None => survey.name(),
    };
    let elements = show::plural(survey.elements() as usize, "parameter");
    let bytes = show::bytes(survey.bytes());
    writeln!(out, "{BOLD}{}{BOLD:#}  {tensors}{shards}, {elements}, {bytes}", safe(location))?;
    Ok(())
}

fn tensors(out: &mut impl Write, survey: &Survey<'_>, view: View, sort: Sort) -> Result<()> {
    let rows = Rows { survey, sort, total: survey.bytes() };
    let mut titles: Vec<&str> = vec!["tensor", "dtype", "shape"];
    let mut aligns = vec![Align::Left, Align::Left, Align::Left];
    let (title, align) = match view {
        View::Flat if survey.file_count() > 1 => ("shard", Align::Right),
        View::Flat => ("", Align::Right),
        View::Tree { .. } => ("tensors", Align::Right),
    };
    titles.extend([title, "bytes", "share", ""]);
    aligns.extend([align, Align::Right, Align::Right, Align::Left]);
    if survey.figures().is_some() {
        titles.extend(["min", "mean", "max", "nan", "inf"]);
        aligns.extend([Align::Right; 5]);
    }
    let titles: Vec<Cell> = titles.into_iter().map(|title| cell(title, DIM)).collect();
    let mut table = Table::new(&aligns);
    // Once to see how wide the columns are, once to write: rows are not kept.
    table.measure(&titles);
    rows.each(view, &mut |row| {
        table.measure(row);
        Ok(())
    })?;
    table.fit();
    table.write(out, &titles)?;
    rows.each(view, &mut |row| table.write(out, row))
}

/// The rows of the tree or the list.
struct Rows<'s, 'c> {
    survey: &'s Survey<'c>,
    sort: Sort,
    total: u64,
}

type Emit<'e> = dyn FnMut(&[Cell]) -> Result<()> + 'e;

impl<'s, 'c> Rows<'s, 'c> {
    fn each(&self, view: View, emit: &mut Emit<'_>) -> Result<()> {
        match view {
            View::Tree { depth } => self.under(&self.survey.root(), "", depth, emit),
            View::Flat => {
                let mut places = order(self.survey, self.sort).into_iter();
                places.try_for_each(|place| emit(&self.listed(place)))
            }
        }
    }

    fn under(&self, module: &Node<'s, 'c>, lead: &str, depth: usize, emit: &mut Emit<'_>) -> Result<()> {
        let children = module.children(self.sort);
        let last = children.len().saturating_sub(1);
        for (number, child) in children.into_iter().enumerate() {
            let (branch, below) = match (module.is_root(), number == last) {
                (true, _) => ("", ""),
                (false, true) => ("└─ ", "   "),
                (false, false) => ("├─ ", "│  "),
            };
            let mut label = named(&child);
            let mut child = child;
            let mut inside = child.children(self.sort);
            // A module with one thing in it shares its line.
            while let (None, [only]) = (child.tensor(), &*inside) {
                let _ = write!(label, ".{}", named(only));
                child = only.clone();
                inside = child.children(self.sort);
            }
            emit(&self.branch(&child, format!("{lead}{branch}"), &label))?;
            if depth > 1 {
                self.under(&child, &format!("{lead}{below}"), depth - 1, emit)?;
            }
        }
        Ok(())
    }

    fn branch(&self, node: &Node<'s, 'c>, lead: String, label: &str) -> Vec<Cell> {
        let tensor = node.tensor();
        let style = if tensor.is_some() { PLAIN } else { BOLD };
        let (dtype, shape) = tensor.map_or_else(Default::default, |tensor| self.kind(tensor));
        let count = cell(show::count(node.count()), DIM);
        let mut row = vec![Cell { text: safe(label).into_owned(), style, lead }, dtype, shape, count];
        row.extend(self.size(node.bytes(), style));
        if let Some(figures) = self.survey.figures() {
            row.extend(values(&Values::of(node.places().map(|place| figures[place].as_ref()))));
        }
        row
    }

    fn listed(&self, place: usize) -> Vec<Cell> {
        let tensor = self.survey.tensors()[place];
        let (dtype, shape) = self.kind(tensor);
        let shard = match self.survey.file_count() {
            1 => String::new(),
            _ => (self.survey.file_of(&tensor) + 1).to_string(),
        };
        let mut row = vec![cell(safe(tensor.name()), PLAIN), dtype, shape, cell(shard, DIM)];
        row.extend(self.size(self.survey.shown().bytes(&tensor), PLAIN));
        if let Some(figures) = self.survey.figures() {
            row.extend(values(&Values::of([figures[place].as_ref()].into_iter())));
        }
        row
    }

    fn kind(&self, tensor: TensorRef<'_>) -> (Cell, Cell) {
        let dtype = self.survey.shown().dtype(&tensor);
        (cell(dtype, color(dtype)), cell(shape(tensor.shape()), PLAIN))
    }

    fn size(&self, bytes: u64, style: Style) -> [Cell; 3] {
        let share = share(bytes, self.total);
        let style_of_share = if share < 0.01 { DIM } else { PLAIN };
        [
            cell(show::bytes(bytes), style),
            cell(percent(share), style_of_share),
            cell(bar(share), AnsiColor::Blue.on_default()),
        ]
    }
}

/// A part of a name; an empty one can be seen.
fn named(node: &Node<'_, '_>) -> String {
    let label = node.label();
    if label.is_empty() { "\"\"".to_owned() } else { label }
}

fn values(values: &Values) -> [Cell; 5] {
    let real = |value: Option<f64>| cell(value.map_or_else(|| "-".to_owned(), short), PLAIN);
    let alarm = AnsiColor::Red.on_default().bold();
    let bad = |count: u64| cell(show::count(count), if count == 0 { DIM } else { alarm });
    [real(values.min), real(values.mean()), real(values.max), bad(values.nans), bad(values.infinities)]
}

/// Four digits, with an exponent where there would be many zeros.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if !(1e-3..1e5).contains(&size) => format!("{value:.2e}"),
        size if size < 10.0 => format!("{value:.4}"),
        _ => format!("{value:.1}"),
    }
}

/// A shape of as many dimensions as tensors have; hostile ones have millions.
fn shape(shape: &[usize]) -> String {
    const MOST: usize = 8;
    match shape.get(..MOST) {
        Some(first) if shape.len() > MOST => {
            let first: Vec<_> = first.iter().map(usize::to_string).collect();
            format!("[{}, … {} dimensions]", first.join(", "), show::count(shape.len() as u64))
        }
        _ => show::shape(shape),
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn share(bytes: u64, total: u64) -> f64 {
    if total == 0 { 0.0 } else { bytes as f64 / total as f64 }
}

fn percent(share: f64) -> String {
    match share * 100.0 {
        0.0 => "0%".to_owned(),
        small if small < 0.05 => "<0.1%".to_owned(),
        percent => format!("{percent:.1}%"),
    }
}

/// A share as a line, in eighths of a character.
fn bar(share: f64) -> String {
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share * (BAR * 8) as f64).round() as usize;
    format!("{}{}", "█".repeat(eighths / 8), PARTS[eighths % 8])
}

/// Wide floats, 16 bits, 8 bits and fewer, blocks of such codes among them, and integers look different, as in the page.
fn color(dtype: &str) -> Style {
    let color = match dtype.parse() {
        Ok(Dtype::BF16) => AnsiColor::Blue,
        Ok(Dtype::F16) => AnsiColor::Cyan,
        Ok(Dtype::F32 | Dtype::F64 | Dtype::C64) => AnsiColor::Magenta,
        Ok(dtype) if !dtype.is_float() => AnsiColor::Green,
        _ => AnsiColor::Yellow,
    };
    color.on_default()
}

/// Totals by dtype, by layer and by shard.
fn totals(out: &mut impl Write, survey: &Survey<'_>) -> Result<()> {
    let total = survey.bytes();
    let dtypes = survey.dtypes();
    let rows = dtypes.iter().map(|of| {
        let parameters = show::plural(of.elements as usize, "parameter");
        let name = cell(of.dtype, color(of.dtype));
        sized(name, show::plural(of.tensors as usize, "tensor"), of.bytes, total, parameters)
    });
    section(out, "dtypes", rows.collect())?;
    let stacks = survey.stacks();
    let rows = stacks.iter().map(|stack| {
        let bytes = || stack.layers.iter().map(|layer| layer.bytes);
        let (least, most) = (bytes().min().unwrap_or(0), bytes().max().unwrap_or(0));
        let each = match least == most {
            true => format!("{} each", show::bytes(most)),
            false => format!("{} to {} each", show::bytes(least), show::bytes(most)),
        };
        let name = if stack.module.is_empty() { "\"\"".into() } else { safe(stack.module) };
        sized(cell(name, BOLD), show::plural(stack.layers.len(), "layer"), bytes().sum(), total, each)
    });
    section(out, "layers", rows.collect())?;
    let shards = survey.shards();
    let shown = if shards.len() > MOST_SHARDS { MOST_SHARDS / 2 } else { shards.len() };
    let rows = shards.iter().take(shown).map(|of| {
        let tensors = show::plural(of.tensors as usize, "tensor");
        sized(cell(safe(&of.file), PLAIN), tensors, of.bytes, total, String::new())
    });
    let mut rows: Vec<_> = rows.collect();
    if let [_, ..] = &shards[shown..] {
        let rest = &shards[shown..];
        let (tensors, bytes) =
            (rest.iter().map(|of| of.tensors).sum::<u64>(), rest.iter().map(|of| of.bytes));
        let more = cell(format!("and {} more", show::count(rest.len() as u64)), DIM);
        rows.push(sized(more, show::plural(tensors as usize, "tensor"), bytes.sum(), total, String::new()));
    }
    if shards.len() == 1 {
        rows.clear();
    }
    section(out, "shards", rows)
}

fn sized(name: Cell, tensors: String, bytes: u64, total: u64, more: String) -> Vec<Cell> {
    let share = percent(share(bytes, total));
    let name = Cell { lead: "  ".to_owned(), ..name };
    vec![name, cell(tensors, PLAIN), cell(show::bytes(bytes), PLAIN), cell(share, PLAIN), cell(more, DIM)]
}

fn section(out: &mut impl Write, title: &str, rows: Vec<Vec<Cell>>) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&[Align::Left, Align::Right, Align::Right, Align::Right, Align::Left]);
    rows.iter().for_each(|row| table.measure(row));
    table.fit();
    writeln!(out, "\n{DIM}{title}{DIM:#}")?;
    rows.iter().try_for_each(|row| table.write(out, row))
}

fn metadata(out: &mut impl Write, survey: &Survey<'_>) -> Result<()> {
    let metadata = survey.metadata();
    let entries = metadata.iter().flat_map(|(key, values)| values.iter().map(move |value| (key, value)));
    let rows = entries.map(|(key, value)| {
        let shown: String = value.chars().take(MOST_OF_VALUE).collect();
        let more = if shown.len() < value.len() { "…" } else { "" };
        let key = Cell { lead: "  ".to_owned(), ..cell(safe(key), PLAIN) };
        vec![key, cell(format!("{}{more}", safe(&shown)), PLAIN)]
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&[Align::Left, Align::Left]);
    rows.iter().for_each(|row| table.measure(row));
    writeln!(out, "\n{DIM}metadata{DIM:#}")?;
    rows.iter().try_for_each(|row| table.write(out, row))
}
