//! Weights that are swapped on a GPU, while others compute with them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use weighbridge_burn::{Ema, Live};

use super::*;

const WIDTH: usize = 64;

#[derive(Module, Debug)]
struct Net {
    up: Linear,
}

/// Ends the readers, also when something fails.
struct Ending<'d>(&'d AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A weight `[out, in]` and a bias, all of one value.
fn filled(value: f32, outputs: usize) -> Checkpoint {
    let (weight, bias) = (vec![value; outputs * WIDTH], vec![value; outputs]);
    let shape = [outputs, WIDTH];
    let weight = Values::new(&shape, &weight).unwrap();
    let bias = Values::new(&shape[..1], &bias).unwrap();
    Checkpoint::from_bytes(Save::new().bytes([("up.weight", weight), ("up.bias", bias)]).unwrap()).unwrap()
}

#[test]
fn nobody_sees_half_of_a_swap() {
    let gpu = gpu();
    let net = Net { up: LinearConfig::new(WIDTH, WIDTH).init(&gpu) };
    let (live, _) = Live::load(load(&filled(0.0, WIDTH)).pytorch(), net).unwrap();
    let down = vec![0.5_f32; WIDTH];
    let up = vec![1.0_f32; WIDTH];
    let adapter = [
        ("up.lora_A.weight", Values::new(&[1, WIDTH], &down).unwrap()),
        ("up.lora_B.weight", Values::new(&[WIDTH, 1], &up).unwrap()),
    ];
    let adapter = Checkpoint::from_bytes(Save::new().bytes(adapter).unwrap()).unwrap();
    let (done, seen) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let _ending = Ending(&done);
        let reader = scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let serving = live.get();
                let base = serving.version().div_ceil(2) as f32;
                let added = if serving.version() > 0 && serving.version() % 2 == 0 { 0.5 } else { 0.0 };
                let output = forward(&serving.up, Tensor::ones([1, 1, WIDTH], &gpu)).into_data();
                let expected = (base + added) * WIDTH as f32 + base;
                assert_eq!(output.try_to_vec::<f32>().unwrap(), [expected; WIDTH]);
                seen.store(true, Ordering::SeqCst);
            }
        });
        for number in 1..=5_u8 {
            seen.store(false, Ordering::SeqCst);
            live.swap(load(&filled(-1.0, WIDTH / 2)).pytorch()).unwrap_err();
            live.swap(load(&filled(number.into(), WIDTH)).pytorch()).unwrap();
            let report = live.swap_adapters([(&adapter, 1.0)]).unwrap();
            assert_eq!(report.loaded, ["up.weight"]);
            while !seen.load(Ordering::SeqCst) && !reader.is_finished() {
                thread::yield_now();
            }
        }
    });
    assert_eq!(live.version(), 10);
}

#[test]
fn averages_are_made_on_the_device() {
    let gpu = gpu();
    let mut net = Net { up: LinearConfig::new(WIDTH, 2).init(&gpu) };
    load(&filled(1.0, 2)).pytorch().into(&mut net).unwrap();
    let mut ema = Ema::new(&net, 0.75).unwrap();
    load(&filled(5.0, 2)).pytorch().into(&mut net).unwrap();
    ema.update(&net).unwrap();
    let weight = ema.model().up.weight.val();
    assert_eq!(weight.device(), gpu);
    assert_eq!(weight.into_data().try_to_vec::<f32>().unwrap(), [2.0; 2 * WIDTH]);
}
