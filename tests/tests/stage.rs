//! Staging: a simulated device that is slow, fails, and panics, at random.
//!
//! Every schedule is one seed: how many threads, slabs, tensors; how long each step takes; which step fails and how.
//! Whatever happens, each tensor arrives with its own bytes or as an error, nothing hangs, no slab is touched while it is
//! copied from, no two threads use one lane, and no more slabs exist than were allowed.

#![allow(clippy::unwrap_used)]
// Helpers of tests are not tests to clippy.
// A device reads memory on its own while the program runs; here it does so through pointers.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use safetensors::Dtype as St;
use weighbridge::engine::{Device, ReadOrder, Ring, Transfer};
use weighbridge::{Checkpoint, Dtype, Entry, Error, ErrorKind, Plan, Result, Session, Source};
use weighbridge_tests::{Stored, file};

/// A sequence of numbers from a seed (SplitMix64), to be drawn by several threads.
#[derive(Debug)]
struct Dice(AtomicU64);

impl Dice {
    fn roll(&self, below: u64) -> u64 {
        let mut z = self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below
    }
}

/// Where a schedule goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// The source, not the device.
    Read,
    Lane,
    Slab,
    /// When the slab is to be written to.
    Write,
    Allocate,
    Copy,
    Wait,
    Finish,
}

/// A device whose copies are done by a thread of its own, some time after they were started.
struct Simulated(Arc<Machine>);

struct Machine {
    dice: Dice,
    /// Whether the host can write to the device's memory.
    in_place: bool,
    /// Whether bytes are cast to two of them each on the device.
    casts: bool,
    fault: Option<(Step, bool)>,
    /// Calls of the step that fails until it does.
    until: AtomicU64,
    slow: bool,
    /// Bytes that its memory has.
    room: AtomicU64,
    used: AtomicU64,
    lanes: AtomicUsize,
    /// Tiles that were cast on the device.
    cast: AtomicUsize,
    queue: Mutex<VecDeque<Work>>,
    changed: Condvar,
    slabs: AtomicUsize,
    most_slabs: AtomicUsize,
    memories: AtomicUsize,
    faults: AtomicUsize,
}

/// A copy that the device will make.
enum Work {
    Copy { parts: Vec<Part>, done: Arc<(Mutex<bool>, Condvar)> },
    Stop,
}

/// Bytes of a slab, where they go to, and whether they are cast.
struct Part {
    staged: Staged,
    to: Bytes,
    offset: usize,
    is_cast: bool,
}

type Bytes = Arc<Mutex<Vec<u8>>>;

/// Bytes of a slab that is in flight.
struct Staged(*const u8, usize);

// SAFETY: the session keeps a slab as it is until `wait` has returned for its copy: that is what is tested here.
unsafe impl Send for Staged {}
// SAFETY: as above.
unsafe impl Sync for Staged {}

impl Staged {
    fn read(&self) -> &[u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.0, self.1) }
    }
}

struct Slab {
    bytes: Vec<MaybeUninit<u8>>,
    machine: Arc<Machine>,
}

impl AsMut<[MaybeUninit<u8>]> for Slab {
    fn as_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        match self.machine.step(Step::Write) {
            Ok(()) => &mut self.bytes,
            Err(_) => &mut [],
        }
    }
}

/// A file on a disk that fails.
struct Disk {
    bytes: Vec<u8>,
    machine: Arc<Machine>,
}

impl Source for Disk {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        // The header is left alone.
        if offset > 0 {
            self.machine.step(Step::Read).map_err(std::io::Error::other)?;
        }
        buf.copy_from_slice(&self.bytes[offset as usize..][..buf.len()]);
        Ok(())
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        self.machine.slabs.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What one reader copies with; its copies are waited for in the order in which they were started.
struct Lane {
    sent: VecDeque<Fence>,
    machine: Arc<Machine>,
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.machine.lanes.fetch_sub(1, Ordering::SeqCst);
        assert!(self.sent.is_empty(), "a lane is given up with copies in flight");
    }
}

/// Whether a copy is done.
type Fence = Arc<(Mutex<bool>, Condvar)>;

