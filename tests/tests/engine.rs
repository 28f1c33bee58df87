//! The engine: plans of operations over tiles, read-ahead within its budget, sources that misbehave.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use safetensors::Dtype as St;
use weighbridge::engine::{Prefetch, ReadOrder};
use weighbridge::plan::{Bound, Input, Join, Operation, Piece, Tiles};
use weighbridge::{Checkpoint, Dtype, Entry, Error, ErrorKind, Hints, Plan, Result, Session, Source};
use weighbridge_tests::{Stored, file, in_file_order};

/// A source that counts, and may wait, fail or panic.
struct Odd {
    bytes: Vec<u8>,
    read: Arc<AtomicU64>,
    behave: fn(u64) -> io::Result<()>,
}

impl Source for Odd {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        // Headers are left alone.
        if offset > 0 {
            (self.behave)(offset)?;
            self.read.fetch_add(buf.len() as u64, Ordering::SeqCst);
        }
        buf.copy_from_slice(&self.bytes[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn hints(&self) -> Hints {
        Hints::default().chunk(256 << 10)
    }
}

fn odd(tensors: &[(&str, Stored)], behave: fn(u64) -> io::Result<()>) -> (Checkpoint, Arc<AtomicU64>) {
    let read = Arc::new(AtomicU64::new(0));
    let source = Odd { bytes: file(tensors), read: Arc::clone(&read), behave };
    (Checkpoint::from_source(source).unwrap(), read)
}

/// Rows of several matrices, one below the other.
#[derive(Debug)]
struct Stack;

/// The bytes of each matrix.
#[derive(Debug)]
struct Stacked(Vec<u64>);

impl Operation for Stack {
    fn bind(&self, inputs: &[Input]) -> Result<Bound> {
        let rows = inputs.iter().map(|input| input.shape()[0]).sum();
        match inputs {
            [first, rest @ ..] if rest.iter().all(|other| other.shape()[1] == first.shape()[1]) => {
                let lens = inputs.iter().map(|input| input.range().end - input.range().start);
                Ok(Bound::new(first.dtype(), [rows, first.shape()[1]], Stacked(lens.collect())))
            }
            _ => Err(Error::new(ErrorKind::Shape, "the matrices differ in width")),
        }
    }
}

impl Tiles for Stacked {
    fn gather(&self, tile: Range<u64>, pieces: &mut Vec<Piece>) {
        let mut start = 0;
        for (input, len) in self.0.iter().enumerate() {
            let bytes =
                tile.start.clamp(start, start + len) - start..tile.end.clamp(start, start + len) - start;
            if !bytes.is_empty() {
                pieces.push(Piece { input, bytes });
            }
            start += len;
        }
    }

    fn is_direct(&self) -> bool {
        true
    }
}

fn stacked(ckpt: &Checkpoint, names: &[&str]) -> Result<Entry> {
    let inputs = names.iter().map(|name| Input::of(&ckpt.tensor(name).unwrap())).collect();
    Entry::new("qkv", inputs, Arc::new(Stack))
}

#[test]
fn an_operation_of_ones_own_joins_tensors() {
    let matrix = |rows, seed| Stored::filled(St::F32, &[rows, 1000], seed);
    let tensors = [
        ("k", matrix(100, 1)),
        ("q", matrix(333, 2)),
        ("v", matrix(7, 3)),
        ("x", Stored::filled(St::F32, &[2, 2], 0)),
    ];
    let (ckpt, read) = odd(&tensors, |_| Ok(()));
    let entry = stacked(&ckpt, &["q", "k", "v"]).unwrap();
    assert_eq!(entry.shape(), [440, 1000]);
    let plan = Plan::of(&ckpt).filter(|tensor| tensor.name() == "x").build().unwrap().with(entry);
    let session = plan.session().threads(3).start().unwrap();
    let (_, values) = session.take("qkv", None).unwrap();
    let expected = [tensors[1].1.bytes(), tensors[0].1.bytes(), tensors[2].1.bytes()].concat();
    assert!(in_file_order(&values) == expected);
    session.take("x", None).unwrap();
    assert_eq!(read.load(Ordering::SeqCst), ckpt.byte_len());
    assert_eq!(stacked(&ckpt, &["q", "x"]).unwrap_err().kind(), ErrorKind::Shape);
}

#[test]
fn read_ahead_keeps_to_its_budget() {
    let tensors: Vec<_> =
        (0..50).map(|i| (format!("layers.{i}"), Stored::filled(St::U8, &[100_000], i))).collect();
    let views: Vec<_> = tensors.iter().map(|(name, stored)| (&**name, stored.clone())).collect();
    let (ckpt, read) = odd(&views, |_| Ok(()));
    let session = Plan::of(&ckpt).build().unwrap().session();
    let session = session.threads(4).read_ahead(350_000).order(ReadOrder::Natural).start().unwrap();
    for (taken, number) in (0..50_u64).zip((0..50).rev()) {
        thread::sleep(Duration::from_millis(2));
        let read = read.load(Ordering::SeqCst);
        assert!(read <= taken * 100_000 + 350_000, "{read} bytes read, {taken} tensors taken");
        let (_, values) = session.take(&format!("layers.{number}"), None).unwrap();
        assert!(values.as_bytes() == tensors[number].1.bytes());
    }
    assert_eq!(session.report().bytes_read(), ckpt.byte_len());
    assert!(session.report().unused().is_empty());
}

#[test]
fn what_was_taken_can_be_taken_again_in_another_dtype() {
    let stored =
        Stored::new(St::BF16, &[2], [0x3f80_u16, 0xc000].iter().flat_map(|v| v.to_le_bytes()).collect());
    let (ckpt, _) = odd(&[("w", stored)], |_| Ok(()));
    let session = Plan::of(&ckpt).dtype(|_| Some(Dtype::F64)).build().unwrap().session().start().unwrap();
    for dtype in [Some(Dtype::F32), None, Some(Dtype::BF16), Some(Dtype::I64), Some(Dtype::F32)] {
        let (entry, values) = session.take("w", dtype).unwrap();
        assert_eq!(entry.dtype(), dtype.unwrap_or(Dtype::F64));
        let text = format!("{values:?}").replace(".0", "");
        assert!(text.ends_with("([1, -2])"), "{text}");
    }
    assert_eq!(session.take("w", Some(Dtype::U8)).unwrap_err().kind(), ErrorKind::Value);
    assert_eq!(session.take("w", Some(Dtype::C64)).unwrap_err().kind(), ErrorKind::Dtype);
    assert_eq!(session.take("v", None).unwrap_err().kind(), ErrorKind::MissingTensor);
}

#[test]
fn sources_that_fail_or_panic_give_errors_and_no_hang() {
    let tensors =
        [("a", Stored::filled(St::U8, &[3 << 20], 1)), ("b", Stored::filled(St::U8, &[3 << 20], 2))];
    let behaviours: [fn(u64) -> io::Result<()>; 2] = [
        |offset| if offset > 5 << 20 { Err(io::Error::other("bad sector")) } else { Ok(()) },
        |offset| if offset > 5 << 20 { panic!("a bug in a source") } else { Ok(()) },
    ];
    for (behave, kind) in behaviours.into_iter().zip([ErrorKind::Io, ErrorKind::Internal]) {
        for threads in [1, 2, 5] {
            let (ckpt, _) = odd(&tensors, behave);
            let session = Plan::of(&ckpt).build().unwrap().session().threads(threads).start().unwrap();
            let error = session.take("b", None).unwrap_err();
            assert_eq!((error.kind(), error.tensor()), (kind, Some("b")), "{error}");
            assert!(session.take("b", None).is_err());
            let (_, values) = session.take("a", None).unwrap();
            assert!(values.as_bytes() == tensors[0].1.bytes());
        }
    }
}

#[test]
fn dropping_a_session_stops_it() {
    let tensors: Vec<_> = (0..600).map(|i| (format!("{i}"), Stored::filled(St::U8, &[50_000], i))).collect();
    let views: Vec<_> = tensors.iter().map(|(name, stored)| (&**name, stored.clone())).collect();
    let (ckpt, read) = odd(&views, |_| {
        thread::sleep(Duration::from_millis(5));
        Ok(())
    });
    let session = Plan::of(&ckpt).build().unwrap().session().threads(3).start().unwrap();
    session.take("7", None).unwrap();
    drop(session);
    let stopped_at = read.load(Ordering::SeqCst);
    // Of 30 MB: what three threads had begun, a huge page's worth each, and what went with it.
    assert!(stopped_at < 15_000_000, "{stopped_at} bytes were read");
    // Its threads are gone with it.
    assert_eq!(read.load(Ordering::SeqCst), stopped_at);
}

#[test]
fn a_plan_spans_checkpoints() {
    // Of other sizes, so that bytes of the wrong file would be wrong or missing.
    let stored = |rows, seed| Stored::filled(St::F32, &[rows, 10], seed);
    let (a, b) = ((stored(70, 1), stored(40, 2)), (stored(30, 3), stored(50, 4)));
    let (first, _) = odd(&[("x", stored(900, 0)), ("w", a.0.clone()), ("v", a.1.clone())], |_| Ok(()));
    let (second, _) = odd(&[("w", b.0.clone()), ("v", b.1.clone())], |_| Ok(()));
    let input = |ckpt: &Checkpoint, name| Input::of(&ckpt.tensor(name).unwrap());
    let join = |name| {
        let inputs = vec![input(&first, name), input(&second, name)];
        Entry::new(name, inputs, Arc::new(Join::along(0))).unwrap()
    };
    let alone = |ckpt: &Checkpoint, name| Entry::of(&ckpt.tensor(name).unwrap(), None).unwrap();
    let session = Plan::new([join("w"), alone(&first, "x")]).with(join("v")).session().start().unwrap();
    let taken = |name| in_file_order(&session.take(name, None).unwrap().1).to_vec();
    assert!(taken("w") == [a.0.bytes(), b.0.bytes()].concat());
    assert!(taken("v") == [a.1.bytes(), b.1.bytes()].concat());
    assert!(taken("x") == stored(900, 0).bytes());
    // An entry of a checkpoint that the plan has nothing of: its own bytes.
    let (third, _) = odd(&[("w", stored(1, 9))], |_| Ok(()));
    let made = session.make(alone(&third, "w")).unwrap();
    assert!(in_file_order(&made) == stored(1, 9).bytes());
    // Bytes in memory are lent of the checkpoint that the entry is of.
    let third = Checkpoint::from_bytes(file(&[("w", stored(2, 7))])).unwrap();
    let lent = alone(&third, "w").lend().unwrap().map(|lent| lent.as_bytes().to_vec());
    assert!(lent.is_none_or(|lent| lent == stored(2, 7).bytes()));
}

/// Takes a tensor of the session that it is part of, at the worst of times.
#[derive(Debug)]
struct Curious {
    session: Arc<OnceLock<Session>>,
    /// So often until it does.
    until: AtomicU64,
}

impl Operation for Curious {
    fn bind(&self, inputs: &[Input]) -> Result<Bound> {
        let (session, until) = (Arc::clone(&self.session), AtomicU64::new(self.until.load(Ordering::SeqCst)));
        Ok(Bound::new(inputs[0].dtype(), inputs[0].shape(), Self { session, until }))
    }
}

impl Curious {
    fn look(&self) {
        if self.until.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.session.get().unwrap().take("other", None).unwrap();
        }
    }
}

impl Tiles for Curious {
    fn gather(&self, tile: Range<u64>, pieces: &mut Vec<Piece>) {
        self.look();
        pieces.push(Piece { input: 0, bytes: tile });
    }

