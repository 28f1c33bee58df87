//! Small checkpoints, loaded at random while the device is at work on other things; each is looked at.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use burn::tensor::{Device, Tensor};
use gpu_check_common::checkpoint::{Float, Model};
use gpu_check_common::dice::Dice;
use gpu_check_common::options::Options;
use gpu_check_common::run::{Measured, report};
use weighbridge::{Checkpoint, SafeTensors};

use crate::model::Llama;

/// Prints how many loads there were, and what was wrong with the first that was wrong.
pub(crate) fn find(options: &Options, device: &Device, place: &Path) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(options.races_seconds);
    let directory = place.join(format!("gpu-check-races-{}", std::process::id()));
    let mut measured = Measured::default();
    for seed in 0..options.races {
        let start = Instant::now();
        if start > end {
            break;
        }
        if let Err(error) = once(seed, device, &directory) {
            measured.wrong = Some(format!("seed {seed}: {error:#}"));
            break;
        }
        measured.seconds.push(start.elapsed().as_secs_f64());
    }
    let _ = std::fs::remove_dir_all(&directory);
    report(&measured)
}

fn once(seed: u64, device: &Device, directory: &Path) -> Result<()> {
    let mut dice = Dice::new(seed);
    let model = Model::new(1 << (17 + dice.roll(8)), Float::F32, seed);
    let ckpt = Checkpoint::open(model.write(directory)?)?;
    // Kernels that may still be at work on memory that is given up.
    for _ in 0..dice.roll(4) {
        let size = 64 << dice.roll(4) as usize;
        let a = Tensor::<2>::ones([size, size], device);
        let _ = a.clone().matmul(a) * 0.5;
    }
    let mut module = Llama::new(&model, device);
    let loader = weighbridge_burn::load(&ckpt)
        .pytorch()
        .threads(1 + dice.roll(12) as usize)
        .read_ahead([0, 1 << 16, 1 << 20, u64::MAX][dice.roll(4) as usize]);
    loader.into(&mut module)?;
    if dice.roll(2) == 0 {
        return module.verify(&model);
    }
    let saved = weighbridge_burn::save(&module).pytorch().bytes()?;
    let saved = SafeTensors::parse(&saved)?;
    model.verify_all(|name| {
        let name = name.replace("norm.gamma", "norm.weight");
        Ok(saved.tensor(&name).with_context(|| format!("no {name}"))?.bytes().to_vec())
    })
}
