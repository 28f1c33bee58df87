//! Tensors that are the bytes of the file where these are in memory, and copies where they are not.

use super::{Cut, Fill, Placement, Watch, caught};
use crate::buffer::{Allocation, Chunk, Filling, HostBuffer};
use crate::checkpoint::Checkpoint;
use crate::engine::job::{Job, Part};
use crate::engine::tile::TileMaker;
use crate::error::Result;
use crate::lent::Lent;
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

pub(in crate::engine) enum Memory<L, F> {
    Lent(L),
    Filled(F),
}

impl Placement for Lend {
    type Tensor = HostBytes;
    type Blank = Memory<Lent, Allocation>;
    type Memory = Memory<Lent, Filling>;
    type Chunk = Chunk;

    fn allocate(&self, checkpoint: &Checkpoint, entry: &Entry) -> Result<Self::Blank> {
        match checkpoint.lend_as_it_is(entry) {
            Some(lent) => Ok(Memory::Lent(lent)),
            None => Fill.allocate(checkpoint, entry).map(Memory::Filled),
        }
    }

    fn cut(&self, entry: &Entry, blank: Self::Blank, size: usize) -> Cut<Self> {
        match blank {
            Memory::Lent(lent) => (Memory::Lent(lent), Vec::new()),
            Memory::Filled(blank) => {
                let (filling, chunks) = Fill.cut(entry, blank, size);
                (Memory::Filled(filling), chunks)
            }
        }
    }

    fn jobs(&self, checkpoint: &Checkpoint, parts: Vec<Part<Chunk>>) -> Vec<Job<Chunk>> {
        Fill.jobs(checkpoint, parts)
    }

    fn carry_out(&self, job: Job<Chunk>, maker: &mut TileMaker, watch: &dyn Watch) {
        Fill.carry_out(job, maker, watch);
    }

    fn finish(&self, entry: &Entry, memory: Self::Memory) -> Result<HostBytes> {
        match memory {
            Memory::Lent(lent) => Ok(HostBytes::Lent(lent)),
            Memory::Filled(filling) => Fill.finish(entry, filling).map(HostBytes::Owned),
        }
    }

    /// What can be lent is there already; to bring it in before it is asked for would be to read the whole file.
    fn ahead(&self, checkpoint: &Checkpoint, entry: &Entry) -> Option<u64> {
        let lent = caught("it was planned", || Ok(checkpoint.lend_as_it_is(entry)));
        lent.is_ok_and(|lent| lent.is_none()).then(|| entry.byte_len())
    }

    fn hand_out(&self, checkpoint: &Checkpoint, entry: &Entry, tensor: &HostBytes) -> Result<()> {
        match tensor {
            HostBytes::Lent(lent) => checkpoint.bring_in(entry, lent),
            HostBytes::Owned(_) => Ok(()),
        }
    }
}