    fn is_direct(&self) -> bool {
        true
    }

    fn step(&self) -> u64 {
        self.look();
        256 << 10
    }
}

#[test]
fn an_operation_may_use_the_session_that_calls_it() {
    let tensors = [("w", Stored::filled(St::U8, &[3 << 20], 1)), ("other", Stored::filled(St::U8, &[9], 2))];
    let (ckpt, _) = odd(&tensors, |_| Ok(()));
    // When it is planned, the tensor cannot be taken yet; so after the calls that planning makes.
    for until in 2..12 {
        let session = Arc::new(OnceLock::new());
        let curious = Curious { session: Arc::clone(&session), until: AtomicU64::new(until) };
        let entry = Entry::new("w", vec![Input::of(&ckpt.tensor("w").unwrap())], Arc::new(curious)).unwrap();
        let other = Entry::of(&ckpt.tensor("other").unwrap(), None).unwrap();
        let started = Plan::new([entry, other]).session().read_ahead(0).threads(2).start().unwrap();
        session.set(started).unwrap();
        let (done, is_done) = mpsc::channel();
        thread::spawn({
            let session = Arc::clone(&session);
            move || done.send(session.get().unwrap().take("w", None).unwrap().1).unwrap()
        });
        let values = is_done.recv_timeout(Duration::from_secs(20)).expect("it hangs");
        assert!(values.as_bytes() == tensors[0].1.bytes());
    }
}

#[test]
fn two_threads_that_want_two_dtypes_of_one_tensor_read_it_twice() {
    const SIZE: usize = 100_000;
    let (ckpt, read) = odd(&[("w", Stored::filled(St::U8, &[SIZE], 1))], |_| {
        thread::sleep(Duration::from_millis(1));
        Ok(())
    });
    let session = Plan::of(&ckpt).build().unwrap().session().threads(1).read_ahead(0).start().unwrap();
    for _ in 0..100 {
        read.store(0, Ordering::SeqCst);
        thread::scope(|scope| {
            for dtype in [None, Some(Dtype::I16)] {
                let session = &session;
                scope.spawn(move || {
                    let (entry, values) = session.take("w", dtype).unwrap();
                    assert_eq!(entry.dtype(), dtype.unwrap_or(Dtype::U8));
                    assert_eq!(values.as_bytes().len() as u64, entry.byte_len());
                });
            }
        });
        assert_eq!(read.load(Ordering::SeqCst), 2 * SIZE as u64);
    }
}

#[test]
fn what_was_read_ahead_in_vain_is_given_back() {
    let tensors: Vec<_> = (0..8).map(|i| (format!("{i}"), Stored::filled(St::U8, &[1000], i))).collect();
    let views: Vec<_> = tensors.iter().map(|(name, stored)| (&**name, stored.clone())).collect();
    let (ckpt, _) = odd(&views, |_| Ok(()));
    // Room for two: if those that are taken in another dtype kept theirs, nothing more would be read ahead.
    let session = Plan::of(&ckpt).build().unwrap().session().threads(2).read_ahead(2000).start().unwrap();
    let report = session.report();
    for (name, _) in &tensors[..6] {
        session.take(name, Some(Dtype::I16)).unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    let taken = report.bytes_needed();
    while report.bytes_read() < taken + 2000 {
        assert!(Instant::now() < deadline, "nothing is read ahead: {} bytes read", report.bytes_read());
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_operation_that_panics_when_it_is_bound_is_an_error() {
    #[derive(Debug)]
    struct Broken;
    impl Operation for Broken {
        fn bind(&self, _: &[Input]) -> Result<Bound> {
            panic!("a bug in an operation")
        }
    }
    let (ckpt, _) = odd(&[("w", Stored::filled(St::U8, &[4], 1))], |_| Ok(()));
    let inputs = vec![Input::of(&ckpt.tensor("w").unwrap())];
    let error = Entry::new("w", inputs, Arc::new(Broken)).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Internal, Some("w")));
    assert!(error.to_string().contains("a bug in an operation"), "{error}");
}

#[test]
fn one_tensor_is_read_by_its_name() {
    let stored = Stored::filled(St::F32, &[3, 2], 5);
    let (ckpt, read) =
        odd(&[("layers.1.w", stored.clone()), ("x", Stored::filled(St::U8, &[99], 1))], |_| Ok(()));
    assert!(in_file_order(&ckpt.read("layers.1.w").unwrap()) == stored.bytes());
    assert_eq!(read.load(Ordering::SeqCst), 24);
    let error = ckpt.read("layers.2.w").unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::MissingTensor, Some("layers.2.w")));
    assert!(error.to_string().ends_with("did you mean \"layers.1.w\"?"), "{error}");
}

