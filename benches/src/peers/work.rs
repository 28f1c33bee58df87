//! What is measured: works, and the ways to do each. Every table is made from these.

use std::path::PathBuf;

use anyhow::Result;
use benches::checkpoint::{self, Layout};
use candle_core::DType;
use serde::{Deserialize, Serialize};

use crate::measure::Measure;

/// One table and one chart: a task, and the ways to do it.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) name: &'static str,
    /// What it is, in half a line.
    pub(crate) title: &'static str,
    pub(crate) layout: Layout,
    /// In which tensors come.
    pub(crate) dtype: DType,
    /// Whether the page cache has none of the files at the start.
    pub(crate) cold: bool,
    /// Whether Python's loaders do it, too.
    pub(crate) python: bool,
    /// Whether it makes tensors of its own, of about as many bytes as the checkpoint has.
    pub(crate) own_tensors: bool,
    pub(crate) ways: &'static [Way],
    /// Beside the seconds and what they are in ours.
    pub(crate) columns: &'static [Column],
}

impl Work {
    /// Whether a name on the command line means it: its own name, or the part before a hyphen.
    pub(crate) fn is_meant(&self, name: &str) -> bool {
        self.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    }

    pub(crate) fn way(&self, name: &str) -> Option<&'static Way> {
        self.ways.iter().find(|way| way.name == name)
    }
}

/// A way to do a work, measured in a process of its own.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) name: &'static str,
    /// In Markdown.
    pub(crate) title: &'static str,
    pub(crate) side: Side,
    pub(crate) run: fn(&Job) -> Result<Measure>,
}

/// Whose way it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    Ours,
    Peer,
    /// What the machine itself takes: nobody's, and no tensors.
    Machine,
}

/// A figure that a table shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    Speed,
    Cpu,
    Peak,
    Faults,
    Needed,
    ReadCalls,
    DiskRead,
}

/// What a way needs to know in its process.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) work: &'static Work,
    /// Of the checkpoint.
    pub(crate) directory: PathBuf,
    pub(crate) files: Vec<PathBuf>,
    /// Names and shapes, in the order in which a model asks.
    pub(crate) tensors: Vec<(String, Vec<usize>)>,
}

impl Job {
    pub(crate) fn new(work: &'static Work, directory: PathBuf, size: u64) -> Result<Self> {
        let files = checkpoint::files(&directory)?;
        Ok(Self { work, directory, files, tensors: work.layout.tensors(size) })
    }

    /// Of all files.
    pub(crate) fn byte_len(&self) -> Result<u64> {
        self.files.iter().map(|file| Ok(std::fs::metadata(file)?.len())).sum()
    }
}
