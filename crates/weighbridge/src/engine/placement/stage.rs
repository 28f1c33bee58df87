//! Tensors on a device, through staging buffers.
//!
//! Each reader has a [`Lane`]: slabs of its own, and what the device needs to copy from them. It fills one
//! slab while the device copies from the other, which it then fills again; nothing of that is shared with
//! other readers. What a reader has sent it also lands: before it fills the next slab, when it needs one, and
//! before it sleeps or leaves, so that no copy is in flight without a thread that is about to wait for it.

mod device;
mod slabs;
mod target;

use std::mem;
use std::sync::Arc;

use device::ALIGN;
pub use device::{Device, Ring, Transfer};
use slabs::{Next, Slabs};
use target::{Target, Uncast};

use super::{Allocated, CarriedOut, Placement, Refused, TileStats, Watch, each_tile};
use crate::engine::job::{Group, Job, Tile, coalesce};
use crate::engine::tile::TileMaker;
use crate::error::{Error, ErrorKind, Result};
use crate::panics::caught;
use crate::plan::Entry;

/// Stages what a device is to have.
pub(in crate::engine) struct Stage<D: Device> {
    device: D,
    slab_bytes: usize,
    /// The slabs of a reader, and the number of readers that may have so many.
    slabs: usize,
    readers: usize,
}

/// What one reader has for itself. What it needs of the device is made when it first stages something.
pub(in crate::engine) struct Lane<D: Device> {
    device: Option<D::Lane>,
    slabs: Slabs<D::Slab, Flight<D>>,
}

/// A slab that is copied from.
struct Flight<D: Device> {
    slab: D::Slab,
    fence: D::Fence,
    tiles: Vec<(TileStats, Arc<D::Memory>)>,
}

/// A slab to fill, and the lane that it is of.
struct Filling<'l, D: Device> {
    slab: D::Slab,
    device: &'l mut D::Lane,
    slabs: &'l mut Slabs<D::Slab, Flight<D>>,
}

impl<D: Device> Stage<D> {
    /// For a session of so many threads.
    pub(in crate::engine) fn new(device: D, ring: Ring, threads: usize) -> Self {
        let slabs = ring.a_reader(threads);
        Self { device, slab_bytes: ring.slab_bytes, slabs, readers: ring.readers(slabs) }
    }

