//! Swaps weights and adapters in a module in use, and says how long that takes and how much memory it needs.
//!
//! ```sh
//! cargo run -p weighbridge-burn --example swap [MEBIBYTES [DIRECTORY]]
//! ```
//!
//! It makes a model of linear layers and adapters for it in DIRECTORY, a temporary directory unless one is
//! given.

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::Device;
use weighbridge_burn::weighbridge::write::{Save, Values};
use weighbridge_burn::weighbridge::{Checkpoint, Error, ErrorKind, Result};
use weighbridge_burn::{Live, load};

#[derive(Module, Debug)]
struct Model {
    layers: Vec<Linear>,
}

/// A layer has 16 MiB of `F32`.
const WIDTH: usize = 2048;
const LAYER: usize = 16;
const RANK: usize = 16;
/// Each thing is done so many times; the median counts.
const TIMES: usize = 5;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let bad = || Error::new(ErrorKind::Value, "usage: swap [MEBIBYTES [DIRECTORY]]");
    let mebibytes: usize = arguments.next().map_or(Ok(512), |text| text.parse().map_err(|_| bad()))?;
    let directory = match arguments.next() {
        Some(directory) => PathBuf::from(directory),
        None => std::env::temp_dir(),
    };
    let directory =
        tempfile::tempdir_in(directory).map_err(|error| Error::io("no temporary directory", error))?;
    let layers = (mebibytes / LAYER).max(1);
    let (base, other) =
        (weights(directory.path(), "a", layers, 0.5)?, weights(directory.path(), "b", layers, 0.25)?);
    let [whole, eighth] = [("whole", 1), ("eighth", 8)].map(|(name, each)| {
        let layers: Vec<_> = (0..layers).step_by(each).collect();
        adapter(directory.path(), name, &layers)
    });
    let (whole, eighth) = (whole?, eighth?);

    println!("{} MiB in {layers} layers, flex; median of {TIMES}, peak above what was there", layers * LAYER);
    let device = Device::flex();
    let module = Model {
        layers: (0..layers).map(|_| LinearConfig::new(WIDTH, WIDTH).with_bias(false).init(&device)).collect(),
    };
    report("load into a new module", || {
        let mut module = module.clone();
        load(&base).pytorch().into(&mut module)?;
        Ok(module)
    })?;
    let (live, _) = Live::load(load(&base).pytorch(), module)?;
    let mut turn = 0;
    report("swap all weights", || {
        turn += 1;
        live.swap(load(if turn % 2 == 0 { &base } else { &other }).pytorch())
    })?;
    report("swap an adapter for all layers", || live.swap_adapters([(&whole, 1.0)]))?;
    live.swap_adapters([])?;
    report("swap an adapter for every eighth layer", || live.swap_adapters([(&eighth, 1.0)]))?;
    report("take a version and give it back", || Ok(live.get()))?;
    Ok(())
}

fn report<T>(what: &str, mut act: impl FnMut() -> Result<T>) -> Result<()> {
    let mut times = Vec::new();
    let mut peak = 0;
    for _ in 0..TIMES {
        let before = memory();
        let start = Instant::now();
        let made = act()?;
        times.push(start.elapsed());
        peak = peak.max(memory().1.saturating_sub(before.0));
        drop(made);
    }
    times.sort();
    let milliseconds = times[TIMES / 2].as_secs_f64() * 1e3;
    println!("{what}: {milliseconds:.3} ms, {peak} MiB");
    Ok(())
}

/// What is resident now, and the most that was since the last call, in MiB; 0 where the system does not say.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) / 1024
    };
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    (of("VmRSS:"), of("VmHWM:"))
}

fn weights(directory: &Path, name: &str, layers: usize, value: f32) -> Result<Checkpoint> {
    let values = vec![value; WIDTH * WIDTH];
    let names = (0..layers).map(|layer| format!("layers.{layer}.weight"));
    let tensors: Result<Vec<_>> =
        names.map(|name| Ok((name, Values::new(&[WIDTH, WIDTH], &values)?))).collect();
    let file = directory.join(name).with_extension("safetensors");
    Save::new().file(&file, tensors?)?;
    Checkpoint::open(file)
}

fn adapter(directory: &Path, name: &str, layers: &[usize]) -> Result<Checkpoint> {
    let values = vec![0.01_f32; WIDTH * RANK];
    let mut tensors = Vec::new();
    for layer in layers {
        tensors.push((format!("layers.{layer}.lora_A.weight"), Values::new(&[RANK, WIDTH], &values)?));
        tensors.push((format!("layers.{layer}.lora_B.weight"), Values::new(&[WIDTH, RANK], &values)?));
    }
    let file = directory.join(name).with_extension("safetensors");
    Save::new().file(&file, tensors)?;
    Checkpoint::open(file)
}