struct Memory {
    bytes: Bytes,
    /// Where they are.
    start: Staged,
    machine: Arc<Machine>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.machine.used.fetch_sub(self.start.1 as u64, Ordering::SeqCst);
        self.machine.memories.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Machine {
    /// Takes some time, and fails if it is this step's turn.
    fn step(&self, step: Step) -> Result<()> {
        if self.slow {
            match self.dice.roll(4) {
                0 => thread::sleep(Duration::from_micros(self.dice.roll(200))),
                1 => thread::yield_now(),
                _ => {}
            }
        }
        match self.fault {
            Some((fails, panics)) if fails == step && self.until.fetch_sub(1, Ordering::SeqCst) == 0 => {
                self.faults.fetch_add(1, Ordering::SeqCst);
                if panics {
                    // Without a message on the screen, ten thousand times.
                    std::panic::resume_unwind(Box::new("a bug in a device"));
                }
                Err(Error::new(ErrorKind::Device, format!("{step:?} failed")))
            }
            _ => Ok(()),
        }
    }

    fn push(&self, work: Work) {
        self.queue.lock().unwrap().push_back(work);
        self.changed.notify_all();
    }

    /// What the device's own thread does.
    fn copy(&self) {
        loop {
            let mut queue = self.queue.lock().unwrap();
            while queue.is_empty() {
                queue = self.changed.wait(queue).unwrap();
            }
            let work = queue.pop_front().unwrap();
            drop(queue);
            let Work::Copy { parts, done } = work else { return };
            if self.slow && self.dice.roll(2) == 0 {
                thread::sleep(Duration::from_micros(self.dice.roll(300)));
            }
            for Part { staged, to, offset, is_cast } in parts {
                self.cast.fetch_add(usize::from(is_cast), Ordering::Relaxed);
                let bytes = match is_cast {
                    true => staged.read().iter().flat_map(|&byte| in_native_order(byte)).collect(),
                    false => staged.read().to_vec(),
                };
                to.lock().unwrap()[offset..offset + bytes.len()].copy_from_slice(&bytes);
            }
            *done.0.lock().unwrap() = true;
            done.1.notify_all();
        }
    }
}

impl Device for Simulated {
    type Slab = Slab;
    type Memory = Memory;
    type Tensor = Vec<u8>;
    type Lane = Lane;
    type Fence = Fence;

    fn lane(&self) -> Result<Lane> {
        self.0.step(Step::Lane)?;
        self.0.lanes.fetch_add(1, Ordering::SeqCst);
        Ok(Lane { sent: VecDeque::new(), machine: Arc::clone(&self.0) })
    }

    fn slab(&self, _: &mut Lane, bytes: usize) -> Result<Slab> {
        self.0.step(Step::Slab)?;
        let there = self.0.slabs.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most_slabs.fetch_max(there, Ordering::SeqCst);
        Ok(Slab { bytes: vec![MaybeUninit::new(0xEE); bytes], machine: Arc::clone(&self.0) })
    }

    fn allocate(&self, entry: &Entry) -> Result<Memory> {
        self.0.step(Step::Allocate)?;
        let len = entry.byte_len();
        if self.0.used.fetch_add(len, Ordering::SeqCst) + len > self.0.room.load(Ordering::SeqCst) {
            self.0.used.fetch_sub(len, Ordering::SeqCst);
            return Err(Error::new(ErrorKind::Memory, "the device is full"));
        }
        self.0.memories.fetch_add(1, Ordering::SeqCst);
        let mut bytes = vec![0xDD; len as usize];
        let start = Staged(bytes.as_mut_ptr(), bytes.len());
        Ok(Memory { bytes: Arc::new(Mutex::new(bytes)), start, machine: Arc::clone(&self.0) })
    }

