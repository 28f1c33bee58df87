//! The page of a training run: the numbers that its checkpoints keep, and norms of their weights.

use std::io::{self, Write};

use serde::Serialize;

use crate::html::{Page, STYLE, packed};

/// The body of the page.
pub const BODY: &str = include_str!("../assets/run.html");

/// The script of the page. It shows the data that the page has under the id `data`; a page without them calls
/// `weighbridge.show` with a [`Run`].
pub const SCRIPT: &str = concat!(
    "\"use strict\";\n(() => {\n",
    include_str!("../assets/format.js"),
    include_str!("../assets/theme.js"),
    include_str!("../assets/carried.js"),
    include_str!("../assets/parts.js"),
    include_str!("../assets/chart.js"),
    include_str!("../assets/run.js"),
    "})();\n"
);

/// A training run, as the page shows it.
#[derive(Debug, Default, Serialize)]
pub struct Run {
    /// Its title.
    pub name: String,
    /// Where it is.
    pub path: String,
    /// Parameters of the newest model.
    pub elements: u64,
    /// In the order of time.
    pub checkpoints: Vec<Saved>,
    /// By name.
    pub numbers: Vec<Numbers>,
    /// Of the models.
    pub tensors: Weights,
}

/// A checkpoint of the run.
#[derive(Debug, Serialize)]
pub struct Saved {
    /// 0 where epochs are not counted.
    pub epoch: usize,
    /// `None` at the end of an epoch.
    pub step: Option<u64>,
    /// Bytes of the model.
    pub bytes: u64,
    /// What it has: `model`, `optimizer`, `ema`.
    pub parts: Vec<String>,
}

/// A number that checkpoints keep.
#[derive(Debug, Serialize)]
pub struct Numbers {
    /// What the program calls it.
    pub name: String,
    /// For each checkpoint; `None` where it has none.
    pub values: Vec<Option<f64>>,
}

/// Tensors, a place for each in each column.
#[derive(Debug, Default, Serialize)]
pub struct Weights {
    /// Of all checkpoints.
    pub name: Vec<String>,
    /// Of its values, for each checkpoint; `None` where it is not there or has no numbers.
    pub norm: Vec<Vec<Option<f64>>>,
    /// Of its difference from the checkpoint before, for each checkpoint.
    pub distance: Vec<Vec<Option<f64>>>,
}

/// Writes the page of a run.
///
/// # Errors
///
/// Those of writing.
pub fn write(out: &mut impl Write, run: &Run) -> io::Result<()> {
    let data = vec![("data", packed(run)?)];
    let page =
        Page { title: &run.name, body: BODY, style: STYLE, script: SCRIPT, data, allow: "", policy: "" };
    page.write(out)
}
