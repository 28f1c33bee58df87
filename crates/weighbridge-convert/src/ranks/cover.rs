//! Whether chunks are a tensor: each element in exactly one of them.

use std::ops::Range;

use weighbridge::{Error, ErrorKind, Result};

/// How much may be compared for all tensors of a checkpoint. A grid takes about as many steps as there are dimensions and
/// chunks; ten million chunks are more than any run has.
pub(crate) struct Effort(u64);

impl Default for Effort {
    fn default() -> Self {
        Self(1 << 25)
    }
}

impl Effort {
    fn take(&mut self, steps: usize) -> Result<()> {
        match self.0.checked_sub(steps as u64) {
            Some(left) => {
                self.0 = left;
                Ok(())
            }
            None => {
                let message = "its chunks are so many, and so irregular, that they cannot be compared";
                Err(Error::new(ErrorKind::Unsafe, message))
            }
        }
    }
}

/// The elements of a chunk: a range of indices for each dimension, none of them empty.
pub(crate) type Extent = Vec<Range<u64>>;

/// Fails where an element is in no chunk, or in two. No chunk reaches beyond the shape.
pub(crate) fn check(shape: &[u64], chunks: &[Extent], effort: &mut Effort) -> Result<()> {
    let all: Vec<&Extent> = chunks.iter().collect();
    Sweep { shape, effort }.along(0, &all, &mut Vec::new())
}

struct Sweep<'s> {
    shape: &'s [u64],
    effort: &'s mut Effort,
}

impl Sweep<'_> {
    /// Cuts dimension `dim` where a chunk begins or ends, and looks at each piece by itself. `within` is the piece of
    /// the dimensions before, which all of the chunks hold.
    fn along(&mut self, dim: usize, chunks: &[&Extent], within: &mut Extent) -> Result<()> {
        self.effort.take(chunks.len().max(1))?;
        let Some(&len) = self.shape.get(dim) else {
            return match chunks {
                [_] => Ok(()),
                [] => Err(self.gap(within)),
                [one, other, ..] => {
                    let message = format!("its chunks {} and {} overlap", shown(one), shown(other));
                    Err(Error::new(ErrorKind::Malformed, message))
                }
            };
        };
        let mut by_start = chunks.to_vec();
        by_start.sort_by_key(|chunk| chunk[dim].start);
        let ends = chunks.iter().flat_map(|chunk| [chunk[dim].start, chunk[dim].end]);
        let mut cuts: Vec<u64> = ends.chain([0, len]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let (mut coming, mut here) = (by_start.into_iter().peekable(), Vec::new());
        for cut in cuts.windows(2) {
            here.retain(|chunk: &&Extent| chunk[dim].end > cut[0]);
            while let Some(chunk) = coming.next_if(|chunk| chunk[dim].start == cut[0]) {
                here.push(chunk);
            }
            within.push(cut[0]..cut[1]);
            if here.is_empty() {
                return Err(self.gap(within));
            }
            self.along(dim + 1, &here, within)?;
            within.pop();
        }
        Ok(())
    }

    fn gap(&self, within: &[Range<u64>]) -> Error {
        let rest = self.shape.iter().skip(within.len()).map(|&len| 0..len);
        let missing: Extent = within.iter().cloned().chain(rest).collect();
        let message = format!("no rank has its elements {}", shown(&missing));
        Error::new(ErrorKind::MissingTensor, message)
    }
}

/// `[0..4, 2..6]`.
fn shown(extent: &[Range<u64>]) -> String {
    format!("{extent:?}")
}