    unsafe fn in_place<'m>(
        &self,
        memory: &'m Memory,
        bytes: Range<u64>,
    ) -> Option<&'m mut [MaybeUninit<u8>]> {
        assert!(bytes.end <= memory.start.1 as u64);
        let start = memory.start.0.wrapping_add(bytes.start as usize).cast_mut().cast();
        // SAFETY: the vector lives as long as the memory, nobody looks at it before the tensor is finished, and the session
        // asks for each byte once: that is what is tested here.
        let place = || unsafe { std::slice::from_raw_parts_mut(start, (bytes.end - bytes.start) as usize) };
        self.0.in_place.then(place)
    }

    unsafe fn copy(&self, lane: &mut Lane, transfers: &[Transfer<'_, Memory>]) -> Result<Fence> {
        self.0.step(Step::Copy)?;
        let done = Arc::new((Mutex::new(false), Condvar::new()));
        let staged = |t: &Transfer<'_, Memory>| Staged(t.bytes.as_ptr(), t.bytes.len());
        let part = |t: &Transfer<'_, Memory>| Part {
            staged: staged(t),
            to: Arc::clone(&t.memory.bytes),
            offset: t.offset as usize,
            is_cast: t.cast.is_some_and(|cast| cast == (Dtype::U8, Dtype::U16)),
        };
        let parts = transfers.iter().map(part).collect();
        lane.sent.push_back(Arc::clone(&done));
        self.0.push(Work::Copy { parts, done: Arc::clone(&done) });
        Ok(done)
    }

    fn wait(&self, lane: &mut Lane, fence: Fence) -> Result<()> {
        let first = lane.sent.pop_front();
        assert!(first.is_some_and(|first| Arc::ptr_eq(&first, &fence)), "it is not the lane's first copy");
        let failed = self.0.step(Step::Wait);
        let mut done = fence.0.lock().unwrap();
        while !*done {
            done = fence.1.wait(done).unwrap();
        }
        failed
    }

    fn casts(&self, from: Dtype, to: Dtype) -> bool {
        self.0.casts && (from, to) == (Dtype::U8, Dtype::U16)
    }

    fn is_done(&self, _: &Lane, fence: &Fence) -> bool {
        *fence.0.lock().unwrap()
    }

    fn finish(&self, _: &Entry, memory: Memory) -> Result<Vec<u8>> {
        self.0.step(Step::Finish)?;
        Ok(memory.bytes.lock().unwrap().clone())
    }
}

/// A file with tensors of many sizes, and their bytes.
fn tensors() -> (Vec<u8>, Vec<(String, Vec<u8>)>) {
    let sizes = [0, 1, 3, 200, 256, 257, 1000, 1024, 4096, 5000, 9, 70, 80, 90, 2048, 12_345];
    let stored: Vec<_> = sizes
        .into_iter()
        .enumerate()
        .map(|(number, size)| (format!("t{number}"), Stored::filled(St::U8, &[size], number)))
        .collect();
    let views: Vec<_> = stored.iter().map(|(name, stored)| (&**name, stored.clone())).collect();
    (file(&views), stored.into_iter().map(|(name, stored)| (name, stored.bytes().to_vec())).collect())
}

struct Schedule {
    machine: Arc<Machine>,
    copier: Option<thread::JoinHandle<()>>,
    slabs: usize,
}

impl Schedule {
    fn new(seed: u64, fault: Option<(Step, bool)>) -> Self {
        let dice = Dice(AtomicU64::new(seed));
        let slabs = [1, 2, 3, 4, 12, 64][dice.roll(6) as usize];
        let (slow, until) = (dice.roll(2) == 0, dice.roll(12));
        let in_place = fault.is_none() && dice.roll(4) == 0;
        let machine = Arc::new(Machine {
            dice,
            in_place,
            casts: until % 2 == 0,
            fault,
            until: AtomicU64::new(until),
            slow,
            room: AtomicU64::new(u64::MAX),
            used: AtomicU64::new(0),
            lanes: AtomicUsize::new(0),
            cast: AtomicUsize::new(0),
            queue: Mutex::new(VecDeque::new()),
            changed: Condvar::new(),
            slabs: AtomicUsize::new(0),
            most_slabs: AtomicUsize::new(0),
            memories: AtomicUsize::new(0),
            faults: AtomicUsize::new(0),
        });
        let copier = thread::spawn({
            let machine = Arc::clone(&machine);
            move || machine.copy()
        });
        Self { machine, copier: Some(copier), slabs }
    }

    /// A checkpoint of a file on a disk that takes part.
    fn checkpoint(&self, file: &[u8]) -> Checkpoint {
        let disk = Disk { bytes: file.to_vec(), machine: Arc::clone(&self.machine) };
        Checkpoint::from_source(disk).unwrap()
    }

    fn session(&self, file: &[u8]) -> Session<Vec<u8>> {
        let dice = &self.machine.dice;
        let ring = Ring::new().slabs(self.slabs).slab_bytes(256 << dice.roll(5));
        let order = if dice.roll(2) == 0 { ReadOrder::File } else { ReadOrder::Natural };
        let read_ahead = [0, 300, 10_000, u64::MAX][dice.roll(4) as usize];
        let plan = Plan::of(&self.checkpoint(file))
            .dtype(|t| t.name().ends_with('7').then_some(Dtype::U16))
            .build()
            .unwrap();
        let session = plan.session().threads(1 + dice.roll(4) as usize).order(order).read_ahead(read_ahead);
        session.start_on(Simulated(Arc::clone(&self.machine)), ring).unwrap()
    }

