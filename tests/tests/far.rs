//! Sources that are far away: each request takes its time, and all share a link.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use safetensors::Dtype as St;
use weighbridge::plan::{Bound, Input, Join, Operation, Part, Piece, Tiles};
use weighbridge::source::MemorySource;
use weighbridge::write::Save;
use weighbridge::{Checkpoint, Dtype, Entry, ErrorKind, Hints, HostBuffer, LoadOptions, Plan, Slice, Source};
use weighbridge_tests::{Stored, file};

/// A server and the way to it. A request takes `latency` before its first byte, and all bytes come over one link.
struct Far {
    bytes: Vec<u8>,
    latency: Duration,
    bytes_a_second: f64,
    /// When the link has sent what it was asked to.
    free: Mutex<Instant>,
    requests: AtomicUsize,
    sent: AtomicU64,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
    stalls: AtomicBool,
    interrupts: AtomicUsize,
}

impl Far {
    fn new(bytes: Vec<u8>, latency: Duration, bytes_a_second: f64) -> Arc<Self> {
        Arc::new(Self {
            bytes,
            latency,
            bytes_a_second,
            free: Mutex::new(Instant::now()),
            requests: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            most_in_flight: AtomicUsize::new(0),
            stalls: AtomicBool::new(false),
            interrupts: AtomicUsize::new(0),
        })
    }

    fn forget(&self) {
        self.requests.store(0, Ordering::SeqCst);
        self.sent.store(0, Ordering::SeqCst);
    }

    /// Fills the buffer packet by packet, and tells how much of it is filled.
    fn send(&self, offset: u64, buf: &mut [u8], arrived: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        const PACKET: usize = 64 << 10;
        let interrupts = self.interrupts.load(Ordering::SeqCst);
        thread::sleep(self.latency);
        let mut at = offset as usize;
        for start in (0..buf.len()).step_by(PACKET) {
            let end = buf.len().min(start + PACKET);
            let packet = &mut buf[start..end];
            while self.stalls.load(Ordering::SeqCst) {
                if self.interrupts.load(Ordering::SeqCst) != interrupts {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                thread::sleep(Duration::from_millis(1));
            }
            let takes = Duration::from_secs_f64(packet.len() as f64 / self.bytes_a_second);
            let sent = {
                let mut free = self.free.lock().unwrap();
                *free = (*free).max(Instant::now()) + takes;
                *free
            };
            thread::sleep(sent.saturating_duration_since(Instant::now()));
            packet.copy_from_slice(&self.bytes[at..at + packet.len()]);
            at += packet.len();
            arrived(&buf[..end]);
        }
        Ok(())
    }
}

impl Source for Far {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_as_it_comes(offset, buf, &mut |_| {})
    }

    fn read_as_it_comes(
        &self,
        offset: u64,
        buf: &mut [u8],
        arrived: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        self.sent.fetch_add(buf.len() as u64, Ordering::SeqCst);
        let in_flight = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_in_flight.fetch_max(in_flight, Ordering::SeqCst);
        let sent = self.send(offset, buf, arrived);
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        sent
    }

    fn is_cached(&self, _: Range<u64>) -> Option<bool> {
        Some(false)
    }

    fn hints(&self) -> Hints {
        Hints::default().chunk(8 << 20).least(4 << 20).concurrency(32).read_through(1 << 20)
    }

    fn interrupt(&self) {
        self.interrupts.fetch_add(1, Ordering::SeqCst);
    }
}

const MIB: usize = 1 << 20;

/// Values that differ everywhere, of a dtype of two bytes.
fn values(len: usize) -> Vec<u8> {
    // Finite as `F16` and `BF16`.
    (0..len / 2)
        .map(|at| ((at as u32).wrapping_mul(2_654_435_761) >> 16 & 0x3FFF) as u16)
        .flat_map(u16::to_le_bytes)
        .collect()
}

/// Layers as of a model: 4 KiB, 8 MiB and 32 MiB.
fn model(layers: usize) -> Vec<u8> {
    let shapes: [(&str, &[usize]); 3] = [("norm", &[2048]), ("q", &[2048, 2048]), ("up", &[8192, 2048])];
    let mut tensors = Vec::new();
    for layer in 0..layers {
        for (name, shape) in shapes {
            let bytes = values(shape.iter().product::<usize>() * 2);
            tensors.push((format!("layers.{layer}.{name}.weight"), Stored::new(St::F16, shape, bytes)));
        }
    }
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    file(&tensors)
}

