//! Saves whose tensors give their bytes in any order, to several threads: the same file as any other, or
//! none.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::ops::{ControlFlow, Range};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use weighbridge::write::{Ranges, Save, TensorData};
use weighbridge::{Checkpoint, Dtype, ErrorKind};

/// What a tensor does when it is asked for a range.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Write,
    Fail,
    Panic,
    WriteTooLittle,
    WriteTooMuch,
}

/// Bytes that are made when they are asked for.
struct Made {
    seed: u8,
    shape: [usize; 1],
    in_any_order: bool,
    /// What it does when it is asked for the range that has this byte.
    at: u64,
    then: Then,
    asked: Mutex<HashSet<u64>>,
}

impl Made {
    fn new(seed: u8, len: usize, in_any_order: bool) -> Self {
        Self { seed, shape: [len], in_any_order, at: 0, then: Then::Write, asked: Mutex::default() }
    }

    fn bytes(&self, range: Range<u64>) -> Vec<u8> {
        range.map(|at| (at % 251) as u8 ^ self.seed).collect()
    }
}

impl TensorData for Made {
    fn dtype(&self) -> Dtype {
        Dtype::U8
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.bytes(0..self.shape[0] as u64))
    }

    fn ranges(&self) -> Option<&dyn Ranges> {
        self.in_any_order.then_some(self)
    }
}

impl Ranges for Made {
    fn write_range(&self, bytes: Range<u64>, out: &mut dyn Write) -> io::Result<()> {
        assert!(self.asked.lock().unwrap().insert(bytes.start), "a range is asked for twice");
        let is_there = bytes.contains(&self.at);
        let mut made = self.bytes(bytes);
        match self.then {
            Then::Fail if is_there => return Err(io::Error::other("the device is gone")),
            Then::Panic if is_there => std::panic::resume_unwind(Box::new("a bug")),
            Then::WriteTooLittle if is_there => drop(made.pop()),
            Then::WriteTooMuch if is_there => made.push(0),
            _ => {}
        }
        // One that does not listen to what it is told.
        made.chunks(1 << 20).for_each(|piece| drop(out.write_all(piece)));
        Ok(())
    }
}

/// Tensors of more than one piece each, some of which give their bytes in order only.
fn tensors() -> Vec<(String, Made)> {
    let sizes = [10 << 20, 5, 0, (9 << 20) + 7, 3 << 20, 20 << 20];
    let tensor = |(number, len)| (format!("t{number}"), Made::new(number as u8, len, number != 4));
    sizes.into_iter().enumerate().map(tensor).collect()
}

#[test]
fn it_is_the_same_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let told = std::sync::Arc::new(AtomicU64::new(0));
    let save = Save::new().progress({
        let told = std::sync::Arc::clone(&told);
        move |progress| assert!(told.swap(progress.bytes_done, Ordering::SeqCst) <= progress.bytes_done)
    });
    let all = tensors();
    save.file(&path, all.iter().map(|(name, tensor)| (name, tensor))).unwrap();
    let asked = |tensor: &Made| tensor.asked.lock().unwrap().len();
    assert!(all.iter().map(|(_, tensor)| asked(tensor)).sum::<usize>() > 5, "nobody asked for ranges");
    assert_eq!(asked(&all[4].1), 0);
    let total: usize = all.iter().map(|(_, tensor)| tensor.shape[0]).sum();
    assert_eq!(told.load(Ordering::SeqCst), total as u64);
    let in_order = tensors().into_iter().map(|(name, tensor)| (name, Made { in_any_order: false, ..tensor }));
    assert!(fs::read(&path).unwrap() == Save::new().bytes(in_order).unwrap());
    // Shards, too.
    let save = Save::new().max_shard_size(20 << 20);
    save.directory(directory.path().join("set"), "model", tensors()).unwrap();
    let ckpt = Checkpoint::open(directory.path().join("set")).unwrap();
    for (name, tensor) in tensors() {
        let weighbridge::HostBuffer::U8(bytes) = ckpt.read(&name).unwrap() else { panic!("it is not U8") };
        assert!(bytes == tensor.bytes(0..bytes.len() as u64), "{name} is wrong");
    }
}

#[test]
fn what_goes_wrong_leaves_the_old_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    fs::write(&path, "old").unwrap();
    for (then, kind) in [
        (Then::Fail, ErrorKind::Io),
        (Then::Panic, ErrorKind::Internal),
        (Then::WriteTooLittle, ErrorKind::TensorSize),
        (Then::WriteTooMuch, ErrorKind::TensorSize),
    ] {
        let mut tensors = tensors();
        (tensors[3].1.at, tensors[3].1.then) = (6 << 20, then);
        let error = Save::new().file(&path, tensors).unwrap_err();
        assert_eq!((error.kind(), error.tensor()), (kind, Some("t3")), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "something is left behind");
    }
}

#[test]
fn a_handler_ends_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let calls = AtomicUsize::new(0);
    let save = Save::new().progress(move |_| match calls.fetch_add(1, Ordering::SeqCst) {
        0..4 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    });
    assert_eq!(save.file(&path, tensors()).unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "something is left behind");
}
