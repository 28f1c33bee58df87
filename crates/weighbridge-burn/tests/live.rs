//! Weights that are swapped in a module that others compute with.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use burn::module::Module;
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor, TensorData};
use weighbridge_burn::weighbridge::source::Source;
use weighbridge_burn::weighbridge::write::{Save, Values};
use weighbridge_burn::weighbridge::{Checkpoint, Dtype, ErrorKind, Names, Renames, TensorView};
use weighbridge_burn::{Live, Loader, load, save};

#[derive(Module, Debug)]
struct Model {
    up: Linear,
    norm: BatchNorm,
    down: Linear,
}

const WIDTH: usize = 8;

fn model() -> Model {
    let device = Device::flex();
    Model {
        up: LinearConfig::new(WIDTH, WIDTH).init(&device),
        norm: BatchNormConfig::new(WIDTH).init(&device),
        down: LinearConfig::new(WIDTH, WIDTH).init(&device),
    }
}

impl Model {
    /// The values of every tensor, if each is of one value.
    fn levels(&self) -> Vec<f32> {
        let level = |data: TensorData| {
            let values = data.try_to_vec::<f32>().unwrap();
            assert!(values.iter().all(|value| *value == values[0]), "half of a swap: {values:?}");
            values[0]
        };
        vec![
            level(self.up.weight.val().into_data()),
            level(self.up.bias.as_ref().unwrap().val().into_data()),
            level(self.norm.running_mean.value().into_data()),
            level(self.norm.running_var.value().into_data()),
            level(self.down.weight.val().into_data()),
            level(self.down.bias.as_ref().unwrap().val().into_data()),
        ]
    }
}

/// A tensor of one value.
type Stored = (String, Vec<usize>, f32);

/// As PyTorch has them: every tensor is of this value.
fn tensors(value: f32) -> Vec<Stored> {
    let of = |name: &str, shape: &[usize]| (format!("m.{name}"), shape.to_vec(), value);
    vec![
        of("up.weight", &[WIDTH, WIDTH]),
        of("up.bias", &[WIDTH]),
        of("norm.weight", &[WIDTH]),
        of("norm.bias", &[WIDTH]),
        of("norm.running_mean", &[WIDTH]),
        of("norm.running_var", &[WIDTH]),
        of("down.weight", &[WIDTH, WIDTH]),
        of("down.bias", &[WIDTH]),
    ]
}

fn file(tensors: &[Stored]) -> Vec<u8> {
    let values = tensors.iter().map(|(_, shape, value)| vec![*value; shape.iter().product()]);
    let values: Vec<Vec<f32>> = values.collect();
    let named = tensors.iter().zip(&values);
    let named = named.map(|((name, shape, _), values)| (name.clone(), Values::new(shape, values).unwrap()));
    Save::new().bytes(named.collect::<Vec<_>>()).unwrap()
}

fn open(tensors: &[Stored]) -> Checkpoint {
    Checkpoint::from_bytes(file(tensors)).unwrap()
}

fn checkpoint(value: f32) -> Checkpoint {
    open(&tensors(value))
}

fn loader(ckpt: &Checkpoint) -> Loader {
    load(ckpt).pytorch().rename(Renames::new().prefix("m.", ""))
}

/// Adds `value` to each weight of a module.
fn adapter(module: &str, value: f32) -> Checkpoint {
    open(&[
        (format!("{module}.lora_A.weight"), vec![1, WIDTH], value),
        (format!("{module}.lora_B.weight"), vec![WIDTH, 1], 1.0),
    ])
}

fn bytes(module: &Model) -> Vec<u8> {
    save(module).bytes().unwrap()
}

#[test]
fn versions_are_whole_and_stay_as_they_are() {
    let mut own = model();
    loader(&checkpoint(0.0)).into(&mut own).unwrap();
    let live = Live::new(own.clone());
    let first = live.get();
    assert_eq!((first.version(), first.levels()), (0, vec![0.0; 6]));
    let report = live.swap(loader(&checkpoint(1.0))).unwrap();
    assert_eq!(report.loaded.len(), 8);
    let second = live.get();
    assert_eq!((second.version(), live.version(), second.levels()), (1, 1, vec![1.0; 6]));
    // What others hold stays, running statistics, too.
    assert_eq!((first.version(), first.levels()), (0, vec![0.0; 6]));
    assert_eq!(own.levels(), [0.0; 6]);
    // Statistics that the module's owner goes on with are not those that are served.
    loader(&checkpoint(7.0)).into(&mut own).unwrap();
    assert_eq!(second.levels(), [1.0; 6]);
    // A part of them.
    let report = live.swap(loader(&checkpoint(2.0)).only(Names::prefix("up."))).unwrap();
    assert_eq!(report.loaded, ["up.weight", "up.bias"]);
    assert_eq!(live.get().levels(), [2.0, 2.0, 1.0, 1.0, 1.0, 1.0]);
}

