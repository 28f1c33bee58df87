//! What is to be done next: the state of every entry, the queue of jobs, and the budget for reading ahead.
//!
//! There are no locks, threads or input and output in here, and no user code is called; the [crew](super::crew) does
//! what it says and reports back. A slot is an entry of the plan, or one that was asked for on top of it:
//!
//! ```text
//!            next, ask          begun            tile_done        landed          ask
//! Idle/Taken ────────► Beginning ────► Reading ────────► Finishing ────► Ready ────────► Taken
//!      ▲                   │                                  │
//!      └── not_begun ──────┘                                  └────► Failed ── ask ────► Taken
//! ```

use std::collections::VecDeque;

use crate::error::{Error, Result};

/// Work for one thread.
pub(super) trait Queued {
    /// Bytes that will be read for it.
    type Read;

    /// Whether it makes a part of this slot's entry.
    fn is_for(&self, slot: usize) -> bool;

    /// The bytes of entries that it makes.
    fn bytes(&self) -> u64;

    /// What it will read, as far as that was not announced before.
    fn announce(&mut self) -> Vec<Self::Read>;
}

/// A plan, and how far it is carried out: `J` are jobs, `M` is the memory of an entry that is being read, `T` a tensor.
pub(super) struct Schedule<J, M, T> {
    slots: Vec<Slot<M, T>>,
    queue: VecDeque<J>,
    ahead: ReadAhead,
    /// Whether a thread is allocating what is read ahead next.
    preparing: bool,
    /// Slots that were added and may be used again.
    free: Vec<usize>,
}

struct Slot<M, T> {
    state: State<M, T>,
    /// Bytes of the budget that it holds.
    held: u64,
    /// Threads that wait for it.
    waiting: u32,
    /// Nobody will take what is being read.
    abandoned: bool,
}

enum State<M, T> {
    /// Not read.
    Idle,
    /// Taken; it can be read again, but is not read ahead.
    Taken,
    /// Its memory is being allocated.
    Beginning,
    Reading {
        memory: M,
        tiles_left: usize,
        error: Option<Error>,
    },
    /// All its tiles are made.
    Finishing,
    Ready(T),
    Failed(Error),
}

/// What is read ahead, in which order, and within which budget.
struct ReadAhead {
    /// Slots in the order in which they are read ahead.
    order: Vec<usize>,
    /// The budget that each slot takes, if it is to be read ahead.
    sizes: Vec<Option<u64>>,
    /// The most bytes that may be held.
    limit: u64,
    /// Index in `order` of what is read ahead next.
    next: usize,
    /// Index in `order` of what is announced next.
    next_announced: usize,
    /// Bytes that were read ahead, or are being read, and that nobody has taken.
    held: u64,
    /// Bytes of all from `next` on.
    left: u64,
}

/// What a thread that needs work is to do.
#[derive(Debug)]
pub(super) enum Next<J> {
    /// This job.
    Job(J),
    /// Allocate the memory of these slots and tell [`begun`](Schedule::begun) or [`not_begun`](Schedule::not_begun), then
    /// [`prepared`](Schedule::prepared).
    Begin(Vec<usize>),
    /// Wait until something happens.
    Nothing,
}

/// What a thread that waits for a slot is to do.
#[derive(Debug)]
pub(super) enum Ask<J, T> {
    /// Allocate the memory of this slot, which takes nothing of the budget.
    Begin,
    /// Allocate the memory of these slots, of which the one asked for is the first.
    BeginBatch(Vec<usize>),
    /// This job of the slot.
    Job(J),
    /// Take the tensor. `has_room` says whether there is room now to read ahead more.
    Ready { tensor: T, has_room: bool },
    /// It cannot be made.
    Failed(Error),
    /// Wait: other threads are at work on it.
    Wait,
}

/// An entry whose memory was allocated.
pub(super) struct Begun<M> {
    pub(super) slot: usize,
    pub(super) memory: M,
    pub(super) tiles: usize,
}

/// An entry all of whose tiles are done: what becomes of it is told to [`Schedule::landed`].
pub(super) struct Finished<M> {
    pub(super) slot: usize,
    pub(super) memory: M,
    pub(super) error: Option<Error>,
}

