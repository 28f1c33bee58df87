//! Ranks become one checkpoint again.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::cut::Held;
use super::plan::{MOST_RANKS, ParallelPlan};
use super::ranks::Ranks;
use super::share::Share;
use super::stages::expert_of;
use crate::checkpoint::{Checkpoint, TensorRef};
use crate::error::{Error, ErrorKind, Result};
use crate::pattern::Names;
use crate::plan::{Entry, Input, Join, Part};
use crate::slice::Slice;
use crate::source::Source;
use crate::text::brief;

/// The key of a file's metadata under which `weighbridge shard` writes which rank it is of, and what it has of each tensor.
pub const RANK_KEY: &str = "weighbridge.rank";

/// The key under which files of ranks may say which model they are of, in any text: those of two models are not joined.
pub const MODEL_KEY: &str = "weighbridge.rank.model";

/// Whether a checkpoint says which rank it is of, as those do that `weighbridge shard` writes.
pub fn has_record(checkpoint: &Checkpoint) -> bool {
    checkpoint.shards().iter().any(|shard| shard.header().metadata_value(RANK_KEY).is_some())
}

/// Bytes that are compared at a time.
const STEP: usize = 1 << 20;

/// What the metadata of a checkpoint has under a key.
fn said<'c>(checkpoint: &'c Checkpoint, key: &str) -> Option<&'c str> {
    checkpoint.shards().first()?.header().metadata_value(key)
}

/// What a rank has of a tensor.
struct Piece<'c> {
    rank: usize,
    tensor: TensorRef<'c>,
    held: Held,
    /// Of the whole tensor.
    shape: Vec<usize>,
}

impl Ranks {
    /// What the files of a rank are to have in their metadata under [`RANK_KEY`], so that [`join`] knows what they have.
    pub fn record(&self, rank: usize) -> String {
        let parts = self.tensors().filter_map(|tensor| match tensor.held(rank)? {
            Held::Whole => None,
            Held::Part { dim, ranges, .. } => {
                let ranges: Vec<_> = ranges.iter().map(|range| [range.start, range.end]).collect();
                let part = json!({ "shape": tensor.whole().shape(), "dim": dim, "ranges": ranges });
                Some((tensor.name().to_owned(), part))
            }
        });
        let parts: Map<String, Value> = parts.collect();
        json!({ "rank": rank, "ranks": self.len(), "tensor_parallel": self.tensor_parallel(), "parts": parts }).to_string()
    }
}

/// Joins the checkpoints of ranks, in any order, whose files say in their [metadata](RANK_KEY) what they have, as those that
/// `weighbridge shard` writes do: the tensors that are chosen. Nothing is copied.
///
/// # Errors
///
/// Fails with [`ErrorKind::Malformed`] where a checkpoint does not say so, where two are of [other models](MODEL_KEY) or
/// have other values for the same place, and with [`ErrorKind::MissingTensor`] where a rank or a part is missing.
pub fn join(ranks: &[Checkpoint], names: &Names) -> Result<Checkpoint> {
    let mut pieces = Pieces::default();
    let mut missing: Option<BTreeSet<usize>> = None;
    let (mut cut, mut model) = (None, None);
    for checkpoint in ranks {
        let record = Record::of(checkpoint)?;
        let (count, tensor) = *cut.get_or_insert((record.ranks, record.tensor));
        if (count, tensor) != (record.ranks, record.tensor) {
            let message = format!(
                "it is of a model cut for {} ranks, {} of them for a layer; another one for {count}, {tensor} for a layer",
                record.ranks, record.tensor
            );
            return Err(blame(checkpoint, Error::new(ErrorKind::Malformed, message)));
        }
        let own = said(checkpoint, MODEL_KEY);
        if *model.get_or_insert(own) != own {
            let message = "it is of another model than other ranks: a `shard` that was to replace them did not get to its end; \
                           run it again";
            return Err(blame(checkpoint, Error::new(ErrorKind::Malformed, message)));
        }
        if !missing.get_or_insert_with(|| (0..count).collect()).remove(&record.rank) {
            let message = format!("two checkpoints are of rank {}", record.rank);
            return Err(Error::new(ErrorKind::Malformed, message));
        }
        for tensor in checkpoint.tensors().filter(|tensor| names.contains(tensor.name())) {
            let (held, shape) = match record.parts.get(tensor.name()) {
                None => (Held::Whole, tensor.shape().to_vec()),
                Some(part) => part_of(part, &tensor)
                    .map_err(|error| tensor.shard().blame(error.in_tensor(tensor.name())))?,
            };
            pieces.add(Piece { rank: record.rank, tensor, held, shape });
        }
    }
    if let (Some(rank), Some((count, _))) = (missing.unwrap_or_default().first(), cut) {
        let message = format!("the checkpoint of rank {rank} of {count} is missing");
        return Err(Error::new(ErrorKind::MissingTensor, message));
    }
    pieces.joined(ranks)
}