    /// A slab to fill.
    fn slab<'l>(&self, lane: &'l mut Lane<D>, watch: &dyn Watch) -> Result<Filling<'l, D>> {
        let Lane { device, slabs } = lane;
        if device.is_none() {
            *device = Some(caught("a lane to the device was made", || self.device.lane())?);
        }
        let missing = || Error::new(ErrorKind::Internal, "its lane to the device is missing");
        let device = device.as_mut().ok_or_else(missing)?;
        // What has arrived meanwhile need not wait until the next slab is full.
        while slabs.in_flight().next().is_some_and(|flight| self.is_done(device, flight)) {
            let Some(flight) = slabs.land() else { break };
            self.land(flight, device, slabs, watch);
        }
        loop {
            match slabs.next() {
                Next::Fill(slab) => return Ok(Filling { slab, device, slabs }),
                Next::Lost => {
                    let message = "no staging buffer is left: copies from all of them have failed";
                    return Err(Error::new(ErrorKind::Device, message));
                }
                Next::WaitFor(flight) => self.land(flight, device, slabs, watch),
                Next::Make => match self.make(device) {
                    Ok(slab) => return Ok(Filling { slab, device, slabs }),
                    Err(_) if slabs.not_made() => {}
                    Err(error) => return Err(error),
                },
            }
        }
    }

    fn is_done(&self, device: &D::Lane, flight: &Flight<D>) -> bool {
        let is_done = caught("a copy was looked for", || Ok(self.device.is_done(device, &flight.fence)));
        is_done.unwrap_or(false)
    }

    fn make(&self, device: &mut D::Lane) -> Result<D::Slab> {
        caught("a staging buffer was made", || {
            let mut slab = self.device.slab(device, self.slab_bytes)?;
            match slab.as_mut().len() >= self.slab_bytes {
                true => Ok(slab),
                false => Err(Error::new(ErrorKind::Device, "a staging buffer is too small")),
            }
        })
    }

    /// Waits for a copy and tells what became of it.
    fn land(
        &self,
        flight: Flight<D>,
        device: &mut D::Lane,
        slabs: &mut Slabs<D::Slab, Flight<D>>,
        watch: &dyn Watch,
    ) {
        let Flight { slab, fence, tiles } = flight;
        let outcome = caught("a copy to the device was waited for", || self.device.wait(device, fence));
        match outcome {
            Ok(()) => slabs.put(slab),
            Err(_) => leave(slab, slabs),
        }
        for (stats, memory) in tiles {
            match &outcome {
                Ok(()) => drop(memory),
                // It may still be written to.
                Err(_) => mem::forget(memory),
            }
            watch.done(stats, outcome.clone());
        }
    }

    /// Whether these tiles can be made in the device's memory.
    fn is_writable(&self, groups: &[Group<Target<D>>]) -> bool {
        let first = groups.iter().flat_map(|group| &group.tiles).next();
        let is_writable = |tile: &Tile<Target<D>>| {
            caught("it was looked for", || Ok(tile.chunk.is_writable(&self.device))).unwrap_or(false)
        };
        first.is_some_and(is_writable)
    }

    /// Makes the tiles of a job in the device's memory.
    fn fill_in_place(&self, groups: Vec<Group<Target<D>>>, maker: &mut TileMaker, watch: &dyn Watch) {
        each_tile(groups, maker, watch, |mut tile, maker| {
            let mut stats = TileStats::of(&tile);
            let outcome = caught("it was loaded", || {
                let lost = || Error::new(ErrorKind::Device, "its memory cannot be written to any more");
                let memory = tile.chunk.bytes_mut(&self.device).ok_or_else(lost)?;
                let (_, read) = maker.make(&tile.entry, tile.range.clone(), memory)?;
                stats.read = read;
                Ok(())
            });
            drop(tile);
            watch.done(stats, outcome);
        });
    }

    /// What crosses the bus in the place of an entry, if the device casts it.
    fn uncast(&self, entry: &Entry) -> Option<Uncast> {
        let (stored, to) = (entry.uncast()?, entry.dtype());
        let (small, large) = (u64::from(stored.dtype().bits()), u64::from(to.bits()));
        let is_whole = small % 8 == 0 && large % small == 0;
        let casts = || caught("it was planned", || Ok(self.device.casts(stored.dtype(), to)));
        (is_whole && casts().unwrap_or(false)).then(|| Uncast { entry: stored, to, times: large / small })
    }

    /// Makes the tiles of a job in a slab, one after the other, and sends them.
    fn fill_and_send(
        &self,
        filling: Filling<'_, D>,
        groups: Vec<Group<Target<D>>>,
        maker: &mut TileMaker,
        watch: &dyn Watch,
    ) {
        let Filling { mut slab, device, slabs } = filling;
        let needed: usize = groups.iter().flat_map(|group| &group.tiles).map(room).sum();
        let memory = &mut slab;
        let rest = caught("a staging buffer was filled", move || {
            let smaller = || Error::new(ErrorKind::Device, "a staging buffer has become smaller");
            memory.as_mut().get_mut(..needed).ok_or_else(smaller)
        });
        let mut rest = match rest {
            Ok(rest) => rest,
            Err(error) => {
                leave(slab, slabs);
                return Refused { job: Job::new(None, groups), error }.fail(watch);
            }
        };
        let mut made: Vec<(TileStats, Target<D>, &[u8])> = Vec::new();
        each_tile(groups, maker, watch, |tile, maker| {
            let mut stats = TileStats::of(&tile);
            let (bytes, behind) = mem::take(&mut rest).split_at_mut(room(&tile));
            rest = behind;
            let outcome = caught("it was loaded", || {
                let (entry, range) = tile.chunk.staged();
                let memory = &mut bytes[..(range.end - range.start) as usize];
                let (bytes, read) = maker.make(entry.unwrap_or(&tile.entry), range, memory)?;
                stats.read = read;
                Ok(bytes)
            });
            match outcome {
                Ok(bytes) => made.push((stats, tile.chunk, bytes)),
                Err(error) => {
                    drop(tile);
                    watch.done(stats, Err(error));
                }
            }
        });
        if made.is_empty() {
            return slabs.put(slab);
        }
        let transfers: Vec<_> = made
            .iter()
            .map(|(_, target, bytes)| Transfer {
                bytes,
                memory: target.memory(),
                offset: target.offset(),
                cast: target.cast(),
            })
            .collect();
        let copy = || {
            // SAFETY: the slab and the memory go into a `Flight` below, which nobody touches before `wait` has returned; if
            // that fails, or if nothing is known of the copy, both are forgotten.
            #[allow(unsafe_code)]
            unsafe {
                self.device.copy(device, &transfers)
            }
        };
        let sent = caught("a copy to the device was started", copy);
        drop(transfers);
        let tiles = made.into_iter().map(|(stats, target, _)| (stats, target.into_memory())).collect();
        match sent {
            Ok(fence) => slabs.send(Flight { slab, fence, tiles }),
            Err(error) => {
                // After a panic nobody knows what the device is doing.
                let is_lost = error.kind() == ErrorKind::Internal;
                match is_lost {
                    true => leave(slab, slabs),
                    false => slabs.put(slab),
                }
                for (stats, memory) in tiles {
                    match is_lost {
                        true => mem::forget(memory),
                        false => drop(memory),
                    }
                    watch.done(stats, Err(error.clone()));
                }
            }
        }
    }
}

