//! Tensors on a device, through a ring of staging buffers.
//!
//! Readers fill slabs of the ring while the device copies from those that were filled before. There is no thread that
//! waits for copies: whoever needs a slab, finds none free, and may not make one, waits for the oldest copy and takes its
//! slab; so does whoever waits for a tensor or has nothing else to do. A slab is free, in the hands of a thread that fills
//! it, in flight, or being waited for, and who has it in hand needs no other one; so the ring cannot get stuck.

use std::collections::VecDeque;
use std::mem::{self, MaybeUninit};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::{Cut, Placement, Ticket, Watch, caught, each_part};
use crate::checkpoint::Checkpoint;
use crate::engine::job::{Group, Job, Part, coalesce};
use crate::engine::tile::TileMaker;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Entry;

/// A device that copies from staging memory into memory of its own.
///
/// A session calls it from several threads at a time; [`allocate`](Self::allocate) and [`finish`](Self::finish) while
/// other threads wait, so that they should be quick, and must not touch the session or what cancels it.
///
/// A copy may go on after [`copy`](Self::copy) has returned: the session neither touches nor frees a slab until
/// [`wait`](Self::wait) has returned for the copy from it, and keeps the memory that is copied to. If `wait` fails, neither
/// slab nor memory is used or freed again, since the device may still be at work on them; if `copy` fails, it must have
/// seen to it that nothing is being read or written any more.
pub trait Device: Send + Sync + 'static {
    /// Staging memory. Its bytes stay where they are when it is moved.
    type Slab: AsMut<[MaybeUninit<u8>]> + Send;
    /// Memory of the device for one tensor.
    type Memory: Send + Sync;
    /// A tensor on the device.
    type Tensor: Send + 'static;
    /// Stands for a copy that is under way.
    type Fence: Send;

    /// Staging memory of `bytes` bytes, or more.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be had. If the ring has slabs already, it stays at as many.
    fn slab(&self, bytes: usize) -> Result<Self::Slab>;

    /// Memory for an entry's [bytes](Entry::byte_len).
    ///
    /// # Errors
    ///
    /// Fails when it cannot be had, or when the device cannot hold the dtype.
    fn allocate(&self, entry: &Entry) -> Result<Self::Memory>;

    /// Some bytes of a tensor's memory, where the host can write to it: a session makes them there then, and neither has a
    /// slab nor copies. It asks for each byte of a memory once, and lets go of all of them before it
    /// [finishes](Self::finish) the tensor.
    fn in_place<'m>(&self, memory: &'m Self::Memory, bytes: Range<u64>) -> Option<&'m mut [MaybeUninit<u8>]> {
        let _ = (memory, bytes);
        None
    }

    /// Starts to copy, all from one slab.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be started; the tensors that have bytes in it fail then.
    fn copy(&self, transfers: &[Transfer<'_, Self::Memory>]) -> Result<Self::Fence>;

    /// Waits until a copy is done.
    ///
    /// # Errors
    ///
    /// Fails when the copy has failed; the tensors that have bytes in it fail then.
    fn wait(&self, fence: Self::Fence) -> Result<()>;

    /// Whether a copy is known to be done, without waiting; a session then does not make a slab where one is free.
    fn is_done(&self, fence: &Self::Fence) -> bool {
        let _ = fence;
        false
    }

    /// The tensor, after all copies to its memory are done.
    ///
    /// # Errors
    ///
    /// Fails when the device cannot make a tensor of it.
    fn finish(&self, entry: &Entry, memory: Self::Memory) -> Result<Self::Tensor>;
}

/// Some bytes of a tensor on their way to the device.
#[derive(Debug)]
#[non_exhaustive]
pub struct Transfer<'a, M> {
    /// The bytes, inside of a slab, at a multiple of 256 bytes from its start.
    pub bytes: &'a [u8],
    /// Where they go.
    pub memory: &'a M,
    /// From which of its bytes on.
    pub offset: u64,
}

/// The staging buffers of a session: how many, and of which size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ring {
    slabs: usize,
    slab_bytes: usize,
    in_flight: Option<usize>,
}

impl Default for Ring {
    fn default() -> Self {
        Self { slabs: 16, slab_bytes: 16 << 20, in_flight: None }
    }
}

