//! The parts of each rank of a checkpoint.

use std::ops::Range;
use std::sync::Arc;

use super::config::Config;
pub use super::cut::Held;
use super::plan::{ParallelPlan, no_rule};
use super::share::Share;
use super::stages::{Ends, Layers, expert_of, experts, stages};
use super::zeros::zeros;
use crate::checkpoint::{Checkpoint, TensorRef};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Entry, Input, Join, Operation, Part};
use crate::slice::Slice;

/// What each rank has of a checkpoint; made by [`ParallelPlan::ranks`].
#[derive(Clone, Debug)]
pub struct Ranks {
    checkpoint: Checkpoint,
    tensor: usize,
    /// The layers of each stage.
    stages: Vec<Range<usize>>,
    prefix: Option<String>,
    /// Of each tensor, in the order of the checkpoint.
    placed: Vec<Placed>,
}

#[derive(Clone, Debug)]
struct Placed {
    share: Share,
    /// The bytes that the whole is made of.
    stored: u64,
    stages: InStages,
    /// Of each rank of a stage.
    held: Vec<Option<Held>>,
}

/// The stages that have a tensor.
#[derive(Clone, Copy, Debug)]
enum InStages {
    One(usize),
    Ends(Ends),
}

/// A tensor of a checkpoint, and what ranks have of it.
#[derive(Clone, Copy, Debug)]
pub struct RankedTensor<'r> {
    ranks: &'r Ranks,
    tensor: TensorRef<'r>,
    placed: &'r Placed,
}

impl Ranks {
    pub(super) fn new(plan: &ParallelPlan, checkpoint: &Checkpoint) -> Result<Self> {
        plan.bounded()?;
        let config = Config::of(checkpoint)?;
        let world = plan.world(Some(&config));
        let sizes = checkpoint.tensors().map(|tensor| (tensor.name(), tensor.byte_len()));
        let layers = Layers::of(plan.layer_prefix(), sizes)?;
        let count = layers.as_ref().map_or(0, |layers| layers.count);
        let in_stages = match plan.pipeline_stages() {
            // With one stage nobody asks for layers.
            #[expect(clippy::single_range_in_vec_init, reason = "one stage that has all layers")]
            1 => vec![0..count],
            // A number that is larger is none of a layer.
            _ if count > checkpoint.len() => {
                let prefix = layers.as_ref().map_or("", |layers| &layers.prefix);
                let message = format!(
                    "{prefix:?} has a layer {}, but there are {} tensors",
                    count - 1,
                    checkpoint.len()
                );
                return Err(Error::new(ErrorKind::Value, message));
            }
            several => stages(plan.stage_counts(), count, several)?,
        };
        let experts = experts(checkpoint.tensors().map(|tensor| tensor.name()));
        let is_tied = !config.is_untied() && !checkpoint.tensors().any(|tensor| is_head(tensor.name()));
        let mut placed = Vec::with_capacity(checkpoint.len());
        let mut missing: Option<(&str, usize)> = None;
        for tensor in checkpoint.tensors() {
            let name = tensor.name();
            let rule = plan.rule_of(name);
            let whole = plan.replicates_others() || plan.tensor_ranks() == 1;
            let Some(share) = rule.map(|rule| rule.share).or(whole.then_some(Share::Replicated)) else {
                missing.get_or_insert((name, 0)).1 += 1;
                continue;
            };
            let of_layer = layers.as_ref().and_then(|layers| layers.of_tensor(name));
            let stage = of_layer.and_then(|layer| in_stages.iter().position(|stage| stage.contains(&layer)));
            let in_stages = match (stage, rule.and_then(|rule| rule.ends)) {
                _ if in_stages.len() == 1 => InStages::One(0),
                (Some(stage), None) => InStages::One(stage),
                (_, Some(ends)) => InStages::Ends(ends),
                (None, None) => {
                    let mut ends = Ends::of(name).ok_or_else(|| no_stage(name))?;
                    ends.last |= is_tied && is_embedding(name);
                    InStages::Ends(ends)
                }
            };
            let siblings = expert_of(name).and_then(|(before, _)| experts.get(before)).copied().unwrap_or(0);
            let held = (0..world.size).map(|rank| world.held(share, name, tensor.shape(), siblings, rank));
            let held: Vec<_> = held.collect::<Result<_>>().map_err(|error| error.in_tensor(name))?;
            if held.iter().all(Option::is_none) {
                let error = Error::new(ErrorKind::Value, "its number is none that an expert can have");
                return Err(error.in_tensor(name));
            }
            let stored = Entry::of(&tensor, None).map_or(tensor.byte_len(), |entry| entry.stored_byte_len());
            placed.push(Placed { share, stored, stages: in_stages, held });
        }
        match missing {
            Some((name, count)) => Err(no_rule(name, count - 1)),
            None => Ok(Self {
                checkpoint: checkpoint.clone(),
                tensor: world.size,
                stages: in_stages,
                prefix: layers.map(|layers| layers.prefix),
                placed,
            }),
        }
    }