const FAST: f64 = 400e6;
const LATENCY: Duration = Duration::from_millis(20);

/// The same checkpoint, far away and here.
fn far_and_here(layers: usize, bytes_a_second: f64) -> (Arc<Far>, Checkpoint, Checkpoint) {
    let bytes = model(layers);
    let here = Checkpoint::from_bytes(bytes.clone()).unwrap();
    let far = Far::new(bytes, LATENCY, bytes_a_second);
    let checkpoint = Checkpoint::from_source(Arc::clone(&far)).unwrap();
    far.forget();
    (far, checkpoint, here)
}

/// Takes everything in order, and compares it with what is made of the checkpoint that is here.
fn take_all(plan: Plan, here: Plan) {
    let session = plan.session().start().unwrap();
    let names: Vec<_> = session.names().map(str::to_owned).collect();
    let taken: Vec<_> = names.iter().map(|name| session.take(name, None).unwrap().1).collect();
    let here = here.session().start().unwrap();
    for (name, taken) in names.iter().zip(taken) {
        assert_eq!(taken, here.take(name, None).unwrap().1, "{name}");
    }
}

#[test]
fn a_load_is_few_large_requests_and_as_many_at_a_time_as_the_source_likes() {
    let (far, checkpoint, here) = far_and_here(6, FAST / 4.0);
    let bytes = checkpoint.byte_len();
    let plan = |checkpoint: &Checkpoint| Plan::of(checkpoint).build().unwrap();
    take_all(plan(&checkpoint), plan(&here));
    let requests = far.requests.load(Ordering::SeqCst);
    // 8 MiB at a time, and 6 norms.
    assert!(requests <= bytes.div_ceil(8 << 20) as usize + 6, "{requests}");
    assert_eq!(far.sent.load(Ordering::SeqCst), bytes);
    assert!(far.most_in_flight.load(Ordering::SeqCst) >= 12);
}

#[test]
fn a_cast_is_no_more_requests_than_a_load() {
    let (far, checkpoint, here) = far_and_here(6, FAST);
    let bytes = checkpoint.byte_len();
    let plan = |checkpoint: &Checkpoint| Plan::of(checkpoint).dtype(|_| Some(Dtype::F32)).build().unwrap();
    take_all(plan(&checkpoint), plan(&here));
    let requests = far.requests.load(Ordering::SeqCst);
    assert!(requests <= bytes.div_ceil(8 << 20) as usize + 6 + 6, "{requests}");
    assert_eq!(far.sent.load(Ordering::SeqCst), bytes);
}

/// Counts what is computed of a tensor of `U8`, which it leaves as it is.
#[derive(Clone, Debug, Default)]
struct Counted(Arc<AtomicUsize>);

impl Operation for Counted {
    fn bind(&self, inputs: &[Input]) -> weighbridge::Result<Bound> {
        Ok(Bound::new(Dtype::U8, inputs[0].shape(), self.clone()))
    }
}

impl Tiles for Counted {
    fn gather(&self, tile: Range<u64>, pieces: &mut Vec<Piece>) {
        pieces.push(Piece { input: 0, bytes: tile });
    }

    fn compute<'t>(
        &self,
        _: Range<u64>,
        gathered: &[u8],
        out: &'t mut [MaybeUninit<u8>],
    ) -> weighbridge::Result<&'t mut [u8]> {
        self.0.fetch_add(gathered.len(), Ordering::SeqCst);
        Ok(out.write_copy_of_slice(gathered))
    }
}

/// Looks, when a read is over but has not returned, how much was computed of it.
struct Watched {
    bytes: MemorySource<Vec<u8>>,
    computed: Arc<AtomicUsize>,
    at_the_end: AtomicUsize,
    /// How often a read is to be interrupted half way.
    interruptions: AtomicUsize,
}

impl Source for Watched {
    fn size(&self) -> u64 {
        self.bytes.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.bytes.read_at(offset, buf)
    }

