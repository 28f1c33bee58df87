//! Bar charts: one file each, no font or script from elsewhere, readable on light pages and on dark ones.

use std::fmt::Write;

use crate::results::{Results, Row, Table, time};
use crate::work::{Column, Side, Work};

const WIDTH: f64 = 760.0;
const MARGIN: f64 = 16.0;
/// What the longest bar leaves for its value.
const ROOM: f64 = 190.0;
const TOP: f64 = 64.0;
const STEP: f64 = 42.0;

const STYLE: &str = "\
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 }
.note { fill: #59636e; font-size: 12px }
.ours { fill: #0b7a75 }
.peer { fill: #a9b4c0 }
.machine { fill: none; stroke: #8c959f; stroke-dasharray: 4 3 }
.range { stroke: #1f2328; stroke-opacity: .55; stroke-width: 1.5 }
text.name-ours { font-weight: 600; fill: #0b7a75 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.note { fill: #9198a1 }
.ours { fill: #2fb5ad }
.peer { fill: #59636e }
.machine { stroke: #9198a1 }
.range { stroke: #e6edf3 }
text.name-ours { fill: #3fc7bf }
}";

/// The times of a work's ways as bars: medians, and lines from the fastest to the slowest round.
pub(crate) fn chart(results: &Results, table: &Table, work: &Work) -> String {
    let longest = table.rows.iter().map(Row::slowest).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - 2.0 * MARGIN - ROOM) / longest;
    let height = TOP + STEP * table.rows.len() as f64 + MARGIN / 2.0;
    let title = escape(work.title);
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">
<style>
{STYLE}
</style>
<text class="title" x="{MARGIN}" y="26">{title}</text>
<text class="note" x="{MARGIN}" y="46">Time, less is better; {:.2} GB, {} tensors; medians of {}, lines from fastest to slowest</text>
"#,
        table.bytes as f64 / 1e9,
        table.tensors,
        results.repeat,
    );
    for (number, row) in table.rows.iter().enumerate() {
        let top = TOP + STEP * number as f64;
        let (class, name) = match row.side {
            Side::Ours => ("ours", "name-ours"),
            Side::Peer => ("peer", "name"),
            Side::Machine => ("machine", "note"),
        };
        let label = escape(&row.title.replace(['*', '`'], ""));
        let (length, end) = (scale * row.median.seconds, MARGIN + scale * row.slowest() + 8.0);
        let (low, high) = (MARGIN + scale * row.fastest(), MARGIN + scale * row.slowest());
        let (middle, value) = (top + 25.0, escape(&value(row, work)));
        let _ = writeln!(
            svg,
            r#"<text class="{name}" x="{MARGIN}" y="{:.0}">{label}</text>
<rect class="{class}" x="{MARGIN}" y="{:.0}" width="{:.1}" height="14" rx="2"/>
<line class="range" x1="{low:.1}" x2="{high:.1}" y1="{middle}" y2="{middle}"/>
<text x="{end:.1}" y="{:.0}">{value}</text>"#,
            top + 12.0,
            top + 18.0,
            length.max(1.0),
            top + 30.0,
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// The time, and what it means as a speed where the work has one.
fn value(row: &Row, work: &Work) -> String {
    let seconds = row.median.seconds;
    if work.columns.contains(&Column::Speed) {
        return format!("{} · {:.2} GB/s", time(seconds), row.median.moved_bytes / 1e9 / seconds);
    }
    time(seconds)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
