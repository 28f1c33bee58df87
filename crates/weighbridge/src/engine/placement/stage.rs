//! Tensors on a device, through a ring of staging buffers.
//!
//! Readers fill slabs of the ring while the device copies from those that were filled before. No thread is kept for
//! waiting: whoever needs a slab, finds none free, and may not make one, waits for the oldest copy and takes its slab; so
//! does whoever waits for a tensor or has nothing else to do.

mod device;
mod ring;
mod target;

use std::mem;
use std::sync::{Arc, PoisonError};

use device::ALIGN;
pub use device::{Device, Ring, Transfer};
use ring::{Next, Slabs};
use target::Target;

use super::{Allocated, Placement, TileStats, Watch, each_tile};
use crate::engine::job::{Group, Job, Tile, coalesce};
use crate::engine::sync::{Condvar, Mutex, MutexGuard};
use crate::engine::tile::TileMaker;
use crate::error::{Error, ErrorKind, Result};
use crate::panics::caught;
use crate::plan::Entry;

/// Stages what a device is to have.
pub(in crate::engine) struct Stage<D: Device> {
    device: D,
    slab_bytes: usize,
    slabs: Mutex<Slabs<D::Slab, Flight<D>>>,
    /// A slab is free, in flight, or lost.
    moved: Condvar,
}

/// A slab that is copied from.
struct Flight<D: Device> {
    slab: D::Slab,
    fence: D::Fence,
    tiles: Vec<(TileStats, Arc<D::Memory>)>,
}