/// Leaves a slab to the device for good, which may still be reading it.
fn leave<S, F>(slab: S, slabs: &mut Slabs<S, F>) {
    mem::forget(slab);
    slabs.lose();
}

/// The bytes that a tile takes of a slab. It has no more bytes than a slab.
fn room<D: Device>(tile: &Tile<Target<D>>) -> usize {
    let (_, staged) = tile.chunk.staged();
    ((staged.end - staged.start) as usize).next_multiple_of(ALIGN)
}

impl<D: Device> Placement for Stage<D> {
    type Tensor = D::Tensor;
    type Memory = Arc<D::Memory>;
    type Chunk = Target<D>;
    type Lane = Lane<D>;

    /// While the queue is not empty: memory of a device takes longer to allocate.
    const EARLY: bool = true;

    fn allocate(&self, entries: &[(&Entry, usize)]) -> Vec<Result<Allocated<Self>>> {
        let one = |&(entry, size): &(&Entry, usize)| {
            let memory = caught("memory of the device was allocated", || self.device.allocate(entry))?;
            let size = (size.min(self.slab_bytes) / ALIGN * ALIGN).max(ALIGN) as u64;
            let (memory, targets) = Target::cut(memory, entry.byte_len(), size, self.uncast(entry));
            let chunks = targets.into_iter().map(|target| (target.range(), target)).collect();
            Ok(Allocated { memory, chunks })
        };
        entries.iter().map(one).collect()
    }

    /// Groups that fit a slab together are one job, up to a share that leaves work for other threads.
    fn jobs(&self, tiles: Vec<Tile<Target<D>>>) -> Vec<Job<Target<D>>> {
        const SHARE: usize = 4 << 20;
        let most = self.slab_bytes.min(SHARE);
        let mut jobs: Vec<Job<Target<D>>> = Vec::new();
        let mut filled = 0;
        for group in coalesce(tiles) {
            let bytes: usize = group.tiles.iter().map(room).sum();
            match jobs.last_mut() {
                Some(job) if filled + bytes <= most => {
                    filled += bytes;
                    job.groups.push(group);
                }
                _ if bytes <= self.slab_bytes => {
                    filled = bytes;
                    jobs.push(Job::new(None, vec![group]));
                }
                // So many small tiles that they do not fit: each for itself.
                _ => {
                    filled = most;
                    jobs.extend(group.tiles.into_iter().map(Job::of));
                }
            }
        }
        jobs
    }

    fn readers(&self) -> usize {
        self.readers
    }

    fn lane(&self) -> Lane<D> {
        Lane { device: None, slabs: Slabs::new(self.slabs) }
    }

    fn carry_out(
        &self,
        job: Job<Target<D>>,
        lane: &mut Lane<D>,
        maker: &mut TileMaker,
        watch: &dyn Watch,
    ) -> CarriedOut<Target<D>> {
        if self.is_writable(&job.groups) {
            self.fill_in_place(job.groups, maker, watch);
            return Ok(());
        }
        match self.slab(lane, watch) {
            Ok(filling) => self.fill_and_send(filling, job.groups, maker, watch),
            Err(error) => return Err(Refused { job, error }),
        }
        Ok(())
    }

    fn in_flight(&self, lane: &Lane<D>, slot: Option<usize>) -> bool {
        let mut tiles = lane.slabs.in_flight().flat_map(|flight| &flight.tiles);
        tiles.any(|(stats, _)| slot.is_none_or(|slot| stats.slot == slot))
    }

    fn settle(&self, lane: &mut Lane<D>, watch: &dyn Watch) {
        let Lane { device: Some(device), slabs } = lane else { return };
        if let Some(flight) = slabs.land() {
            self.land(flight, device, slabs, watch);
        }
    }

    fn finish(&self, entry: &Entry, memory: Arc<D::Memory>) -> Result<D::Tensor> {
        caught("it was finished on the device", || {
            let in_use = || Error::new(ErrorKind::Internal, "its memory is still in use");
            self.device.finish(entry, Arc::into_inner(memory).ok_or_else(in_use)?)
        })
    }

    fn most(&self) -> usize {
        self.slab_bytes
    }
}

impl<D: Device> Drop for Lane<D> {
    /// A reader lands what it has sent, unless it panics: what is being copied from is then left to the
    /// device.
    fn drop(&mut self) {
        let mut is_busy = false;
        while let Some(flight) = self.slabs.land() {
            mem::forget(flight);
            is_busy = true;
        }
        if is_busy {
            mem::forget(self.device.take());
        }
    }
}
