//! Tensors that may have got another name: of one dtype and shape, with the same bytes where a look was
//! taken.

use std::collections::HashMap;

use anyhow::{Context, Result};
use serde::Serialize;
use weighbridge::TensorRef;

use crate::interrupt;

/// A tensor of the one, and one of the other.
#[derive(Serialize)]
pub(super) struct Renamed<'a> {
    pub(super) from: &'a str,
    pub(super) to: &'a str,
}

/// Pairs that are alike and like no others: hints, and no proof.
pub(super) fn find<'a>(removed: &[TensorRef<'a>], added: &[TensorRef<'a>]) -> Result<Vec<Renamed<'a>>> {
    if removed.is_empty() || added.is_empty() {
        return Ok(Vec::new());
    }
    let mut alike = HashMap::<_, [Vec<&'a str>; 2]>::new();
    for (side, tensors) in [removed, added].into_iter().enumerate() {
        for tensor in tensors {
            let key = (tensor.dtype(), tensor.shape(), sample(tensor)?);
            alike.entry(key).or_default()[side].push(tensor.name());
        }
    }
    let mut found: Vec<_> = alike
        .into_values()
        .filter_map(|[from, to]| match (&*from, &*to) {
            ([from], [to]) => Some(Renamed { from, to }),
            _ => None,
        })
        .collect();
    found.sort_by(|a, b| weighbridge::natural_order(a.from, b.from));
    Ok(found)
}

/// The digest of some bytes at the start, in the middle and at the end.
fn sample(tensor: &TensorRef<'_>) -> Result<[u8; 32]> {
    const LEN: u64 = 4096;
    interrupt::check()?;
    let range = tensor.info().file_range();
    let mut hasher = blake3::Hasher::new();
    let mut memory = vec![0; LEN.min(tensor.byte_len()) as usize];
    let room = tensor.byte_len() - memory.len() as u64;
    for start in [0, room / 2, room] {
        let read = tensor.shard().source().read_at(range.start + start, &mut memory);
        read.with_context(|| format!("{}: its data cannot be read", tensor.shard().name()))?;
        hasher.update(&memory);
    }
    Ok(hasher.finalize().into())
}
