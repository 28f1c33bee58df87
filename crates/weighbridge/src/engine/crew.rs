//! The threads of a session: they take jobs from the [schedule](super::schedule) and do them, and so does whoever waits
//! for a tensor.
//!
//! The schedule is behind a lock, under which nothing is allocated, read or computed and no code of others runs:
//! operations, sources, devices and progress handlers are called without it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::fetch::Fetcher;
use super::job::{Job, Run, Tile};
use super::options::Settings;
use super::placement::{Allocated, Placement, Refused, TileStats, Watch};
use super::planned::Planned;
use super::readers::Readers;
use super::schedule::{ANNOUNCED_BYTES, Announced, Ask, Begun, Finished, Next, Schedule};
use super::spans::Spans;
use super::stopping::Stopping;
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
    chart: Mutex<Chart<P>>,
    /// There are jobs, or there is room to read ahead, or what it takes to read, or it is time to stop.
    work: Condvar,
    /// A slot has changed for those who wait for it: an entry is ready or has failed, or its jobs are there,
    /// or what it takes to read.
    moved: Condvar,
    stopping: Arc<Stopping>,
    cancelled: AtomicBool,
}

/// An entry and its memory while it is read.
struct Reading<P: Placement> {
    entry: Arc<Entry>,
    memory: P::Memory,
}

/// What threads share.
struct Chart<P: Placement> {
    schedule: Schedule<Job<P::Chunk>, Reading<P>, P::Tensor>,
    readers: Readers<Reader<P>>,
}

/// What a thread needs to read. One that sleeps, or is not in here, has none, and nothing that it sent is in
/// flight.
struct Reader<P: Placement> {
    maker: TileMaker,
    lane: P::Lane,
}

type Guard<'c, P> = MutexGuard<'c, Chart<P>>;
type Tiles<P> = Vec<Tile<<P as Placement>::Chunk>>;

