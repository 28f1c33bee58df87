//! Whether tensors have the same bytes, read piece by piece.

use anyhow::{Context, Result};
use weighbridge::TensorRef;

use crate::interrupt;
use crate::show::safe;

/// Bytes at a time.
const PIECE: u64 = 1 << 20;

/// Whether two tensors have one dtype, one shape and the same bytes.
pub(super) fn same(a: &TensorRef<'_>, b: &TensorRef<'_>) -> Result<bool> {
    if a.dtype() != b.dtype() || a.shape() != b.shape() {
        return Ok(false);
    }
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let mut start = 0;
    while start < a.byte_len() {
        interrupt::check()?;
        let end = a.byte_len().min(start + PIECE);
        read(a, start, end, &mut first)?;
        read(b, start, end, &mut second)?;
        if first != second {
            return Ok(false);
        }
        start = end;
    }
    Ok(true)
}

fn read(tensor: &TensorRef<'_>, start: u64, end: u64, memory: &mut Vec<u8>) -> Result<()> {
    memory.resize((end - start) as usize, 0);
    let offset = tensor.info().file_range().start + start;
    tensor.shard().source().read_at(offset, memory).with_context(|| {
        let (file, name) = (tensor.shard().name(), safe(tensor.name()));
        format!("{file}: tensor {name:?}: its data cannot be read")
    })
}