/// Bytes in memory, which notes those that are read, and fails when it is told to.
#[derive(Debug)]
struct Watched {
    bytes: Vec<u8>,
    read: Arc<Mutex<Vec<Range<u64>>>>,
    fails: Arc<AtomicBool>,
}

impl Watched {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, read: Arc::default(), fails: Arc::default() }
    }
}

impl Source for Watched {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        // The first tensors are read, the last ones are not.
        let (start, end) = (offset as usize, offset as usize + buf.len());
        if self.fails.load(Ordering::SeqCst) && end > self.bytes.len() - 300 {
            return Err(io::Error::other("the disk is gone"));
        }
        self.read.lock().unwrap().push(offset..offset + buf.len() as u64);
        buf.copy_from_slice(&self.bytes[start..end]);
        Ok(())
    }
}

/// Loads that fail, each for a reason of its own.
fn failures() -> Vec<(ErrorKind, Box<dyn Fn() -> Loader + Send + Sync>)> {
    let with = |change: &dyn Fn(&mut Vec<Stored>)| {
        let mut tensors = tensors(-1.0);
        change(&mut tensors);
        open(&tensors)
    };
    let shape = with(&|tensors| tensors[6].1 = vec![2, WIDTH]);
    let missing = with(&|tensors| drop(tensors.remove(5)));
    let source = Watched::new(file(&tensors(-1.0)));
    let fails = Arc::clone(&source.fails);
    let read = Checkpoint::from_source(source).unwrap();
    fails.store(true, Ordering::SeqCst);
    let (base, stranger) = (checkpoint(-1.0), adapter("m.sideways", 1.0));
    vec![
        (ErrorKind::Shape, Box::new(move || loader(&shape))),
        (ErrorKind::MissingTensor, Box::new(move || loader(&missing))),
        (ErrorKind::Io, Box::new(move || loader(&read))),
        (ErrorKind::MissingTensor, Box::new(move || loader(&base).adapter(&stranger, 1.0))),
    ]
}