    /// How many ranks there are.
    #[expect(clippy::len_without_is_empty, reason = "there is one at least")]
    pub fn len(&self) -> usize {
        self.tensor * self.stages.len()
    }

    /// Fails where there is no such rank.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Value`], and says how many there are.
    pub fn require(&self, rank: usize) -> Result<()> {
        if rank < self.len() {
            return Ok(());
        }
        let message = format!("there is no rank {rank}: there are {}, counted from 0", self.len());
        Err(Error::new(ErrorKind::Value, message))
    }

    /// How many ranks share each layer.
    pub fn tensor_parallel(&self) -> usize {
        self.tensor
    }

    /// How many stages share the layers.
    pub fn pipeline_parallel(&self) -> usize {
        self.stages.len()
    }

    /// The pipeline stage of a rank, counted from 0.
    pub fn stage(&self, rank: usize) -> usize {
        rank / self.tensor
    }

    /// The layers that a rank has, or parts of.
    pub fn layers(&self, rank: usize) -> Range<usize> {
        self.stages.get(self.stage(rank)).cloned().unwrap_or_default()
    }

    /// What stands before the numbers of layers, such as `model.layers`; `None` if there are none.
    pub fn layer_prefix(&self) -> Option<&str> {
        self.prefix.as_deref()
    }

    /// The checkpoint that ranks have parts of.
    pub fn whole(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Its tensors, and what each rank has of them.
    pub fn tensors(&self) -> impl Iterator<Item = RankedTensor<'_>> {
        let tensors = self.checkpoint.tensors().zip(&self.placed);
        tensors.map(|(tensor, placed)| RankedTensor { ranks: self, tensor, placed })
    }

    /// The bytes that a load of a rank reads: those of its parts as they are stored. Headers, which every rank reads
    /// whole, are not among them, nor are zeros that are added. What is computed (a weight that is dequantised) counts
    /// with the share of its stored bytes that the part is.
    pub fn byte_len(&self, rank: usize) -> u64 {
        self.tensors().map(|tensor| tensor.byte_len(rank)).fold(0, u64::saturating_add)
    }

    /// The bytes that the tensors of a rank have, in the dtypes of the checkpoint.
    pub fn held_byte_len(&self, rank: usize) -> u64 {
        let bytes = |tensor: RankedTensor<'_>| {
            let shape = tensor.shape(rank);
            shape.map_or(0, |shape| tensor.tensor.dtype().size_of(&shape).unwrap_or(u64::MAX))
        };
        self.tensors().map(bytes).fold(0, u64::saturating_add)
    }

    /// The bytes of the headers, which every rank reads.
    pub fn header_len(&self) -> u64 {
        let stored = self.checkpoint.shards().iter().filter(|shard| !shard.is_derived());
        stored.map(|shard| shard.header().data_start()).fold(0, u64::saturating_add)
    }

    /// The checkpoint of a rank: its parts, under the names of the tensors.
    ///
    /// Whatever reads it reads the bytes of the parts and no others, straight to where they belong. Loaders, sessions and
    /// [`Save`](crate::write::Save) take it as any checkpoint; what they read ahead is of this rank. A tensor of which the rank has
    /// nothing is not in it.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Value`] when there is no such rank, and with [`ErrorKind::SubByte`] where a part of packed
    /// values does not start and end on a byte.
    pub fn checkpoint(&self, rank: usize) -> Result<Checkpoint> {
        self.require(rank)?;
        let (mut entries, mut hidden) = (Vec::new(), Vec::new());
        for ranked in self.tensors() {
            match ranked.held(rank) {
                Some(Held::Whole) => {}
                Some(Held::Part { dim, ranges, padding }) => {
                    let entry = part(&ranked.tensor, *dim, ranges, *padding);
                    entries.push(entry.map_err(|error| error.in_tensor(ranked.name()))?);
                }
                None => hidden.push(ranked.tensor),
            }
        }
        self.checkpoint.with_entries_without(entries, &hidden)
    }
}

