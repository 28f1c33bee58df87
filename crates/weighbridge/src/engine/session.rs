//! A plan that is being carried out.
//!
//! Every entry is pending, being read, ready, failed or taken. Threads take jobs, which are tiles of entries,
//! from one queue: what somebody waits for stands in front, behind it comes what is read ahead. Whoever waits
//! does jobs too.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::report::Report;
use super::tile::{TileMaker, read_size};
use super::{Order, Settings};
use crate::buffer::{self, Allocation, Chunk, Filling, HostBuffer, HugePage};
use crate::checkpoint::Checkpoint;
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Entry, Piece, Plan};
use crate::source::Hints;

/// A plan that is being carried out by several threads.
///
/// Tensors are [taken](Session::take) by name, in any order, from any thread. Dropping the session stops it:
/// reads under way are finished, no more are started.
///
/// ```
/// use weighbridge::{Checkpoint, HostBuffer, Plan};
///
/// # fn main() -> weighbridge::Result<()> {
/// # let bytes = b"\x35\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}xy".to_vec();
/// let ckpt = Checkpoint::from_bytes(bytes)?;
/// let session = Plan::of(&ckpt).build()?.session().start()?;
/// let (entry, values) = session.take("a", None)?;
/// assert_eq!(entry.shape(), [2]);
/// assert_eq!(values, HostBuffer::U8(b"xy".to_vec()));
/// # Ok(())
/// # }
/// ```
pub struct Session {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    checkpoint: Checkpoint,
    entries: Vec<Arc<Entry>>,
    by_name: HashMap<String, usize>,
    /// Entries in the order in which they are read ahead.
    order: Vec<usize>,
    settings: Settings,
    report: Report,
    state: Mutex<State>,
    /// There are jobs, or room to read ahead, or it is time to stop.
    work: Condvar,
    /// An entry is ready or has failed.
    landed: Condvar,
}

struct State {
    slots: Vec<Slot>,
    queue: VecDeque<Job>,
    /// Place in `order` of what is read ahead next.
    next_ahead: usize,
    /// Bytes that were read ahead, or are being, and that nobody has taken.
    ahead_bytes: u64,
    stop: bool,
}

/// Where an entry stands.
enum Slot {
    /// Not read.
    Idle,
    /// Taken; it can be read again, but is not read ahead.
    Taken,
    Reading(Reading),
    Ready {
        entry: Arc<Entry>,
        buffer: HostBuffer,
        ahead: bool,
    },
    Failed {
        entry: Arc<Entry>,
        error: Error,
    },
}

struct Reading {
    entry: Arc<Entry>,
    filling: Filling,
    jobs_left: usize,
    error: Option<Error>,
    ahead: bool,
}

/// Work for one thread.
struct Job {
    /// Where the groups' memory lies, if they share it.
    huge_page: Option<HugePage>,
    groups: Vec<Group>,
}

/// Parts that are made one after the other.
struct Group {
    parts: Vec<Part>,
    /// Bytes of a shard that hold what all parts need, to be read at once.
    together: Option<(usize, Range<u64>)>,
}

impl Group {
    fn of(part: Part) -> Self {
        Self { parts: vec![part], together: None }
    }
}

/// A piece of an entry.
struct Part {
    place: usize,
    entry: Arc<Entry>,
    chunk: Chunk,
}

impl Job {
    fn of(part: Part) -> Self {
        Self { huge_page: None, groups: vec![Group::of(part)] }
    }

    fn has(&self, place: usize) -> bool {
        self.groups.iter().any(|group| group.parts.iter().any(|part| part.place == place))
    }
}

