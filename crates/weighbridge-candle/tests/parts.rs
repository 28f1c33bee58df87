//! Parts of tensors: slices, shards, and what of them is read ahead.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::var_builder::{Backend, Shard, SimpleBackend};
use candle_nn::{VarBuilder, VarMap};
use safetensors::Dtype as St;
use weighbridge::{Checkpoint, ErrorKind, Names, Progress, Slice, Source};
use weighbridge_candle::Loader;
use weighbridge_tests::{Stored, file};

/// Counts what is read.
struct Counted {
    bytes: Vec<u8>,
    read: Arc<AtomicU64>,
}

impl Source for Counted {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.copy_from_slice(&self.bytes[offset as usize..][..buf.len()]);
        self.read.fetch_add(buf.len() as u64, Ordering::SeqCst);
        Ok(())
    }
}

const ROWS: usize = 50;
/// Rows of 32 KiB, so that what is between parts is not read through.
const COLUMNS: usize = 8192;

/// Two matrices of one shape, and a scalar.
fn matrices() -> (Checkpoint, Arc<AtomicU64>) {
    let matrix = |seed| Stored::filled(St::U32, &[ROWS, COLUMNS], seed);
    let tensors = [("a", matrix(1)), ("b", matrix(2)), ("scale", Stored::filled(St::F32, &[], 3))];
    let read = Arc::new(AtomicU64::new(0));
    let ckpt = Checkpoint::from_source(Counted { bytes: file(&tensors), read: Arc::clone(&read) }).unwrap();
    read.store(0, Ordering::SeqCst);
    (ckpt, read)
}

fn rows(start: i64, end: i64) -> Slice {
    Slice::new().range(start..end)
}

