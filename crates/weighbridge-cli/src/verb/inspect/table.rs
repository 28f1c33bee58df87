//! Columns that stand under each other, and fit the terminal where there is one.

use std::io::{self, IsTerminal, Write};

use anstyle::Style;
use anyhow::Result;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// A text and how it looks.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    pub(super) text: String,
    pub(super) style: Style,
    /// Lines of the tree before the text, never cut.
    pub(super) lead: String,
}

pub(super) const PLAIN: Style = Style::new();
pub(super) const DIM: Style = Style::new().dimmed();
pub(super) const BOLD: Style = Style::new().bold();

pub(super) fn cell(text: impl Into<String>, style: Style) -> Cell {
    Cell { text: text.into(), style, lead: String::new() }
}

/// Where the text of a column stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Widths of columns. All rows are measured before the first is written.
#[derive(Debug)]
pub(super) struct Table {
    aligns: Vec<Align>,
    widths: Vec<usize>,
    /// Columns of the terminal, if there is one.
    room: Option<usize>,
}

/// A column is made no wider for the sake of one name; it then departs from its column.
const WIDEST: usize = 100;
/// So much of a name is kept on the narrowest terminal.
const NARROWEST: usize = 16;
const GAP: &str = "  ";

impl Table {
    pub(super) fn new(aligns: &[Align]) -> Self {
        let size = io::stdout().is_terminal().then(terminal_size::terminal_size).flatten();
        let room = size.map(|(width, _)| usize::from(width.0));
        Self { aligns: aligns.to_vec(), widths: vec![0; aligns.len()], room }
    }

    pub(super) fn measure(&mut self, row: &[Cell]) {
        for (width, cell) in self.widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width().min(WIDEST));
        }
    }

    /// Ends the measuring: the first column gives way where the terminal is too narrow.
    pub(super) fn fit(&mut self) {
        let others: usize =
            self.widths.iter().skip(1).filter(|width| **width > 0).map(|w| w + GAP.len()).sum();
        if let (Some(room), Some(first)) = (self.room, self.widths.first_mut()) {
            *first = (*first).min(room.saturating_sub(others).max(NARROWEST));
        }
    }

    pub(super) fn write(&self, out: &mut impl Write, row: &[Cell]) -> Result<()> {
        let last = row.iter().rposition(|cell| !cell.text.is_empty()).unwrap_or(0);
        let columns = row.iter().zip(self.widths.iter().zip(&self.aligns)).enumerate();
        for (column, (cell, (&width, align))) in columns.take(last + 1) {
            if width == 0 {
                continue;
            }
            let gap = if column == 0 { "" } else { GAP };
            let text = match self.room {
                Some(_) => shorten(&cell.text, width.saturating_sub(cell.lead.width()).max(1)),
                None => cell.text.clone(),
            };
            let space = width.saturating_sub(cell.lead.width() + columns_of(&text));
            let (style, lead) = (cell.style, &cell.lead);
            let (before, behind) = match align {
                Align::Right => (space, 0),
                Align::Left if column == last => (0, 0),
                Align::Left => (0, space),
            };
            write!(out, "{gap}")?;
            if !lead.is_empty() {
                write!(out, "{DIM}{lead}{DIM:#}")?;
            }
            write!(out, "{:before$}{style}{text}{style:#}{:behind$}", "", "")?;
        }
        writeln!(out)?;
        Ok(())
    }
}

impl Cell {
    fn width(&self) -> usize {
        self.lead.width() + columns_of(&self.text)
    }
}

/// Columns of a text; nearly all are ASCII without control characters.
fn columns_of(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.width() }
}

/// A text with so much left out of its middle that it fits.
fn shorten(text: &str, width: usize) -> String {
    if columns_of(text) <= width {
        return text.to_owned();
    }
    let fit = |chars: &mut dyn Iterator<Item = char>, room: usize| {
        let mut used = 0;
        let taken = chars.take_while(|c| {
            used += c.width().unwrap_or(0);
            used <= room
        });
        taken.collect::<Vec<_>>()
    };
    // The end of a name says more than its start.
    let start = fit(&mut text.chars(), (width - 1) / 3);
    let mut end = fit(&mut text.chars().rev(), width - 1 - (width - 1) / 3);
    end.reverse();
    start.into_iter().chain(['…']).chain(end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_lose_their_middle() {
        assert_eq!(shorten("weight", 6), "weight");
        assert_eq!(shorten("model.layers.weight", 10), "mod…weight");
        assert_eq!(shorten("重重重重重重", 8), "重…重重");
        assert_eq!(shorten("weight", 1), "…");
    }
}