impl Ring {
    /// 16 slabs of 16 MiB: 256 MiB.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the number of slabs at the most; at least one. They are made when they are needed: one for each thread that
    /// reads, and some that are copied from.
    #[must_use]
    pub fn slabs(mut self, slabs: usize) -> Self {
        self.slabs = slabs.max(1);
        self
    }

    /// Sets the bytes of a slab, rounded down to a multiple of 256; at least that.
    #[must_use]
    pub fn slab_bytes(mut self, bytes: usize) -> Self {
        self.slab_bytes = (bytes / ALIGN * ALIGN).max(ALIGN);
        self
    }

    /// Sets how many copies under way keep the device busy, at least one: while there are as many, a thread waits for one of
    /// them and makes no other slab. Page-locked memory takes longer to be had than to be copied from. Unless it is set,
    /// those of 32 MiB of slabs, at least 8.
    #[must_use]
    pub fn in_flight(mut self, copies: usize) -> Self {
        self.in_flight = Some(copies.max(1));
        self
    }

    fn enough(self) -> usize {
        self.in_flight.unwrap_or_else(|| ((32 << 20) / self.slab_bytes).max(8))
    }
}

/// Where parts begin in a slab: what copy engines and GPU interfaces ask for at the most.
const ALIGN: usize = 256;

fn room<C>(part: &Part<C>) -> usize {
    // A part has no more bytes than a slab.
    (part.bytes() as usize).next_multiple_of(ALIGN)
}

/// Stages what a device is to have.
pub(in crate::engine) struct Stage<D: Device> {
    device: D,
    slab_bytes: usize,
    /// So many copies under way keep the device busy.
    enough: usize,
    ring: Mutex<State<D>>,
    /// A slab is free, in flight, or lost.
    moved: Condvar,
}

struct State<D: Device> {
    free: Vec<D::Slab>,
    /// In the order in which they were sent.
    flying: VecDeque<Flight<D>>,
    /// Copies that somebody waits for.
    landing: usize,
    /// Slabs that there are, wherever they are.
    slabs: usize,
    /// Slabs that there may be.
    most: usize,
}

impl<D: Device> State<D> {
    /// Whether another slab is allowed, and of use.
    fn may_make(&self, enough: usize) -> bool {
        self.slabs < self.most && self.flying.len() + self.landing < enough
    }

    /// The copy that is done first, to be waited for.
    fn oldest(&mut self) -> Option<Flight<D>> {
        let flight = self.flying.pop_front()?;
        self.landing += 1;
        Some(flight)
    }

    /// The same, when nobody waits for it after all.
    fn put_back(&mut self, oldest: Flight<D>) {
        self.landing -= 1;
        self.flying.push_front(oldest);
    }
}

/// A slab that is copied from.
struct Flight<D: Device> {
    slab: D::Slab,
    fence: D::Fence,
    parts: Vec<(Ticket, Arc<D::Memory>)>,
}

