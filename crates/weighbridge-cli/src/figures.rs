//! Figures of tensors' values: extremes, mean, spread, what is not finite, and a histogram, in one reading.
//!
//! Of dtypes of up to 16 bits it is counted how often each code occurs, and every figure follows exactly from
//! that. Wider values are summed up block by block, and for the histogram counted by their sign, their
//! exponent and the first seven bits of their mantissa, so that a value may be counted one bin nearer to zero
//! than it is.
//!
//! Pieces are cut and merged in the same way whatever the number of threads, and so are the figures the same.

mod results;
mod tally;
mod wide;

use anyhow::Result;
use weighbridge::{Dtype, TensorRef};

use crate::chunks;
use crate::dtype::can_read;
use crate::term::Bar;
pub(crate) use results::{Figures, Number};
use tally::Tally;
use wide::Wide;

/// The figures of each tensor, in the order given; `None` where its values [cannot be read](can_read).
pub(crate) fn of(tensors: &[TensorRef<'_>], bar: &Bar) -> Result<Vec<Option<Figures>>> {
    // Of tensors without values there are no pieces.
    let empty = |tensor: &TensorRef<'_>| can_read(tensor.dtype()).then(|| Wide::default().figures());
    let mut all: Vec<_> = tensors.iter().map(empty).collect();
    let readable: Vec<_> = (0..tensors.len()).filter(|&place| can_read(tensors[place].dtype())).collect();
    let read: Vec<_> = readable.iter().map(|&place| tensors[place]).collect();
    let mut current = Part::None;
    chunks::map_in_order(
        &read,
        bar,
        |chunk, bytes| Part::of(chunk.tensor.dtype(), bytes),
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

/// What is known of some of the values of a tensor.
#[derive(Debug, Default)]
enum Part {
    #[default]
    None,
    Codes(Tally),
    Wide(Wide),
}

impl Part {
    fn of(dtype: Dtype, bytes: &[u8]) -> Result<Self> {
        Ok(match dtype.bits() {
            4 => Self::Codes(tally::of_nibbles(bytes)),
            8 => Self::Codes(tally::of_bytes(bytes)),
            16 => Self::Codes(tally::of_pairs(bytes)),
            _ => Self::Wide(Wide::of(dtype, bytes)?),
        })
    }

    fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, other) => other,
            (Self::Codes(these), Self::Codes(those)) => Self::Codes(tally::merge(&these, &those)),
            (Self::Wide(these), Self::Wide(those)) => Self::Wide(these.merge(those)),
            (this, _) => this,
        }
    }

    fn figures(self, dtype: Dtype) -> Result<Figures> {
        match self {
            Self::None => Ok(Wide::default().figures()),
            Self::Codes(tally) => tally::figures(dtype, &tally),
            Self::Wide(wide) => Ok(wide.figures()),
        }
    }
}

#[cfg(test)]
mod tests;
