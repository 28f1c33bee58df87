//! Loads a checkpoint that it makes itself into a Burn module with us and with burn-store, compares every bit, looks for
//! races, and measures beside what Burn itself can move. `gpu-check-burn --help` says more.

mod loaders;
mod machine;
mod model;
mod races;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use burn::tensor::{DType, Device};
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use gpu_check_common::check;
use gpu_check_common::checkpoint::{Float, Model};
use gpu_check_common::options::Options;
use gpu_check_common::run;
use gpu_check_common::table::{Results, processor};

use crate::loaders::Loader;

/// Checks weighbridge-burn on a GPU
///
/// Where the device does not compute with bf16, the dtype is f32 unless it is given.
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
    let matches = Cli::command().get_matches();
    let Cli { mut options, child } = Cli::from_arg_matches(&matches)?;
    if child.is_none() && matches.value_source("dtype") != Some(ValueSource::CommandLine) {
        options.dtype = usual_dtype(&device());
    }
    match child {
        Some(Child::One { loader, file }) => one(&options, &loader, &file),
        Some(Child::Races { place }) => races::find(&options, &device(), &place),
        None => all(&options),
    }
}

fn device() -> Device {
    #[cfg(feature = "cuda")]
    return Device::cuda(0);
    #[cfg(all(feature = "vulkan", not(feature = "cuda")))]
    return Device::vulkan(burn::tensor::DeviceKind::DefaultDevice);
    #[cfg(not(any(feature = "vulkan", feature = "cuda")))]
    Device::flex()
}

fn usual_dtype(device: &Device) -> Float {
    if device.supports_dtype(DType::BF16) { Float::Bf16 } else { Float::F32 }
}

/// The number from which the bytes of the checkpoint come.
const SEED: u64 = 2026;

fn all(options: &Options) -> Result<()> {
    let start = Instant::now();
    let model = Model::new(options.size, options.dtype, SEED);
    let mut results = Results { bytes: model.bytes(), ..Results::default() };
    results.machine = format!("{:?}, {}", device(), processor());
    machine::measure(&device(), &mut results)?;
    let loaders = Loader::ALL.map(Loader::name);
    check::check("gpu-check-burn", &loaders, options, &model, results, start)
}

fn one(options: &Options, loader: &str, file: &Path) -> Result<()> {
    let loader = Loader::named(loader)?;
    let model = Model::new(options.size, options.dtype, SEED);
    let device = device();
    // The device is there before anything is measured.
    burn::tensor::Tensor::<1>::zeros([1], &device).into_data();
    run::report(&loader.measure(file, &model, &device, options.repeat)?)
}