    fn read_as_it_comes(
        &self,
        offset: u64,
        buf: &mut [u8],
        arrived: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        self.bytes.read_at(offset, buf)?;
        let is_interrupted = self
            .interruptions
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok();
        let all = if is_interrupted { buf.len() / 2 } else { buf.len() };
        for end in (0..=all).step_by(77_777) {
            arrived(&buf[..end]);
        }
        if is_interrupted {
            // Nobody may rely on what was not said to have arrived.
            buf.fill(0xEE);
            return Err(io::ErrorKind::Interrupted.into());
        }
        self.at_the_end.store(self.computed.load(Ordering::SeqCst), Ordering::SeqCst);
        Ok(())
    }

    fn hints(&self) -> Hints {
        Hints::default().chunk(8 << 20).least(4 << 20).read_through(1 << 20)
    }
}

#[test]
fn what_has_arrived_is_computed_while_the_rest_is_on_its_way() {
    let values = values(8 * MIB);
    let counted = Counted::default();
    let source = Arc::new(Watched {
        bytes: MemorySource(file(&[("codes", Stored::new(St::U8, &[8 * MIB], values.clone()))])),
        computed: Arc::clone(&counted.0),
        at_the_end: AtomicUsize::new(0),
        interruptions: AtomicUsize::new(2),
    });
    let ckpt = Checkpoint::from_source(Arc::clone(&source)).unwrap();
    let input = Input::of(&ckpt.tensor("codes").unwrap());
    let plan = Plan::new([Entry::new("counted", vec![input], Arc::new(counted.clone())).unwrap()]);
    let session = plan.session().options(LoadOptions::default().threads(1)).start().unwrap();
    assert_eq!(session.take("counted", None).unwrap().1.as_bytes(), values);
    // Each once, whoever interrupted; and of the last request all but what a step wants more of.
    assert_eq!(counted.0.load(Ordering::SeqCst), 8 * MIB);
    let at_the_end = source.at_the_end.load(Ordering::SeqCst);
    assert!(at_the_end >= 8 * MIB - 3 * MIB / 2, "{at_the_end}");
}

#[test]
fn a_part_of_rows_is_read_alone() {
    let (far, checkpoint, here) = far_and_here(2, FAST);
    let part = |tensor: &weighbridge::TensorRef<'_>| match tensor.shape() {
        [_, _] => Part::of_rank(tensor.shape(), 0, 1, 4).map(Some),
        _ => Ok(None),
    };
    let plan = |checkpoint: &Checkpoint| Plan::of(checkpoint).part(part).build().unwrap();
    let bytes = plan(&checkpoint).byte_len();
    take_all(plan(&checkpoint), plan(&here));
    assert_eq!(far.sent.load(Ordering::SeqCst), bytes);
    let requests = far.requests.load(Ordering::SeqCst);
    assert!(requests <= 2 * 3 + 2, "{requests}");
}

#[test]
fn a_part_of_columns_is_read_with_what_lies_between() {
    for cast in [None, Some(Dtype::F32)] {
        let (far, checkpoint, here) = far_and_here(2, FAST);
        let part = |tensor: &weighbridge::TensorRef<'_>| match tensor.shape() {
            [_, _] => Part::of_rank(tensor.shape(), 1, 1, 4).map(Some),
            _ => Ok(None),
        };
        let plan = |checkpoint: &Checkpoint| Plan::of(checkpoint).part(part).dtype(|_| cast).build().unwrap();
        take_all(plan(&checkpoint), plan(&here));
        let sent = far.sent.load(Ordering::SeqCst);
        assert!(sent <= checkpoint.byte_len() * 102 / 100, "{sent} of {}", checkpoint.byte_len());
        // 80 MiB, 8 at a time; spans end where a step does.
        let requests = far.requests.load(Ordering::SeqCst);
        assert!(requests <= 2 * (1 + 5) + 2 + 8, "{requests}");
    }
}

#[test]
fn what_is_put_together_of_rows_far_apart_is_read_straight() {
    let (far, checkpoint, here) = far_and_here(1, FAST);
    // Two blocks of rows of `up`, and all of `q`: 8 MiB in three pieces, and a gap that is no use.
    let plan = |checkpoint: &Checkpoint| {
        let input = |name: &str| Input::of(&checkpoint.tensor(&format!("layers.0.{name}.weight")).unwrap());
        let join =
            Join::along(0).parts([Slice::along(0, 4096..5120), Slice::along(0, 0..1024), Slice::new()]);
        let inputs = vec![input("up"), input("up"), input("q")];
        Plan::new([Entry::new("joined", inputs, Arc::new(join)).unwrap()])
    };
    let bytes = plan(&checkpoint).byte_len();
    take_all(plan(&checkpoint), plan(&here));
    assert_eq!(far.sent.load(Ordering::SeqCst), bytes);
    let requests = far.requests.load(Ordering::SeqCst);
    assert!(requests <= 5, "{requests}");
}

