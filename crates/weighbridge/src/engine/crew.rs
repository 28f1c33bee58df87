//! The threads of a session: they take jobs from the [schedule](super::schedule) and do them, and so does whoever waits
//! for a tensor.
//!
//! The schedule is behind a lock, under which nothing is allocated, read or computed and no code of others runs:
//! operations, sources, devices and progress handlers are called without it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::fetch::Fetcher;
use super::job::{Job, Run, Tile};
use super::options::Settings;
use super::placement::{Allocated, Placement, TileStats, Watch};
use super::planned::Planned;
use super::schedule::{ANNOUNCED_BYTES, Announced, Ask, Begun, Finished, Next, Schedule};
use super::sync::{AtomicBool, Condvar, Mutex, MutexGuard};
use super::tile::{TileMaker, read_size};
use crate::error::{Error, ErrorKind, Result};
use crate::panics::caught;
use crate::plan::Entry;

/// The threads that carry a plan out, the callers of [`take`](Self::take) among them.
pub(super) struct Crew<P: Placement> {
    plan: Arc<Planned>,
    placement: P,
    settings: Settings,
    fetcher: Fetcher,
    schedule: Mutex<Chart<P>>,
    /// There are jobs, or there is room to read ahead, or it is time to stop.
    work: Condvar,
    /// A slot has changed for those who wait for it: an entry is ready or has failed, its jobs are there, or a copy is in
    /// flight.
    moved: Condvar,
    stopped: AtomicBool,
    cancelled: AtomicBool,
}

/// An entry and its memory while it is read.
struct Reading<P: Placement> {
    entry: Arc<Entry>,
    memory: P::Memory,
}

type Chart<P> = Schedule<Job<<P as Placement>::Chunk>, Reading<P>, <P as Placement>::Tensor>;
type Guard<'c, P> = MutexGuard<'c, Chart<P>>;
type Tiles<P> = Vec<Tile<<P as Placement>::Chunk>>;

