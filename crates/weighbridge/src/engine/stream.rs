//! Writing what a plan makes, without holding it in memory.

use std::fmt;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::crew::{LARGE_STEP, WHOLE};
use super::options::PageCache;
use super::spans::Spans;
use super::tile::TileMaker;
use crate::cast::swap_bytes;
use crate::dtype::Dtype;
use crate::error::Error;
use crate::plan::{Entry, Plan};
use crate::write::{Ranges, Stored, TensorData};

/// A tensor of a plan as something to write: it is made tile by tile while it is written, by several threads
/// where it is computed, and bytes that stay as they are go from file to file.
#[derive(Clone, Debug)]
pub struct Streamed {
    entry: Arc<Entry>,
    makers: Makers,
}

/// Tile makers that nobody uses, for whoever writes next: what they have gathered may be needed again.
#[derive(Clone, Default)]
struct Makers(Arc<Mutex<Vec<TileMaker>>>);

impl Makers {
    fn with<T>(&self, work: impl FnOnce(&mut TileMaker) -> T) -> T {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = lock().pop();
        let mut maker = kept.unwrap_or_else(|| TileMaker::new(None, PageCache::Keep, Arc::default()));
        let done = work(&mut maker);
        lock().push(maker);
        done
    }
}

impl fmt::Debug for Makers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Makers")
    }
}

impl Plan {
    /// The tensors, by name, to be given to a [`Save`](crate::write::Save): reshapes a checkpoint in constant memory.
    ///
    /// ```no_run
    /// use weighbridge::{Checkpoint, Dtype, Plan, write::Save};
    ///
    /// # fn main() -> weighbridge::Result<()> {
    /// let ckpt = Checkpoint::open("model-f32.safetensors")?;
    /// let plan = Plan::of(&ckpt).dtype(|tensor| tensor.dtype().is_float().then_some(Dtype::BF16)).build()?;
    /// Save::new().directory("model-bf16", "model", plan.tensors())?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (String, Streamed)> {
        let makers = Makers::default();
        self.entries().iter().map(move |entry| {
            let streamed = Streamed { entry: Arc::clone(entry), makers: makers.clone() };
            (entry.name().to_owned(), streamed)
        })
    }
}

impl Streamed {
    /// What is made, and how.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Names the file in an error where all of the inputs are in one; otherwise it is for who writes to say which.
    fn blame(&self, error: Error) -> Error {
        let Some((first, others)) = self.entry.inputs().split_first() else { return error };
        let is_of_one = others.iter().all(|other| other.shard().number() == first.shard().number());
        if is_of_one { first.shard().blame(error) } else { error }
    }

    /// The bytes that are made at a time: whole steps of the operation where these are not too large.
    fn tile(&self) -> u64 {
        const TILE: u64 = (1 << 20) / WHOLE * WHOLE;
        /// What is far away is asked for a piece of a file at a time.
        const FAR_TILE: u64 = (4_u64 << 20).next_multiple_of(WHOLE);
        const MOST: u64 = 16 << 20;
        let is_far = Spans::hints(&self.entry).is_some();
        match self.entry.tiles().step() {
            ..=LARGE_STEP if is_far => FAR_TILE,
            u64::MAX if is_far => FAR_TILE,
            step @ 1..=MOST => (TILE / step).max(1) * step,
            _ => TILE,
        }
    }
}

impl TensorData for Streamed {
    fn dtype(&self) -> Dtype {
        self.entry.dtype()
    }

    fn shape(&self) -> &[usize] {
        self.entry.shape()
    }

    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        self.write_range(0..self.entry.byte_len(), out)
    }

    /// What is computed is computed by several threads, and what is far away is asked for by several.
    fn ranges(&self) -> Option<&dyn Ranges> {
        // A range begins and ends between two elements.
        let has_bytes = self.entry.dtype().bits() % 8 == 0;
        let is_for_several = !self.entry.tiles().is_direct() || Spans::hints(&self.entry).is_some();
        (has_bytes && is_for_several).then_some(self)
    }

    fn stored(&self) -> Option<Stored<'_>> {
        if self.entry.byte_len() == 0 {
            return None;
        }
        let (shard, bytes) = self.entry.stored_run()?;
        Stored::of(shard, bytes)
    }
}

impl Ranges for Streamed {
    fn concurrency(&self) -> usize {
        Spans::hints(&self.entry).map_or(1, |hints| hints.concurrency)
    }

    fn write_range(&self, bytes: Range<u64>, out: &mut dyn Write) -> io::Result<()> {
        let (entry, tile) = (&*self.entry, self.tile());
        let is_in_large_steps = !entry.tiles().is_direct() && entry.tiles().step() > LARGE_STEP;
        self.makers.with(|maker| {
            let mut memory = vec![MaybeUninit::uninit(); (bytes.end - bytes.start).min(tile) as usize];
            let mut start = bytes.start;
            while start < bytes.end {
                // What is computed in large steps is cut between them, wherever this range begins.
                let begin = if is_in_large_steps { start / tile * tile } else { start };
                let end = bytes.end.min(begin.saturating_add(tile));
                let made = maker.make(entry, start..end, &mut memory[..(end - start) as usize]);
                let (bytes, _) = made.map_err(|error| io::Error::other(self.blame(error)))?;
                if cfg!(target_endian = "big") {
                    swap_bytes(entry.dtype(), bytes);
                }
                out.write_all(bytes)?;
                start = end;
            }
            Ok(())
        })
    }
}
