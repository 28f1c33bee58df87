//! Writing what a plan makes, without holding it in memory.

use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::sync::Arc;

use super::options::PageCache;
use super::tile::TileMaker;
use crate::cast::swap_bytes;
use crate::dtype::Dtype;
use crate::plan::{Entry, Plan};
use crate::write::{Stored, TensorData};

/// A tensor of a plan as something to write: it is made tile by tile while it is written, and bytes that stay as they
/// are go from file to file.
#[derive(Clone, Debug)]
pub struct Streamed {
    entry: Arc<Entry>,
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
        self.entries().iter().map(|entry| (entry.name().to_owned(), Streamed { entry: Arc::clone(entry) }))
    }
}

impl Streamed {
    /// What is made, and how.
    pub fn entry(&self) -> &Entry {
        &self.entry
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
        /// A multiple of every element's size, those of 6 bits included.
        const TILE: u64 = (1 << 20) / 48 * 48;
        let entry = &*self.entry;
        let mut maker = TileMaker::new(None, PageCache::Keep);
        let mut memory = vec![MaybeUninit::uninit(); entry.byte_len().min(TILE) as usize];
        let mut start = 0;
        while start < entry.byte_len() {
            let end = entry.byte_len().min(start + TILE);
            let made = maker.make(entry, start..end, &mut memory[..(end - start) as usize]);
            let (bytes, _) = made.map_err(io::Error::other)?;
            if cfg!(target_endian = "big") {
                swap_bytes(entry.dtype(), bytes);
            }
            out.write_all(bytes)?;
            start = end;
        }
        Ok(())
    }

    fn stored(&self) -> Option<Stored<'_>> {
        if self.entry.byte_len() == 0 {
            return None;
        }
        let (shard, bytes) = self.entry.stored_run()?;
        Stored::of(shard, bytes)
    }
}