impl<P: Placement> Crew<P> {
    pub(super) fn new(plan: Arc<Planned>, settings: Settings, placement: P) -> Self {
        let size = |entry: &Arc<Entry>| (!entry.is_deferred()).then(|| placement.ahead(entry)).flatten();
        let sizes = plan.entries.iter().map(size).collect();
        let order = settings.order.of(&plan.entries);
        Self {
            schedule: Mutex::new(Schedule::new(order, sizes, settings.read_ahead)),
            plan,
            placement,
            fetcher: Fetcher::new(settings.prefetch, settings.page_cache),
            settings,
            work: Condvar::new(),
            moved: Condvar::new(),
            stopped: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> Guard<'_, P> {
        // Nothing that holds the lock leaves the schedule half changed if it panics.
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends reading; what is waited for is given up if it is cancelled.
    pub(super) fn stop(&self, is_cancelled: bool) {
        let mut schedule = self.lock();
        self.stopped.store(true, Ordering::Relaxed);
        if is_cancelled {
            self.cancelled.store(true, Ordering::Relaxed);
        }
        let jobs = schedule.clear();
        drop(schedule);
        self.fetcher.stop();
        drop(jobs);
        self.work.notify_all();
        self.moved.notify_all();
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// What a thread of the session does.
    pub(super) fn work(&self) {
        let mut maker = TileMaker::new(self.settings.chunk, self.settings.page_cache);
        // Early, so that memory of a device, which takes long to allocate, is there when it is needed.
        let least = if P::EARLY { self.settings.threads } else { 1 };
        let mut is_idle = false;
        let mut schedule = self.lock();
        while !self.stopped() {
            match schedule.next(least) {
                Next::Nothing if is_idle => {
                    schedule = self.work.wait(schedule).unwrap_or_else(PoisonError::into_inner);
                    is_idle = false;
                }
                next => {
                    is_idle = !self.follow(schedule, next, &mut maker);
                    schedule = self.lock();
                }
            }
        }
    }

    /// Does what comes next, a copy that has to be waited for included; whether there was anything.
    fn follow(&self, schedule: Guard<'_, P>, next: Next<Job<P::Chunk>>, maker: &mut TileMaker) -> bool {
        match next {
            Next::Job(job) => {
                self.announce_and_do(schedule, job, maker);
                true
            }
            Next::Begin(slots) => {
                drop(schedule);
                self.begin_batch(&slots, true);
                true
            }
            Next::Nothing => {
                drop(schedule);
                self.placement.settle(self)
            }
        }
    }

    /// The tensor of a slot, which is one of the plan, or was [added](Self::make).
    pub(super) fn take(&self, slot: usize, entry: &Arc<Entry>) -> Result<P::Tensor> {
        let tensor = self.wait_for(slot, entry)?;
        self.placement.hand_out(entry, &tensor)?;
        Ok(tensor)
    }

    /// A tensor that the plan does not have.
    pub(super) fn make(&self, entry: &Arc<Entry>) -> Result<P::Tensor> {
        let slot = self.lock().add_slot();
        let taken = self.take(slot, entry);
        let unused = self.lock().remove_slot(slot);
        drop(unused);
        taken
    }

    /// Does not read an entry of the plan ahead any more, unless somebody waits for it.
    pub(super) fn abandon(&self, slot: usize) {
        let mut schedule = self.lock();
        let unused = schedule.abandon(slot);
        let has_room = unused.is_some();
        drop(schedule);
        drop(unused);
        if has_room {
            self.work.notify_one();
        }
    }

    fn wait_for(&self, slot: usize, entry: &Arc<Entry>) -> Result<P::Tensor> {
        let mut maker = TileMaker::new(self.settings.chunk, self.settings.page_cache);
        let mut schedule = self.lock();
        schedule.enter(slot);
        loop {
            if self.is_cancelled() {
                schedule.leave(slot);
                return Err(Error::new(ErrorKind::Cancelled, "loading was cancelled").in_tensor(entry.name()));
            }
            match schedule.ask(slot) {
                Ask::Ready { tensor, has_room } => {
                    schedule.leave(slot);
                    drop(schedule);
                    if has_room {
                        self.work.notify_one();
                    }
                    return Ok(tensor);
                }
                Ask::Failed(error) => {
                    schedule.leave(slot);
                    return Err(error);
                }
                Ask::Begin => {
                    drop(schedule);
                    let begun = self.begin(slot, entry);
                    schedule = self.lock();
                    if let Err(error) = begun {
                        schedule.leave(slot);
                        return Err(error);
                    }
                }
                Ask::BeginBatch(slots) => {
                    drop(schedule);
                    self.begin_batch(&slots, false);
                    schedule = self.lock();
                }
                Ask::Job(job) => {
                    drop(schedule);
                    self.placement.carry_out(job, &mut maker, self);
                    schedule = self.lock();
                }
                Ask::Wait => {
                    self.help(slot, schedule, &mut maker);
                    schedule = self.lock();
                }
            }
        }
    }

    /// Makes itself useful while others are at work on a slot, or waits until they have come further.
    fn help(&self, slot: usize, schedule: Guard<'_, P>, maker: &mut TileMaker) {
        let flights = schedule.flights();
        drop(schedule);
        if self.placement.settle(self) {
            return;
        }
        let mut schedule = self.lock();
        if flights != schedule.flights() || !schedule.is_under_way(slot) || self.is_cancelled() {
            return;
        }
        match schedule.next(1) {
            Next::Nothing => drop(self.moved.wait(schedule)),
            next => {
                self.follow(schedule, next, maker);
            }
        }
    }

    fn announce_and_do(&self, mut schedule: Guard<'_, P>, mut job: Job<P::Chunk>, maker: &mut TileMaker) {
        if !self.fetcher.is_off() {
            let Announced { mut reads, slots } = schedule.announce(&mut job, self.fetcher.is_cold());
            drop(schedule);
            let runs = slots.iter().filter_map(|&slot| self.plan.entries.get(slot)?.run());
            reads.extend(runs.map(|(shard, bytes)| Run {
                shard: Arc::clone(shard),
                bytes: bytes.start..bytes.end.min(bytes.start.saturating_add(ANNOUNCED_BYTES)),
            }));
            self.fetcher.fetch(reads);
        } else {
            drop(schedule);
        }
        self.placement.carry_out(job, maker, self);
    }

    /// Allocates entries that are read ahead, together, and queues their jobs.
    fn begin_batch(&self, slots: &[usize], is_ahead: bool) {
        let entries: Vec<_> = slots.iter().map(|&slot| (slot, &self.plan.entries[slot])).collect();
        let (mut begun, mut tiles, mut failed) = (Vec::with_capacity(slots.len()), Vec::new(), Vec::new());
        for (slot, outcome) in slots.iter().zip(self.allocate(&entries)) {
            match outcome {
                Ok((memory, its_tiles)) => {
                    begun.push(Begun { slot: *slot, memory, tiles: its_tiles.len() });
                    tiles.extend(its_tiles);
                }
                // Whoever asks for it tries again, and is told.
                Err(_) => failed.push(*slot),
            }
        }
        let jobs = self.placement.jobs(tiles);
        let mut schedule = self.lock();
        failed.into_iter().for_each(|slot| schedule.not_begun(slot));
        let finished = schedule.begun(begun);
        if !self.stopped() {
            schedule.push_back(jobs);
        }
        if is_ahead {
            schedule.prepared();
        }
        self.tell_begun(schedule);
        self.finish_all(finished);
    }

    /// Allocates an entry that somebody waits for, and queues its jobs in front of all others.
    fn begin(&self, slot: usize, entry: &Arc<Entry>) -> Result<()> {
        let mut outcomes = self.allocate(&[(slot, entry)]);
        let (memory, tiles) = match outcomes.pop() {
            Some(Ok(begun)) => begun,
            outcome => {
                self.lock().not_begun(slot);
                self.moved.notify_all();
                let nothing = || Error::new(ErrorKind::Internal, "its memory was not allocated");
                return Err(outcome.and_then(Result::err).unwrap_or_else(nothing));
            }
        };
        let begun = Begun { slot, memory, tiles: tiles.len() };
        let jobs: Vec<_> = tiles.into_iter().map(Job::of).collect();
        let mut schedule = self.lock();
        let finished = schedule.begun([begun]);
        if !self.stopped() {
            schedule.push_front(jobs);
        }
        self.tell_begun(schedule);
        self.finish_all(finished);
        Ok(())
    }

    /// Wakes those who can do what was queued.
    fn tell_begun(&self, schedule: Guard<'_, P>) {
        let jobs = schedule.queued();
        drop(schedule);
        // This thread does one of them.
        match jobs {
            0 | 1 => self.work.notify_one(),
            _ => self.work.notify_all(),
        }
        self.moved.notify_all();
    }

    /// The memory of entries, and their tiles.
    fn allocate(&self, entries: &[(usize, &Arc<Entry>)]) -> Vec<Result<(Reading<P>, Tiles<P>)>> {
        let size = |entry: &Entry| {
            let size = caught("it was begun", || Ok(self.chunk(entry)));
            size.map_err(|error| error.in_tensor(entry.name()))
        };
        let sizes: Vec<_> = entries.iter().map(|(_, entry)| size(entry)).collect();
        let sized = entries.iter().zip(&sizes);
        let wanted: Vec<_> =
            sized.filter_map(|((_, entry), size)| Some((&***entry, *size.as_ref().ok()?))).collect();
        let mut allocated = self.placement.allocate(&wanted).into_iter();
        let one = |(&(slot, entry), size): (&(usize, &Arc<Entry>), Result<usize>)| {
            size?;
            let missing = || Err(Error::new(ErrorKind::Internal, "its memory was not allocated"));
            let allocated = allocated.next().unwrap_or_else(missing);
            let Allocated { memory, chunks } = allocated.map_err(|error| error.in_tensor(entry.name()))?;
            let tiles = chunks.into_iter().map(|(range, chunk)| Tile::new(slot, entry, range, chunk));
            let tiles = tiles.collect();
            Ok((Reading { entry: Arc::clone(entry), memory }, tiles))
        };
        entries.iter().zip(sizes).map(one).collect()
    }

    /// The size of an entry's chunks: what its source prefers, or less, so that all threads have a share of a tensor
    /// that somebody waits for; but no less than what is computed at a time.
    fn chunk(&self, entry: &Entry) -> usize {
        let share = entry.byte_len() / (self.settings.threads as u64 * CHUNKS_A_THREAD);
        let least = if self.settings.threads > USUAL_THREADS { LEAST_WAITED_FOR } else { LEAST_CHUNK };
        let step = if entry.tiles().is_direct() { 0 } else { entry.tiles().step() };
        let read = read_size(entry, self.settings.chunk);
        let chunk =
            share.max(least).min(read).max(LEAST_CHUNK).max(step).min(entry.byte_len().max(LEAST_CHUNK));
        usize::try_from(chunk).unwrap_or(usize::MAX).min(self.placement.most())
    }

    /// Tells the report and the progress handler of bytes that have arrived.
    fn tell(&self, read: u64, made: u64) {
        let Some(handler) = &self.settings.progress else {
            self.plan.report.note_read(read, made);
            return;
        };
        let now = || self.plan.report.note_read(read, made);
        let flow = caught("progress was told", || Ok(handler.tell(now)));
        if flow.is_ok_and(|flow| flow.is_break()) {
            self.stop(true);
        }
    }

    /// Finishes entries that were there already: no job tells of their bytes.
    fn finish_all(&self, finished: Vec<Finished<Reading<P>>>) {
        for finished in finished {
            self.tell(0, finished.memory.entry.byte_len());
            self.finish(finished);
        }
    }

    /// Makes the tensor of an entry all of whose tiles are done.
    fn finish(&self, Finished { slot, memory: Reading { entry, memory }, error }: Finished<Reading<P>>) {
        let outcome = match error {
            Some(error) => Err(error),
            None => self.placement.finish(&entry, memory),
        };
        let outcome = outcome.map_err(|error| error.in_tensor(entry.name()));
        let failed = outcome.is_err();
        let mut schedule = self.lock();
        let unused = schedule.landed(slot, outcome);
        drop(schedule);
        if failed || unused.is_some() {
            self.work.notify_one();
        }
        self.moved.notify_all();
    }
}

impl<P: Placement> Watch for Crew<P> {
    fn read_together(&self, bytes: u64) {
        self.tell(bytes, 0);
    }

    fn done(&self, TileStats { slot, bytes, read }: TileStats, outcome: Result<()>) {
        // Before the entry lands, so that whoever takes it finds its bytes counted.
        self.tell(read, if outcome.is_ok() { bytes } else { 0 });
        let finished = self.lock().tile_done(slot, outcome);
        if let Some(finished) = finished {
            self.finish(finished);
        }
    }

    fn in_flight(&self) {
        self.lock().started_flight();
        // Whoever waits for what is in it settles it.
        self.moved.notify_all();
    }

    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

/// The number of chunks of a tensor for each thread, unless they would become too small.
const CHUNKS_A_THREAD: u64 = 4;

/// Smaller reads are slower.
const LEAST_CHUNK: u64 = 128 << 10;

/// Where there are more threads than this, each waits for a slow source most of the time.
const USUAL_THREADS: usize = 16;

/// Requests that are waited for are better fewer.
const LEAST_WAITED_FOR: u64 = 512 << 10;
