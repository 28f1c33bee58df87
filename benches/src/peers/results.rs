//! What a run found: what is kept as JSON, and what tables and charts are made from.

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::measure::Measure;
use crate::work::{Side, Work};
use crate::works;

/// A whole run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    /// Of the checkpoints, as asked for.
    pub(crate) size: u64,
    pub(crate) repeat: usize,
    pub(crate) works: Vec<Table>,
}

/// What was found about one work.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Table {
    /// The work's name.
    pub(crate) name: String,
    pub(crate) tensors: usize,
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    pub(crate) rows: Vec<Row>,
    pub(crate) absent: Vec<Absent>,
}

/// What was found about one way.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) side: Side,
    pub(crate) median: Measure,
    /// The seconds of each round, in order.
    pub(crate) seconds: Vec<f64>,
}

impl Row {
    pub(crate) fn fastest(&self) -> f64 {
        self.seconds.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub(crate) fn slowest(&self) -> f64 {
        self.seconds.iter().copied().fold(0.0, f64::max)
    }
}

/// A way that could not be measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Absent {
    pub(crate) title: String,
    pub(crate) reason: String,
}

impl Table {
    pub(crate) fn work(&self) -> Option<&'static Work> {
        works::ALL.into_iter().find(|work| work.name == self.name)
    }

    pub(crate) fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// What ratios are to: the first of ours.
    pub(crate) fn baseline(&self) -> Option<&Row> {
        self.rows.iter().find(|row| row.side == Side::Ours)
    }
}

impl Results {
    pub(crate) fn table(&self, name: &str) -> Option<&Table> {
        self.works.iter().find(|table| table.name == name)
    }
}

/// A time for people: three figures and the unit.
pub(crate) fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 0.1 => format!("{s:.3} s"),
        s if s >= 0.01 => format!("{:.1} ms", s * 1e3),
        s if s >= 0.001 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.0} µs", s * 1e6),
    }
}