/// Joins them by the rules of a plan.
pub(super) fn by_rules(plan: &ParallelPlan, ranks: &[Checkpoint], names: &Names) -> Result<Checkpoint> {
    for (place, checkpoint) in ranks.iter().enumerate() {
        if let Some(record) = Record::of(checkpoint).ok().filter(|record| record.rank != place) {
            let message = format!("it is of rank {}, but stands in the place of rank {place}", record.rank);
            return Err(blame(checkpoint, Error::new(ErrorKind::Value, message)));
        }
    }
    plan.bounded()?;
    let size = match plan.tensor_ranks() * plan.pipeline_stages() {
        1 => ranks.len(),
        planned if planned == ranks.len() => plan.tensor_ranks(),
        planned => {
            let message =
                format!("the plan is for {planned} ranks, but there are {} checkpoints", ranks.len());
            return Err(Error::new(ErrorKind::Value, message));
        }
    };
    let world = super::cut::World { size, ..plan.world(None) };
    let mut order = Vec::new();
    let mut found: HashMap<&str, Vec<(usize, TensorRef<'_>)>> = HashMap::new();
    for (rank, checkpoint) in ranks.iter().enumerate() {
        for tensor in checkpoint.tensors().filter(|tensor| names.contains(tensor.name())) {
            let of_name = found.entry(tensor.name()).or_default();
            if of_name.is_empty() {
                order.push(tensor.name());
            }
            of_name.push((rank, tensor));
        }
    }
    let mut pieces = Pieces::default();
    for name in order {
        let of_name = found.remove(name).unwrap_or_default();
        let share = plan.share_of(name)?;
        let place = || {
            if share == Share::Experts && expert_of(name).is_some() {
                for (rank, tensor) in of_name {
                    let shape = tensor.shape().to_vec();
                    pieces.add(Piece { rank, tensor, held: Held::Whole, shape });
                }
                return Ok(());
            }
            for stage in of_name.chunk_by(|one, other| one.0 / size == other.0 / size) {
                let first = stage.first().map_or(0, |(rank, _)| rank / size * size);
                in_all(stage, first..first + size)?;
                fit(stage, share)?;
                let shapes: Vec<_> = stage.iter().map(|(_, tensor)| tensor.shape()).collect();
                let (shape, held) = world.joined(share, &shapes)?;
                for ((rank, tensor), held) in stage.iter().zip(held) {
                    pieces.add(Piece { rank: *rank, tensor: *tensor, held, shape: shape.clone() });
                }
            }
            Ok(())
        };
        place().map_err(|error: Error| error.in_tensor(name))?;
    }
    pieces.joined(ranks)
}

/// Fails where a rank of a stage does not have it.
fn in_all(parts: &[(usize, TensorRef<'_>)], ranks: Range<usize>) -> Result<()> {
    let mut numbers = parts.iter().map(|part| part.0);
    match ranks.clone().find(|&rank| numbers.next() != Some(rank)) {
        None => Ok(()),
        Some(rank) => {
            let message = format!("rank {rank} does not have it, others do");
            Err(Error::new(ErrorKind::MissingTensor, message))
        }
    }
}

/// Fails where two parts cannot be of one tensor.
fn fit(parts: &[(usize, TensorRef<'_>)], share: Share) -> Result<()> {
    let Some((first_rank, first)) = parts.first() else { return Ok(()) };
    let dim = match share {
        Share::Replicated => None,
        Share::Cut(cut) => cut.dim_of(first.shape())?,
        _ => Some(0),
    };
    for (rank, part) in parts {
        if part.dtype() != first.dtype() {
            let message =
                format!("rank {first_rank} has it in {}, rank {rank} in {}", first.dtype(), part.dtype());
            return Err(Error::new(ErrorKind::Dtype, message));
        }
        let mut sizes = part.shape().iter().zip(first.shape()).enumerate();
        if part.shape().len() != first.shape().len()
            || sizes.any(|(at, (own, other))| own != other && Some(at) != dim)
        {
            let what = match dim {
                Some(dim) => format!("they cannot be joined along dimension {dim}"),
                None => format!("its rule is `{share}`, which makes it the same in all ranks"),
            };
            let (own, other) = (brief(first.shape()), brief(part.shape()));
            let message = format!("rank {first_rank} has shape {own}, rank {rank} {other}: {what}");
            return Err(Error::new(ErrorKind::Shape, message));
        }
    }
    Ok(())
}

/// Names the file.
fn blame(checkpoint: &Checkpoint, error: Error) -> Error {
    checkpoint.shards().first().map_or(error.clone(), |shard| shard.blame(error))
}

/// What a rank's files say.
struct Record {
    rank: usize,
    ranks: usize,
    tensor: usize,
    parts: Map<String, Value>,
}

impl Record {
    fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let shard = checkpoint.shards().first();
        let blame = |message: &str| {
            let error = Error::new(ErrorKind::Malformed, message);
            shard.map_or(error.clone(), |shard| shard.blame(error))
        };
        let text = shard.and_then(|shard| shard.header().metadata_value(RANK_KEY));
        let text = text.ok_or_else(|| {
            blame("its metadata does not say of which rank it is; rules say how it is joined")
        })?;
        let value: Value = serde_json::from_str(text).unwrap_or_default();
        let number = |key: &str| usize::try_from(value.get(key)?.as_u64()?).ok();
        let read = || {
            let (rank, ranks, tensor) = (number("rank")?, number("ranks")?, number("tensor_parallel")?);
            let parts = value.get("parts")?.as_object()?.clone();
            (rank < ranks && ranks <= MOST_RANKS * MOST_RANKS).then_some(Self { rank, ranks, tensor, parts })
        };
        read().ok_or_else(|| blame("its metadata says nothing that can be understood of its rank"))
    }
}

/// What a record says of a tensor.
fn part_of(part: &Value, tensor: &TensorRef<'_>) -> Result<(Held, Vec<usize>)> {
    let number = |value: &Value| usize::try_from(value.as_u64()?).ok();
    let read = || {
        let shape = part.get("shape")?.as_array()?.iter().map(number).collect::<Option<Vec<_>>>()?;
        let dim = number(part.get("dim")?)?;
        let range = |value: &Value| {
            let [start, end] = &**value.as_array()? else { return None };
            Some(number(start)?..number(end)?).filter(|range| range.start <= range.end)
        };
        let ranges = part.get("ranges")?.as_array()?.iter().map(range).collect::<Option<Vec<_>>>()?;
        let size = *shape.get(dim)?;
        let rows = ranges.iter().try_fold(0_usize, |sum, range| sum.checked_add(range.len()))?;
        let padding = tensor.shape().get(dim)?.checked_sub(rows)?;
        let held = Held::Part { dim, ranges, padding };
        let fits = held.shape(&shape) == tensor.shape()
            && matches!(&held, Held::Part { ranges, .. } if ranges.iter().all(|range| range.end <= size));
        fits.then_some((held, shape))
    };
    read().ok_or_else(|| {
        Error::new(ErrorKind::Malformed, "the metadata says nothing that can be true of its part")
    })
}

/// All pieces, by the names of tensors, in the order in which these were found.
#[derive(Default)]
struct Pieces<'c> {
    order: Vec<&'c str>,
    by_name: HashMap<&'c str, Vec<Piece<'c>>>,
}

impl<'c> Pieces<'c> {
    fn add(&mut self, piece: Piece<'c>) {
        let name = piece.tensor.name();
        let of_name = self.by_name.entry(name).or_default();
        if of_name.is_empty() {
            self.order.push(name);
        }
        of_name.push(piece);
    }

    fn joined(self, ranks: &[Checkpoint]) -> Result<Checkpoint> {
        let Self { order, mut by_name } = self;
        let Some(first) = ranks.first() else {
            return Err(Error::new(ErrorKind::NotFound, "the list of ranks is empty"));
        };
        let entries = order.into_iter().map(|name| {
            let pieces = by_name.remove(name).unwrap_or_default();
            entry(name, &pieces).map_err(|error| error.in_tensor(name))
        });
        let entries: Vec<_> = entries.collect::<Result<_>>()?;
        let made: std::collections::HashSet<&str> = entries.iter().map(Entry::name).collect();
        let without: Vec<_> = first.tensors().filter(|tensor| !made.contains(tensor.name())).collect();
        first.with_entries_without(entries.clone(), &without)
    }
}

/// The tensor that pieces are of.
fn entry(name: &str, pieces: &[Piece<'_>]) -> Result<Entry> {
    let Some(first) = pieces.first() else {
        return Err(Error::new(ErrorKind::Internal, "it has no pieces"));
    };
    for piece in pieces {
        let is_whole = |piece: &Piece<'_>| piece.held == Held::Whole;
        if piece.shape != first.shape
            || piece.tensor.dtype() != first.tensor.dtype()
            || is_whole(piece) != is_whole(first)
        {
            let (own, other) = (brief(&first.shape), brief(&piece.shape));
            let message = format!(
                "rank {} has a part of {} {own}, rank {} of {} {other}",
                first.rank,
                first.tensor.dtype(),
                piece.rank,
                piece.tensor.dtype()
            );
            return Err(Error::new(ErrorKind::Shape, message));
        }
    }
    let Held::Part { dim, .. } = first.held else {
        for other in &pieces[1..] {
            same(name, (first, None), (other, None))?;
        }
        return Entry::new(name, vec![Input::of(&first.tensor)], Arc::new(crate::plan::Read));
    };
    // Where each range is in its piece.
    let mut ranges = Vec::new();
    for piece in pieces {
        let Held::Part { dim: own, ranges: of_piece, .. } = &piece.held else { continue };
        if *own != dim {
            let message =
                format!("rank {} has a part of dimension {own}, rank {} of {dim}", piece.rank, first.rank);
            return Err(Error::new(ErrorKind::Shape, message));
        }
        let mut at = 0;
        for range in of_piece.iter().filter(|range| !range.is_empty()) {
            ranges.push((range.clone(), piece, at..at + range.len()));
            at += range.len();
        }
    }
    ranges.sort_by_key(|(range, piece, _)| (range.start, range.end, piece.rank));
    let size = first.shape.get(dim).copied().unwrap_or(0);
    let (mut inputs, mut parts) = (Vec::new(), Vec::new());
    let mut last: Option<&(Range<usize>, &Piece<'_>, Range<usize>)> = None;
    let gap = |from: usize, to: usize| {
        let message = format!("no rank has places {from} to {to} of its dimension {dim}");
        Error::new(ErrorKind::MissingTensor, message)
    };
    for next in &ranges {
        let (range, piece, at) = next;
        match last {
            Some((before, other, place)) if before == range => {
                same(name, (other, Some((dim, place))), (piece, Some((dim, at))))?;
                continue;
            }
            Some((before, other, _)) if before.end > range.start => {
                let message = format!(
                    "ranks {} and {} have parts that overlap: {before:?} and {range:?}",
                    other.rank, piece.rank
                );
                return Err(Error::new(ErrorKind::Malformed, message));
            }
            _ => {
                let end = last.map_or(0, |last| last.0.end);
                if end != range.start {
                    return Err(gap(end, range.start));
                }
            }
        }
        inputs.push(Input::of(&piece.tensor));
        parts.push(Slice::along(dim, at.clone()));
        last = Some(next);
    }
    match last.map_or(0, |last| last.0.end) {
        end if end != size => Err(gap(end, size)),
        _ => Entry::new(name, inputs, Arc::new(Join::along(dim).parts(parts))),
    }
}

/// Fails where two ranks have other values for the same place.
fn same(
    name: &str,
    (first, of_first): (&Piece<'_>, Option<(usize, &Range<usize>)>),
    (other, of_other): (&Piece<'_>, Option<(usize, &Range<usize>)>),
) -> Result<()> {
    let bytes = |piece: &Piece<'_>, part: Option<(usize, &Range<usize>)>| {
        let slice = part.map_or_else(Slice::new, |(dim, range)| Slice::along(dim, range.clone()));
        let entry = Entry::new(name, vec![Input::of(&piece.tensor)], Arc::new(Part::of(slice)))?;
        let empty =
            Checkpoint::from_bytes(crate::write::Save::new().bytes::<&str, crate::TensorView<'_>>([])?)?;
        empty.with_entries([entry])
    };
    let (one, two) = (bytes(first, of_first)?, bytes(other, of_other)?);
    let (Some(one), Some(two)) = (one.tensor(name), two.tensor(name)) else { return Ok(()) };
    let difference = difference(
        (&**one.shard().source(), one.info().file_range()),
        (&**two.shard().source(), two.info().file_range()),
    )?;
    match difference {
        None => Ok(()),
        Some(at) => {
            let message = format!(
                "ranks {} and {} have other values for the same place, from byte {at} of {} on: it is not replicated; was it cut along a dimension?",
                first.rank,
                other.rank,
                if of_first.is_some() { "the part" } else { "the tensor" }
            );
            Err(Error::new(ErrorKind::Malformed, message))
        }
    }
}

/// The first byte in which two sources differ.
fn difference(one: (&dyn Source, Range<u64>), other: (&dyn Source, Range<u64>)) -> Result<Option<u64>> {
    let mut memory = [vec![0; STEP], vec![0; STEP]];
    let (size, mut at) = (one.1.end - one.1.start, 0);
    let unread = |error| Error::io("it cannot be read", error);
    while at < size {
        let len = (size - at).min(STEP as u64) as usize;
        let [left, right] = &mut memory;
        one.0.read_at(one.1.start + at, &mut left[..len]).map_err(unread)?;
        other.0.read_at(other.1.start + at, &mut right[..len]).map_err(unread)?;
        if left[..len] != right[..len] {
            let differ = left.iter().zip(&*right).position(|(a, b)| a != b);
            return Ok(Some(at + differ.unwrap_or_default() as u64));
        }
        at += len as u64;
    }
    Ok(None)
}
