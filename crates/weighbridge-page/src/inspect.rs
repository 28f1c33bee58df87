//! The page of a checkpoint: a map of it by bytes, a table of its tensors, layers, shards and metadata.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;

use crate::figures::Figures;
use crate::forms::{Form, Forms};
use crate::html::{Page, STYLE, packed};
use crate::survey::{DtypeTotal, ShardTotal, Stack, Survey};

/// The body of the page.
pub const BODY: &str = include_str!("../assets/inspect.html");

/// The script of the page. It shows the data that the page has under the id `data`; a page without them calls
/// `weighbridge.show` with a [`Document`], as often as it likes, and `weighbridge.say` with a message.
pub const SCRIPT: &str = concat!(
    "\"use strict\";\n(() => {\n",
    include_str!("../assets/format.js"),
    include_str!("../assets/theme.js"),
    include_str!("../assets/carried.js"),
    include_str!("../assets/parts.js"),
    include_str!("../assets/model.js"),
    include_str!("../assets/treemap.js"),
    include_str!("../assets/table.js"),
    include_str!("../assets/columns.js"),
    include_str!("../assets/details.js"),
    include_str!("../assets/search.js"),
    include_str!("../assets/main.js"),
    "})();\n"
);

/// Writes the page of a checkpoint.
///
/// # Errors
///
/// Those of writing.
pub fn write(out: &mut impl Write, survey: &Survey<'_>) -> io::Result<()> {
    let data = vec![("data", packed(&Document::of(survey))?)];
    let page =
        Page { title: survey.name(), body: BODY, style: STYLE, script: SCRIPT, data, allow: "", policy: "" };
    page.write(out)
}

/// What the page shows.
#[derive(Debug, Serialize)]
pub struct Document<'s> {
    schema: &'static str,
    name: &'s str,
    path: &'s str,
    /// Of all tensors, chosen or not.
    tensors_in_all: usize,
    count: usize,
    elements: u64,
    bytes: u64,
    /// Tensors are coloured by rank if this is not 0.
    ranks: usize,
    dtypes: Vec<DtypeTotal>,
    stacks: Vec<Stack<'s>>,
    shards: Vec<ShardTotal>,
    metadata: BTreeMap<&'s str, Vec<&'s str>>,
    /// The dtypes and shapes that tensors have, each pair once.
    forms: Vec<Form<'s>>,
    columns: Columns<'s>,
}

/// A place for each tensor in each of them.
#[derive(Debug, Default, Serialize)]
struct Columns<'s> {
    /// Sorted by path.
    name: Vec<&'s str>,
    /// Which of the forms.
    form: Vec<usize>,
    /// Which of the shards.
    shard: Vec<usize>,
    /// `None` where it is not stored as it is.
    offset: Vec<Option<u64>>,
    /// If the values were read.
    figures: Option<Vec<Option<&'s Figures>>>,
}

impl<'s> Document<'s> {
    /// That of a checkpoint.
    pub fn of(survey: &'s Survey<'_>) -> Self {
        let mut forms = Forms::default();
        let mut columns = Columns::default();
        for tensor in &survey.tensors {
            columns.name.push(tensor.name());
            columns.form.push(forms.place(tensor, survey.shown()));
            columns.shard.push(survey.file_of(tensor));
            columns.offset.push(survey.offset_of(tensor));
        }
        columns.figures = survey.figures.as_ref().map(|figures| figures.iter().map(Option::as_ref).collect());
        Self {
            schema: "weighbridge.page.inspect/1",
            name: survey.name(),
            path: survey.path(),
            tensors_in_all: survey.checkpoint.len(),
            count: survey.tensors.len(),
            elements: survey.elements(),
            bytes: survey.bytes(),
            ranks: survey.ranks,
            dtypes: survey.dtypes(),
            stacks: survey.stacks(),
            shards: survey.shards(),
            metadata: survey.metadata(),
            forms: forms.all,
            columns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_browser_reads_the_script_to_its_end() {
        assert!(!SCRIPT.contains("</script") && !SCRIPT.contains("<!--") && !SCRIPT.contains('\r'));
        assert!(!STYLE.contains("</style") && !STYLE.contains('\r'));
    }
}
