//! Tables, and the pages that they are put into.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::results::{Results, Row, Table, time};
use crate::svg;
use crate::work::{Column, Side, Work};

const MEBIBYTE: f64 = 1_048_576.0;

/// The whole run as a page; charts are beside it.
pub(crate) fn page(results: &Results) -> String {
    let mut page = format!("# Peers\n\n{}\n", results.machine.describe());
    for table in &results.works {
        let Some(work) = table.work() else { continue };
        let _ = write!(page, "\n## {}\n\n{}", work.title, section(results, table, work, ""));
    }
    page
}

/// Puts what was measured into the sections of a page, and its charts into a directory of the page's name.
pub(crate) fn update(page: &Path, results: &Results) -> Result<()> {
    let charts = page.with_extension("");
    let folder = charts.file_name().context("a page needs a name")?.to_string_lossy().into_owned() + "/";
    let mut text = std::fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let mut replace = |name: &str, section: String| -> Result<bool> {
        let new = benches::page::replace(&text, &format!("peers:{name}"), &section)?;
        Ok(new.map(|new| text = new).is_some())
    };
    replace("machine", results.machine.describe())?;
    if let Some(summary) = summary(results) {
        replace("summary", summary)?;
    }
    for table in &results.works {
        let Some(work) = table.work() else { continue };
        if replace(work.name, section(results, table, work, &folder))? {
            std::fs::create_dir_all(&charts)?;
            std::fs::write(charts.join(format!("{}.svg", work.name)), svg::chart(results, table, work))?;
        }
    }
    Ok(std::fs::write(page, text)?)
}

/// A work's chart and table, and who is missing.
fn section(results: &Results, table: &Table, work: &Work, folder: &str) -> String {
    let files = match table.files {
        1 => "one file".to_owned(),
        count => format!("{count} files"),
    };
    let gigabytes = table.bytes as f64 / 1e9;
    let what = match work.own_tensors {
        true => format!("About {gigabytes:.2} GB"),
        false => format!("{} tensors, {gigabytes:.2} GB, {files}", table.tensors),
    };
    let mut text = format!(
        "![{}: a bar chart of the table below]({folder}{}.svg)\n\n{what}; medians of {}.\n\n",
        work.title, work.name, results.repeat,
    );
    let columns: String = work.columns.iter().map(|&column| format!(" {} |", heading(column))).collect();
    let _ =
        writeln!(text, "| | time | ours is 1 |{columns}\n|---|---|---|{}", "---|".repeat(work.columns.len()));
    for row in &table.rows {
        let ratio = table.baseline().map_or(f64::NAN, |ours| row.median.seconds / ours.median.seconds);
        let cells: String = work.columns.iter().map(|&column| format!(" {} |", cell(column, row))).collect();
        let _ = writeln!(text, "| {} | {} | {ratio:.2} |{cells}", row.title, time(row.median.seconds));
    }
    if !table.absent.is_empty() {
        let absent = table.absent.iter().map(|absent| format!("{} ({})", absent.title, absent.reason));
        let _ = writeln!(text, "\nNot run: {}.", absent.collect::<Vec<_>>().join("; "));
    }
    text
}

fn heading(column: Column) -> &'static str {
    match column {
        Column::Speed => "GB/s",
        Column::Cpu => "CPU time",
        Column::Peak => "peak above tensors, MiB",
        Column::Faults => "page faults",
        Column::Needed => "needed, MB",
        Column::ReadCalls => "by `read`, MB",
        Column::DiskRead => "from disk, MB",
    }
}

fn cell(column: Column, row: &Row) -> String {
    let median = &row.median;
    match column {
        Column::Speed => format!("{:.2}", median.moved_bytes / 1e9 / median.seconds),
        Column::Cpu => time(median.cpu_seconds),
        Column::Peak => format!("{:.0}", (median.peak_bytes - median.tensor_bytes) / MEBIBYTE),
        Column::Faults => format!("{:.0}", median.page_faults),
        Column::Needed => format!("{:.1}", median.moved_bytes / 1e6),
        Column::ReadCalls => format!("{:.1}", median.read_call_bytes / 1e6),
        Column::DiskRead => format!("{:.0}", median.disk_read_bytes / 1e6),
    }
}

/// What a README shows: loads into Candle, ours and its own.
fn summary(results: &Results) -> Option<String> {
    let (load, cast) = (results.table("load")?, results.table("cast")?);
    let size = load.bytes as f64 / 1e9;
    let mut text = format!(
        "| {size:.1} GB into Candle on the CPU | seconds | peak above the tensors |\n|---|---|---|\n"
    );
    for (table, suffix) in [(load, ""), (cast, ", cast to f32")] {
        let ours = table.baseline()?;
        for name in ["weighbridge", "candle-mmap", "candle-buffered", "candle-load"] {
            let Some(row) = table.row(name) else { continue };
            let ratio = match row.side {
                Side::Ours => String::new(),
                _ => format!(" ({:.1}x)", row.median.seconds / ours.median.seconds),
            };
            let title = row.title.replace("**", "");
            let _ = writeln!(
                text,
                "| {title}{suffix} | {:.2}{ratio} | {} MiB |",
                row.median.seconds,
                cell(Column::Peak, row)
            );
        }
    }
    Some(text)
}
