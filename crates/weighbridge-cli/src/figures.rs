//! Figures of tensors' values: extremes, mean, spread, what is not finite, and a histogram, in one reading.
//!
//! Pieces are cut and merged in the same way whatever the number of threads, and so are the figures the same.

use anyhow::Result;
use weighbridge::TensorRef;
use weighbridge_page::Count;
pub(crate) use weighbridge_page::{Figures, Number};

use crate::chunks;
use crate::dtype::can_read;
use crate::term::Bar;

/// The figures of each tensor, in the order given; `None` where its values [cannot be read](can_read).
pub(crate) fn of(tensors: &[TensorRef<'_>], bar: &Bar) -> Result<Vec<Option<Figures>>> {
    // Of tensors without values there are no pieces.
    let empty = |tensor: &TensorRef<'_>| {
        can_read(tensor.dtype()).then(|| Count::default().figures(tensor.dtype())).transpose()
    };
    let mut all: Vec<_> = tensors.iter().map(empty).collect::<weighbridge::Result<_>>()?;
    let readable: Vec<_> = (0..tensors.len()).filter(|&place| can_read(tensors[place].dtype())).collect();
    let read: Vec<_> = readable.iter().map(|&place| tensors[place]).collect();
    let mut current = Count::default();
    chunks::map_in_order(
        &read,
        bar,
        |chunk, bytes| Ok(Count::of(chunk.tensor.dtype(), bytes)?),
        |chunk, part| {
            current = std::mem::take(&mut current).merge(part);
            if chunk.range.end == chunk.tensor.byte_len() {
                let place = readable[chunk.place];
                all[place] = Some(std::mem::take(&mut current).figures(chunk.tensor.dtype())?);
            }
            Ok(())
        },
    )?;
    Ok(all)
}

#[cfg(test)]
mod tests;
