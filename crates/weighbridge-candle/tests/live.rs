//! Weights that are swapped while they are computed with.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{Linear, VarBuilder, VarMap, linear_no_bias};
use weighbridge::source::Source;
use weighbridge::write::{Save, Values};
use weighbridge::{Checkpoint, ErrorKind};
use weighbridge_candle::{Live, Loader, Saver, vars};

const LAYERS: usize = 6;
const WIDTH: usize = 32;

fn name(layer: usize) -> String {
    format!("layers.{layer}.weight")
}

fn model() -> (VarMap, Vec<Linear>) {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let layer = |layer| linear_no_bias(WIDTH, WIDTH, vb.pp(format!("layers.{layer}"))).unwrap();
    let layers = (0..LAYERS).map(layer).collect();
    (map, layers)
}

/// All weights are one number.
fn bytes(value: f32) -> Vec<u8> {
    let values = [value; WIDTH * WIDTH];
    let weight = Values::new(&[WIDTH, WIDTH], &values).unwrap();
    Save::new().bytes((0..LAYERS).map(|layer| (name(layer), &weight)).collect::<Vec<_>>()).unwrap()
}

/// Weights whose values say the version that they have as the first swap.
fn weights(value: f32) -> Checkpoint {
    Checkpoint::from_bytes(bytes(value)).unwrap()
}

/// An adapter that adds a number to each weight of one layer.
fn adapter(layer: usize, value: f32) -> Checkpoint {
    let (down, up) = (vec![value; WIDTH], vec![1.0_f32; WIDTH]);
    let (down, up) = (Values::new(&[1, WIDTH], &down).unwrap(), Values::new(&[WIDTH, 1], &up).unwrap());
    let module = format!("layers.{layer}");
    let tensors = [(format!("{module}.lora_A.weight"), down), (format!("{module}.lora_B.weight"), up)];
    Checkpoint::from_bytes(Save::new().bytes(tensors).unwrap()).unwrap()
}

/// The first and the last value of each layer.
fn seen(layers: &[Linear]) -> Vec<[f32; 2]> {
    let value = |layer: &Linear| {
        let all: Vec<f32> = layer.weight().flatten_all().unwrap().to_vec1().unwrap();
        [all[0], all[all.len() - 1]]
    };
    layers.iter().map(value).collect()
}

/// A source that can break, and counts what is read.
#[derive(Default)]
struct Watched {
    bytes: Vec<u8>,
    /// From where on it cannot be read, but for 0.
    broken_from: Arc<AtomicU64>,
    read: Arc<AtomicU64>,
}

impl Source for Watched {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let broken_from = self.broken_from.load(Ordering::Relaxed);
        if broken_from > 0 && offset + buf.len() as u64 > broken_from {
            return Err(io::Error::other("the disk is broken"));
        }
        self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        buf.copy_from_slice(&self.bytes[offset as usize..][..buf.len()]);
        Ok(())
    }
}

/// Checkpoints that no swap takes, and what the error is.
fn bad() -> Vec<(Checkpoint, ErrorKind)> {
    let weight = Values::new(&[WIDTH, WIDTH], &[9.0_f32; WIDTH * WIDTH]).unwrap();
    let tensors = |count: usize| (0..count).map(|layer| (name(layer), weight)).collect::<Vec<_>>();
    let missing = Save::new().bytes(tensors(LAYERS - 1)).unwrap();
    let mut wrong = tensors(LAYERS - 1);
    wrong.push((name(LAYERS - 1), Values::new(&[WIDTH, 1], &[9.0_f32; WIDTH]).unwrap()));
    let wrong = Save::new().bytes(wrong).unwrap();
    let broken = Watched { bytes: bytes(9.0), ..Default::default() };
    let (half, broken_from) = (broken.size() / 2, Arc::clone(&broken.broken_from));
    let broken = Checkpoint::from_source(broken).unwrap();
    broken_from.store(half, Ordering::Relaxed);
    vec![
        (Checkpoint::from_bytes(missing).unwrap(), ErrorKind::MissingTensor),
        (Checkpoint::from_bytes(wrong).unwrap(), ErrorKind::Shape),
        (broken, ErrorKind::Io),
    ]
}

/// Ends the other threads, also where a check of this one fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn nobody_computes_with_half_a_swap() {
    let (map, layers) = model();
    let live = Live::new(&map);
    live.swap(Loader::new(&weights(1.0))).unwrap();
    let (stop, passes) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let input = Tensor::ones((1, WIDTH), DType::F32, &Device::Cpu).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let pass = live.pass();
                    // With version n each weight is n, so that each output is the product of n and the width.
                    for layer in &layers {
                        let output = layer.forward(&input).unwrap().flatten_all().unwrap();
                        let expected = pass.version() as f32 * WIDTH as f32;
                        assert_eq!(output.to_vec1::<f32>().unwrap(), [expected; WIDTH]);
                    }
                    drop(pass);
                    passes.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let stop = Stop(&stop);
        let mut version = 1;
        let bad = bad();
        while version < 40 || passes.load(Ordering::Relaxed) < 40 {
            for (ckpt, _) in &bad {
                live.swap(Loader::new(ckpt)).unwrap_err();
            }
            version += 1;
            assert_eq!(live.swap(Loader::new(&weights(version as f32))).unwrap().version, version);
        }
        drop(stop);
    });
}