impl Session {
    pub(super) fn start(plan: Plan, settings: Settings) -> Result<Self> {
        let entries = plan.entries().to_vec();
        let mut by_name = HashMap::with_capacity(entries.len());
        for (place, entry) in entries.iter().enumerate() {
            if by_name.insert(entry.name().to_owned(), place).is_some() {
                let error = Error::new(ErrorKind::DuplicateTensor, "the plan has two entries of this name");
                return Err(error.in_tensor(entry.name()));
            }
        }
        let mut order: Vec<usize> = (0..entries.len()).collect();
        match settings.order {
            Order::File => order.sort_by_key(|&place| {
                entries[place].inputs().first().map(|input| (input.shard(), input.range().start))
            }),
            Order::Natural => order.sort_by_cached_key(|&place| natural_key(entries[place].name())),
        }
        let state = State {
            slots: entries.iter().map(|_| Slot::Idle).collect(),
            queue: VecDeque::new(),
            next_ahead: 0,
            ahead_bytes: 0,
            stop: false,
        };
        let shared = Arc::new(Shared {
            checkpoint: plan.checkpoint().clone(),
            report: Report::new(&entries),
            entries,
            by_name,
            order,
            state: Mutex::new(state),
            work: Condvar::new(),
            landed: Condvar::new(),
            settings,
        });
        // The caller is the remaining thread. Where threads cannot be had it is the only one.
        let threads = (1..shared.settings.threads)
            .map_while(|_| {
                let shared = Arc::clone(&shared);
                let builder = std::thread::Builder::new().name("weighbridge".to_owned());
                builder.spawn(move || shared.work()).ok()
            })
            .collect();
        Ok(Self { shared, threads })
    }

    /// Takes a tensor, waiting for it if need be; `dtype` may ask for another dtype than the plan has. It
    /// returns the entry as it was carried out, and the values.
    ///
    /// What was taken is no longer held; taken again, it is read again.
    ///
    /// # Errors
    ///
    /// Fails when the plan has no entry of this name, when there is no cast to `dtype`, and when reading or
    /// converting fails.
    pub fn take(&self, name: &str, dtype: Option<Dtype>) -> Result<(Arc<Entry>, HostBuffer)> {
        let Some(&place) = self.shared.by_name.get(name) else {
            let error = Error::new(ErrorKind::MissingTensor, "there is no such tensor in the plan");
            return Err(error.in_tensor(name));
        };
        let planned = &self.shared.entries[place];
        let entry = match dtype {
            Some(dtype) if dtype != planned.dtype() => Arc::new(planned.recast(dtype)?),
            _ => Arc::clone(planned),
        };
        self.shared.take(place, entry)
    }

    /// Makes a tensor that the plan does not have, of the plan's checkpoint, with all threads: a part that only
    /// whoever asks for it can name, say.
    ///
    /// # Errors
    ///
    /// Fails when reading or converting fails.
    pub fn make(&self, entry: Entry) -> Result<HostBuffer> {
        let place = {
            let mut state = self.shared.lock();
            state.slots.push(Slot::Idle);
            state.slots.len() - 1
        };
        self.shared.take(place, Arc::new(entry)).map(|(_, buffer)| buffer)
    }

