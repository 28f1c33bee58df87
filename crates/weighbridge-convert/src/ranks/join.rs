//! Carries rules out.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use weighbridge::source::{Source, Window};
use weighbridge::write::Save;
use weighbridge::{Checkpoint, Error, ErrorKind, Names, Result, TensorRef};

use super::cover::Effort;
use super::mosaic::{Chunk, assemble};
use super::rules::{Along, Rules};
use crate::assembled;
use crate::contents::Tensor;
use crate::input::unread;

/// Bytes that are compared at a time.
const STEP: usize = 1 << 20;

/// Joins the checkpoints of ranks, given in the order of their ranks, to one: of the tensors that are chosen, each by its
/// rule. Nothing is copied; what is replicated is compared here, byte by byte.
///
/// # Errors
///
/// Fails with [`ErrorKind::Pattern`] for a tensor without a rule, with [`ErrorKind::Dtype`] and [`ErrorKind::Shape`] where the
/// parts of a tensor do not fit together, with [`ErrorKind::MissingTensor`] where a rank lacks a tensor, and with
/// [`ErrorKind::Malformed`] where what is replicated is not the same in all ranks.
pub fn join(ranks: &[Checkpoint], rules: &Rules, names: &Names) -> Result<Checkpoint> {
    let mut order = Vec::new();
    let mut parts: HashMap<&str, Vec<(usize, TensorRef<'_>)>> = HashMap::new();
    for (number, rank) in ranks.iter().enumerate() {
        for tensor in rank.tensors().filter(|tensor| names.contains(tensor.name())) {
            let of_name = parts.entry(tensor.name()).or_default();
            if of_name.is_empty() {
                order.push(tensor.name());
            }
            of_name.push((number, tensor));
        }
    }
    let mut effort = Effort::default();
    let mut tensors = Vec::with_capacity(order.len());
    for name in order {
        let Some(parts) = parts.remove(name) else { continue };
        let along = rules.of(name).ok_or_else(|| {
            let message =
                "no rule is about it: add one with the dimension along which it was cut, or `replicated`";
            Error::new(ErrorKind::Pattern, message).in_tensor(name)
        })?;
        let tensor = in_all(&parts, ranks.len()).and_then(|()| match along {
            Along::Dim(dim) => concatenated(&parts, dim, &mut effort),
            Along::Replicated => replicated(&parts),
        });
        tensors.push(tensor.map_err(|error| error.in_tensor(name))?);
    }
    let directory = ranks.first().and_then(Checkpoint::directory);
    let label = ranks.first().and_then(|rank| rank.shards().first()?.label());
    assembled::checkpoint(label.unwrap_or(Path::new("ranks")), directory, &save_of(ranks), tensors)
}

/// The metadata of the first rank.
fn save_of(ranks: &[Checkpoint]) -> Save {
    let shards = ranks.first().map_or(&[][..], Checkpoint::shards);
    let metadata = shards.iter().filter_map(|shard| shard.header().metadata()).flatten();
    metadata.fold(Save::new(), |save, (key, value)| save.metadata(key, value))
}

fn data_of(tensor: &TensorRef<'_>) -> Result<Arc<dyn Source>> {
    let window = Window::new(Arc::clone(tensor.shard().source()), tensor.info().file_range());
    let outside = || Error::new(ErrorKind::Internal, "it ends beyond its shard");
    Ok(Arc::new(window.ok_or_else(outside)?))
}

/// Fails where a rank does not have it.
fn in_all(parts: &[(usize, TensorRef<'_>)], ranks: usize) -> Result<()> {
    let mut numbers = parts.iter().map(|part| part.0);
    match (0..ranks).find(|&rank| numbers.next() != Some(rank)) {
        None => Ok(()),
        Some(rank) => {
            let message = format!("rank {rank} does not have it, others do");
            Err(Error::new(ErrorKind::MissingTensor, message))
        }
    }
}

/// Fails where two parts cannot be of one tensor; `dim` is that along which they may differ.
fn fit(parts: &[(usize, TensorRef<'_>)], dim: Option<usize>) -> Result<()> {
    let Some((first_rank, first)) = parts.first() else { return Ok(()) };
    for (rank, part) in parts {
        let shapes =
            || format!("rank {first_rank} has shape {:?}, rank {rank} {:?}", first.shape(), part.shape());
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
                None => "it cannot be replicated".to_owned(),
            };
            return Err(Error::new(ErrorKind::Shape, format!("{}: {what}", shapes())));
        }
    }
    Ok(())
}

fn concatenated(parts: &[(usize, TensorRef<'_>)], dim: usize, effort: &mut Effort) -> Result<Tensor> {
    fit(parts, Some(dim))?;
    let Some((_, first)) = parts.first() else {
        return Err(Error::new(ErrorKind::Internal, "no rank has it"));
    };
    let mut shape = first.shape().to_vec();
    if dim >= shape.len() {
        let message = format!("it has shape {shape:?}, and no dimension {dim} to join along");
        return Err(Error::new(ErrorKind::Shape, message));
    }
    let bits = first.dtype().bits();
    if bits % 8 != 0 {
        return Err(Error::new(ErrorKind::Dtype, format!("tensors of {} cannot be joined", first.dtype())));
    }
    shape[dim] = 0;
    let mut chunks = Vec::with_capacity(parts.len());
    for (_, part) in parts {
        let mut offsets = vec![0; shape.len()];
        offsets[dim] = shape[dim];
        let longer = shape[dim].checked_add(part.shape()[dim]);
        let too_long = || Error::new(ErrorKind::Overflow, "the joined dimension does not fit this machine");
        shape[dim] = longer.ok_or_else(too_long)?;
        chunks.push(Chunk { offsets, sizes: part.shape().to_vec(), data: data_of(part)? });
    }
    let data = assemble(bits as usize / 8, &shape, chunks, effort)?;
    Ok(Tensor { name: first.name().to_owned(), dtype: first.dtype(), shape, data })
}

fn replicated(parts: &[(usize, TensorRef<'_>)]) -> Result<Tensor> {
    let Some(((first_rank, first), others)) = parts.split_first() else {
        return Err(Error::new(ErrorKind::Internal, "no rank has it"));
    };
    fit(parts, None)?;
    let data = data_of(first)?;
    for (rank, other) in others {
        if let Some(at) = difference(&*data, &*data_of(other)?)? {
            let message = format!(
                "its rule says that it is replicated, but rank {rank} has other values than rank {first_rank}, \
                 from byte {at} on: was it cut along a dimension?"
            );
            return Err(Error::new(ErrorKind::Malformed, message));
        }
    }
    Ok(Tensor { name: first.name().to_owned(), dtype: first.dtype(), shape: first.shape().to_vec(), data })
}

/// The first byte in which two sources of one size differ.
fn difference(one: &dyn Source, other: &dyn Source) -> Result<Option<u64>> {
    let mut memory = [vec![0; STEP], vec![0; STEP]];
    let mut at = 0;
    while at < one.size() {
        let len = (one.size() - at).min(STEP as u64) as usize;
        let [left, right] = &mut memory;
        one.read_at(at, &mut left[..len]).map_err(unread)?;
        other.read_at(at, &mut right[..len]).map_err(unread)?;
        if left[..len] != right[..len] {
            let differ = left.iter().zip(&*right).position(|(a, b)| a != b);
            return Ok(Some(at + differ.unwrap_or_default() as u64));
        }
        at += len as u64;
    }
    Ok(None)
}
