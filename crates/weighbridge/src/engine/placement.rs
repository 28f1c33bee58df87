//! Where tensors are put: memory of the host ([`Fill`]), the file's own bytes ([`Lend`]), or a device that is reached
//! through staging buffers ([`Stage`]).

mod fill;
mod lend;
mod stage;

use std::ops::Range;

pub(super) use fill::Fill;
pub(super) use lend::Lend;
pub use lend::{HostBytes, Lent};
pub(super) use stage::Stage;
pub use stage::{Device, Ring, Transfer};

use super::job::{Group, Job, Tile};
use super::tile::TileMaker;
use crate::error::{Error, Result};
use crate::plan::Entry;

/// Takes care of the memory that a session's tensors are made in. None of it is called under a lock.
pub(super) trait Placement: Send + Sync + 'static {
    /// A finished tensor.
    type Tensor: Send + 'static;
    /// A tensor while its tiles are made.
    type Memory: Send;
    /// The right to make one tile of it.
    type Chunk: Send;
    /// What a thread that makes tiles needs for itself.
    type Lane: Send;

    /// Whether what is read ahead is begun as soon as there are fewer jobs than threads, and not when there are none left.
    const EARLY: bool = false;

    /// Memory for entries, in their order, each each with the size of the chunks to cut it into.
    fn allocate(&self, entries: &[(&Entry, usize)]) -> Vec<Result<Allocated<Self>>>;

    /// Puts tiles of several tensors, all of them small, or tiles of one, together into jobs.
    fn jobs(&self, tiles: Vec<Tile<Self::Chunk>>) -> Vec<Job<Self::Chunk>>;

    /// The most lanes that there may be.
    fn readers(&self) -> usize {
        usize::MAX
    }

    /// A lane, which takes next to nothing before it is used.
    fn lane(&self) -> Self::Lane;

    /// Makes the tiles of a job; what becomes of each is told to `watch`, then or when a copy that was started for
    /// it is [settled](Self::settle). It ends early when it is time to stop.
    ///
    /// # Errors
    ///
    /// Gives the job back if nothing can be made with this lane, and perhaps with others.
    fn carry_out(
        &self,
        job: Job<Self::Chunk>,
        lane: &mut Self::Lane,
        maker: &mut TileMaker,
        watch: &dyn Watch,
    ) -> CarriedOut<Self::Chunk>;

    /// Whether copies of a lane are in flight: any, or for the entry of a slot. They must be settled before
    /// its thread sleeps.
    fn in_flight(&self, lane: &Self::Lane, slot: Option<usize>) -> bool {
        let _ = (lane, slot);
        false
    }

    /// Waits for the oldest copy of a lane that is in flight, and tells what became of its tiles.
    fn settle(&self, lane: &mut Self::Lane, watch: &dyn Watch) {
        let _ = (lane, watch);
    }

    /// The tensor, all of whose tiles were made.
    fn finish(&self, entry: &Entry, memory: Self::Memory) -> Result<Self::Tensor>;

    /// Bytes of an entry that are held while nobody takes it; `None` if it is not to be made before it is asked for.
    fn ahead(&self, entry: &Entry) -> Option<u64> {
        Some(entry.byte_len())
    }

    /// Called with a tensor that is about to be handed out.
    fn hand_out(&self, entry: &Entry, tensor: &Self::Tensor) -> Result<()> {
        let _ = (entry, tensor);
        Ok(())
    }

    /// The most bytes that a chunk can have.
    fn most(&self) -> usize {
        usize::MAX
    }
}

/// A tensor's memory and its chunks, each with the bytes of the tensor that it is for.
pub(super) struct Allocated<P: Placement + ?Sized> {
    pub(super) memory: P::Memory,
    pub(super) chunks: Vec<(Range<u64>, P::Chunk)>,
}

/// A job that was not begun, and why.
pub(super) struct Refused<C> {
    pub(super) job: Job<C>,
    pub(super) error: Error,
}

/// A job was carried out, or was not begun.
pub(super) type CarriedOut<C> = std::result::Result<(), Refused<C>>;

impl<C> Refused<C> {
    /// Tells that none of the tiles will be made.
    pub(super) fn fail(self, watch: &dyn Watch) {
        for tile in self.job.groups.into_iter().flat_map(|group| group.tiles) {
            let stats = TileStats::of(&tile);
            drop(tile);
            watch.done(stats, Err(self.error.clone()));
        }
    }
}

/// What a session learns while a job is carried out.
pub(super) trait Watch {
    /// Bytes were read for several tiles.
    fn read_together(&self, bytes: u64);

    /// A tile is done, or has failed.
    fn done(&self, tile: TileStats, outcome: Result<()>);

    /// Whether it is time to stop.
    fn stopped(&self) -> bool;
}

/// Stands for a tile once its chunk was used.
pub(super) struct TileStats {
    /// The slot of its entry.
    pub(super) slot: usize,
    /// Its bytes.
    pub(super) bytes: u64,
    /// Bytes that were read for it.
    pub(super) read: u64,
}

impl TileStats {
    fn of<C>(tile: &Tile<C>) -> Self {
        Self { slot: tile.slot, bytes: tile.bytes(), read: 0 }
    }
}

/// Has `make` make the tiles one after the other, until it is time to stop, with what several of them need read at once.
fn each_tile<C>(
    groups: Vec<Group<C>>,
    maker: &mut TileMaker,
    watch: &dyn Watch,
    mut make: impl FnMut(Tile<C>, &mut TileMaker),
) {
    for Group { tiles, together } in groups {
        if let Some(run) = together {
            watch.read_together(maker.read_together(&run));
        }
        for tile in tiles {
            if watch.stopped() {
                return;
            }
            make(tile, maker);
        }
        maker.forget();
    }
}