    /// The names of the plan's entries, in their order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.shared.entries.iter().map(|entry| entry.name())
    }

    /// The entry of that name, as planned.
    pub fn entry(&self, name: &str) -> Option<&Arc<Entry>> {
        self.shared.by_name.get(name).map(|&place| &self.shared.entries[place])
    }

    /// What has been done so far; the handle keeps counting.
    pub fn report(&self) -> Report {
        self.shared.report.clone()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread's panics were caught and have become errors.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("checkpoint", &self.shared.checkpoint)
            .field("entries", &self.shared.entries.len())
            .field("threads", &(self.threads.len() + 1))
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock leaves the state half changed when it panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread of the session does.
    fn work(&self) {
        let mut maker = TileMaker::default();
        let mut state = self.lock();
        while !state.stop {
            match self.next_job(&mut state) {
                Some(job) => {
                    drop(state);
                    self.carry_out(job, &mut maker);
                    state = self.lock();
                }
                None => state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn take(&self, place: usize, entry: Arc<Entry>) -> Result<(Arc<Entry>, HostBuffer)> {
        let mut maker = TileMaker::default();
        let mut state = self.lock();
        loop {
            let as_planned = self.entries.get(place).is_some_and(|planned| planned.dtype() == entry.dtype());
            if as_planned && self.comes_next(&mut state, place) {
                // Nothing is ready of what would have been read ahead: with this one, its neighbours.
                let batch = self.next_batch(&mut state, true);
                self.begin_ahead(&mut state, batch);
            }
            let job = match &state.slots[place] {
                Slot::Idle | Slot::Taken => {
                    let jobs = self.begin(&mut state, place, Arc::clone(&entry))?;
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
                    let Slot::Ready { entry: made, buffer, ahead } = slot else { continue };
                    if ahead {
                        state.ahead_bytes -= made.byte_len();
                        self.work.notify_all();
                    }
                    if made.dtype() != entry.dtype() {
                        continue;
                    }
                    drop(state);
                    self.report.note_taken(&made);
                    return Ok((made, buffer));
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
                    match own.and_then(|own| state.queue.remove(own)) {
                        Some(job) => Some(job),
                        None => self.next_job(&mut state),
                    }
                }
            };
            match job {
                Some(job) => {
                    drop(state);
                    self.carry_out(job, &mut maker);
                    state = self.lock();
                }
                None if matches!(state.slots[place], Slot::Reading(_)) => {
                    state = self.landed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                None => {}
            }
        }
    }

    /// The job at the front of the queue, else the first of the next entry that is read ahead.
    fn next_job(&self, state: &mut State) -> Option<Job> {
        while state.queue.is_empty() {
            let batch = self.next_batch(state, false);
            if batch.is_empty() {
                return None;
            }
            self.begin_ahead(state, batch);
        }
        state.queue.pop_front()
    }

    /// The entries that are read ahead next: one large one, or so many small ones that their memory can lie on huge
    /// pages. None while there is no room for them.
    fn next_batch(&self, state: &mut State, urgent: bool) -> Vec<usize> {
        let most = self.settings.read_ahead;
        let (mut batch, mut bytes, mut next) = (Vec::new(), 0_u64, state.next_ahead);
        let mut full = false;
        while let Some(&place) = self.order.get(next) {
            let len = self.entries[place].byte_len();
            if matches!(state.slots[place], Slot::Idle) && len <= most {
                let large = len >= BATCH_BYTES;
                full = state.ahead_bytes + bytes > most - len;
                if full || (!batch.is_empty() && (large || bytes + len > BATCH_BYTES)) {
                    break;
                }
                batch.push(place);
                bytes += len;
                if large {
                    next += 1;
                    break;
                }
            }
            next += 1;
        }
        // A few at a time would not be worth a huge page: wait for more room while somebody still takes.
        if full && !urgent && bytes < BATCH_BYTES / 2 && bytes < most / 4 && state.ahead_bytes > 0 {
            return Vec::new();
        }
        state.next_ahead = next;
        state.ahead_bytes += bytes;
        batch
    }

    /// Whether an entry is small and the next to be read ahead, and there is room for it.
    fn comes_next(&self, state: &mut State, place: usize) -> bool {
        while let Some(&next) = self.order.get(state.next_ahead) {
            if matches!(state.slots[next], Slot::Idle)
                && self.entries[next].byte_len() <= self.settings.read_ahead
            {
                let len = self.entries[next].byte_len();
                return next == place
                    && len < BATCH_BYTES
                    && state.ahead_bytes <= self.settings.read_ahead - len;
            }
            state.next_ahead += 1;
        }
        false
    }

    /// Allocates entries that are read ahead, together, and queues their jobs.
    fn begin_ahead(&self, state: &mut State, batch: Vec<usize>) {
        let mut allocated = Vec::with_capacity(batch.len());
        for place in batch {
            let entry = Arc::clone(&self.entries[place]);
            match allocate(&entry) {
                Ok(memory) => allocated.push((place, entry, memory)),
                Err(error) => {
                    state.ahead_bytes -= entry.byte_len();
                    state.slots[place] = Slot::Failed { entry, error };
                    self.landed.notify_all();
                }
            }
        }
        let mut parts = Vec::new();
        for (place, entry, memory) in allocated {
            parts.extend(self.cut(state, place, entry, memory, true));
        }
        state.queue.extend(jobs(&self.checkpoint, parts));
        if state.queue.len() > 1 {
            self.work.notify_all();
        }
    }

    /// Allocates an entry's memory and cuts it into jobs.
    fn begin(&self, state: &mut State, place: usize, entry: Arc<Entry>) -> Result<Vec<Job>> {
        let memory = allocate(&entry)?;
        Ok(self.cut(state, place, entry, memory, false).into_iter().map(Job::of).collect())
    }

    fn cut(
        &self,
        state: &mut State,
        place: usize,
        entry: Arc<Entry>,
        memory: Allocation,
        ahead: bool,
    ) -> Vec<Part> {
        let (filling, chunks) = memory.into_chunks(self.chunk(&entry));
        let part = |chunk| Part { place, entry: Arc::clone(&entry), chunk };
        let parts: Vec<_> = chunks.into_iter().map(part).collect();
        let reading = Reading { entry, filling, jobs_left: parts.len(), error: None, ahead };
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
        let chunk = share.min(read_size(&self.checkpoint, entry)).max(LEAST_CHUNK).max(step);
        usize::try_from(chunk).unwrap_or(usize::MAX)
    }

    fn carry_out(&self, job: Job, maker: &mut TileMaker) {
        if let Some(page) = job.huge_page {
            page.make();
        }
        for Group { parts, together } in job.groups {
            if let Some((shard, range)) = together {
                let read = maker.read_together(&self.checkpoint, shard, range);
                self.tell(read, 0);
            }
            for part in parts {
                let stopped = self.carry_out_part(part, maker);
                if stopped {
                    return;
                }
            }
            maker.forget();
        }
    }

    /// Returns whether it is time to stop.
    fn carry_out_part(&self, part: Part, maker: &mut TileMaker) -> bool {
        let Part { place, entry, chunk } = part;
        let tile = chunk.range();
        let made = tile.end - tile.start;
        let mut read = 0;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            chunk.fill(|memory| {
                let (memory, bytes) = maker.make(&self.checkpoint, &entry, tile, memory)?;
                read = bytes;
                Ok::<_, Error>(memory)
            })
        }));
        let outcome = outcome.unwrap_or_else(|panic| {
            let message = format!("a panic while it was loaded: {}", panic_message(&*panic));
            Err(Error::new(ErrorKind::Internal, message).in_tensor(entry.name()))
        });
        // Before the entry lands, so that who takes it finds its bytes counted.
        self.tell(read, if outcome.is_ok() { made } else { 0 });
        let mut state = self.lock();
        if let Slot::Reading(reading) = &mut state.slots[place] {
            reading.jobs_left -= 1;
            if let Err(error) = outcome {
                reading.error.get_or_insert(error);
            }
            if reading.jobs_left == 0 {
                self.land(&mut state, place);
            }
        }
        state.stop
    }

    /// Tells the report and the progress handler of bytes that have arrived.
    fn tell(&self, read: u64, made: u64) {
        match &self.settings.progress {
            None => {
                self.report.note_read(read, made);
            }
            Some(handler) => {
                // Under the handler's lock, so that figures reach it in their order.
                let mut handler = handler.lock().unwrap_or_else(PoisonError::into_inner);
                let progress = self.report.note_read(read, made);
                let _ = catch_unwind(AssertUnwindSafe(|| handler(progress)));
            }
        }
    }

    /// All jobs of the entry are done.
    fn land(&self, state: &mut State, place: usize) {
        let slot = std::mem::replace(&mut state.slots[place], Slot::Idle);
        let Slot::Reading(Reading { entry, filling, error, ahead, .. }) = slot else {
            return;
        };
        let outcome = match error {
            Some(error) => Err(error),
            None => filling.finish().ok_or_else(|| {
                let message = "not all of its memory was filled";
                Error::new(ErrorKind::Internal, message).in_tensor(entry.name())
            }),
        };
        state.slots[place] = match outcome {
            Ok(buffer) => Slot::Ready { entry, buffer, ahead },
            Err(error) => {
                if ahead {
                    state.ahead_bytes -= entry.byte_len();
                    self.work.notify_all();
                }
                Slot::Failed { entry, error }
            }
        };
        self.landed.notify_all();
    }
}

/// So many chunks of a tensor there are for each thread, unless they would become too small.
const CHUNKS_A_THREAD: u64 = 4;

/// Smaller reads are slower.
const LEAST_CHUNK: u64 = 256 << 10;

/// Small entries are read ahead so many bytes at a time. Larger ones are worth huge pages of their own.
const BATCH_BYTES: u64 = 32 << 20;

fn allocate(entry: &Entry) -> Result<Allocation> {
    let named = |error: Error| error.in_tensor(entry.name());
    let bytes = usize::try_from(entry.byte_len())
        .map_err(|_| named(Error::new(ErrorKind::Memory, "it does not fit this machine's address space")))?;
    Allocation::new(entry.dtype(), bytes).map_err(named)
}

/// Makes jobs of parts: those that begin in one huge page are one.
fn jobs(checkpoint: &Checkpoint, parts: Vec<Part>) -> Vec<Job> {
    let pages = buffer::huge_pages(parts.iter().map(|part| &part.chunk));
    let mut jobs: Vec<Job> = Vec::new();
    let mut of_page = HashMap::<_, usize>::new();
    for group in coalesce(checkpoint, parts) {
        let first = group.parts.first().map(|part| part.chunk.huge_page());
        let huge_page = first.filter(|page| pages.contains(page));
        match huge_page.and_then(|page| of_page.get(&page)) {
            Some(&job) => jobs[job].groups.push(group),
            None => {
                of_page.extend(huge_page.map(|page| (page, jobs.len())));
                jobs.push(Job { huge_page, groups: vec![group] });
            }
        }
    }
    jobs
}

/// Groups parts: those that are so small that a read of their own costs more than their bytes do share one.
fn coalesce(checkpoint: &Checkpoint, parts: Vec<Part>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut parts: Vec<_> = parts.into_iter().map(|part| (small_read(checkpoint, &part), part)).collect();
    if parts.iter().filter(|(small, _)| small.is_some()).count() > 1 {
        // Stable, and large parts first: what is not coalesced keeps its order.
        parts.sort_by_key(|(small, _)| small.as_ref().map(|small| (small.shard, small.bytes.start)));
    }
    for (small, part) in parts {
        let Some(SmallRead { shard, bytes, hints }) = small else {
            groups.push(Group::of(part));
            continue;
        };
        if let Some(Group { parts, together: Some((last, range)) }) = groups.last_mut() {
            let gap = bytes.start.checked_sub(range.end);
            let near = *last == shard && gap.is_some_and(|gap| gap <= hints.read_through as u64);
            if near && bytes.end - range.start <= most_together(&hints) {
                range.end = bytes.end;
                parts.push(part);
                continue;
            }
        }
        groups.push(Group { parts: vec![part], together: Some((shard, bytes)) });
    }
    for group in &mut groups {
        // One alone is read straight into its place.
        group.together = group.together.take().filter(|_| group.parts.len() > 1);
    }
    groups
}

/// A read that costs more than its bytes.
struct SmallRead {
    shard: usize,
    bytes: Range<u64>,
    hints: Hints,
}

fn small_read(checkpoint: &Checkpoint, part: &Part) -> Option<SmallRead> {
    let [input] = part.entry.inputs() else { return None };
    let hints = checkpoint.shards().get(input.shard())?.source().hints();
    if part.chunk.range().end > hints.read_through as u64 {
        return None;
    }
    let pieces = part.entry.operation().gather(part.entry.inputs(), part.chunk.range());
    let [Piece { input: 0, bytes }] = &*pieces else { return None };
    let start = input.range().start;
    Some(SmallRead { shard: input.shard(), bytes: start + bytes.start..start + bytes.end, hints })
}

/// So many bytes are read at once for several parts; on a local disk they stay in the cache.
fn most_together(hints: &Hints) -> u64 {
    16 * hints.read_through as u64
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(|text| &**text)).unwrap_or("no message")
}

/// Sorts names with numbers by value: pairs of text and the number behind it.
fn natural_key(name: &str) -> Vec<(String, u64)> {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (text, behind) = rest.split_at(text);
        let digits = behind.find(|c: char| !c.is_ascii_digit()).unwrap_or(behind.len());
        let (digits, behind) = behind.split_at(digits);
        key.push((text.to_owned(), digits.parse().unwrap_or(if digits.is_empty() { 0 } else { u64::MAX })));
        rest = behind;
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_sort_by_value() {
        let mut names =
            ["layers.10.w", "layers.2.w", "layers.2.b", "norm", "layers", "x99999999999999999999"];
        names.sort_by_cached_key(|name| natural_key(name));
        let expected = ["layers", "layers.2.b", "layers.2.w", "layers.10.w", "norm", "x99999999999999999999"];
        assert_eq!(names, expected);
    }
}