#[test]
fn a_swap_that_fails_leaves_every_bit() {
    let (live, _) = Live::load(loader(&checkpoint(3.0)), model()).unwrap();
    live.swap_adapters([(&adapter("m.up", 1.0), 1.0)]).unwrap();
    let (held, before) = (live.get(), bytes(&live.get()));
    for (kind, failing) in failures() {
        let error = live.swap(failing()).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!((live.version(), bytes(&live.get())), (1, before.clone()));
    }
    let (stranger, wide) = (adapter("m.sideways", 1.0), adapter("m.up", f32::NAN));
    assert_eq!(live.swap_adapters([(&stranger, 1.0)]).unwrap_err().kind(), ErrorKind::MissingTensor);
    assert_eq!(live.swap_adapters([(&wide, f32::INFINITY)]).unwrap_err().kind(), ErrorKind::Value);
    assert_eq!((live.version(), bytes(&live.get()), bytes(&held)), (1, before.clone(), before));
    // The adapter that was there is the one that goes.
    let report = live.swap_adapters([]).unwrap();
    assert_eq!((report.loaded, live.get().levels()), (vec!["up.weight".to_owned()], vec![3.0; 6]));

    let error = Live::new(model()).swap_adapters([]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn an_adapter_reads_what_it_touches() {
    let source = Watched::new(file(&tensors(1.0)));
    let read = Arc::clone(&source.read);
    let base = Checkpoint::from_source(source).unwrap();
    let place = |name: &str| base.tensor(name).unwrap().info().file_range();
    let (live, report) = Live::load(loader(&base), model()).unwrap();
    assert_eq!((live.version(), report.loaded.len()), (0, 8));
    read.lock().unwrap().clear();
    let touched = |adapters: &[(&Checkpoint, f32)]| live.swap_adapters(adapters.iter().copied()).unwrap();
    let (up, down) = (adapter("m.up", 1.0), adapter("m.down", 10.0));

    let report = touched(&[(&up, 2.0)]);
    assert_eq!(report.loaded, ["up.weight"]);
    assert_eq!(report.bytes, (WIDTH * WIDTH * 4) as u64);
    let with_up = live.get();
    assert_eq!(with_up.levels(), [3.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
    let touched_only = place("m.up.weight");
    let is_inside = |read: &Range<u64>| touched_only.start <= read.start && read.end <= touched_only.end;
    assert!(read.lock().unwrap().iter().all(is_inside), "{read:?}");

    assert_eq!(touched(&[(&down, 1.0)]).loaded, ["up.weight", "down.weight"]);
    assert_eq!(live.get().levels(), [1.0, 1.0, 1.0, 1.0, 11.0, 1.0]);
    assert_eq!(touched(&[(&down, 1.0), (&up, 1.0)]).loaded, ["up.weight", "down.weight"]);
    assert_eq!(live.get().levels(), [2.0, 1.0, 1.0, 1.0, 11.0, 1.0]);
    // The same adapters with another weight.
    assert_eq!(touched(&[(&down, 1.0), (&up, 0.5)]).loaded, ["up.weight", "down.weight"]);
    assert_eq!(live.get().levels(), [1.5, 1.0, 1.0, 1.0, 11.0, 1.0]);
    assert_eq!(touched(&[]).loaded, ["up.weight", "down.weight"]);
    assert_eq!(touched(&[]).loaded, [""; 0]);
    assert_eq!((live.version(), live.get().levels()), (6, vec![1.0; 6]));
    // New weights bring their own adapters, or none.
    live.swap(loader(&checkpoint(5.0)).adapter(&down, 1.0)).unwrap();
    assert_eq!(live.get().levels(), [5.0, 5.0, 5.0, 5.0, 15.0, 5.0]);
    assert_eq!(touched(&[]).loaded, ["down.weight"]);
    assert_eq!(live.get().levels(), [5.0; 6]);
}

#[test]
fn a_quantised_weight_that_is_not_touched_is_not_made_anew() {
    let (codes, scales) = ([2_u8; WIDTH * WIDTH], 0.5_f32.to_le_bytes().repeat(WIDTH));
    let mut stored = tensors(1.0);
    stored.remove(0);
    let rest = open(&stored);
    let views = rest.tensors().map(|tensor| (tensor.name().to_owned(), tensor.view().unwrap()));
    let quantised = [
        ("m.up.weight".to_owned(), TensorView::new(Dtype::I8, &[WIDTH, WIDTH], &codes).unwrap()),
        ("m.up.weight_scale".to_owned(), TensorView::new(Dtype::F32, &[WIDTH, 1], &scales).unwrap()),
    ];
    let base = Checkpoint::from_bytes(Save::new().bytes(views.chain(quantised)).unwrap()).unwrap();
    let (live, _) = Live::load(loader(&base).dtype(DType::F32), model()).unwrap();
    assert_eq!(live.get().levels(), [1.0; 6]);
    assert_eq!(live.swap_adapters([(&adapter("m.down", 1.0), 1.0)]).unwrap().loaded, ["down.weight"]);
    // It can be merged into codes, too.
    let report = live.swap_adapters([(&adapter("m.up", 1.0), 1.0)]).unwrap();
    assert_eq!(report.loaded, ["up.weight", "down.weight"]);
    assert_eq!(live.get().levels(), [2.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
}

#[test]
fn threads_compute_while_swaps_happen_and_fail() {
    const SWAPS: u64 = 60;
    let (live, _) = Live::load(loader(&checkpoint(0.0)), model()).unwrap();
    let (done, seen) = (AtomicBool::new(false), AtomicU64::new(0));
    let failures = failures();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut last = 0;
                while !done.load(Ordering::SeqCst) {
                    let serving = live.get();
                    assert!(serving.version() >= last);
                    last = serving.version();
                    // A version's weights are of its number; an adapter adds to one of them.
                    let levels = serving.levels();
                    let base = last.div_ceil(2) as f32;
                    assert_eq!(levels[1..], [base; 5], "version {last}");
                    let added = if last % 2 == 0 && last > 0 { 0.5 } else { 0.0 };
                    assert_eq!(levels[0], base + added, "version {last}");
                    let input = Tensor::<2>::ones([1, WIDTH], &Device::flex());
                    let output = serving.up.forward(input).into_data().try_to_vec::<f32>().unwrap();
                    assert_eq!(output, [(base + added) * WIDTH as f32 + base; WIDTH]);
                    seen.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let half = adapter("m.up", 0.5);
        for number in 1..=SWAPS {
            let before = seen.load(Ordering::SeqCst);
            let (_, failing) = &failures[number as usize % failures.len()];
            live.swap(failing()).unwrap_err();
            live.swap(loader(&checkpoint(number as f32))).unwrap();
            live.swap_adapters([(&adapter("m.sideways", 1.0), 1.0)]).unwrap_err();
            live.swap_adapters([(&half, 1.0)]).unwrap();
            while seen.load(Ordering::SeqCst) == before {
                thread::yield_now();
            }
        }
        done.store(true, Ordering::SeqCst);
    });
    assert_eq!(live.version(), 2 * SWAPS);
    assert!(seen.load(Ordering::SeqCst) >= SWAPS);
}