impl<D: Device> Stage<D> {
    pub(in crate::engine) fn new(device: D, ring: Ring) -> Self {
        let state =
            State { free: Vec::new(), flying: VecDeque::new(), landing: 0, slabs: 0, most: ring.slabs };
        let (slab_bytes, enough) = (ring.slab_bytes, ring.enough());
        Self { device, slab_bytes, enough, ring: Mutex::new(state), moved: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<D>> {
        // Nothing of the device is called under the lock.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slab to fill.
    fn slab(&self, watch: &dyn Watch) -> Result<D::Slab> {
        loop {
            let mut ring = self.lock();
            if let Some(slab) = ring.free.pop() {
                return Ok(slab);
            }
            if ring.most == 0 {
                let message = "no staging buffer is left: copies from all of them have failed";
                return Err(Error::new(ErrorKind::Device, message));
            }
            let may_make = ring.may_make(self.enough);
            if let Some(flight) = ring.oldest() {
                drop(ring);
                let is_done = || caught("a copy was looked for", || Ok(self.device.is_done(&flight.fence)));
                if !may_make || is_done().unwrap_or(false) {
                    self.land(flight, watch);
                    continue;
                }
                ring = self.lock();
                ring.put_back(flight);
                self.moved.notify_all();
            } else if !may_make {
                drop(self.moved.wait(ring).unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            // Things may have changed while a copy was looked at.
            if ring.free.is_empty() && ring.may_make(self.enough) {
                ring.slabs += 1;
                drop(ring);
                if let Some(slab) = self.make()? {
                    return Ok(slab);
                }
            }
        }
    }

    /// Makes a slab, which is counted already. `None`: it could not be made, but there are others.
    fn make(&self) -> Result<Option<D::Slab>> {
        let made = caught("a staging buffer was made", || self.device.slab(self.slab_bytes));
        let made = made.and_then(|mut slab| match slab.as_mut().len() >= self.slab_bytes {
            true => Ok(slab),
            false => Err(Error::new(ErrorKind::Device, "a staging buffer is too small")),
        });
        let error = match made {
            Ok(slab) => return Ok(Some(slab)),
            Err(error) => error,
        };
        let mut ring = self.lock();
        ring.slabs -= 1;
        self.moved.notify_all();
        if ring.slabs == 0 {
            return Err(error);
        }
        ring.most = ring.slabs;
        Ok(None)
    }

    fn give_back(&self, slab: D::Slab) {
        self.lock().free.push(slab);
        self.moved.notify_all();
    }

    /// Leaves a slab to the device for good, which may still be reading it.
    fn lose(&self, slab: D::Slab) {
        mem::forget(slab);
        let mut ring = self.lock();
        ring.slabs -= 1;
        ring.most -= 1;
        self.moved.notify_all();
    }

    /// Whether these parts can be made in their places.
    fn has_place(&self, groups: &[Group<Place<D>>]) -> bool {
        let first = groups.iter().flat_map(|group| &group.parts).next();
        let place = |part: &Part<Place<D>>| {
            let (memory, at) = (&*part.chunk.memory, part.chunk.offset);
            caught("it was looked for", || Ok(self.device.in_place(memory, at..at).is_some()))
        };
        first.is_some_and(|part| place(part).unwrap_or(false))
    }

    /// Makes the parts of a job where they belong.
    fn fill_in_place(&self, groups: Vec<Group<Place<D>>>, maker: &mut TileMaker, watch: &dyn Watch) {
        each_part(groups, maker, watch, |part, maker| {
            let mut ticket = Ticket::of(&part);
            let outcome = caught("it was loaded", || {
                let Place { memory, offset } = &part.chunk;
                let place = self.device.in_place(memory, *offset..*offset + part.bytes());
                let place = place.filter(|place| place.len() as u64 == part.bytes());
                let lost = || Error::new(ErrorKind::Device, "its memory cannot be written to any more");
                let (_, read) = maker.make(&part.entry, part.tile.clone(), place.ok_or_else(lost)?)?;
                ticket.read = read;
                Ok(())
            });
            drop(part);
            watch.done(ticket, outcome);
        });
    }

    /// Waits for a copy and tells what became of it.
    fn land(&self, flight: Flight<D>, watch: &dyn Watch) {
        let Flight { slab, fence, parts } = flight;
        let outcome = caught("a copy to the device was waited for", || self.device.wait(fence));
        self.lock().landing -= 1;
        match outcome {
            Ok(()) => self.give_back(slab),
            Err(_) => self.lose(slab),
        }
        for (ticket, memory) in parts {
            match &outcome {
                Ok(()) => drop(memory),
                // It may still be written to.
                Err(_) => mem::forget(memory),
            }
            watch.done(ticket, outcome.clone());
        }
    }

    /// Makes the parts of a job in a slab, one behind the other, and sends them.
    fn fill_and_send(
        &self,
        mut slab: D::Slab,
        groups: Vec<Group<Place<D>>>,
        maker: &mut TileMaker,
        watch: &dyn Watch,
    ) {
        let mut rest = slab.as_mut();
        let needed: usize = groups.iter().flat_map(|group| &group.parts).map(room).sum();
        if rest.len() < needed {
            let error = Error::new(ErrorKind::Device, "a staging buffer has become smaller");
            self.lose(slab);
            return fail(groups, &error, watch);
        }
        let mut made: Vec<(Ticket, Place<D>, &[u8])> = Vec::new();
        each_part(groups, maker, watch, |part, maker| {
            let mut ticket = Ticket::of(&part);
            let (bytes, behind) = mem::take(&mut rest).split_at_mut(room(&part));
            rest = behind;
            let outcome = caught("it was loaded", || {
                let memory = &mut bytes[..part.bytes() as usize];
                let (bytes, read) = maker.make(&part.entry, part.tile.clone(), memory)?;
                ticket.read = read;
                Ok(bytes)
            });
            match outcome {
                Ok(bytes) => made.push((ticket, part.chunk, bytes)),
                Err(error) => watch.done(ticket, Err(error)),
            }
        });
        if made.is_empty() {
            return self.give_back(slab);
        }
        let transfers: Vec<_> = made
            .iter()
            .map(|(_, place, bytes)| Transfer { bytes, memory: &*place.memory, offset: place.offset })
            .collect();
        let sent = caught("a copy to the device was started", || self.device.copy(&transfers));
        drop(transfers);
        let parts = made.into_iter().map(|(ticket, place, _)| (ticket, place.memory)).collect::<Vec<_>>();
        match sent {
            Ok(fence) => {
                self.lock().flying.push_back(Flight { slab, fence, parts });
                self.moved.notify_all();
                watch.in_flight();
            }
            Err(error) => {
                // After a panic nobody knows what the device is doing.
                let lost = error.kind() == ErrorKind::Internal;
                if lost {
                    self.lose(slab);
                } else {
                    self.give_back(slab);
                }
                for (ticket, memory) in parts {
                    if lost {
                        mem::forget(memory);
                    } else {
                        drop(memory);
                    }
                    watch.done(ticket, Err(error.clone()));
                }
            }
        }
    }
}

/// Tells that none of the parts will be made.
fn fail<C>(groups: Vec<Group<C>>, error: &Error, watch: &dyn Watch) {
    for part in groups.into_iter().flat_map(|group| group.parts) {
        let ticket = Ticket::of(&part);
        drop(part);
        watch.done(ticket, Err(error.clone()));
    }
}

/// Where a part goes on the device.
pub(in crate::engine) struct Place<D: Device> {
    memory: Arc<D::Memory>,
    offset: u64,
}

impl<D: Device> Placement for Stage<D> {
    type Tensor = D::Tensor;
    type Blank = Arc<D::Memory>;
    type Memory = Arc<D::Memory>;
    type Chunk = Place<D>;

    fn allocate(&self, _: &Checkpoint, entry: &Entry) -> Result<Arc<D::Memory>> {
        caught("memory of the device was allocated", || self.device.allocate(entry).map(Arc::new))
    }

    fn cut(&self, entry: &Entry, memory: Arc<D::Memory>, size: usize) -> Cut<Self> {
        let size = (size.min(self.slab_bytes) / ALIGN * ALIGN).max(ALIGN) as u64;
        let chunk = |number| {
            let start = number * size;
            let tile: Range<u64> = start..(start + size).min(entry.byte_len());
            (tile, Place { memory: Arc::clone(&memory), offset: start })
        };
        let chunks = (0..entry.byte_len().div_ceil(size)).map(chunk).collect();
        (memory, chunks)
    }

    /// While the queue is not empty: memory of a device takes longer to be had.
    const EARLY: bool = true;

    /// Groups that fit a slab together are one job, up to a share that leaves work for other threads.
    fn jobs(&self, checkpoint: &Checkpoint, parts: Vec<Part<Place<D>>>) -> Vec<Job<Place<D>>> {
        const SHARE: usize = 4 << 20;
        let most = self.slab_bytes.min(SHARE);
        let mut jobs: Vec<Job<Place<D>>> = Vec::new();
        let mut filled = 0;
        for group in coalesce(checkpoint, parts) {
            let bytes: usize = group.parts.iter().map(room).sum();
            match jobs.last_mut() {
                Some(job) if filled + bytes <= most => {
                    filled += bytes;
                    job.groups.push(group);
                }
                _ if bytes <= self.slab_bytes => {
                    filled = bytes;
                    jobs.push(Job::new(None, vec![group]));
                }
                // So many small parts that they do not fit: each for itself.
                _ => {
                    filled = most;
                    jobs.extend(group.parts.into_iter().map(Job::of));
                }
            }
        }
        jobs
    }

    fn carry_out(&self, job: Job<Place<D>>, maker: &mut TileMaker, watch: &dyn Watch) {
        if self.has_place(&job.groups) {
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
        while let Some(Flight { slab, fence, parts }) = self.lock().flying.pop_front() {
            if caught("a copy to the device was waited for", || self.device.wait(fence)).is_err() {
                mem::forget(slab);
                // The device may be writing to it as well.
                mem::forget(parts);
            }
        }
    }
}