fn values(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A range of one dimension, cut by Candle out of the whole.
fn narrowed(whole: &Tensor, dim: usize, start: usize, len: usize) -> Vec<u32> {
    values(&whole.narrow(dim, start, len).unwrap().contiguous().unwrap())
}

#[test]
fn slices_of_any_size_are_what_candle_cuts_out() {
    let (ckpt, read) = matrices();
    let whole = Loader::new(&ckpt).load().unwrap().tensors.remove("a").unwrap();
    read.store(0, Ordering::SeqCst);
    let loader = || Loader::new(&ckpt).dtype(DType::U32).read_ahead(0);
    let (backend, sharded) = (loader().backend().unwrap(), loader().sharded_backend().unwrap());
    let mut expected = 0;
    // mistral.rs' `Shard::Offset`: uneven parts that together are all rows.
    for (offset, len) in [(0, 1), (1, 30), (31, 19)] {
        let part = Slice::along(0, offset..offset + len);
        for tensor in [backend.get_slice("a", &part).unwrap(), sharded.get_slice("a", &part).unwrap()] {
            assert_eq!(tensor.dims(), [len, COLUMNS]);
            assert_eq!(values(&tensor), narrowed(&whole, 0, offset, len));
            expected += (len * COLUMNS * 4) as u64;
        }
    }
    // No more was read.
    assert_eq!(read.load(Ordering::SeqCst), expected);
    let columns = Slice::along(1, 5000..8001);
    let tensor = sharded.get_slice("a", &columns).unwrap();
    assert_eq!((tensor.dims(), values(&tensor)), (&[ROWS, 3001][..], narrowed(&whole, 1, 5000, 3001)));
    // As in Python, a range is cut to what is there, and an index drops its dimension.
    assert_eq!(backend.get_slice("a", &rows(40, 1000)).unwrap().dims(), [10, COLUMNS]);
    assert_eq!(backend.get_slice("a", &Slice::new().select(-1)).unwrap().dims(), [COLUMNS]);
    assert_eq!(values(&backend.get_slice("a", &Slice::new()).unwrap()), values(&whole));

    let other = sharded.get_slice_as("a", &rows(0, 2), DType::F64, &Device::Cpu).unwrap();
    assert_eq!((other.dtype(), other.dims()), (DType::F64, &[2, COLUMNS][..]));
    let error = backend.get_slice("c", &rows(0, 2)).unwrap_err().to_string();
    assert!(error.contains("cannot find tensor c"), "{error}");
    let error = backend.get_slice("a", &Slice::new().select(50)).unwrap_err().to_string();
    assert!(error.contains("tensor \"a\"") && error.contains("50"), "{error}");
}

/// Tells of progress, and what was told.
fn told() -> (impl FnMut(Progress) + Send + 'static, Receiver<u64>) {
    let (told, progress) = channel();
    let tell = move |progress: Progress| told.send(progress.bytes_done).unwrap_or_default();
    (tell, progress)
}

/// Waits until so many bytes of tensors are there.
fn wait(progress: &Receiver<u64>, bytes: u64) {
    while progress.recv_timeout(Duration::from_secs(60)).unwrap() < bytes {}
}

#[test]
fn declared_parts_are_read_ahead_and_nothing_else() {
    let (ckpt, read) = matrices();
    let whole = Loader::new(&ckpt).load().unwrap().tensors;
    read.store(0, Ordering::SeqCst);
    let shard = Shard { dim: 0, rank: 1, world_size: 2 };
    let row = (COLUMNS * 4) as u64;
    let (tell, progress) = told();
    let backend = Loader::new(&ckpt)
        .dtype(DType::U32)
        .threads(2)
        .progress(tell)
        .shard_for(Names::exact("a"), shard)
        .sharded_backend()
        .unwrap();
    wait(&progress, 25 * row);
    assert_eq!(read.load(Ordering::SeqCst), 25 * row);
    // The same part, however it is asked for, is not read again: once.
    let report = backend.report();
    let (dtype, device) = (backend.dtype(), Device::Cpu);
    let taken = Backend::get(&backend, Shape::from(()), "a", shard, dtype, &device).unwrap();
    assert_eq!(values(&taken), narrowed(&whole["a"], 0, 25, 25));
    assert_eq!((read.load(Ordering::SeqCst), report.bytes_read()), (25 * row, 25 * row));
    assert_eq!(report.unused(), ["b", "scale"]);
    // Other parts, and tensors that were not declared, are read when they are asked for.
    let taken = backend.get_slice("a", &rows(0, 3)).unwrap();
    assert_eq!(values(&taken), narrowed(&whole["a"], 0, 0, 3));
    let taken = Backend::get(&backend, Shape::from((ROWS, COLUMNS)), "b", shard, dtype, &device).unwrap();
    assert_eq!(values(&taken), narrowed(&whole["b"], 0, 25, 25));
    assert_eq!(report.bytes_read(), 53 * row);
    assert_eq!((report.bytes_needed(), report.unused()), (53 * row, vec!["scale".to_owned()]));
}

#[test]
fn a_slice_that_was_declared_is_read_once_whoever_asks() {
    let (ckpt, read) = matrices();
    let row = (COLUMNS * 4) as u64;
    for by_slice in [true, false] {
        read.store(0, Ordering::SeqCst);
        let (tell, progress) = told();
        let backend = Loader::new(&ckpt)
            .dtype(DType::U32)
            .only(Names::exact("a"))
            .threads(2)
            .progress(tell)
            .part_for(Names::all(), rows(25, 50))
            .backend()
            .unwrap();
        wait(&progress, 25 * row);
        // The last 25 rows are these 25 rows.
        let taken = match by_slice {
            true => backend.get_slice("a", &rows(-25, 50)).unwrap(),
            false => backend.get_unchecked("a", DType::U32, &Device::Cpu).unwrap(),
        };
        assert_eq!(taken.dims(), [25, COLUMNS]);
        assert_eq!(read.load(Ordering::SeqCst), 25 * row);
    }
}

#[test]
fn a_declared_part_is_the_tensor_to_whoever_names_no_other() {
    let (ckpt, _) = matrices();
    let whole = Loader::new(&ckpt).load().unwrap().tensors;
    let half = Shard { dim: 1, rank: 1, world_size: 2 };
    // The first rule for a name counts.
    let loader = || {
        Loader::new(&ckpt)
            .dtype(DType::U32)
            .only(Names::glob("[ab]").unwrap())
            .part_for(Names::exact("a"), rows(7, 11))
            .shard_for(Names::glob("[ab]").unwrap(), half)
    };
    let b = narrowed(&whole["b"], 1, COLUMNS / 2, COLUMNS / 2);
    let loaded = loader().load().unwrap().tensors;
    assert_eq!(values(&loaded["a"]), narrowed(&whole["a"], 0, 7, 4));
    assert_eq!(values(&loaded["b"]), b);
    let vb = loader().var_builder().unwrap();
    assert_eq!(values(&vb.get((4, COLUMNS), "a").unwrap()), narrowed(&whole["a"], 0, 7, 4));
    assert!(vb.get((ROWS, COLUMNS), "a").unwrap_err().to_string().contains("shape mismatch for a"));
    let vb = loader().sharded_var_builder().unwrap();
    assert_eq!(values(&vb.get((), "b").unwrap()), b);
    assert_eq!(values(&vb.get((ROWS, COLUMNS / 2), "b").unwrap()), b);
    assert!(vb.get((ROWS, COLUMNS), "b").is_err());
    // A shard is one of the stored tensor.
    let first = Shard { dim: 0, rank: 0, world_size: 2 };
    let taken = vb.get_with_hints((25, COLUMNS), "b", first).unwrap();
    assert_eq!(values(&taken), narrowed(&whole["b"], 0, 0, 25));
    assert_eq!(values(&vb.get_with_hints((ROWS, COLUMNS), "b", half).unwrap()), b);

    let map = VarMap::new();
    let zeros = Tensor::zeros((4, COLUMNS), DType::U32, &Device::Cpu).unwrap();
    map.data().lock().unwrap().insert("a".to_owned(), Var::from_tensor(&zeros).unwrap());
    loader().fill(&map).unwrap();
    let var = map.data().lock().unwrap()["a"].as_tensor().clone();
    assert_eq!(values(&var), narrowed(&whole["a"], 0, 7, 4));
}

#[test]
fn a_part_that_cannot_be_is_an_error_before_anything_is_read() {
    let (ckpt, read) = matrices();
    let before = read.load(Ordering::SeqCst);
    let thirds = Shard { dim: 0, rank: 0, world_size: 3 };
    let error = Loader::new(&ckpt).shard_for(Names::exact("a"), thirds).backend().unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Slice, Some("a")));
    let part = Slice::new().range(..).range(..);
    let error = Loader::new(&ckpt).part_for(Names::exact("scale"), part).load().unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Slice, Some("scale")));
    assert_eq!(read.load(Ordering::SeqCst), before);
    // An empty one can be, and so can the only rank's.
    let loader =
        Loader::new(&ckpt).dtype(DType::F32).only(Names::exact("a")).part_for(Names::all(), rows(3, 3));
    assert_eq!(loader.load().unwrap().tensors["a"].dims(), [0, COLUMNS]);
    let loader = Loader::new(&ckpt).shard_for(Names::all(), Shard::default());
    assert_eq!(loader.load().unwrap().tensors["a"].dims(), [ROWS, COLUMNS]);
}

#[test]
fn parts_under_new_names_in_another_dtype() {
    let (ckpt, _) = matrices();
    let whole = Loader::new(&ckpt).load().unwrap().tensors.remove("a").unwrap();
    let renames = weighbridge::Renames::new().prefix("a", "model.a");
    let backend = Loader::new(&ckpt)
        .rename(renames)
        .part_for(Names::prefix("model."), rows(10, 13))
        .dtype_for(Names::prefix("model."), DType::I64)
        .backend()
        .unwrap();
    let slice = backend.get_slice("model.a", &rows(0, 2)).unwrap();
    assert_eq!((slice.dtype(), slice.dims()), (DType::I64, &[2, COLUMNS][..]));
    let vb = VarBuilder::from_backend(Box::new(backend), DType::F32, Device::Cpu);
    let part = vb.get((3, COLUMNS), "model.a").unwrap();
    let expected: Vec<i64> = narrowed(&whole, 0, 10, 3).into_iter().map(i64::from).collect();
    assert_eq!(part.flatten_all().unwrap().to_vec1::<i64>().unwrap(), expected);
}