/// What will be read soon.
pub(super) struct Announced<R> {
    /// By jobs.
    pub(super) reads: Vec<R>,
    /// By entries that are not yet begun.
    pub(super) slots: Vec<usize>,
}

/// The number of bytes of small entries that are read ahead at a time. Larger ones are worth huge pages of their own.
pub(super) const BATCH_BYTES: u64 = 32 << 20;

/// The bytes that are announced before they are read: what a fast disk delivers in the time of some reads.
pub(super) const ANNOUNCED_BYTES: u64 = 64 << 20;

impl<J: Queued, M, T> Schedule<J, M, T> {
    /// Reads slots ahead in this order, each of which takes so much of a budget of `limit` bytes; `None` is not read
    /// ahead.
    pub(super) fn new(order: Vec<usize>, sizes: Vec<Option<u64>>, limit: u64) -> Self {
        let left = sizes.iter().flatten().copied().fold(0, u64::saturating_add);
        Self {
            slots: sizes.iter().map(|_| Slot::idle()).collect(),
            queue: VecDeque::new(),
            ahead: ReadAhead { order, sizes, limit, next: 0, next_announced: 0, held: 0, left },
            preparing: false,
            free: Vec::new(),
        }
    }

    /// A slot for an entry that the plan does not have.
    pub(super) fn add_slot(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::idle());
            self.slots.len() - 1
        })
    }

    /// Gives such a slot back. What is in it is no longer wanted, and returned if it has to be dropped.
    pub(super) fn remove_slot(&mut self, slot: usize) -> Option<T> {
        let unused = self.abandon(slot);
        // What is in the middle of being read may still be written to.
        if matches!(self.slots[slot].state, State::Idle | State::Taken) {
            self.free.push(slot);
        }
        unused
    }

    /// Says that a thread waits for a slot, until it [no longer](Self::leave) does.
    pub(super) fn enter(&mut self, slot: usize) {
        self.slots[slot].waiting += 1;
        self.slots[slot].abandoned = false;
    }

    pub(super) fn leave(&mut self, slot: usize) {
        self.slots[slot].waiting -= 1;
    }

    /// Says that a slot's entry is not to be read ahead any more, unless somebody waits for it. Gives back what was read
    /// in vain.
    pub(super) fn abandon(&mut self, slot: usize) -> Option<T> {
        let here = &mut self.slots[slot];
        if here.waiting > 0 {
            return None;
        }
        match here.state {
            State::Taken => None,
            State::Beginning | State::Reading { .. } | State::Finishing => {
                here.abandoned = true;
                None
            }
            State::Idle | State::Ready(_) | State::Failed(_) => {
                let state = std::mem::replace(&mut here.state, State::Taken);
                self.release(slot);
                match state {
                    State::Ready(tensor) => Some(tensor),
                    _ => None,
                }
            }
        }
    }

    /// What a thread that waits for a slot is to do; jobs are only for one that `can_read`. It must have
    /// [entered](Self::enter).
    pub(super) fn ask(&mut self, slot: usize, can_read: bool) -> Ask<J, T> {
        match self.slots[slot].state {
            State::Idle | State::Taken => {
                if self.comes_next(slot) {
                    // Nothing is ready of what would have been read ahead: with this one, its neighbours.
                    let batch = self.next_batch(true);
                    if !batch.is_empty() {
                        return Ask::BeginBatch(batch);
                    }
                }
                self.slots[slot].state = State::Beginning;
                Ask::Begin
            }
            State::Ready(_) | State::Failed(_) => {
                let state = std::mem::replace(&mut self.slots[slot].state, State::Taken);
                let held = self.release(slot);
                match state {
                    State::Ready(tensor) => Ask::Ready { tensor, has_room: held && self.has_room() },
                    State::Failed(error) => Ask::Failed(error),
                    _ => Ask::Wait,
                }
            }
            State::Reading { .. } if can_read => {
                let own = self.queue.iter().position(|job| job.is_for(slot));
                own.and_then(|own| self.queue.remove(own)).map_or(Ask::Wait, Ask::Job)
            }
            State::Beginning | State::Reading { .. } | State::Finishing => Ask::Wait,
        }
    }

    /// Reads no more ahead, and gives up what was and nobody waits for: its memory is needed for something
    /// else.
    pub(super) fn surrender(&mut self) -> Vec<T> {
        (self.ahead.next, self.ahead.left) = (self.ahead.order.len(), 0);
        (0..self.slots.len()).filter_map(|slot| self.abandon(slot)).collect()
    }

    /// Whether threads are still at work on what was given up.
    pub(super) fn is_giving_up(&self) -> bool {
        self.slots.iter().any(|slot| slot.abandoned)
    }

    /// The job at the front of the queue, or, if there are fewer than `least`, what is read ahead next.
    pub(super) fn next(&mut self, least: usize) -> Next<J> {
        if self.queue.len() < least && !self.preparing {
            let batch = self.next_batch(false);
            if !batch.is_empty() {
                self.preparing = true;
                return Next::Begin(batch);
            }
        }
        self.queue.pop_front().map_or(Next::Nothing, Next::Job)
    }

    /// The slots that [`next`](Self::next) gave have been begun, or not.
    pub(super) fn prepared(&mut self) {
        self.preparing = false;
    }

    /// The number of jobs in the queue.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Slots whose memory was allocated. Gives back those that have no tiles and are finished with that.
    pub(super) fn begun(&mut self, begun: impl IntoIterator<Item = Begun<M>>) -> Vec<Finished<M>> {
        let mut finished = Vec::new();
        for Begun { slot, memory, tiles } in begun {
            let state = &mut self.slots[slot].state;
            if tiles == 0 {
                *state = State::Finishing;
                finished.push(Finished { slot, memory, error: None });
            } else {
                *state = State::Reading { memory, tiles_left: tiles, error: None };
            }
        }
        finished
    }

    /// A slot whose memory cannot be allocated. Whoever asks for it tries again.
    pub(super) fn not_begun(&mut self, slot: usize) {
        self.slots[slot].state = State::Taken;
        self.slots[slot].abandoned = false;
        self.release(slot);
    }

    /// Jobs to be done before all others.
    pub(super) fn push_front(&mut self, jobs: Vec<J>) {
        for job in jobs.into_iter().rev() {
            self.queue.push_front(job);
        }
    }

    /// Jobs to be done after all others.
    pub(super) fn push_back(&mut self, jobs: Vec<J>) {
        self.queue.extend(jobs);
    }

    /// A tile of a slot is made, or is not. Gives the slot's memory back with the last one.
    pub(super) fn tile_done(&mut self, slot: usize, outcome: Result<()>) -> Option<Finished<M>> {
        let state = &mut self.slots[slot].state;
        let State::Reading { tiles_left, error, .. } = state else { return None };
        *tiles_left -= 1;
        if let Err(failure) = outcome {
            error.get_or_insert(failure);
        }
        if *tiles_left > 0 {
            return None;
        }
        match std::mem::replace(state, State::Finishing) {
            State::Reading { memory, error, .. } => Some(Finished { slot, memory, error }),
            _ => None,
        }
    }

    /// What became of a slot all of whose tiles were made. A tensor that nobody wants any more is given back.
    pub(super) fn landed(&mut self, slot: usize, outcome: Result<T>) -> Option<T> {
        let here = &mut self.slots[slot];
        if std::mem::take(&mut here.abandoned) {
            here.state = State::Taken;
            self.release(slot);
            return outcome.ok();
        }
        let failed = outcome.is_err();
        here.state = outcome.map_or_else(State::Failed, State::Ready);
        if failed {
            self.release(slot);
        }
        None
    }

    /// Gives up the jobs that nobody has begun.
    pub(super) fn clear(&mut self) -> VecDeque<J> {
        std::mem::take(&mut self.queue)
    }

    /// What will be read next and was not announced: by `job` and those behind it and, if sources are cold, by entries that
    /// are not yet begun. The latter do not count against the budget: they go into a cache that can be reclaimed.
    pub(super) fn announce(&mut self, job: &mut J, is_cold: bool) -> Announced<J::Read> {
        let (mut reads, mut bytes) = (Vec::new(), 0);
        for job in std::iter::once(job).chain(&mut self.queue) {
            if bytes >= ANNOUNCED_BYTES {
                return Announced { reads, slots: Vec::new() };
            }
            bytes += job.bytes();
            reads.extend(job.announce());
        }
        let mut slots = Vec::new();
        let ahead = &mut self.ahead;
        for index in ahead.next.. {
            let Some(&slot) = ahead.order.get(index).filter(|_| is_cold && bytes < ANNOUNCED_BYTES) else {
                break;
            };
            bytes = bytes.saturating_add(ahead.sizes[slot].unwrap_or(0));
            if index >= ahead.next_announced {
                ahead.next_announced = index + 1;
                if matches!(self.slots[slot].state, State::Idle) {
                    slots.push(slot);
                }
            }
        }
        Announced { reads, slots }
    }

    /// Gives back what a slot holds of the budget; whether it held any.
    fn release(&mut self, slot: usize) -> bool {
        let held = std::mem::take(&mut self.slots[slot].held);
        self.ahead.held -= held;
        held > 0
    }

    /// A few small entries at a time are not worth a huge page: reading ahead waits for as much room while somebody
    /// still takes.
    fn worth(&self) -> u64 {
        (BATCH_BYTES / 2).min(self.ahead.limit / 4)
    }

    /// Whether there may be room to read ahead more.
    fn has_room(&self) -> bool {
        let room = self.ahead.limit - self.ahead.held;
        self.ahead.left > 0 && (self.ahead.held == 0 || room >= self.worth() || self.ahead.left <= room)
    }

    /// The next batch to read ahead: one large entry, or enough small ones to fill huge pages. Empty while the budget is
    /// exhausted.
    fn next_batch(&mut self, is_urgent: bool) -> Vec<usize> {
        let room = self.ahead.limit - self.ahead.held;
        let may_wait = !is_urgent && self.ahead.held > 0;
        if may_wait && !self.has_room() {
            return Vec::new();
        }
        let (mut batch, mut bytes, mut next, mut passed) = (Vec::new(), 0_u64, self.ahead.next, 0_u64);
        let mut full = false;
        while let Some(&slot) = self.ahead.order.get(next) {
            if let Some(len) = self.still_ahead(slot) {
                let is_large = len >= BATCH_BYTES;
                full = bytes + len > room;
                if full || (!batch.is_empty() && (is_large || bytes + len > BATCH_BYTES)) {
                    break;
                }
                batch.push((slot, len));
                bytes += len;
                if is_large {
                    next += 1;
                    passed = passed.saturating_add(len);
                    break;
                }
            }
            next += 1;
            passed = passed.saturating_add(self.ahead.sizes[slot].unwrap_or(0));
        }
        if full && may_wait && bytes < self.worth() {
            return Vec::new();
        }
        self.ahead.next = next;
        self.ahead.left = self.ahead.left.saturating_sub(passed);
        self.ahead.held += bytes;
        let begin = |(slot, len): (usize, u64)| {
            let here = &mut self.slots[slot];
            (here.state, here.held) = (State::Beginning, len);
            slot
        };
        batch.into_iter().map(begin).collect()
    }

    /// Whether an entry is small and the next to be read ahead, and there is room for it.
    fn comes_next(&mut self, slot: usize) -> bool {
        while let Some(&next) = self.ahead.order.get(self.ahead.next) {
            if let Some(len) = self.still_ahead(next) {
                return next == slot && len < BATCH_BYTES && self.ahead.held <= self.ahead.limit - len;
            }
            self.ahead.next += 1;
            self.ahead.left = self.ahead.left.saturating_sub(self.ahead.sizes[next].unwrap_or(0));
        }
        false
    }

    /// The budget that a slot takes, if it is still to be read ahead, and is not too large for that.
    fn still_ahead(&self, slot: usize) -> Option<u64> {
        let is_idle = matches!(self.slots[slot].state, State::Idle);
        self.ahead.sizes[slot].filter(|len| is_idle && *len <= self.ahead.limit)
    }
}

impl<M, T> Slot<M, T> {
    fn idle() -> Self {
        Self { state: State::Idle, held: 0, waiting: 0, abandoned: false }
    }
}

#[cfg(test)]
mod tests;
