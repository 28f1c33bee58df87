//! Where tensors are put: memory of the host ([`Fill`]), the file's own bytes ([`Lend`]), or a device that is reached
//! through staging buffers ([`Stage`]).

mod fill;
mod lend;
mod stage;

pub(super) use fill::Fill;
pub use lend::HostBytes;
pub(super) use lend::Lend;
pub(super) use stage::Stage;
pub use stage::{Device, Ring, Transfer};

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::job::{Group, Job, Part};
use super::tile::TileMaker;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Entry;

/// Takes care of the memory that a session's tensors are made in.
pub(super) trait Placement: Send + Sync + 'static {
    /// A finished tensor.
    type Tensor: Send + 'static;
    /// Memory for a tensor that nothing has begun to make.
    type Blank;
    /// A tensor while its parts are made.
    type Memory: Send;
    /// The right to make one part of it.
    type Chunk: Send;

    /// Whether what is read ahead is begun as soon as there are fewer jobs than threads, and not when there are none left.
    const EARLY: bool = false;

    /// Memory for a tensor. It is called under the session's lock, as [`finish`](Self::finish) is.
    fn allocate(&self, checkpoint: &Checkpoint, entry: &Entry) -> Result<Self::Blank>;

    /// Cuts it into chunks of about `size` bytes: each with the bytes of the tensor that it is for.
    fn cut(&self, entry: &Entry, blank: Self::Blank, size: usize) -> Cut<Self>;

    /// Puts parts of several tensors, all of them small or parts of one, together into jobs.
    fn jobs(&self, checkpoint: &Checkpoint, parts: Vec<Part<Self::Chunk>>) -> Vec<Job<Self::Chunk>>;

    /// Makes the parts of a job; what becomes of each is told to `watch`, then or when a copy that was started for
    /// it is [settled](Self::settle). It ends early when it is time to stop.
    fn carry_out(&self, job: Job<Self::Chunk>, maker: &mut TileMaker, watch: &dyn Watch);

    /// Waits for the oldest copy that is under way, if there is one, and tells what became of its parts.
    fn settle(&self, watch: &dyn Watch) -> bool {
        let _ = watch;
        false
    }

    /// The tensor, all of whose parts were made.
    fn finish(&self, entry: &Entry, memory: Self::Memory) -> Result<Self::Tensor>;

    /// Bytes of an entry that are held while nobody takes it; `None` if it is not to be made before it is asked for.
    fn ahead(&self, checkpoint: &Checkpoint, entry: &Entry) -> Option<u64> {
        let _ = checkpoint;
        Some(entry.byte_len())
    }

    /// Called with a tensor that is about to be handed out, without any lock.
    fn hand_out(&self, checkpoint: &Checkpoint, entry: &Entry, tensor: &Self::Tensor) -> Result<()> {
        let _ = (checkpoint, entry, tensor);
        Ok(())
    }

    /// The most bytes that a chunk can have.
    fn most(&self) -> usize {
        usize::MAX
    }
}

/// A tensor's memory and its chunks.
pub(super) type Cut<P> = (<P as Placement>::Memory, Vec<(std::ops::Range<u64>, <P as Placement>::Chunk)>);

/// What a session learns while a job is carried out.
pub(super) trait Watch {
    /// Bytes were read for several parts.
    fn read_together(&self, bytes: u64);

    /// A part is done, or has failed.
    fn done(&self, ticket: Ticket, outcome: Result<()>);

    /// A copy was started that will have to be settled.
    fn in_flight(&self);

    /// Whether it is time to stop.
    fn stopped(&self) -> bool;
}

/// Stands for a part once its chunk was used.
pub(super) struct Ticket {
    pub(super) place: usize,
    /// Its bytes.
    pub(super) bytes: u64,
    /// Bytes that were read for it.
    pub(super) read: u64,
}

impl Ticket {
    fn of<C>(part: &Part<C>) -> Self {
        Self { place: part.place, bytes: part.bytes(), read: 0 }
    }
}

/// Has `make` make the parts one after the other, until it is time to stop, with what several of them need read at once.
fn each_part<C>(
    groups: Vec<Group<C>>,
    maker: &mut TileMaker,
    watch: &dyn Watch,
    mut make: impl FnMut(Part<C>, &mut TileMaker),
) {
    for Group { parts, together } in groups {
        if let Some((shard, range)) = together {
            watch.read_together(maker.read_together(shard, range));
        }
        for part in parts {
            if watch.stopped() {
                return;
            }
            make(part, maker);
        }
        maker.forget();
    }
}

/// What `act` gives, a panic of it as an error.
pub(super) fn caught<T>(what: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(|text| &**text));
        let message = format!("a panic while {what}: {}", text.unwrap_or("no message"));
        Err(Error::new(ErrorKind::Internal, message))
    })
}
