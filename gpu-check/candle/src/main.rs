//! Loads a checkpoint that it makes itself with us and with Candle's own loaders, compares every bit, looks for races, and
//! measures beside what the machine can do. `gpu-check-candle --help` says more.

#[cfg(feature = "cuda")]
mod limit;
mod loaders;
#[cfg(feature = "cuda")]
mod machine;
mod races;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use candle_core::Device;
use clap::{Parser, Subcommand};
use gpu_check_common::check;
use gpu_check_common::checkpoint::Model;
use gpu_check_common::options::Options;
use gpu_check_common::run;
use gpu_check_common::table::{Results, processor};

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
    let loaders: Vec<_> = Loader::ALL.iter().map(|loader| loader.name()).collect();
    check::check("gpu-check-candle", &loaders, options, &model, results, start)
}

fn one(options: &Options, loader: &str, file: &Path) -> Result<()> {
    let loader = Loader::named(loader)?;
    let model = Model::new(options.size, options.dtype, SEED);
    let device = device()?;
    // The context of the device is there before anything is measured.
    candle_core::Tensor::zeros(1, candle_core::DType::F32, &device)?.to_device(&Device::Cpu)?;
    run::report(&loader.measure(file, &model, &device, options.repeat)?)
}