impl<'r> RankedTensor<'r> {
    /// The tensor's name.
    pub fn name(&self) -> &'r str {
        self.tensor.name()
    }

    /// The tensor, whole.
    pub fn whole(&self) -> TensorRef<'r> {
        self.tensor
    }

    /// The rule that it is cut by.
    pub fn share(&self) -> Share {
        self.placed.share
    }

    /// What a rank has of it; `None` if that is nothing.
    pub fn held(&self, rank: usize) -> Option<&'r Held> {
        let stage = self.ranks.stage(rank);
        let is_there = match self.placed.stages {
            InStages::One(own) => own == stage,
            InStages::Ends(ends) => {
                ends.first && stage == 0 || ends.last && stage + 1 == self.ranks.stages.len()
            }
        };
        self.placed.held.get(rank % self.ranks.tensor)?.as_ref().filter(|_| is_there)
    }

    /// The shape that a rank has of it.
    pub fn shape(&self, rank: usize) -> Option<Vec<usize>> {
        Some(self.held(rank)?.shape(self.tensor.shape()))
    }

    /// The bytes that a rank reads of it; see [`Ranks::byte_len`].
    pub fn byte_len(&self, rank: usize) -> u64 {
        let stored = self.placed.stored;
        match self.held(rank) {
            None => 0,
            Some(Held::Whole) => stored,
            Some(Held::Part { dim, ranges, .. }) => {
                let rows: usize = ranges.iter().map(Range::len).sum();
                let all = self.tensor.shape().get(*dim).copied().unwrap_or(1).max(1);
                (u128::from(stored) * rows as u128 / all as u128) as u64
            }
        }
    }
}

/// The entry that makes a part.
fn part(tensor: &TensorRef<'_>, dim: usize, ranges: &[Range<usize>], padding: usize) -> Result<Entry> {
    let slice = |range: &Range<usize>| Slice::along(dim, range.clone());
    let input = Input::of(tensor);
    let ranges: Vec<_> = ranges.iter().filter(|range| !range.is_empty() || padding == 0).collect();
    let is_packed = tensor.dtype().bits() % 8 != 0;
    let (inputs, operation): (_, Arc<dyn Operation>) = match (&*ranges, padding) {
        // Rows lie together, and need no pieces.
        ([range], 0) if dim == 0 || is_packed => (vec![input], Arc::new(Part::of(slice(range)))),
        _ => {
            let mut inputs = vec![input; ranges.len()];
            let mut parts: Vec<_> = ranges.into_iter().map(slice).collect();
            if padding > 0 {
                let mut shape = tensor.shape().to_vec();
                if let Some(size) = shape.get_mut(dim) {
                    *size = padding;
                }
                inputs.push(zeros(tensor.dtype(), &shape)?);
                parts.push(Slice::new());
            }
            // Not a `Part`, which reads through small gaps.
            (inputs, Arc::new(Join::along(dim).parts(parts)))
        }
    };
    Entry::new(tensor.name(), inputs, operation)
}

/// Whether it is what makes words of the last layer.
fn is_head(name: &str) -> bool {
    ["lm_head.", "embed_out.", "output."]
        .iter()
        .any(|head| name.starts_with(head) || name.contains(&format!(".{head}")))
}

/// Whether it is what the first layer gets for words.
fn is_embedding(name: &str) -> bool {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    ["embed_tokens", "wte", "word_embeddings", "shared", "tok_embeddings"]
        .iter()
        .any(|own| module.ends_with(own))
}

fn no_stage(name: &str) -> Error {
    let message = "it belongs to no layer, and its name does not say whether it is in front of them or behind: \
                   add `first` or `last` to its rule, such as `GLOB: replicated, last`; where layers are is said by `@layers`";
    Error::new(ErrorKind::Pattern, message).in_tensor(name)
}
