//! What is known of a checkpoint: its tensors, its totals and, if they were asked for, figures of the values.

use std::collections::BTreeMap;

use serde::Serialize;
use weighbridge::{Checkpoint, Names, TensorRef};

use crate::figures::Figures;
use crate::shown::Shown;
use crate::tree::{Node, by_path};

/// A checkpoint, and those of its tensors that were chosen.
#[derive(Debug)]
pub struct Survey<'c> {
    name: String,
    path: String,
    pub(crate) checkpoint: &'c Checkpoint,
    /// Sorted by path.
    pub(crate) tensors: Vec<TensorRef<'c>>,
    pub(crate) figures: Option<Vec<Option<Figures>>>,
    pub(crate) ranks: usize,
    /// For each shard of the checkpoint the file that it is, or that its tensors are made of.
    files: Vec<usize>,
    /// How many files there are.
    stored: usize,
    shown: Shown,
}

impl<'c> Survey<'c> {
    /// `stored` is the checkpoint as it is stored, `checkpoint` that or its weights. `name` is its title, `path` where it is.
    pub fn new(
        name: impl Into<String>,
        path: impl Into<String>,
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
        let (files, stored) = (files.collect(), stored.shards().len());
        let (name, path) = (name.into(), path.into());
        Self {
            name,
            path,
            checkpoint,
            tensors,
            figures: None,
            ranks: 0,
            files,
            stored,
            shown: Shown::default(),
        }
    }

    /// With figures of the values: one for each of [`tensors`](Self::tensors), `None` where values cannot be read.
    #[must_use]
    pub fn with_figures(self, figures: Vec<Option<Figures>>) -> Self {
        Self { figures: Some(figures), ..self }
    }

    /// With names that begin with ranks (`rank 0.`), so many of them.
    #[must_use]
    pub fn with_ranks(self, ranks: usize) -> Self {
        Self { ranks, ..self }
    }

    /// With this told of tensors that are stored in blocks.
    #[must_use]
    pub fn showing(self, shown: Shown) -> Self {
        Self { shown, ..self }
    }

    /// What is told of tensors that are stored in blocks.
    pub fn shown(&self) -> Shown {
        self.shown
    }

    /// Its title.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &'c Checkpoint {
        self.checkpoint
    }

    /// The tensors that were chosen, sorted by path.
    pub fn tensors(&self) -> &[TensorRef<'c>] {
        &self.tensors
    }

    /// Figures of the values, if they were read; for each of [`tensors`](Self::tensors).
    pub fn figures(&self) -> Option<&[Option<Figures>]> {
        self.figures.as_deref()
    }

    /// How many files there are.
    pub fn file_count(&self) -> usize {
        self.stored
    }

    /// The file in which a tensor is, or what it is made of.
    pub fn file_of(&self, tensor: &TensorRef<'_>) -> usize {
        self.files.get(tensor.shard_number()).copied().unwrap_or(0)
    }

    /// The byte of that file at which its data starts, if it is stored as it is.
    pub fn offset_of(&self, tensor: &TensorRef<'_>) -> Option<u64> {
        let is_stored = tensor.shard_number() < self.stored && tensor.block_type().is_none();
        is_stored.then(|| tensor.info().file_range().start)
    }

    /// The module of all tensors.
    pub fn root(&self) -> Node<'_, 'c> {
        Node::root(&self.tensors, self.shown)
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| self.shown.bytes(tensor)).sum()
    }

    /// Elements of all tensors; hostile files have more than can be counted, of empty tensors none.
    pub fn elements(&self) -> u64 {
        self.tensors.iter().fold(0, |sum, tensor| sum.saturating_add(tensor.elements()))
    }

    /// Totals of each dtype, the most bytes first.
    pub fn dtypes(&self) -> Vec<DtypeTotal> {
        let mut totals: Vec<DtypeTotal> = Vec::new();
        for tensor in &self.tensors {
            let dtype = self.shown.dtype(tensor);
            let place = totals.iter().position(|total| total.dtype == dtype).unwrap_or_else(|| {
                totals.push(DtypeTotal { dtype, tensors: 0, elements: 0, bytes: 0 });
                totals.len() - 1
            });
            let total = &mut totals[place];
            total.tensors += 1;
            total.elements = total.elements.saturating_add(tensor.elements());
            total.bytes += self.shown.bytes(tensor);
        }
        totals.sort_by_key(|total| (std::cmp::Reverse(total.bytes), total.dtype));
        totals
    }

    /// The outermost modules with numbered ones in them, and totals of each of these.
    pub fn stacks(&self) -> Vec<Stack<'c>> {
        let mut stacks = Vec::new();
        find_stacks(&self.root(), &mut stacks);
        stacks
    }

    /// What the files hold of the chosen tensors.
    pub fn shards(&self) -> Vec<ShardTotal> {
        let shards = self.checkpoint.shards().iter().take(self.stored);
        let mut totals: Vec<_> = shards
            .map(|shard| ShardTotal { file: shard.name().into_owned(), tensors: 0, bytes: 0 })
            .collect();
        for tensor in &self.tensors {
            let total = &mut totals[self.file_of(tensor)];
            total.tensors += 1;
            total.bytes += self.shown.bytes(tensor);
        }
        totals
    }

    /// What the files say about themselves, each value once.
    pub fn metadata(&self) -> BTreeMap<&'c str, Vec<&'c str>> {
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
pub struct DtypeTotal {
    /// Their dtype, or the type of their blocks.
    pub dtype: &'static str,
    /// How many tensors.
    pub tensors: u64,
    /// Their elements.
    pub elements: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A module of numbered modules: the layers of a transformer.
#[derive(Debug, Serialize)]
pub struct Stack<'c> {
    /// The name of the module.
    pub module: &'c str,
    /// The modules in it, by number.
    pub layers: Vec<Layer>,
}

/// A numbered module.
#[derive(Debug, Serialize)]
pub struct Layer {
    /// Its number.
    pub number: u64,
    /// How many tensors.
    pub tensors: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Totals of the tensors of a file.
#[derive(Debug, Serialize)]
pub struct ShardTotal {
    /// The name of the file.
    pub file: String,
    /// How many tensors.
    pub tensors: u64,
    /// Their bytes.
    pub bytes: u64,
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
