//! Loads a checkpoint that it makes itself with us and with Candle's own loaders, compares every bit, looks for races, and
//! measures beside what the machine can do. `gpu-check-candle --help` says more.

mod loaders;
#[cfg(feature = "cuda")]
mod machine;
mod races;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, ensure};
use candle_core::Device;
use clap::{Parser, Subcommand};
use gpu_check_common::checkpoint::Model;
use gpu_check_common::options::Options;
use gpu_check_common::table::{Results, processor};
use gpu_check_common::{python, run};

use crate::loaders::Loader;

/// Checks weighbridge-candle on a GPU
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    child: Option<Child>,
}

#[derive(Subcommand)]
enum Child {
    /// Measures one loader, and prints it as JSON
    #[command(hide = true)]
    One { loader: String, file: PathBuf },
    /// Looks for races
    #[command(hide = true)]
    Races { place: PathBuf },
}

fn main() -> Result<()> {
    let Cli { options, child } = Cli::parse();
    match child {
        Some(Child::One { loader, file }) => one(&options, &loader, &file),
        Some(Child::Races { place }) => races::find(&options, &device()?, &place),
        None => all(&options),
    }
}

fn device() -> Result<Device> {
    if cfg!(feature = "cuda") { Ok(Device::new_cuda(0)?) } else { Ok(Device::Cpu) }
}

/// The number from which the bytes of the checkpoint come.
const SEED: u64 = 2026;

fn all(options: &Options) -> Result<()> {
    let start = Instant::now();
    let model = Model::new(options.size, options.dtype, SEED);
    let mut results = Results { bytes: model.bytes(), ..Results::default() };
    results.machine = processor();
    #[cfg(feature = "cuda")]
    machine::measure(&model, &mut results)?;
    println!("{}; {} tensors, {:.2} GB\n", results.machine, model.tensors.len(), model.bytes() as f64 / 1e9);

    let sizes = [options.size.to_string(), options.repeat.to_string()];
    let dtype = if options.dtype.size() == 2 { "bf16" } else { "f32" };
    let common = ["--size", &sizes[0], "--repeat", &sizes[1], "--dtype", dtype];
    for place in &options.place {
        let directory = place.join(format!("gpu-check-candle-{}", std::process::id()));
        let file = match model.write(&directory) {
            Ok(file) => file,
            Err(error) => {
                println!("{}: {error:#}", place.display());
                continue;
            }
        };
        let path = file.display().to_string();
        for loader in Loader::ALL {
            if start.elapsed().as_secs() > options.seconds {
                println!("{}: no time is left for {}", place.display(), loader.name());
                continue;
            }
            let arguments = [&common[..], &["one", loader.name(), &path]].concat();
            results.row(loader.name(), place, run::child(&arguments));
        }
        for loader in options.python.iter().flat_map(|_| python::LOADERS) {
            let python = options.python.clone().unwrap_or_default();
            results.row(loader, place, python::measure(&python, loader, &file, options.repeat));
        }
        results.compare(place);
        let _ = std::fs::remove_dir_all(&directory);
    }

    let (number, seconds) = (options.races.to_string(), options.races_seconds.to_string());
    let place = options.place.first().map_or_else(|| ".".to_owned(), |place| place.display().to_string());
    results.races(run::child(&["--races", &number, "--races-seconds", &seconds, "races", &place]));
    println!("{:.0} s in all", start.elapsed().as_secs_f64());
    if let Some(path) = &options.json {
        results.write(path)?;
    }
    ensure!(!results.failed, "something was wrong");
    Ok(())
}

fn one(options: &Options, loader: &str, file: &Path) -> Result<()> {
    let loader = Loader::named(loader)?;
    let model = Model::new(options.size, options.dtype, SEED);
    let device = device()?;
    // The context of the device is there before anything is measured.
    candle_core::Tensor::zeros(1, candle_core::DType::F32, &device)?.to_device(&Device::Cpu)?;
    run::report(&loader.measure(file, &model, &device, options.repeat)?)
}
