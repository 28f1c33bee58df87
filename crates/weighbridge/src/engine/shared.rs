//! What the threads of a session do.
//!
//! Every entry is pending, being read, ready, failed or taken. Threads take jobs, which are tiles of entries,
//! from one queue: what somebody waits for stands in front, behind it comes what is read ahead. Whoever waits
//! does jobs too.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::fetch::Fetcher;
use super::job::{Job, Part, read_of};
use super::natural::natural_key;
use super::placement::{Placement, Ticket, Watch, caught};
use super::session::Planned;
use super::tile::{TileMaker, read_size};
use super::{Order, Settings};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Entry;

/// A plan, and how far it is carried out.
pub(super) struct Shared<P: Placement> {
    plan: Arc<Planned>,
    placement: P,
    /// Entries in the order in which they are read ahead.
    order: Vec<usize>,
    /// What each entry takes of the budget for reading ahead, if it is to be read ahead.
    ahead: Vec<Option<u64>>,
    settings: Settings,
    fetcher: Fetcher,
    state: Mutex<State<P>>,
    /// There are jobs, or room to read ahead, or it is time to stop.
    work: Condvar,
    /// An entry is ready or has failed, or something is in flight.
    landed: Condvar,
}

struct State<P: Placement> {
    slots: Vec<Slot<P>>,
    queue: VecDeque<Job<P::Chunk>>,
    /// Place in `order` of what is read ahead next.
    next_ahead: usize,
    /// Place in `order` of what is fetched next.
    next_fetch: usize,
    /// Bytes that were read ahead, or are being, and that nobody has taken.
    ahead_bytes: u64,
    /// Bytes of all that lies behind `next_ahead`.
    ahead_left: u64,
    /// Places of entries that the plan does not have, to be used again.
    free: Vec<usize>,
    /// Copies that were ever started.
    flights: u64,
    stop: bool,
    cancelled: bool,
}

/// Where an entry stands.
enum Slot<P: Placement> {
    /// Not read.
    Idle,
    /// Taken; it can be read again, but is not read ahead.
    Taken,
    Reading(Reading<P>),
    Ready {
        entry: Arc<Entry>,
        tensor: P::Tensor,
        ahead: u64,
    },
    Failed {
        entry: Arc<Entry>,
        error: Error,
    },
}

struct Reading<P: Placement> {
    entry: Arc<Entry>,
    memory: P::Memory,
    jobs_left: usize,
    error: Option<Error>,
    /// What it takes of the budget for reading ahead.
    ahead: u64,
}

impl<P: Placement> Shared<P> {
    pub(super) fn new(plan: Arc<Planned>, settings: Settings, placement: P) -> Self {
        let entries = &plan.entries;
        let mut order: Vec<usize> =
            (0..entries.len()).filter(|&place| !entries[place].is_deferred()).collect();
        match settings.order {
            Order::File => order.sort_by_key(|&place| {
                entries[place].inputs().first().map(|input| (input.shard(), input.range().start))
            }),
            Order::Natural => order.sort_by_cached_key(|&place| natural_key(entries[place].name())),
        }
        let ahead = |entry: &Arc<Entry>| match entry.is_deferred() {
            true => None,
            false => placement.ahead(&plan.checkpoint, entry),
        };
        let ahead: Vec<_> = entries.iter().map(ahead).collect();
        let ahead_left = ahead.iter().flatten().copied().fold(0, u64::saturating_add);
        let state = State {
            slots: entries.iter().map(|_| Slot::Idle).collect(),
            queue: VecDeque::new(),
            next_ahead: 0,
            next_fetch: 0,
            ahead_bytes: 0,
            ahead_left,
            free: Vec::new(),
            flights: 0,
            stop: false,
            cancelled: false,
        };
        Self {
            plan,
            placement,
            order,
            ahead,
            state: Mutex::new(state),
            work: Condvar::new(),
            landed: Condvar::new(),
            fetcher: Fetcher::new(settings.prefetch),
            settings,
        }
    }

    /// A place for an entry that the plan does not have.
    pub(super) fn add_place(&self) -> usize {
        let mut state = self.lock();
        state.free.pop().unwrap_or_else(|| {
            state.slots.push(Slot::Idle);
            state.slots.len() - 1
        })
    }

