//! What is known of a checkpoint: its tensors, its totals and, if they were asked for, figures of the values.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use weighbridge::{Checkpoint, Dtype, Names, TensorRef};

use super::quantised::Module;
use super::tree::{Node, by_path, position};
use crate::figures::{self, Figures};
use crate::term::Term;

/// A checkpoint, and those of its tensors that were chosen.
pub(in crate::verb) struct Survey<'c> {
    pub(super) location: &'c Path,
    pub(super) checkpoint: &'c Checkpoint,
    /// Sorted by path.
    pub(super) tensors: Vec<TensorRef<'c>>,
    /// One for each of the tensors, if the data was read; `None` where values cannot be.
    pub(super) figures: Option<Vec<Option<Figures>>>,
    pub(super) quantised: Vec<Module<'c>>,
    /// The ranks, if names begin with them (`rank 0.`); 0 otherwise.
    pub(in crate::verb) ranks: usize,
    /// For each shard of the checkpoint the file that it is, or that its tensors are made of.
    files: Vec<usize>,
    /// How many files there are.
    stored: usize,
}

impl<'c> Survey<'c> {
    /// `stored` is the checkpoint as it is stored, `checkpoint` that or its weights.
    pub(in crate::verb) fn new(
        location: &'c Path,
        checkpoint: &'c Checkpoint,
        stored: &'c Checkpoint,
        chosen: &Names,
    ) -> Self {
        let mut tensors: Vec<_> =
            checkpoint.tensors().filter(|tensor| chosen.contains(tensor.name())).collect();
        tensors.sort_by(|a, b| by_path(a.name(), b.name()));
        let labels = || stored.shards().iter().map(|shard| shard.label());
        let files = checkpoint.shards().iter().enumerate().map(|(number, shard)| {
            if number < stored.shards().len() {
                return number;
            }
            labels().position(|label| label == shard.label()).unwrap_or(0)
        });
        let files = files.collect();
        let (figures, quantised, stored) = (None, Vec::new(), stored.shards().len());
        Self { location, checkpoint, tensors, figures, quantised, ranks: 0, files, stored }
    }

    /// How many files there are.
    pub(super) fn file_count(&self) -> usize {
        self.stored
    }

    /// The file in which a tensor is, or what it is made of.
    pub(super) fn file_of(&self, tensor: &TensorRef<'_>) -> usize {
        self.files.get(tensor.shard_number()).copied().unwrap_or(0)
    }

    /// The byte of that file at which its data starts, if it is stored.
    pub(super) fn offset_of(&self, tensor: &TensorRef<'_>) -> Option<u64> {
        (tensor.shard_number() < self.stored).then(|| tensor.info().file_range().start)
    }

    /// Reads all data, in the order in which it lies.
    pub(super) fn read(mut self, term: &Term) -> Result<Self> {
        let mut order: Vec<usize> = (0..self.tensors.len()).collect();
        order.sort_by_key(|&place| position(&self.tensors[place]));
        let tensors: Vec<_> = order.iter().map(|&place| self.tensors[place]).collect();
        let read = figures::of(&tensors, &term.bar("reading", self.bytes()))?;
        let mut figures = vec![None; read.len()];
        for (place, read) in order.into_iter().zip(read) {
            figures[place] = read;
        }
        self.figures = Some(figures);
        Ok(self)
    }

    pub(super) fn root(&self) -> Node<'_, 'c> {
        Node::root(&self.tensors)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.tensors.iter().map(TensorRef::byte_len).sum()
    }

    /// Elements of all tensors; hostile files have more than can be counted, of empty tensors none.
    pub(super) fn elements(&self) -> u64 {
        self.tensors.iter().fold(0, |sum, tensor| sum.saturating_add(tensor.elements()))
    }

    /// Totals of each dtype, the most bytes first.
    pub(super) fn dtypes(&self) -> Vec<DtypeTotal> {
        let mut totals: Vec<DtypeTotal> = Vec::new();
        for tensor in &self.tensors {
            let dtype = tensor.dtype();
            let place = totals.iter().position(|total| total.dtype == dtype).unwrap_or_else(|| {
                totals.push(DtypeTotal { dtype, tensors: 0, elements: 0, bytes: 0 });
                totals.len() - 1
            });
            let total = &mut totals[place];
            total.tensors += 1;
            total.elements = total.elements.saturating_add(tensor.elements());
            total.bytes += tensor.byte_len();
        }
        totals.sort_by_key(|total| (std::cmp::Reverse(total.bytes), total.dtype));
        totals
    }

    /// The outermost modules with numbered ones in them, and totals of each of these.
    pub(super) fn stacks(&self) -> Vec<Stack<'c>> {
        let mut stacks = Vec::new();
        find_stacks(&self.root(), &mut stacks);
        stacks
    }

    /// What the files hold of the chosen tensors.
    pub(super) fn shards(&self) -> Vec<ShardTotal> {
        let shards = self.checkpoint.shards().iter().take(self.stored);
        let mut totals: Vec<_> = shards
            .map(|shard| ShardTotal { file: shard.name().into_owned(), tensors: 0, bytes: 0 })
            .collect();
        for tensor in &self.tensors {
            let total = &mut totals[self.file_of(tensor)];
            total.tensors += 1;
            total.bytes += tensor.byte_len();
        }
        totals
    }

    /// What the files say about themselves, each value once.
    pub(super) fn metadata(&self) -> BTreeMap<&'c str, Vec<&'c str>> {
        let mut entries: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for shard in self.checkpoint.shards() {
            for (key, value) in shard.header().metadata().into_iter().flatten() {
                let values = entries.entry(key).or_default();
                if !values.contains(&value) {
                    values.push(value);
                }
            }
        }
        entries
    }
}

/// Totals of the tensors of a dtype.
#[derive(Debug, Serialize)]
pub(super) struct DtypeTotal {
    #[serde(serialize_with = "by_name")]
    pub(super) dtype: Dtype,
    pub(super) tensors: u64,
    pub(super) elements: u64,
    pub(super) bytes: u64,
}

/// A module of numbered modules: the layers of a transformer.
#[derive(Debug, Serialize)]
pub(super) struct Stack<'c> {
    pub(super) module: &'c str,
    pub(super) layers: Vec<Layer>,
}

#[derive(Debug, Serialize)]
pub(super) struct Layer {
    pub(super) number: u64,
    pub(super) tensors: u64,
    pub(super) bytes: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct ShardTotal {
    pub(super) file: String,
    pub(super) tensors: u64,
    pub(super) bytes: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
pub(super) fn by_name<S: serde::Serializer>(dtype: &Dtype, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(dtype.name())
}

fn find_stacks<'c>(module: &Node<'_, 'c>, stacks: &mut Vec<Stack<'c>>) {
    let parts = module.parts();
    let layer = |part: &Node<'_, '_>| {
        let number = part.number().filter(|_| part.tensor().is_none())?;
        Some(Layer { number, tensors: part.count(), bytes: part.bytes() })
    };
    let layers: Vec<Layer> = parts.iter().filter_map(layer).collect();
    let is_stack = layers.len() > 1;
    if is_stack {
        stacks.push(Stack { module: module.path(), layers });
    }
    for part in parts.iter().filter(|part| !is_stack || layer(part).is_none()) {
        find_stacks(part, stacks);
    }
}