impl<D: Device> Stage<D> {
    pub(in crate::engine) fn new(device: D, ring: Ring) -> Self {
        let slabs = Mutex::new(Slabs::new(ring.slabs, ring.busy()));
        Self { device, slab_bytes: ring.slab_bytes, slabs, moved: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Slabs<D::Slab, Flight<D>>> {
        // Nothing of the device is called under the lock.
        self.slabs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slab to fill.
    fn slab(&self, watch: &dyn Watch) -> Result<D::Slab> {
        loop {
            let mut slabs = self.lock();
            let next = slabs.next();
            if let Next::Wait = next {
                drop(self.moved.wait(slabs));
                continue;
            }
            drop(slabs);
            let may_make = match next {
                Next::Fill(slab) => return Ok(slab),
                Next::Lost => {
                    let message = "no staging buffer is left: copies from all of them have failed";
                    return Err(Error::new(ErrorKind::Device, message));
                }
                Next::WaitFor(flight) => self.land(flight, watch),
                Next::Check(flight) => self.check(flight, watch),
                Next::Make => true,
                Next::Wait => false,
            };
            if may_make && let Some(slab) = self.make()? {
                return Ok(slab);
            }
        }
    }

    /// Lands a copy if it is done. Whether to make a slab instead.
    fn check(&self, flight: Flight<D>, watch: &dyn Watch) -> bool {
        let is_done = caught("a copy was looked for", || Ok(self.device.is_done(&flight.fence)));
        if is_done.unwrap_or(false) {
            return self.land(flight, watch);
        }
        let may_make = self.lock().put_back(flight);
        self.moved.notify_all();
        // Whoever wanted to settle it meanwhile did not find it.
        watch.in_flight();
        may_make
    }

    /// Makes a slab, which is counted already. `None`: it could not be made, but there are others.
    fn make(&self) -> Result<Option<D::Slab>> {
        let made = caught("a staging buffer was made", || {
            let mut slab = self.device.slab(self.slab_bytes)?;
            match slab.as_mut().len() >= self.slab_bytes {
                true => Ok(slab),
                false => Err(Error::new(ErrorKind::Device, "a staging buffer is too small")),
            }
        });
        let error = match made {
            Ok(slab) => return Ok(Some(slab)),
            Err(error) => error,
        };
        let has_others = self.lock().not_made();
        self.moved.notify_all();
        if has_others { Ok(None) } else { Err(error) }
    }

    fn give_back(&self, slab: D::Slab) {
        self.lock().put(slab);
        self.moved.notify_all();
    }

    /// Leaves a slab to the device for good, which may still be reading it.
    fn lose(&self, slab: D::Slab) {
        mem::forget(slab);
        self.lock().lose();
        self.moved.notify_all();
    }

    /// Waits for a copy and tells what became of it. Gives `false`, for no slab is to be made.
    fn land(&self, flight: Flight<D>, watch: &dyn Watch) -> bool {
        let Flight { slab, fence, tiles } = flight;
        let outcome = caught("a copy to the device was waited for", || self.device.wait(fence));
        self.lock().landed();
        match outcome {
            Ok(()) => self.give_back(slab),
            Err(_) => self.lose(slab),
        }
        for (stats, memory) in tiles {
            match &outcome {
                Ok(()) => drop(memory),
                // It may still be written to.
                Err(_) => mem::forget(memory),
            }
            watch.done(stats, outcome.clone());
        }
        false
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

    /// Makes the tiles of a job in a slab, one after the other, and sends them.
    fn fill_and_send(
        &self,
        mut slab: D::Slab,
        groups: Vec<Group<Target<D>>>,
        maker: &mut TileMaker,
        watch: &dyn Watch,
    ) {
        let needed: usize = groups.iter().flat_map(|group| &group.tiles).map(room).sum();
        let memory = &mut slab;
        let rest = caught("a staging buffer was filled", move || {
            let smaller = || Error::new(ErrorKind::Device, "a staging buffer has become smaller");
            memory.as_mut().get_mut(..needed).ok_or_else(smaller)
        });
        let mut rest = match rest {
            Ok(rest) => rest,
            Err(error) => {
                self.lose(slab);
                return fail(groups, &error, watch);
            }
        };
        let mut made: Vec<(TileStats, Target<D>, &[u8])> = Vec::new();
        each_tile(groups, maker, watch, |tile, maker| {
            let mut stats = TileStats::of(&tile);
            let (bytes, behind) = mem::take(&mut rest).split_at_mut(room(&tile));
            rest = behind;
            let outcome = caught("it was loaded", || {
                let memory = &mut bytes[..tile.bytes() as usize];
                let (bytes, read) = maker.make(&tile.entry, tile.range.clone(), memory)?;
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
            return self.give_back(slab);
        }
        let transfers: Vec<_> = made
            .iter()
            .map(|(_, target, bytes)| Transfer { bytes, memory: target.memory(), offset: target.offset() })
            .collect();
        let copy = || {
            // SAFETY: the slab and the memory go into a `Flight` below, which nobody touches before `wait` has returned; if
            // that fails, or if nothing is known of the copy, both are forgotten.
            #[allow(unsafe_code)]
            unsafe {
                self.device.copy(&transfers)
            }
        };
        let sent = caught("a copy to the device was started", copy);
        drop(transfers);
        let tiles = made.into_iter().map(|(stats, target, _)| (stats, target.into_memory())).collect();
        match sent {
            Ok(fence) => {
                self.lock().send(Flight { slab, fence, tiles });
                self.moved.notify_all();
                watch.in_flight();
            }
            Err(error) => self.not_sent(slab, tiles, &error, watch),
        }
    }

    fn not_sent(
        &self,
        slab: D::Slab,
        tiles: Vec<(TileStats, Arc<D::Memory>)>,
        error: &Error,
        watch: &dyn Watch,
    ) {
        // After a panic nobody knows what the device is doing.
        let is_lost = error.kind() == ErrorKind::Internal;
        match is_lost {
            true => self.lose(slab),
            false => self.give_back(slab),
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

/// The bytes that a tile takes of a slab. It has no more bytes than a slab.
fn room<C>(tile: &Tile<C>) -> usize {
    (tile.bytes() as usize).next_multiple_of(ALIGN)
}

/// Tells that none of the tiles will be made.
fn fail<C>(groups: Vec<Group<C>>, error: &Error, watch: &dyn Watch) {
    for tile in groups.into_iter().flat_map(|group| group.tiles) {
        let stats = TileStats::of(&tile);
        drop(tile);
        watch.done(stats, Err(error.clone()));
    }
}

impl<D: Device> Placement for Stage<D> {
    type Tensor = D::Tensor;
    type Memory = Arc<D::Memory>;
    type Chunk = Target<D>;

    /// While the queue is not empty: memory of a device takes longer to allocate.
    const EARLY: bool = true;

    fn allocate(&self, entries: &[(&Entry, usize)]) -> Vec<Result<Allocated<Self>>> {
        let one = |&(entry, size): &(&Entry, usize)| {
            let memory = caught("memory of the device was allocated", || self.device.allocate(entry))?;
            let size = (size.min(self.slab_bytes) / ALIGN * ALIGN).max(ALIGN) as u64;
            let (memory, targets) = Target::cut(memory, entry.byte_len(), size);
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

    fn carry_out(&self, job: Job<Target<D>>, maker: &mut TileMaker, watch: &dyn Watch) {
        if self.is_writable(&job.groups) {
            return self.fill_in_place(job.groups, maker, watch);
        }
        match self.slab(watch) {
            Ok(slab) => self.fill_and_send(slab, job.groups, maker, watch),
            Err(error) => fail(job.groups, &error, watch),
        }
    }

    fn settle(&self, watch: &dyn Watch) -> bool {
        let flight = self.lock().oldest();
        flight.map(|flight| self.land(flight, watch)).is_some()
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

impl<D: Device> Drop for Stage<D> {
    /// Drains the ring: what is being copied from is not freed.
    fn drop(&mut self) {
        loop {
            let flight = self.lock().drain();
            let Some(Flight { slab, fence, tiles }) = flight else { return };
            if caught("a copy to the device was waited for", || self.device.wait(fence)).is_err() {
                mem::forget(slab);
                // The device may be writing to it as well.
                mem::forget(tiles);
            }
        }
    }
}
