//! The crew and the ring under [shuttle](https://docs.rs/shuttle), which runs threads one at a time and tries many orders in
//! which they can take turns; a deadlock or a lost wake-up is a failure. Run by `.ci/schedules`.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use shuttle::sync::{Condvar, Mutex};
use shuttle::thread;

use super::crew::Crew;
use super::options::{LoadOptions, Prefetch};
use super::placement::{Device, Fill, Placement, Ring, Stage, Transfer};
use super::planned::Planned;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Entry, Plan};
use crate::source::Source;

/// The orders that a test tries.
const ORDERS: usize = 2000;

/// A file in memory, of which some bytes cannot be read.
struct Disk {
    bytes: Vec<u8>,
    broken: Option<Range<u64>>,
}

impl Source for Disk {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let (start, end) = (offset, offset + buf.len() as u64);
        if self.broken.as_ref().is_some_and(|broken| start < broken.end && broken.start < end && offset > 0) {
            return Err(std::io::Error::other("bad sector"));
        }
        buf.copy_from_slice(&self.bytes[offset as usize..][..buf.len()]);
        Ok(())
    }
}

/// Four tensors of `len` bytes, the third of them broken if it is to be.
fn checkpoint(len: usize, is_broken: bool) -> Checkpoint {
    let entry = |i: usize| {
        format!(r#""{i}":{{"dtype":"U8","shape":[{len}],"data_offsets":[{},{}]}}"#, i * len, (i + 1) * len)
    };
    let header = format!("{{{}}}", (0..4).map(entry).collect::<Vec<_>>().join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    let start = bytes.len();
    bytes.extend((0..4 * len).map(|i| (i / len) as u8));
    let broken = (start + 2 * len) as u64..(start + 3 * len) as u64;
    Checkpoint::from_source(Disk { bytes, broken: is_broken.then_some(broken) }).unwrap()
}

/// Carries a plan of the checkpoint out with `workers` threads of its own, and two that take all its tensors.
fn carry_out<P: Placement>(ckpt: &Checkpoint, workers: usize, read_ahead: u64, placement: P, cancels: bool)
where
    P::Tensor: AsRef<[u8]>,
{
    let plan = Plan::of(ckpt).build().unwrap();
    let entries = plan.entries().to_vec();
    let options = LoadOptions::new().threads(workers + 1).read_ahead(read_ahead).prefetch(Prefetch::Never);
    let planned = Arc::new(Planned::new(&plan).unwrap());
    let crew = Arc::new(Crew::new(planned, options.settings_for_device(), placement));
    let mut threads = Vec::new();
    for _ in 0..workers {
        let crew = Arc::clone(&crew);
        threads.push(thread::spawn(move || crew.work()));
    }
    let takers: Vec<_> = [[0, 1, 2, 3], [2, 3, 0, 1]]
        .into_iter()
        .map(|slots| {
            let (crew, entries) = (Arc::clone(&crew), entries.clone());
            thread::spawn(move || {
                for slot in slots {
                    match crew.take(slot, &entries[slot]) {
                        Ok(tensor) => assert!(tensor.as_ref().iter().all(|&byte| byte == slot as u8)),
                        Err(error) if error.kind() == ErrorKind::Cancelled => assert!(cancels),
                        Err(error) => assert_eq!((slot, error.kind()), (2, ErrorKind::Io), "{error}"),
                    }
                }
            })
        })
        .collect();
    if cancels {
        crew.stop(true);
    }
    takers.into_iter().for_each(|taker| taker.join().unwrap());
    crew.stop(false);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

impl AsRef<[u8]> for crate::buffer::HostBuffer {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

/// A device that copies when it is waited for, or looked at.
struct Lazy;

struct Copies(Vec<(Memory, u64, Vec<u8>)>);

type Memory = Arc<Mutex<Vec<u8>>>;

impl Device for Lazy {
    type Slab = Vec<MaybeUninit<u8>>;
    type Memory = Memory;
    type Tensor = Vec<u8>;
    type Lane = ();
    type Fence = Arc<(Mutex<Option<Copies>>, Condvar)>;

    fn lane(&self) -> Result<()> {
        Ok(())
    }

    fn slab(&self, (): &mut (), bytes: usize) -> Result<Self::Slab> {
        Ok(vec![MaybeUninit::new(0xEE); bytes])
    }

    fn allocate(&self, entry: &Entry) -> Result<Memory> {
        Ok(Arc::new(Mutex::new(vec![0xDD; entry.byte_len() as usize])))
    }

    #[allow(unsafe_code)]
    unsafe fn copy(&self, (): &mut (), transfers: &[Transfer<'_, Memory>]) -> Result<Self::Fence> {
        let copy = |transfer: &Transfer<'_, Memory>| {
            (Arc::clone(transfer.memory), transfer.offset, transfer.bytes.to_vec())
        };
        Ok(Arc::new((Mutex::new(Some(Copies(transfers.iter().map(copy).collect()))), Condvar::new())))
    }

    fn wait(&self, (): &mut (), fence: Self::Fence) -> Result<()> {
        let copies = fence.0.lock().unwrap().take();
        for (memory, offset, bytes) in copies.map_or_else(Vec::new, |copies| copies.0) {
            memory.lock().unwrap()[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
        Ok(())
    }

    fn is_done(&self, (): &(), fence: &Self::Fence) -> bool {
        fence.0.lock().unwrap().is_none()
    }

    fn finish(&self, _: &Entry, memory: Memory) -> Result<Vec<u8>> {
        let in_use = || Error::new(ErrorKind::Internal, "its memory is in use");
        Ok(Arc::into_inner(memory).ok_or_else(in_use)?.into_inner().unwrap())
    }
}

#[test]
fn on_the_host() {
    for (workers, read_ahead) in [(0, 0), (1, 0), (1, 600), (2, u64::MAX)] {
        for is_broken in [false, true] {
            let run = move || carry_out(&checkpoint(300, is_broken), workers, read_ahead, Fill, false);
            shuttle::check_random(run, ORDERS);
        }
    }
}

#[test]
fn on_a_device() {
    for (workers, read_ahead, slabs) in
        [(0, 0, 1), (1, 600, 1), (1, u64::MAX, 2), (1, u64::MAX, 4), (2, 600, 3)]
    {
        for is_broken in [false, true] {
            let run = move || {
                let stage = Stage::new(Lazy, Ring::new().slabs(slabs).slab_bytes(256), workers + 1);
                carry_out(&checkpoint(300, is_broken), workers, read_ahead, stage, false);
            };
            shuttle::check_random(run, ORDERS);
            shuttle::check_pct(run, ORDERS, 3);
        }
    }
}

#[test]
fn cancelled() {
    let on_host = || carry_out(&checkpoint(300, false), 2, 600, Fill, true);
    shuttle::check_random(on_host, ORDERS);
    let on_device = || {
        let stage = Stage::new(Lazy, Ring::new().slabs(2).slab_bytes(256), 2);
        carry_out(&checkpoint(300, false), 1, 600, stage, true);
    };
    shuttle::check_random(on_device, ORDERS);
}