    /// Gives such a place back.
    pub(super) fn give_place_back(&self, place: usize) {
        let mut state = self.lock();
        // What was cancelled in the middle may still be written to.
        if matches!(state.slots[place], Slot::Idle | Slot::Taken) {
            state.free.push(place);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<P>> {
        // No code that holds the lock leaves the state half changed when it panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends reading; what is waited for is given up if it is cancelled.
    pub(super) fn stop(&self, cancelled: bool) {
        let mut state = self.lock();
        state.stop = true;
        state.cancelled |= cancelled;
        self.fetcher.stop();
        let queue = std::mem::take(&mut state.queue);
        drop(state);
        drop(queue);
        self.work.notify_all();
        self.landed.notify_all();
    }

    /// What a thread of the session does.
    pub(super) fn work(&self) {
        let mut maker = TileMaker::new(self.plan.checkpoint.clone(), self.settings.chunk);
        let mut state = self.lock();
        while !state.stop {
            let worked;
            (state, worked) = self.next_job(state, &mut maker);
            if worked {
                continue;
            }
            drop(state);
            let settled = self.placement.settle(self);
            state = self.lock();
            if !settled && !state.stop && !self.has_work(&mut state) {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// The tensor at a place of the plan, or at one that was [added](Self::add_place).
    pub(super) fn take(&self, place: usize, entry: Arc<Entry>) -> Result<(Arc<Entry>, P::Tensor)> {
        let mut maker = TileMaker::new(self.plan.checkpoint.clone(), self.settings.chunk);
        let mut state = self.lock();
        loop {
            if state.cancelled {
                return Err(Error::new(ErrorKind::Cancelled, "loading was cancelled").in_tensor(entry.name()));
            }
            let as_planned =
                self.plan.entries.get(place).is_some_and(|planned| planned.dtype() == entry.dtype());
            if as_planned && self.comes_next(&mut state, place) {
                // Nothing is ready of what would have been read ahead: with this one, its neighbours.
                let batch = self.next_batch(&mut state, true);
                self.begin_ahead(&mut state, batch);
            }
            let job = match &state.slots[place] {
                Slot::Idle | Slot::Taken => {
                    let jobs = self.begin(&mut state, place, Arc::clone(&entry))?;
                    if jobs.is_empty() {
                        // It was there already, and no job will tell of it.
                        drop(state);
                        self.tell(0, entry.byte_len());
                        state = self.lock();
                        continue;
                    }
                    // The first job stays here: small tensors need no other thread.
                    let mut jobs = jobs.into_iter();
                    let own = jobs.next();
                    let more = jobs.len();
                    for job in jobs.rev() {
                        state.queue.push_front(job);
                    }
                    if more > 0 {
                        self.work.notify_all();
                    }
                    own
                }
                Slot::Ready { .. } => {
                    let slot = std::mem::replace(&mut state.slots[place], Slot::Taken);
                    let Slot::Ready { entry: made, tensor, ahead } = slot else { continue };
                    if ahead > 0 {
                        state.ahead_bytes -= ahead;
                        self.work.notify_all();
                    }
                    if made.dtype() != entry.dtype() {
                        continue;
                    }
                    drop(state);
                    self.placement.hand_out(&self.plan.checkpoint, &made, &tensor)?;
                    self.plan.report.note_taken(&made);
                    return Ok((made, tensor));
                }
                Slot::Failed { entry: tried, error } => {
                    // Reading ahead in another dtype may fail where this one does not.
                    let outcome = if tried.dtype() == entry.dtype() { Err(error.clone()) } else { Ok(()) };
                    state.slots[place] = Slot::Taken;
                    outcome?;
                    continue;
                }
                Slot::Reading(_) => {
                    let own = state.queue.iter().position(|job| job.has(place));
                    own.and_then(|own| state.queue.remove(own))
                }
            };
            if let Some(job) = job {
                drop(state);
                self.placement.carry_out(job, &mut maker, self);
                state = self.lock();
                continue;
            }
            if !matches!(state.slots[place], Slot::Reading(_)) {
                continue;
            }
            // The rest of it is with other threads, or in flight.
            let flights = state.flights;
            drop(state);
            let settled = self.placement.settle(self);
            state = self.lock();
            if settled || flights != state.flights || !matches!(state.slots[place], Slot::Reading(_)) {
                continue;
            }
            let worked;
            (state, worked) = self.next_job(state, &mut maker);
            if !worked && !state.cancelled && matches!(state.slots[place], Slot::Reading(_)) {
                state = self.landed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Does the job at the front of the queue, else the first of the next entry that is read ahead. It takes the
    /// lock and gives it back, and whether there was a job.
    fn next_job<'s>(
        &'s self,
        mut state: MutexGuard<'s, State<P>>,
        maker: &mut TileMaker,
    ) -> (MutexGuard<'s, State<P>>, bool) {
        if !self.has_work(&mut state) {
            return (state, false);
        }
        let reads = self.unannounced(&mut state);
        let job = state.queue.pop_front();
        drop(state);
        self.fetcher.fetch(&self.plan.checkpoint, reads);
        if let Some(job) = job {
            self.placement.carry_out(job, maker, self);
        }
        (self.lock(), true)
    }

    /// Whether there is a job, if need be of the next entry that is read ahead.
    fn has_work(&self, state: &mut State<P>) -> bool {
        let least = if P::EARLY { self.settings.threads } else { 1 };
        while state.queue.len() < least && !state.stop {
            let batch = self.next_batch(state, false);
            if batch.is_empty() {
                break;
            }
            self.begin_ahead(state, batch);
        }
        !state.queue.is_empty()
    }

    /// What will be read next and was not yet looked for: by jobs and, if sources are cold, by entries that are not
    /// yet begun. These are no burden to the budget: they go into a cache that gives way.
    fn unannounced(&self, state: &mut State<P>) -> Vec<(usize, Range<u64>)> {
        let (mut reads, mut bytes) = (Vec::new(), 0);
        if self.fetcher.is_off() {
            return reads;
        }
        for job in &mut state.queue {
            if bytes >= FETCH_BYTES {
                return reads;
            }
            bytes += job.bytes();
            if !std::mem::replace(&mut job.announced, true) {
                reads.extend(job.reads());
            }
        }
        if self.fetcher.is_cold() {
            for number in state.next_ahead.. {
                let Some(&place) = self.order.get(number).filter(|_| bytes < FETCH_BYTES) else { break };
                let entry = &self.plan.entries[place];
                bytes += entry.byte_len();
                if number >= state.next_fetch {
                    state.next_fetch = number + 1;
                    let begun = !matches!(state.slots[place], Slot::Idle);
                    let read = (!begun).then(|| read_of(entry, 0..entry.byte_len())).flatten();
                    reads.extend(read.map(|(shard, range)| {
                        (shard, range.start..range.end.min(range.start + FETCH_BYTES))
                    }));
                }
            }
        }
        reads
    }

    /// The entries that are read ahead next: one large one, or so many small ones that their memory can lie on huge
    /// pages. None while there is no room for them.
    fn next_batch(&self, state: &mut State<P>, urgent: bool) -> Vec<(usize, u64)> {
        let most = self.settings.read_ahead;
        let room = most.saturating_sub(state.ahead_bytes);
        // A few at a time would not be worth a huge page: wait for more room while somebody still takes.
        let worth = (BATCH_BYTES / 2).min(most / 4);
        let wait = !urgent && state.ahead_bytes > 0;
        if wait && room < worth && state.ahead_left > room {
            return Vec::new();
        }
        let (mut batch, mut bytes, mut next, mut passed) = (Vec::new(), 0_u64, state.next_ahead, 0);
        let mut full = false;
        while let Some(&place) = self.order.get(next) {
            if let Some(len) = self.still_ahead(state, place) {
                let large = len >= BATCH_BYTES;
                full = bytes + len > room;
                if full || (!batch.is_empty() && (large || bytes + len > BATCH_BYTES)) {
                    break;
                }
                batch.push((place, len));
                bytes += len;
                if large {
                    next += 1;
                    passed += len;
                    break;
                }
            }
            next += 1;
            passed += self.ahead[place].unwrap_or(0);
        }
        if full && wait && bytes < worth {
            return Vec::new();
        }
        state.next_ahead = next;
        state.ahead_left = state.ahead_left.saturating_sub(passed);
        state.ahead_bytes += bytes;
        batch
    }

    /// Whether an entry is small and the next to be read ahead, and there is room for it.
    fn comes_next(&self, state: &mut State<P>, place: usize) -> bool {
        while let Some(&next) = self.order.get(state.next_ahead) {
            if let Some(len) = self.still_ahead(state, next) {
                return next == place
                    && len < BATCH_BYTES
                    && state.ahead_bytes <= self.settings.read_ahead - len;
            }
            state.next_ahead += 1;
            state.ahead_left = state.ahead_left.saturating_sub(self.ahead[next].unwrap_or(0));
        }
        false
    }

    /// What an entry of the plan takes of the budget, if it is still to be read ahead, and not too large for that.
    fn still_ahead(&self, state: &State<P>, place: usize) -> Option<u64> {
        let fits = |len: &u64| matches!(state.slots[place], Slot::Idle) && *len <= self.settings.read_ahead;
        self.ahead[place].filter(fits)
    }

    /// Allocates entries that are read ahead, together, and queues their jobs.
    fn begin_ahead(&self, state: &mut State<P>, batch: Vec<(usize, u64)>) {
        let mut allocated = Vec::with_capacity(batch.len());
        for (place, ahead) in batch {
            let entry = Arc::clone(&self.plan.entries[place]);
            match self.allocate(&entry) {
                Ok(blank) => allocated.push((place, entry, blank, ahead)),
                Err(_) => {
                    // Whoever asks for it tries again, and is told.
                    state.ahead_bytes -= ahead;
                    state.slots[place] = Slot::Taken;
                }
            }
        }
        let mut parts = Vec::new();
        for (place, entry, blank, ahead) in allocated {
            parts.extend(self.cut(state, place, entry, blank, ahead));
        }
        state.queue.extend(self.placement.jobs(&self.plan.checkpoint, parts));
        if state.queue.len() > 1 {
            self.work.notify_all();
        }
    }

    /// Allocates an entry's memory and cuts it into jobs.
    fn begin(&self, state: &mut State<P>, place: usize, entry: Arc<Entry>) -> Result<Vec<Job<P::Chunk>>> {
        let blank = self.allocate(&entry)?;
        Ok(self.cut(state, place, entry, blank, 0).into_iter().map(Job::of).collect())
    }

    /// Memory for an entry, and the size of its chunks. An operation that panics does so here, before anything was begun.
    fn allocate(&self, entry: &Entry) -> Result<(P::Blank, usize)> {
        let allocate = || {
            let chunk = self.chunk(entry);
            Ok((self.placement.allocate(&self.plan.checkpoint, entry)?, chunk))
        };
        caught("it was begun", allocate).map_err(|error| error.in_tensor(entry.name()))
    }

    fn cut(
        &self,
        state: &mut State<P>,
        place: usize,
        entry: Arc<Entry>,
        (blank, chunk): (P::Blank, usize),
        ahead: u64,
    ) -> Vec<Part<P::Chunk>> {
        let (memory, chunks) = self.placement.cut(&entry, blank, chunk);
        let part = |(tile, chunk)| Part { place, entry: Arc::clone(&entry), tile, chunk };
        let parts: Vec<_> = chunks.into_iter().map(part).collect();
        let reading = Reading { entry, memory, jobs_left: parts.len(), error: None, ahead };
        state.slots[place] = Slot::Reading(reading);
        if parts.is_empty() {
            self.land(state, place);
        }
        parts
    }

    /// The size of an entry's chunks: what its source likes, or less, so that all threads have a part in a tensor
    /// that somebody waits for; but no less than what is computed at a time.
    fn chunk(&self, entry: &Entry) -> usize {
        let share = entry.byte_len() / (self.settings.threads as u64 * CHUNKS_A_THREAD);
        let (operation, inputs) = (entry.operation(), entry.inputs());
        let step = if operation.is_direct(inputs) { 0 } else { operation.step(inputs) };
        let read = read_size(&self.plan.checkpoint, entry, self.settings.chunk);
        let chunk = share.min(read).max(LEAST_CHUNK).max(step).min(entry.byte_len().max(LEAST_CHUNK));
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

    /// All jobs of the entry are done.
    fn land(&self, state: &mut State<P>, place: usize) {
        let slot = std::mem::replace(&mut state.slots[place], Slot::Idle);
        let Slot::Reading(Reading { entry, memory, error, ahead, .. }) = slot else {
            return;
        };
        let outcome = match error {
            Some(error) => Err(error),
            None => self.placement.finish(&entry, memory).map_err(|error| error.in_tensor(entry.name())),
        };
        state.slots[place] = match outcome {
            Ok(tensor) => Slot::Ready { entry, tensor, ahead },
            Err(error) => {
                if ahead > 0 {
                    state.ahead_bytes -= ahead;
                    self.work.notify_all();
                }
                Slot::Failed { entry, error }
            }
        };
        self.landed.notify_all();
    }
}

impl<P: Placement> Watch for Shared<P> {
    fn read_together(&self, bytes: u64) {
        self.tell(bytes, 0);
    }

    fn done(&self, ticket: Ticket, outcome: Result<()>) {
        let Ticket { place, bytes, read } = ticket;
        // Before the entry lands, so that who takes it finds its bytes counted.
        self.tell(read, if outcome.is_ok() { bytes } else { 0 });
        let mut state = self.lock();
        if let Slot::Reading(reading) = &mut state.slots[place] {
            reading.jobs_left -= 1;
            if let Err(error) = outcome {
                let error = error.in_tensor(reading.entry.name());
                reading.error.get_or_insert(error);
            }
            if reading.jobs_left == 0 {
                self.land(&mut state, place);
            }
        }
    }

    fn in_flight(&self) {
        self.lock().flights += 1;
        // Whoever waits for what is in it settles it.
        self.landed.notify_all();
    }

    fn stopped(&self) -> bool {
        self.lock().stop
    }
}

/// So many chunks of a tensor there are for each thread, unless they would become too small.
const CHUNKS_A_THREAD: u64 = 4;

/// Smaller reads are slower.
const LEAST_CHUNK: u64 = 128 << 10;

/// Small entries are read ahead so many bytes at a time. Larger ones are worth huge pages of their own.
const BATCH_BYTES: u64 = 32 << 20;

/// So many bytes are fetched before they are read: what a fast disk delivers in the time of some reads.
const FETCH_BYTES: u64 = 64 << 20;