#[test]
fn a_swap_that_fails_leaves_every_bit() {
    let (map, layers) = model();
    let live = Live::new(&map);
    let error = live.swap_adapters([(&adapter(0, 1.0), 1.0)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    let swapped = live.swap(Loader::new(&weights(1.0))).unwrap();
    assert_eq!((swapped.version, swapped.set.len(), swapped.unused.len()), (1, LAYERS, 0));
    live.swap_adapters([(&adapter(2, 0.5), 1.0)]).unwrap();
    let before = Saver::new().bytes(vars(&map)).unwrap();
    for (ckpt, kind) in bad() {
        let error = live.swap(Loader::new(&ckpt)).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(kind == ErrorKind::Io || error.to_string().contains(&name(LAYERS - 1)), "{error}");
        assert!(live.version() == 2 && before == Saver::new().bytes(vars(&map)).unwrap());
    }
    let error = live.swap_adapters([(&adapter(LAYERS, 1.0), 1.0)]).unwrap_err();
    assert!(error.to_string().contains(&format!("layers.{LAYERS}")), "{error}");
    assert!(live.swap_adapters([(&weights(1.0), 1.0)]).is_err());
    assert!(live.version() == 2 && before == Saver::new().bytes(vars(&map)).unwrap());
    // The adapter of before is still the one that is there.
    live.swap_adapters([]).unwrap();
    assert_eq!(seen(&layers), [[1.0; 2]; LAYERS]);
}

#[test]
fn an_adapter_touches_no_more_than_it_must() {
    let (map, layers) = model();
    let live = Live::new(&map);
    let read = Arc::new(AtomicU64::new(0));
    let source = Watched { bytes: bytes(1.0), read: Arc::clone(&read), ..Default::default() };
    let base = Checkpoint::from_source(source).unwrap();
    live.swap(Loader::new(&base).dtype(DType::F32)).unwrap();
    let layer = (WIDTH * WIDTH * size_of::<f32>()) as u64;
    let memory = |layer: usize| {
        let storage = layers[layer].weight().storage_and_layout().0;
        let candle_core::Storage::Cpu(storage) = &*storage else { unreachable!() };
        storage.as_slice::<f32>().unwrap().as_ptr().addr()
    };
    let other = memory(0);
    let swap = |adapters: &[(&Checkpoint, f32)], touched: &[usize], values: [f32; LAYERS]| {
        read.store(0, Ordering::Relaxed);
        let swapped = live.swap_adapters(adapters.iter().copied()).unwrap();
        assert_eq!(swapped.set, touched.iter().map(|&layer| name(layer)).collect::<Vec<_>>());
        // A product of low rank may read weights as small as these twice.
        let (read, once) = (read.load(Ordering::Relaxed), layer * touched.len() as u64);
        assert!((once..=2 * once).contains(&read), "{read} bytes of {touched:?}");
        assert_eq!(seen(&layers), values.map(|value| [value; 2]));
    };
    let (two, three) = (adapter(2, 0.5), adapter(3, 2.0));
    swap(&[(&two, 1.0)], &[2], [1.0, 1.0, 1.5, 1.0, 1.0, 1.0]);
    swap(&[(&three, 0.5)], &[2, 3], [1.0, 1.0, 1.0, 2.0, 1.0, 1.0]);
    swap(&[(&three, 1.0), (&two, 2.0)], &[2, 3], [1.0, 1.0, 2.0, 3.0, 1.0, 1.0]);
    swap(&[], &[2, 3], [1.0; LAYERS]);
    swap(&[], &[], [1.0; LAYERS]);
    assert_eq!((other, live.version()), (memory(0), 6));
}

#[test]
fn a_swap_waits_for_a_pass() {
    let (map, layers) = model();
    let live = Live::new(&map);
    live.swap(Loader::new(&weights(1.0))).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let pass = live.pass();
        scope.spawn(|| {
            live.swap(Loader::new(&weights(2.0))).unwrap();
            done.store(true, Ordering::SeqCst);
        });
        thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(seen(&layers), [[1.0; 2]; LAYERS]);
        assert!(!done.load(Ordering::SeqCst) && pass.version() == 1);
        drop(pass);
    });
    assert_eq!((seen(&layers), live.version()), (vec![[2.0; 2]; LAYERS], 2));
}

#[test]
fn the_version_is_said_while_a_pass_is_held_and_a_swap_waits() {
    let (map, _) = model();
    let live = Arc::new(Live::new(&map));
    let (said, heard) = std::sync::mpsc::channel();
    let pass_holder = Arc::clone(&live);
    thread::spawn(move || {
        let pass = pass_holder.pass();
        let swapping = Arc::clone(&pass_holder);
        let swap = thread::spawn(move || swapping.swap(Loader::new(&weights(1.0))).unwrap().version);
        // Long enough for the swap to have read and to wait.
        thread::sleep(std::time::Duration::from_millis(500));
        let seen = (pass.version(), pass_holder.version(), swap.is_finished());
        drop(pass);
        said.send((seen, swap.join().unwrap(), pass_holder.version())).unwrap();
    });
    let (seen, swapped, after) = heard.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
    assert_eq!((seen, swapped, after), ((0, 0, false), 1, 1));
}