    /// After the session: everything was given back, but what the device may still be using.
    fn check(mut self, lost_with_a_wait: bool) {
        self.machine.push(Work::Stop);
        self.copier.take().unwrap().join().unwrap();
        assert_eq!(self.machine.lanes.load(Ordering::SeqCst), 0);
        let left = (self.machine.slabs.load(Ordering::SeqCst), self.machine.memories.load(Ordering::SeqCst));
        if !lost_with_a_wait {
            assert_eq!(left, (0, 0));
        }
        assert!(self.machine.most_slabs.load(Ordering::SeqCst) <= self.slabs);
    }
}

fn in_native_order(byte: u8) -> [u8; 2] {
    if cfg!(target_endian = "big") { [0, byte] } else { [byte, 0] }
}

fn expected(name: &str, bytes: &[u8]) -> Vec<u8> {
    match name.ends_with('7') {
        true => bytes.iter().flat_map(|&byte| in_native_order(byte)).collect(),
        false => bytes.to_vec(),
    }
}

/// Takes all tensors from one or two threads, some twice; returns how many failed.
fn take_all(session: &Session<Vec<u8>>, tensors: &[(String, Vec<u8>)], machine: &Machine) -> usize {
    let failed = AtomicUsize::new(0);
    let take = |tensors: &[(String, Vec<u8>)]| {
        for (name, bytes) in tensors {
            for _ in 0..=machine.dice.roll(8) / 7 {
                match session.take(name, None) {
                    Ok((_, tensor)) => assert!(tensor == expected(name, bytes), "{name} is wrong"),
                    Err(error) => {
                        assert_eq!(error.tensor(), Some(&**name));
                        let kinds = [ErrorKind::Device, ErrorKind::Internal, ErrorKind::Io];
                        assert!(kinds.contains(&error.kind()), "{error}");
                        failed.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }
        }
    };
    if machine.dice.roll(2) == 0 {
        take(tensors);
    } else {
        let (first, second) = tensors.split_at(machine.dice.roll(tensors.len() as u64) as usize);
        thread::scope(|scope| {
            scope.spawn(|| take(first));
            take(second);
        });
    }
    failed.into_inner()
}

/// So many schedules a test tries; fewer where every step is slow to simulate.
fn schedules(of: u64) -> u64 {
    let all = std::env::var("WEIGHBRIDGE_SCHEDULES").ok().and_then(|number| number.parse().ok());
    all.unwrap_or(10_000) / of
}

#[test]
fn every_schedule_brings_every_tensor() {
    let (file, tensors) = tensors();
    let mut cast = 0;
    for seed in 0..schedules(4) {
        let schedule = Schedule::new(seed, None);
        let session = schedule.session(&file);
        assert_eq!(take_all(&session, &tensors, &schedule.machine), 0, "seed {seed}");
        drop(session);
        cast += schedule.machine.cast.load(Ordering::Relaxed);
        schedule.check(false);
    }
    assert!(cast > 0, "no device has cast anything");
}

#[test]
fn a_step_that_fails_is_an_error_of_its_tensors_and_of_no_others() {
    let (file, tensors) = tensors();
    let mut failed = 0;
    for seed in 0..schedules(2) {
        let steps = [
            Step::Read,
            Step::Lane,
            Step::Slab,
            Step::Write,
            Step::Allocate,
            Step::Copy,
            Step::Wait,
            Step::Finish,
        ];
        let (step, panics) = (steps[(seed % 8) as usize], seed / 8 % 2 == 1);
        let schedule = Schedule::new(seed, Some((step, panics)));
        let session = schedule.session(&file);
        let errors = take_all(&session, &tensors, &schedule.machine);
        drop(session);
        // Where a tensor was taken after all is well again, its error may have been somebody else's.
        let faults = schedule.machine.faults.load(Ordering::SeqCst);
        assert!(faults == 1 || errors == 0, "seed {seed}: {errors} errors");
        failed += usize::from(errors > 0);
        // What the device may still be at work on is left to it.
        schedule.check(step == Step::Wait || step == Step::Copy && panics || step == Step::Write);
    }
    assert!(failed as u64 > schedules(8), "only {failed} schedules had an error to report");
}

#[test]
fn dropping_and_cancelling_drain_the_ring() {
    let (file, tensors) = tensors();
    for seed in 0..schedules(4) {
        let schedule = Schedule::new(seed, None);
        let session = schedule.session(&file);
        let handle = session.stop_handle();
        let some = schedule.machine.dice.roll(tensors.len() as u64) as usize;
        thread::scope(|scope| {
            if seed % 2 == 0 {
                scope.spawn(move || handle.cancel());
            }
            for (name, bytes) in &tensors[..some] {
                match session.take(name, None) {
                    Ok((_, tensor)) => assert!(tensor == expected(name, bytes)),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled),
                }
            }
        });
        if seed % 2 == 0 {
            assert_eq!(session.take("t1", None).unwrap_err().kind(), ErrorKind::Cancelled);
        }
        drop(session);
        schedule.check(false);
    }
}

#[test]
fn a_reader_has_two_slabs_and_no_more() {
    let (file, tensors) = tensors();
    for seed in 0..schedules(100) {
        let schedule = Schedule { slabs: 64, ..Schedule::new(seed, None) };
        let plan = Plan::of(&schedule.checkpoint(&file)).build().unwrap();
        let ring = Ring::new().slabs(64).slab_bytes(256);
        let session =
            plan.session().threads(1).start_on(Simulated(Arc::clone(&schedule.machine)), ring).unwrap();
        for (name, bytes) in &tensors {
            assert!(session.take(name, None).unwrap().1 == *bytes, "{name} is wrong");
        }
        drop(session);
        let most = schedule.machine.most_slabs.load(Ordering::SeqCst);
        assert!(most <= 2, "seed {seed}: {most} slabs");
        schedule.check(false);
    }
}

#[test]
fn slabs_that_cannot_be_made_are_an_error_only_if_there_is_no_other() {
    let (file, tensors) = tensors();
    let mut alone = 0;
    for seed in 0..schedules(20) {
        let schedule = Schedule::new(seed, Some((Step::Slab, false)));
        let (slabs, reads) = (schedule.slabs, !schedule.machine.in_place);
        let session = schedule.session(&file);
        let errors = take_all(&session, &tensors, &schedule.machine);
        drop(session);
        // Three are enough for two readers only if there are as many threads.
        assert!(errors == 0 || slabs <= 3, "seed {seed}: {errors} errors with {slabs} slabs");
        alone += usize::from(reads && slabs == 1 && errors > 0);
        schedule.check(false);
    }
    assert!(alone > 0, "no schedule had one slab that could not be made");
}

#[test]
fn what_was_read_ahead_in_vain_makes_room() {
    let (file, tensors) = tensors();
    let most = tensors.iter().map(|(_, bytes)| bytes.len() as u64).max().unwrap();
    for seed in 0..schedules(20) {
        let schedule = Schedule::new(seed, None);
        schedule.machine.room.store(most + 4000, Ordering::SeqCst);
        let plan = Plan::of(&schedule.checkpoint(&file)).build().unwrap();
        let session = plan.session().threads(1 + schedule.machine.dice.roll(3) as usize);
        let ring = Ring::new().slabs(schedule.slabs).slab_bytes(256);
        let session = session.start_on(Simulated(Arc::clone(&schedule.machine)), ring).unwrap();
        // The last one first, when others have filled the device; what is taken is dropped at once.
        for (name, bytes) in tensors.iter().rev() {
            assert!(session.take(name, None).unwrap().1 == *bytes, "{name} is wrong");
        }
        drop(session);
        schedule.check(false);
    }
}

#[test]
fn a_progress_handler_can_cancel() {
    let ckpt = Checkpoint::from_bytes(tensors().0).unwrap();
    let most = ckpt.byte_len();
    let plan = Plan::of(&ckpt).build().unwrap();
    let until = move |progress: weighbridge::Progress| match progress.bytes_done > most / 2 {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    let session = plan.session().threads(1).read_ahead(0).progress(until).start().unwrap();
    let names: Vec<_> = session.names().map(str::to_owned).collect();
    let outcomes: Vec<_> = names.iter().map(|name| session.take(name, None)).collect();
    assert!(outcomes[0].is_ok());
    assert_eq!(outcomes.last().unwrap().as_ref().unwrap_err().kind(), ErrorKind::Cancelled);
}
