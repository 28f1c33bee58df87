//! Tensors that are the bytes of the file where these are in memory, and copies where they are not.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::{Allocated, CarriedOut, Fill, Placement, Watch};
use crate::buffer::{Chunk, Filling, HostBuffer};
use crate::checkpoint::Shard;
use crate::dtype::Dtype;
use crate::engine::job::{Job, Tile};
use crate::engine::tile::TileMaker;
use crate::error::{Error, Result};
use crate::plan::Entry;

/// Lends what can be lent and fills the rest.
pub(in crate::engine) struct Lend;

/// A tensor's bytes: the checkpoint's own, or a copy.
#[derive(Clone, Debug)]
pub enum HostBytes {
    /// Bytes of the checkpoint, which stays in memory with them.
    Lent(Lent),
    /// Bytes of its own.
    Owned(HostBuffer),
}

impl HostBytes {
    /// The bytes, in the machine's byte order.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Lent(lent) => lent.as_bytes(),
            Self::Owned(buffer) => buffer.as_bytes(),
        }
    }
}

impl AsRef<[u8]> for HostBytes {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

/// A tensor's bytes where they are: in memory that the checkpoint was [opened from](crate::Checkpoint::from_bytes), or in a
/// [mapped](crate::OpenOptions::map) file. They stay there as long as this lives; no copy was made.
///
/// Nothing says that the bytes are aligned to the tensor's elements: [`is_aligned`](Self::is_aligned) does.
#[derive(Clone)]
pub struct Lent {
    shard: Arc<Shard>,
    range: Range<usize>,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Lent {
    /// The bytes, which are little-endian.
    pub fn as_bytes(&self) -> &[u8] {
        self.shard.source().as_bytes().and_then(|bytes| bytes.get(self.range.clone())).unwrap_or_default()
    }

    /// The type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The size of each dimension, in elements.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Whether the bytes begin at a multiple of the elements' size.
    pub fn is_aligned(&self) -> bool {
        let size = (self.dtype.bits() as usize / 8).clamp(1, 8);
        self.as_bytes().as_ptr().addr() % size == 0
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent")
            .field("dtype", &self.dtype)
            .field("shape", &self.shape)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

impl Lent {
    /// Brings in the bytes of a mapped file.
    fn populate(&self, name: &str) -> Result<()> {
        let bytes = self.range.start as u64..self.range.end as u64;
        self.shard.source().populate(bytes).map_err(|error| {
            self.shard.blame(Error::io("its bytes cannot be brought in", error).in_tensor(name))
        })
    }
}

impl Entry {
    /// Its bytes, if the checkpoint has them in memory just as the entry wants them: in its dtype, contiguous, and in the
    /// machine's byte order. `None` says that they have to be made.
    ///
    /// # Errors
    ///
    /// Fails when the bytes of a mapped file cannot be brought in; see [`Populate`](crate::Populate).
    pub fn lend(&self) -> Result<Option<Lent>> {
        let lent = self.lend_as_it_is();
        if let Some(lent) = &lent {
            lent.populate(self.name())?;
        }
        Ok(lent)
    }

    /// The same, whether or not the bytes of a mapped file are in memory.
    fn lend_as_it_is(&self) -> Option<Lent> {
        let is_native = cfg!(target_endian = "little") || self.dtype().bits() <= 8;
        let (shard, bytes) = self.stored_run().filter(|_| is_native)?;
        let range = usize::try_from(bytes.start).ok()?..usize::try_from(bytes.end).ok()?;
        shard.source().as_bytes()?.get(range.clone())?;
        Some(Lent { shard: Arc::clone(shard), range, dtype: self.dtype(), shape: self.shape().to_vec() })
    }
}

pub(in crate::engine) enum Memory {
    Lent(Lent),
    Filled(Filling),
}

impl Placement for Lend {
    type Tensor = HostBytes;
    type Memory = Memory;
    type Chunk = Chunk;
    type Lane = ();

    fn allocate(&self, entries: &[(&Entry, usize)]) -> Vec<Result<Allocated<Self>>> {
        let lent: Vec<_> = entries.iter().map(|(entry, _)| entry.lend_as_it_is()).collect();
        let to_fill = entries.iter().zip(&lent).filter(|(_, lent)| lent.is_none());
        let to_fill: Vec<_> = to_fill.map(|(&entry, _)| entry).collect();
        let mut filled = Fill.allocate(&to_fill).into_iter();
        let one = |lent| match lent {
            Some(lent) => Some(Ok(Allocated { memory: Memory::Lent(lent), chunks: Vec::new() })),
            None => filled.next().map(|filled| {
                let Allocated { memory, chunks } = filled?;
                Ok(Allocated { memory: Memory::Filled(memory), chunks })
            }),
        };
        lent.into_iter().filter_map(one).collect()
    }

    fn jobs(&self, tiles: Vec<Tile<Chunk>>) -> Vec<Job<Chunk>> {
        Fill.jobs(tiles)
    }

    fn lane(&self) {}

    fn carry_out(
        &self,
        job: Job<Chunk>,
        lane: &mut (),
        maker: &mut TileMaker,
        watch: &dyn Watch,
    ) -> CarriedOut<Chunk> {
        Fill.carry_out(job, lane, maker, watch)
    }

    fn finish(&self, entry: &Entry, memory: Memory) -> Result<HostBytes> {
        match memory {
            Memory::Lent(lent) => Ok(HostBytes::Lent(lent)),
            Memory::Filled(filling) => Fill.finish(entry, filling).map(HostBytes::Owned),
        }
    }

    /// What can be lent is there already; to bring it in before it is asked for would be to read the whole file.
    fn ahead(&self, entry: &Entry) -> Option<u64> {
        entry.lend_as_it_is().is_none().then(|| entry.byte_len())
    }

    fn hand_out(&self, entry: &Entry, tensor: &HostBytes) -> Result<()> {
        match tensor {
            HostBytes::Lent(lent) => lent.populate(entry.name()),
            HostBytes::Owned(_) => Ok(()),
        }
    }
}
