//! The page of two checkpoints: a map of what moved, layers by modules, and a table of all tensors.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::io::{self, Write};

use serde::Serialize;

use crate::forms::{Form, Forms};
use crate::html::{Page, STYLE, packed};
use crate::survey::Survey;
use crate::tree::by_path;

/// The body of the page.
pub const BODY: &str = include_str!("../assets/diff.html");

/// The script of the page. It shows the data that the page has under the id `data`; a page without them calls
/// `weighbridge.show` with a [`Document`].
pub const SCRIPT: &str = concat!(
    "\"use strict\";\n(() => {\n",
    include_str!("../assets/format.js"),
    include_str!("../assets/theme.js"),
    include_str!("../assets/carried.js"),
    include_str!("../assets/parts.js"),
    include_str!("../assets/table.js"),
    include_str!("../assets/heat.js"),
    include_str!("../assets/difference.js"),
    include_str!("../assets/heatmap.js"),
    include_str!("../assets/search.js"),
    include_str!("../assets/diff.js"),
    "})();\n"
);

/// Two checkpoints, and what is known of their difference.
#[derive(Debug)]
pub struct Difference<'s> {
    /// The first, from which is measured.
    pub a: &'s Survey<'s>,
    /// The second.
    pub b: &'s Survey<'s>,
    /// By name how values changed, if they were compared.
    pub changes: Option<HashMap<&'s str, Change>>,
    /// Metadata that differ.
    pub metadata: Vec<Entry<'s>>,
    /// Tensors that may have got another name.
    pub renamed: Vec<Renamed<'s>>,
}

/// How the values of a tensor changed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Change {
    /// How many values differ.
    pub differing: u64,
    /// Of how many.
    pub values: u64,
    /// The greatest |a - b| of finite values, where they are numbers.
    pub max_absolute: Option<f64>,
    /// The norm of a - b, over finite values.
    pub distance: Option<f64>,
    /// The norm of a.
    pub norm: Option<f64>,
    /// The cosine of the angle between them; `None` where one of them is nothing.
    pub cosine: Option<f64>,
}

/// An entry of the metadata: what it is in each, if it is there.
#[derive(Clone, Debug, Serialize)]
pub struct Entry<'s> {
    /// Its key.
    pub name: &'s str,
    /// In the first.
    pub a: Option<&'s str>,
    /// In the second.
    pub b: Option<&'s str>,
}

/// A tensor of the one, and one of the other.
#[derive(Clone, Debug, Serialize)]
pub struct Renamed<'s> {
    /// Its name in the first.
    pub from: &'s str,
    /// Its name in the second.
    pub to: &'s str,
}

/// Writes the page of two checkpoints.
///
/// # Errors
///
/// Those of writing.
pub fn write(out: &mut impl Write, difference: &Difference<'_>) -> io::Result<()> {
    let title = format!("{} → {}", difference.a.name(), difference.b.name());
    let data = vec![("data", packed(&Document::of(difference))?)];
    let page = Page { title: &title, body: BODY, style: STYLE, script: SCRIPT, data, allow: "", policy: "" };
    page.write(out)
}

/// What the page shows.
#[derive(Debug, Serialize)]
pub struct Document<'s> {
    schema: &'static str,
    a: Side<'s>,
    b: Side<'s>,
    metadata: &'s [Entry<'s>],
    renamed: &'s [Renamed<'s>],
    /// The dtypes and shapes that tensors have, each pair once.
    forms: Vec<Form<'s>>,
    columns: Columns<'s>,
}

/// Totals of one of the checkpoints.
#[derive(Debug, Serialize)]
struct Side<'s> {
    name: &'s str,
    path: &'s str,
    tensors: usize,
    elements: u64,
    bytes: u64,
    shards: usize,
    dtypes: Vec<&'static str>,
}

/// A place in each for each tensor of either checkpoint.
#[derive(Debug, Default, Serialize)]
struct Columns<'s> {
    /// Sorted by path.
    name: Vec<&'s str>,
    /// Which of the forms it has in the first.
    a: Vec<Option<usize>>,
    /// Which it has in the second.
    b: Vec<Option<usize>>,
    /// If values were compared; `None` where there is nothing to compare with.
    changes: Option<Vec<Option<Change>>>,
}

impl<'s> Document<'s> {
    /// That of two checkpoints.
    pub fn of(difference: &'s Difference<'s>) -> Self {
        let mut forms = Forms::default();
        let mut columns = Columns::default();
        let [mut left, mut right] = [difference.a, difference.b].map(|side| side.tensors().iter().peekable());
        loop {
            let order = match (left.peek(), right.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => by_path(a.name(), b.name()),
            };
            let a = if order.is_le() { left.next() } else { None };
            let b = if order.is_ge() { right.next() } else { None };
            columns.name.extend(a.or(b).map(weighbridge::TensorRef::name));
            columns.a.push(a.map(|tensor| forms.place(tensor, difference.a.shown())));
            columns.b.push(b.map(|tensor| forms.place(tensor, difference.b.shown())));
        }
        let of_name = |changes: &HashMap<&str, Change>| {
            columns.name.iter().map(|name| changes.get(name).copied()).collect()
        };
        columns.changes = difference.changes.as_ref().map(of_name);
        let Difference { a, b, metadata, renamed, .. } = difference;
        Self {
            schema: "weighbridge.page.diff/1",
            a: Side::of(a),
            b: Side::of(b),
            metadata,
            renamed,
            forms: forms.all,
            columns,
        }
    }
}

impl<'s> Side<'s> {
    fn of(survey: &'s Survey<'_>) -> Self {
        Self {
            name: survey.name(),
            path: survey.path(),
            tensors: survey.tensors().len(),
            elements: survey.elements(),
            bytes: survey.bytes(),
            shards: survey.file_count(),
            dtypes: survey.dtypes().iter().map(|total| total.dtype).collect(),
        }
    }
}
