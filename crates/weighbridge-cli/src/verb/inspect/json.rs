//! The report as JSON; `docs/json.md` says what its fields are.

use std::io::Write;

use anyhow::Result;
use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};
use weighbridge_page::tree::{Node, Sort, position};
use weighbridge_page::{DtypeTotal, ShardTotal, Stack, Survey};

use super::Looked;
use super::quantised::Module;
use crate::figures::Figures;

pub(super) const SCHEMA: &str = "weighbridge.inspect/1";

/// Everything that was found; what is long is made while it is written.
#[derive(Serialize)]
pub(super) struct Document<'s, 'c> {
    schema: &'static str,
    checkpoints: Vec<Checkpoint<'s, 'c>>,
}

#[derive(Serialize)]
struct Checkpoint<'s, 'c> {
    name: &'s str,
    path: &'s str,
    /// Of all tensors, chosen or not.
    tensors_in_all: usize,
    count: usize,
    elements: u64,
    bytes: u64,
    dtypes: Vec<DtypeTotal>,
    stacks: Vec<Stack<'c>>,
    shards: Vec<ShardTotal>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    quantised: &'s [Module<'c>],
    metadata: std::collections::BTreeMap<&'c str, Vec<&'c str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tree: Option<Children<'s, 'c>>,
    tensors: Tensors<'s, 'c>,
}

/// What goes into the document.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// How many levels of the tree; none of it if `None`.
    pub(super) tree: Option<usize>,
    pub(super) sort: Sort,
}

impl<'s, 'c> Document<'s, 'c> {
    pub(super) fn of(looked: impl Iterator<Item = &'s Looked<'c>>, shape: Shape) -> Self {
        Self { schema: SCHEMA, checkpoints: looked.map(|looked| Checkpoint::of(looked, shape)).collect() }
    }

    /// Writes it on one line.
    pub(super) fn write(&self, mut out: impl Write) -> Result<()> {
        // The error of a closed pipe must be seen as one.
        serde_json::to_writer(&mut out, self).map_err(std::io::Error::from)?;
        out.write_all(b"\n")?;
        Ok(())
    }
}

impl<'s, 'c> Checkpoint<'s, 'c> {
    fn of(looked: &'s Looked<'c>, shape: Shape) -> Self {
        let survey = &looked.survey;
        let root = survey.root();
        Self {
            name: survey.name(),
            path: survey.path(),
            tensors_in_all: survey.checkpoint().len(),
            count: survey.tensors().len(),
            elements: survey.elements(),
            bytes: survey.bytes(),
            dtypes: survey.dtypes(),
            stacks: survey.stacks(),
            shards: survey.shards(),
            quantised: &looked.quantised,
            metadata: survey.metadata(),
            tree: shape.tree.map(|depth| Children { node: root, depth, sort: shape.sort }),
            tensors: Tensors { survey, sort: shape.sort },
        }
    }
}

struct Children<'s, 'c> {
    node: Node<'s, 'c>,
    depth: usize,
    sort: Sort,
}

impl Serialize for Children<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let children = self.node.children(self.sort);
        let mut list = serializer.serialize_seq(Some(children.len()))?;
        for child in children {
            list.serialize_element(&Branch::of(child, self.depth, self.sort))?;
        }
        list.end()
    }
}

#[derive(Serialize)]
struct Branch<'s, 'c> {
    name: String,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    numbers: Vec<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dtype: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shape: Option<&'c [usize]>,
    count: u64,
    elements: u64,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    children: Option<Children<'s, 'c>>,
}

impl<'s, 'c> Branch<'s, 'c> {
    fn of(node: Node<'s, 'c>, depth: usize, sort: Sort) -> Self {
        let tensor = node.tensor();
        let deeper = tensor.is_none() && depth > 1;
        Self {
            name: node.label(),
            numbers: node.numbers().to_vec(),
            dtype: tensor.map(|tensor| node.shown().dtype(&tensor)),
            shape: tensor.map(|tensor| tensor.shape()),
            count: node.count(),
            elements: node.elements(),
            bytes: node.bytes(),
            children: deeper.then(|| Children { node, depth: depth - 1, sort }),
        }
    }
}

struct Tensors<'s, 'c> {
    survey: &'s Survey<'c>,
    sort: Sort,
}

#[derive(Serialize)]
struct Tensor<'s> {
    name: &'s str,
    dtype: &'static str,
    shape: &'s [usize],
    elements: u64,
    bytes: u64,
    shard: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    figures: Option<&'s Figures>,
}

impl Serialize for Tensors<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let order = order(self.survey, self.sort);
        serializer.collect_seq(order.into_iter().map(|place| {
            let tensor = self.survey.tensors()[place];
            let figures = self.survey.figures();
            Tensor {
                name: tensor.name(),
                dtype: self.survey.shown().dtype(&tensor),
                shape: tensor.shape(),
                elements: tensor.elements(),
                bytes: self.survey.shown().bytes(&tensor),
                shard: self.survey.file_of(&tensor),
                offset: self.survey.offset_of(&tensor),
                figures: figures.and_then(|figures| figures[place].as_ref()),
            }
        }))
    }
}

/// The places of tensors, which are sorted by path, in another order.
pub(super) fn order(survey: &Survey<'_>, sort: Sort) -> Vec<usize> {
    let (tensors, shown) = (survey.tensors(), survey.shown());
    let mut places: Vec<usize> = (0..tensors.len()).collect();
    match sort {
        Sort::Name => {}
        Sort::Size => places.sort_by_key(|&place| std::cmp::Reverse(shown.bytes(&tensors[place]))),
        Sort::Offset => places.sort_by_key(|&place| position(&tensors[place])),
    }
    places
}
