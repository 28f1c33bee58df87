//! How long a step of an optimizer takes, beside Candle's own, and a swap of all weights or of an adapter, beside a load.
//!
//! ```sh
//! cargo run --release -p weighbridge-candle --example step
//! ```

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Init, Optimizer, ParamsAdamW, VarBuilder, VarMap};
use weighbridge::Checkpoint;
use weighbridge_candle::{AdamW, Live, Loader, ParamsSgd, Saver, Sgd, vars};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// 50 million parameters.
const LAYERS: usize = 48;
const WIDTH: usize = 1024;

fn main() -> Result<()> {
    for dtype in [DType::F32, DType::BF16] {
        let map = VarMap::new();
        let vb = VarBuilder::from_varmap(&map, dtype, &Device::Cpu);
        for layer in 0..LAYERS {
            vb.get_with_hints((WIDTH, WIDTH), &format!("l.{layer}.weight"), Init::Const(0.5))?;
        }
        steps(dtype, &map)?;
        if dtype == DType::F32 {
            swaps(&map)?;
        }
    }
    Ok(())
}

fn steps(dtype: DType, map: &VarMap) -> Result<()> {
    let gradient = Tensor::rand(-1_f32, 1_f32, (WIDTH, WIDTH), &Device::Cpu)?.to_dtype(dtype)?;
    let variables = map.all_vars();
    let products = variables.iter().map(|var| (var.as_tensor() * &gradient)?.sum_all());
    let loss = products.reduce(|a, b| a? + b?).ok_or("no variables")??;
    let gradients = loss.backward()?;
    let mut ours = AdamW::of(map, ParamsAdamW::default())?;
    let mut theirs = candle_nn::AdamW::new(map.all_vars(), ParamsAdamW::default())?;
    beside(&format!("AdamW, {dtype:?}"), || Ok(ours.step(&gradients)?), || Ok(theirs.step(&gradients)?))?;
    let mut ours = Sgd::of(map, ParamsSgd { lr: 1e-3, ..Default::default() })?;
    let mut theirs = candle_nn::SGD::new(map.all_vars(), 1e-3)?;
    beside(&format!("SGD, {dtype:?}"), || Ok(ours.step(&gradients)?), || Ok(theirs.step(&gradients)?))?;
    let mut momentum = Sgd::of(map, ParamsSgd { lr: 1e-3, momentum: 0.9, ..Default::default() })?;
    let seconds = median(|| Ok(momentum.step(&gradients)?))?;
    println!("SGD with momentum, {dtype:?}: {seconds:.4} s (Candle has none)");
    Ok(())
}

fn swaps(map: &VarMap) -> Result<()> {
    let ckpt = Checkpoint::from_bytes(Saver::new().bytes(vars(map))?)?;
    let down = Tensor::ones((16, WIDTH), DType::F32, &Device::Cpu)?;
    let up = Tensor::ones((WIDTH, 16), DType::F32, &Device::Cpu)?;
    let factors = (0..4).flat_map(|layer| {
        let name = |side: &str| format!("l.{layer}.lora_{side}.weight");
        [(name("A"), down.clone()), (name("B"), up.clone())]
    });
    let adapter = Checkpoint::from_bytes(Saver::new().bytes(factors.collect::<Vec<_>>())?)?;
    let live = Live::new(map);
    live.swap(Loader::new(&ckpt))?;
    let load = median(|| Ok(Loader::new(&ckpt).load()?))?;
    let swap = median(|| Ok(live.swap(Loader::new(&ckpt))?))?;
    let adapted = median(|| Ok(live.swap_adapters([(&adapter, 1.0)])?))?;
    println!("all weights: load {load:.4} s, swap {swap:.4} s; an adapter for 4 of {LAYERS}: {adapted:.4} s");
    Ok(())
}

fn beside(what: &str, ours: impl FnMut() -> Result<()>, theirs: impl FnMut() -> Result<()>) -> Result<()> {
    let (ours, theirs) = (median(ours)?, median(theirs)?);
    println!("{what}: {ours:.4} s, Candle's own {theirs:.4} s");
    Ok(())
}

/// Of seven, in seconds.
fn median<T>(mut work: impl FnMut() -> Result<T>) -> Result<f64> {
    work()?;
    let mut times = Vec::new();
    for _ in 0..7 {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[3])
}
