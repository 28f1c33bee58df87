//! The engine: plans of operations over tiles, read-ahead within its budget, sources that misbehave.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use safetensors::Dtype as St;
use weighbridge::engine::{Order, Prefetch};
use weighbridge::plan::{Input, Operation, Piece};
use weighbridge::{Checkpoint, Dtype, Entry, Error, ErrorKind, Hints, Plan, Result, Source};
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

impl Operation for Stack {
    fn output(&self, inputs: &[Input]) -> Result<(Dtype, Vec<usize>)> {
        let rows = inputs.iter().map(|input| input.shape()[0]).sum();
        match inputs {
            [first, rest @ ..] if rest.iter().all(|other| other.shape()[1] == first.shape()[1]) => {
                Ok((first.dtype(), vec![rows, first.shape()[1]]))
            }
            _ => Err(Error::new(ErrorKind::Shape, "the matrices differ in width")),
        }
    }

    fn gather(&self, inputs: &[Input], tile: Range<u64>) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut start = 0;
        for (number, input) in inputs.iter().enumerate() {
            let len = input.range().end - input.range().start;
            let bytes =
                tile.start.clamp(start, start + len) - start..tile.end.clamp(start, start + len) - start;
            if !bytes.is_empty() {
                pieces.push(Piece { input: number, bytes });
            }
            start += len;
        }
        pieces
    }

    fn is_direct(&self, _: &[Input]) -> bool {
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
    let session = session.threads(4).read_ahead(350_000).order(Order::Natural).start().unwrap();
    for (taken, number) in (0..50_u64).zip((0..50).rev()) {
        std::thread::sleep(Duration::from_millis(2));
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
        std::thread::sleep(Duration::from_millis(5));
        Ok(())
    });
    let session = Plan::of(&ckpt).build().unwrap().session().threads(3).start().unwrap();
    session.take("7", None).unwrap();
    drop(session);
    let stopped_at = read.load(Ordering::SeqCst);
    // Of 30 MB: what three threads had begun, a huge page's worth each, and what went with it.
    assert!(stopped_at < 15_000_000, "{stopped_at} bytes were read");
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(read.load(Ordering::SeqCst), stopped_at);
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
            std::thread::sleep(Duration::from_millis(1));
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