#[test]
fn small_tensors_that_lie_together_are_one_request() {
    let tensors: Vec<_> =
        (0..1000).map(|at| (format!("t{at:04}"), Stored::new(St::F16, &[512], values(1024)))).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    let bytes = file(&tensors);
    let here = Checkpoint::from_bytes(bytes.clone()).unwrap();
    let far = Far::new(bytes, LATENCY, FAST);
    let checkpoint = Checkpoint::from_source(Arc::clone(&far)).unwrap();
    far.forget();
    let plan = |checkpoint: &Checkpoint| Plan::of(checkpoint).build().unwrap();
    take_all(plan(&checkpoint), plan(&here));
    let requests = far.requests.load(Ordering::SeqCst);
    assert!(requests <= 4, "{requests}");
}

#[test]
fn what_is_written_is_asked_for_by_several_threads() {
    let directory = tempfile::tempdir().unwrap();
    for dtype in [None, Some(Dtype::F32)] {
        let (far, checkpoint, here) = far_and_here(4, FAST);
        let bytes = checkpoint.byte_len();
        let write = |checkpoint: &Checkpoint, name: &str| {
            let plan = Plan::of(checkpoint).dtype(|_| dtype).build().unwrap();
            let path = directory.path().join(name);
            Save::new().file(&path, plan.tensors()).unwrap();
            std::fs::read(path).unwrap()
        };
        let written = write(&checkpoint, "far.safetensors");
        assert!(written == write(&here, "here.safetensors"));
        assert!(far.most_in_flight.load(Ordering::SeqCst) >= 16);
        let requests = far.requests.load(Ordering::SeqCst);
        // A piece of a file at a time.
        assert!(requests <= 2 * bytes.div_ceil(4 << 20) as usize + 4, "{requests}");
    }
}

#[test]
fn cancelling_does_not_wait_for_the_far_side() {
    let (far, checkpoint, _) = far_and_here(2, FAST);
    far.stalls.store(true, Ordering::SeqCst);
    let session = Plan::of(&checkpoint).build().unwrap().session().start().unwrap();
    let stop = session.stop_handle();
    let stopper = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        stop.cancel();
        Instant::now()
    });
    let error = session.take("layers.0.q.weight", None).unwrap_err();
    drop(session);
    let ended = Instant::now();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let cancelled = stopper.join().unwrap();
    assert!(ended.saturating_duration_since(cancelled) < Duration::from_millis(500));
}

#[test]
fn who_is_not_stopped_reads_again_what_another_has_interrupted() {
    let (far, checkpoint, here) = far_and_here(1, FAST);
    far.stalls.store(true, Ordering::SeqCst);
    let plan = Plan::of(&checkpoint).build().unwrap();
    let (stays, goes) = (plan.clone().session().start().unwrap(), plan.session().start().unwrap());
    let taker = thread::spawn(move || stays.take("layers.0.q.weight", None).unwrap().1);
    thread::sleep(Duration::from_millis(100));
    drop(goes);
    far.stalls.store(false, Ordering::SeqCst);
    assert_eq!(taker.join().unwrap(), here.read("layers.0.q.weight").unwrap());
}

#[test]
fn options_count_more_than_hints() {
    let (far, checkpoint, _) = far_and_here(1, FAST);
    let options = LoadOptions::new().threads(2).chunk(MIB).read_ahead(4 * MIB as u64);
    let session = Plan::of(&checkpoint).build().unwrap().session().options(options).start().unwrap();
    let names: Vec<_> = session.names().map(str::to_owned).collect();
    let taken: Vec<HostBuffer> = names.iter().map(|name| session.take(name, None).unwrap().1).collect();
    assert_eq!(taken.len(), 3);
    assert!(far.most_in_flight.load(Ordering::SeqCst) <= 2);
    assert!(far.requests.load(Ordering::SeqCst) >= 20);
}