impl<P: Placement> Crew<P> {
    pub(super) fn new(plan: Arc<Planned>, settings: Settings, placement: P) -> Self {
        let size = |entry: &Arc<Entry>| (!entry.is_deferred()).then(|| placement.ahead(entry)).flatten();
        let sizes = plan.entries.iter().map(size).collect();
        let order = settings.order.of(&plan.entries);
        let stopping = Arc::new(Stopping::of(&plan.entries, settings.page_cache));
        let schedule = Schedule::new(order, sizes, settings.read_ahead);
        let readers = Readers::new(placement.readers());
        let readers = if settings.begins_alone { readers.one_at_first() } else { readers };
        Self {
            chart: Mutex::new(Chart { schedule, readers }),
            plan,
            placement,
            fetcher: Fetcher::new(settings.prefetch, settings.page_cache),
            settings,
            work: Condvar::new(),
            moved: Condvar::new(),
            stopping,
            cancelled: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> Guard<'_, P> {
        // Nothing that holds the lock leaves the schedule half changed if it panics.
        self.chart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends reading; what is waited for is given up if it is cancelled.
    pub(super) fn stop(&self, is_cancelled: bool) {
        let mut chart = self.lock();
        self.stopping.stop();
        if is_cancelled {
            self.cancelled.store(true, Ordering::Relaxed);
        }
        let jobs = chart.schedule.clear();
        drop(chart);
        self.fetcher.stop();
        drop(jobs);
        self.work.notify_all();
        self.moved.notify_all();
        self.stopping.interrupt();
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// What a thread of the session does.
    pub(super) fn work(&self) {
        // Early, so that memory of a device, which takes long to allocate, is there when it is needed.
        let least = if P::EARLY { self.settings.threads } else { 1 };
        let mut own = None;
        let mut chart = self.lock();
        while !self.stopped() {
            if !self.can_read(&mut chart, &mut own) {
                chart = self.sleep(&self.work, chart, &mut own);
                continue;
            }
            match chart.schedule.next(least) {
                Next::Nothing => match self.settle(chart, &mut own, None) {
                    Ok(()) => chart = self.lock(),
                    Err(same) => chart = self.sleep(&self.work, same, &mut own),
                },
                next => {
                    self.follow(chart, next, &mut own);
                    chart = self.lock();
                }
            }
        }
        self.leave(chart, &mut own);
    }

    /// Whether a thread has what it takes to read, now if not before.
    fn can_read(&self, chart: &mut Guard<'_, P>, own: &mut Option<Reader<P>>) -> bool {
        if own.is_none() {
            let Settings { chunk, page_cache, .. } = self.settings;
            let make = || {
                let maker = TileMaker::new(chunk, page_cache, Arc::clone(&self.stopping));
                Reader { maker, lane: self.placement.lane() }
            };
            *own = chart.readers.take(make);
        }
        own.is_some()
    }

    /// Settles the oldest copy of its own that is in flight: any, or one for that slot. If there is none, the
    /// lock is given back as it was.
    fn settle<'c>(
        &self,
        chart: Guard<'c, P>,
        own: &mut Option<Reader<P>>,
        slot: Option<usize>,
    ) -> std::result::Result<(), Guard<'c, P>> {
        match own {
            Some(Reader { lane, .. }) if self.placement.in_flight(lane, slot) => {
                drop(chart);
                self.placement.settle(lane, self);
                Ok(())
            }
            _ => Err(chart),
        }
    }

    /// Waits, and leaves to others what it takes to read meanwhile. It must have settled its copies.
    fn sleep<'c>(
        &self,
        until: &Condvar,
        mut chart: Guard<'c, P>,
        own: &mut Option<Reader<P>>,
    ) -> Guard<'c, P> {
        self.put_back(&mut chart, own);
        until.wait(chart).unwrap_or_else(PoisonError::into_inner)
    }

    /// Settles what it has sent, and leaves to others what it takes to read.
    fn leave<'c>(&'c self, mut chart: Guard<'c, P>, own: &mut Option<Reader<P>>) {
        loop {
            match self.settle(chart, own, None) {
                Ok(()) => chart = self.lock(),
                Err(mut same) => return self.put_back(&mut same, own),
            }
        }
    }

    fn put_back(&self, chart: &mut Guard<'_, P>, own: &mut Option<Reader<P>>) {
        if own.take().is_some_and(|reader| chart.readers.put(reader)) {
            self.work.notify_one();
            self.moved.notify_all();
        }
    }

    /// Does what comes next.
    fn follow(&self, chart: Guard<'_, P>, next: Next<Job<P::Chunk>>, own: &mut Option<Reader<P>>) {
        match next {
            Next::Job(job) => self.announce_and_do(chart, job, own),
            Next::Begin(slots) => {
                drop(chart);
                self.begin_batch(&slots, true);
            }
            Next::Nothing => {}
        }
    }

    /// Carries a job out, or leaves it to others if it cannot.
    fn carry_out(&self, job: Job<P::Chunk>, own: &mut Option<Reader<P>>) {
        let Some(Reader { maker, lane }) = own else {
            return self.lock().schedule.push_front(vec![job]);
        };
        let started = self.settings.begins_alone.then(Instant::now);
        let Err(refused) = self.placement.carry_out(job, lane, maker, self) else {
            if started.is_some_and(|started| started.elapsed() >= A_REQUEST) && self.lock().readers.grow() {
                self.work.notify_all();
                self.moved.notify_all();
            }
            return;
        };
        let mut chart = self.lock();
        if !chart.readers.retire() {
            drop(chart);
            return refused.fail(self);
        }
        let Refused { job, .. } = refused;
        if !self.stopped() {
            chart.schedule.push_front(vec![job]);
        }
        let useless = own.take();
        drop(chart);
        drop(useless);
        self.work.notify_one();
        self.moved.notify_all();
    }

    /// The tensor of a slot, which is one of the plan, or was [added](Self::make).
    pub(super) fn take(&self, slot: usize, entry: &Arc<Entry>) -> Result<P::Tensor> {
        let tensor = self.wait_for(slot, entry)?;
        self.placement.hand_out(entry, &tensor)?;
        Ok(tensor)
    }

    /// A tensor that the plan does not have.
    pub(super) fn make(&self, entry: &Arc<Entry>) -> Result<P::Tensor> {
        let slot = self.lock().schedule.add_slot();
        let taken = self.take(slot, entry);
        let unused = self.lock().schedule.remove_slot(slot);
        drop(unused);
        taken
    }

    /// Does not read an entry of the plan ahead any more, unless somebody waits for it.
    pub(super) fn abandon(&self, slot: usize) {
        let mut chart = self.lock();
        let unused = chart.schedule.abandon(slot);
        let has_room = unused.is_some();
        drop(chart);
        drop(unused);
        if has_room {
            self.work.notify_one();
        }
    }

    fn wait_for(&self, slot: usize, entry: &Arc<Entry>) -> Result<P::Tensor> {
        let mut own = None;
        let mut chart = self.lock();
        chart.schedule.enter(slot);
        let (outcome, has_room) = loop {
            if self.is_cancelled() {
                let error = Error::new(ErrorKind::Cancelled, "loading was cancelled");
                break (Err(error.in_tensor(entry.name())), false);
            }
            let can_read = own.is_some() || chart.readers.has_one();
            match chart.schedule.ask(slot, can_read) {
                Ask::Ready { tensor, has_room } => break (Ok(tensor), has_room),
                Ask::Failed(error) => break (Err(error), false),
                Ask::Begin => {
                    drop(chart);
                    let begun = self.begin(slot, entry);
                    chart = self.lock();
                    match begun {
                        Ok(true) => {}
                        Ok(false) if chart.schedule.is_giving_up() => {
                            chart = self.help(slot, chart, &mut own);
                        }
                        Ok(false) => {}
                        Err(error) => break (Err(error), false),
                    }
                }
                Ask::BeginBatch(slots) => {
                    drop(chart);
                    self.begin_batch(&slots, false);
                    chart = self.lock();
                }
                Ask::Job(job) => {
                    self.can_read(&mut chart, &mut own);
                    drop(chart);
                    self.carry_out(job, &mut own);
                    chart = self.lock();
                }
                Ask::Wait => chart = self.help(slot, chart, &mut own),
            }
        };
        chart.schedule.leave(slot);
        self.leave(chart, &mut own);
        if has_room {
            self.work.notify_one();
        }
        outcome
    }

    /// Makes itself useful while others are at work on a slot, or waits until they have come further.
    fn help<'c>(&'c self, slot: usize, chart: Guard<'c, P>, own: &mut Option<Reader<P>>) -> Guard<'c, P> {
        // What it waits for may be in its own hands.
        let mut chart = match self.settle(chart, own, Some(slot)) {
            Ok(()) => return self.lock(),
            Err(same) => same,
        };
        if self.can_read(&mut chart, own) {
            match chart.schedule.next(1) {
                Next::Nothing => {}
                next => {
                    self.follow(chart, next, own);
                    return self.lock();
                }
            }
        }
        match self.settle(chart, own, None) {
            Ok(()) => self.lock(),
            Err(same) => self.sleep(&self.moved, same, own),
        }
    }

    fn announce_and_do(&self, mut chart: Guard<'_, P>, mut job: Job<P::Chunk>, own: &mut Option<Reader<P>>) {
        if !self.fetcher.is_off() {
            let Announced { mut reads, slots } = chart.schedule.announce(&mut job, self.fetcher.is_cold());
            drop(chart);
            let runs = slots.iter().filter_map(|&slot| self.plan.entries.get(slot)?.run());
            reads.extend(runs.map(|(shard, bytes)| Run {
                shard: Arc::clone(shard),
                bytes: bytes.start..bytes.end.min(bytes.start.saturating_add(ANNOUNCED_BYTES)),
            }));
            self.fetcher.fetch(reads);
        } else {
            drop(chart);
        }
        self.carry_out(job, own);
    }

    /// Allocates entries that are read ahead, together, and queues their jobs.
    fn begin_batch(&self, slots: &[usize], is_ahead: bool) {
        let entries: Vec<_> = slots.iter().map(|&slot| (slot, &self.plan.entries[slot])).collect();
        let (mut begun, mut tiles, mut failed) = (Vec::with_capacity(slots.len()), Vec::new(), Vec::new());
        for (slot, outcome) in slots.iter().zip(self.allocate(&entries, false)) {
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
        let mut chart = self.lock();
        failed.into_iter().for_each(|slot| chart.schedule.not_begun(slot));
        let finished = chart.schedule.begun(begun);
        if !self.stopped() {
            chart.schedule.push_back(jobs);
        }
        if is_ahead {
            chart.schedule.prepared();
        }
        self.tell_begun(chart);
        self.finish_all(finished);
    }

    /// Allocates an entry that somebody waits for, and queues its jobs in front of all others. `false`: there
    /// was no memory, but some is being given up.
    fn begin(&self, slot: usize, entry: &Arc<Entry>) -> Result<bool> {
        let nothing = || Err(Error::new(ErrorKind::Internal, "its memory was not allocated"));
        let (memory, tiles) = match self.allocate(&[(slot, entry)], true).pop().unwrap_or_else(nothing) {
            Ok(begun) => begun,
            Err(error) => return self.not_begun(slot, error),
        };
        let begun = Begun { slot, memory, tiles: tiles.len() };
        let jobs: Vec<_> = tiles.into_iter().map(Job::of).collect();
        let mut chart = self.lock();
        let finished = chart.schedule.begun([begun]);
        if !self.stopped() {
            chart.schedule.push_front(jobs);
        }
        self.tell_begun(chart);
        self.finish_all(finished);
        Ok(true)
    }

    /// Says that there is no memory for an entry, and makes room, if what was read ahead in vain may be in
    /// its place.
    fn not_begun(&self, slot: usize, error: Error) -> Result<bool> {
        let mut chart = self.lock();
        chart.schedule.not_begun(slot);
        let mut unused = Vec::new();
        let mut makes_room = false;
        if matches!(error.kind(), ErrorKind::Memory | ErrorKind::Device) {
            unused = chart.schedule.surrender();
            makes_room = !unused.is_empty() || chart.schedule.is_giving_up();
        }
        drop(chart);
        drop(unused);
        self.moved.notify_all();
        if makes_room { Ok(false) } else { Err(error) }
    }

    /// Wakes those who can do what was queued.
    fn tell_begun(&self, chart: Guard<'_, P>) {
        let jobs = chart.schedule.queued();
        drop(chart);
        // This thread does one of them.
        match jobs {
            0 | 1 => self.work.notify_one(),
            _ => self.work.notify_all(),
        }
        self.moved.notify_all();
    }

    /// The memory of entries, and their tiles.
    fn allocate(
        &self,
        entries: &[(usize, &Arc<Entry>)],
        is_urgent: bool,
    ) -> Vec<Result<(Reading<P>, Tiles<P>)>> {
        let size = |entry: &Entry| {
            let size = caught("it was begun", || Ok(self.chunk(entry, is_urgent)));
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
    fn chunk(&self, entry: &Entry, is_urgent: bool) -> usize {
        let share = match (P::EARLY || Spans::hints(entry).is_some()) && !is_urgent {
            // The next entry is there in time for threads that have no share of this one.
            true => u64::MAX,
            false => entry.byte_len() / (self.settings.threads as u64 * CHUNKS_A_THREAD),
        };
        let least = entry.inputs().first().map_or(0, |input| input.shard().hints().least as u64);
        let step = if entry.tiles().is_direct() { 0 } else { entry.tiles().step() };
        let read = self.made_of_a_read(entry);
        let chunk =
            share.max(least).min(read).max(LEAST_CHUNK).max(step).min(entry.byte_len().max(LEAST_CHUNK));
        // What is computed in large steps is cut between them.
        let chunk = match step > LARGE_STEP {
            true => chunk
                .checked_next_multiple_of(step)
                .filter(|whole| *whole < entry.byte_len())
                .unwrap_or(chunk),
            false => chunk,
        };
        usize::try_from(chunk).unwrap_or(usize::MAX).min(self.placement.most())
    }

    /// The bytes of an entry that are made of as many as are read at a time.
    fn made_of_a_read(&self, entry: &Entry) -> u64 {
        let read = read_size(entry, self.settings.chunk);
        let stored = entry.stored_byte_len();
        if stored == 0 || Spans::hints(entry).is_none() {
            return read;
        }
        let made = u128::from(read) * u128::from(entry.byte_len()) / u128::from(stored);
        u64::try_from(made).ok().and_then(|made| made.checked_next_multiple_of(WHOLE)).unwrap_or(u64::MAX)
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
        let unused = self.lock().schedule.landed(slot, outcome);
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
        let finished = self.lock().schedule.tile_done(slot, outcome);
        if let Some(finished) = finished {
            self.finish(finished);
        }
    }

    fn stopped(&self) -> bool {
        self.stopping.is_stopped()
    }
}

/// What takes less time was not asked for over a network.
const A_REQUEST: Duration = Duration::from_millis(1);

/// Steps of this size share what they gather.
pub(super) const LARGE_STEP: u64 = 1 << 20;

/// The number of chunks of a tensor for each thread, unless they would become too small.
const CHUNKS_A_THREAD: u64 = 4;

/// Smaller reads are slower.
const LEAST_CHUNK: u64 = 128 << 10;

/// A multiple of every element's size, those of 6 bits included.
pub(super) const WHOLE: u64 = 48;