#[test]
fn names_that_collide_are_found_before_anything_is_read() {
    let (ckpt, read) = odd(
        &[("a.w", Stored::filled(St::U8, &[1], 1)), ("b.w", Stored::filled(St::U8, &[1], 2))],
        |_| Ok(()),
    );
    let error = Plan::of(&ckpt).rename(|name| name[2..].to_owned()).build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DuplicateTensor);
    assert!(error.to_string().contains("\"a.w\"") && error.to_string().contains("\"b.w\""), "{error}");
    let error = Plan::of(&ckpt).dtype(|_| Some(Dtype::F4)).build().unwrap_err();
    assert_eq!(error.to_string(), "tensor \"a.w\": there is no cast from U8 to F4");
    assert_eq!(read.load(Ordering::SeqCst), 0);
}

/// A source on a slow disk: it keeps what was fetched in mind.
struct Cold {
    bytes: Vec<u8>,
    data_start: u64,
    patience: Duration,
    fetched: Arc<Mutex<Vec<Range<u64>>>>,
    panics: bool,
}

impl Source for Cold {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        // A slow read: the thread that fetches has its turn before the session is done.
        let deadline = Instant::now() + self.patience;
        while offset >= self.data_start
            && self.fetched.lock().unwrap().is_empty()
            && Instant::now() < deadline
        {
            thread::sleep(Duration::from_millis(1));
        }
        buf.copy_from_slice(&self.bytes[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn is_cached(&self, range: Range<u64>) -> Option<bool> {
        let fetched = self.fetched.lock().unwrap();
        Some(fetched.iter().any(|fetched| fetched.start <= range.start && range.end <= fetched.end))
    }

    fn prefetch(&self, range: Range<u64>) {
        self.fetched.lock().unwrap().push(range);
        assert!(!self.panics, "a bug in a source");
    }
}

#[test]
fn what_is_cold_is_fetched_in_order_and_what_is_not_wanted_is_not() {
    let tensors: Vec<_> = (0..40).map(|i| (format!("{i}"), Stored::filled(St::U8, &[300_000], i))).collect();
    let views: Vec<_> = tensors.iter().map(|(name, stored)| (&**name, stored.clone())).collect();
    for (prefetch, panics) in
        [(Prefetch::Auto, false), (Prefetch::Always, false), (Prefetch::Auto, true), (Prefetch::Never, false)]
    {
        let fetched = Arc::new(Mutex::new(Vec::new()));
        let bytes = file(&views);
        let data_start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let patience = Duration::from_secs(if prefetch == Prefetch::Never { 0 } else { 5 });
        let source = Cold { bytes, data_start, patience, fetched: Arc::clone(&fetched), panics };
        let ckpt = Checkpoint::from_source(source).unwrap();
        let plan = Plan::of(&ckpt).filter(|tensor| !tensor.name().starts_with('3')).build().unwrap();
        let wanted: Vec<_> = plan.entries().iter().map(|entry| entry.inputs()[0].range()).collect();
        let session = plan.session().prefetch(prefetch).read_ahead(1 << 20).start().unwrap();
        for (name, stored) in tensors.iter().filter(|(name, _)| !name.starts_with('3')) {
            assert!(session.take(name, None).unwrap().1.as_bytes() == stored.bytes());
        }
        drop(session);
        let fetched = fetched.lock().unwrap();
        if prefetch == Prefetch::Never {
            assert!(fetched.is_empty());
            continue;
        }
        assert!(!fetched.is_empty());
        for range in fetched.iter() {
            let overlaps = |wanted: &&Range<u64>| wanted.start < range.end && range.start < wanted.end;
            let inside: u64 = wanted
                .iter()
                .filter(overlaps)
                .map(|wanted| wanted.end.min(range.end) - wanted.start.max(range.start))
                .sum();
            assert_eq!(inside, range.end - range.start, "{range:?} was not wanted");
        }
    }
}
