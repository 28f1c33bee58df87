//! Loads a checkpoint that it makes itself into a Burn module with us and with burn-store, compares every bit, looks for
//! races, and measures beside what Burn itself can move. `gpu-check-burn --help` says more.

mod loaders;
mod machine;
mod model;
mod races;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, ensure};
use burn::tensor::Device;
use clap::{Parser, Subcommand};
use gpu_check_common::checkpoint::Model;
use gpu_check_common::options::Options;
use gpu_check_common::run;
use gpu_check_common::table::{Results, processor};

use crate::loaders::Loader;

/// Checks weighbridge-burn on a GPU
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

/// The number from which the bytes of the checkpoint come.
const SEED: u64 = 2026;

fn all(options: &Options) -> Result<()> {
    let start = Instant::now();
    let model = Model::new(options.size, options.dtype, SEED);
    let mut results = Results { bytes: model.bytes(), ..Results::default() };
    results.machine = format!("{:?}, {}", device(), processor());
    machine::measure(&device(), &mut results)?;
    println!("{}; {} tensors, {:.2} GB\n", results.machine, model.tensors.len(), model.bytes() as f64 / 1e9);

    let sizes = [options.size.to_string(), options.repeat.to_string()];
    let dtype = if options.dtype.size() == 2 { "bf16" } else { "f32" };
    let common = ["--size", &sizes[0], "--repeat", &sizes[1], "--dtype", dtype];
    for place in &options.place {
        let directory = place.join(format!("gpu-check-burn-{}", std::process::id()));
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
            results.row(
                loader.name(),
                place,
                run::child(&[&common[..], &["one", loader.name(), &path]].concat()),
            );
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
    let device = device();
    // The device is there before anything is measured.
    burn::tensor::Tensor::<1>::zeros([1], &device).into_data();
    run::report(&loader.measure(file, &model, &device, options.repeat)?)
}
