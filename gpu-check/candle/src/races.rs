//! Small checkpoints, loaded in every way, at random, while the device is at work on other things; each is looked at.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::var_builder::Shard;
use gpu_check_common::checkpoint::{Float, Model};
use gpu_check_common::dice::Dice;
use gpu_check_common::options::Options;
use gpu_check_common::run::{Measured, report};
use weighbridge::Checkpoint;
use weighbridge_candle::{Loader, Saver, Staging};

use crate::loaders::bytes;

/// Prints how many loads there were, and what was wrong with the first that was wrong.
pub(crate) fn find(options: &Options, device: &Device, place: &Path) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(options.races_seconds);
    let directory = place.join(format!("gpu-check-races-{}", std::process::id()));
    let kept = Staging::new().buffers(4).buffer_bytes(1 << 20);
    let mut measured = Measured::default();
    for seed in 0..options.races {
        let start = Instant::now();
        if start > end {
            break;
        }
        if let Err(error) = once(seed, device, &directory, &kept) {
            measured.wrong = Some(format!("seed {seed}: {error:#}"));
            break;
        }
        measured.seconds.push(start.elapsed().as_secs_f64());
    }
    let _ = std::fs::remove_dir_all(&directory);
    report(&measured)
}

fn once(seed: u64, device: &Device, directory: &Path, kept: &Staging) -> Result<()> {
    let mut dice = Dice::new(seed);
    let float = if dice.roll(2) == 0 { Float::Bf16 } else { Float::F32 };
    let model = Model::new(1 << (17 + dice.roll(8)), float, seed);
    let ckpt = Checkpoint::open(model.write(directory)?)?;
    let own = Staging::new().buffers(1 + dice.roll(6) as usize).buffer_bytes(4096 << dice.roll(10));
    let staging = if dice.roll(2) == 0 { kept } else { &own };
    let loader = Loader::new(&ckpt)
        .device(device)
        .staging(staging)
        .threads(1 + dice.roll(12) as usize)
        .read_ahead([0, 1 << 16, 1 << 20, u64::MAX][dice.roll(4) as usize]);
    // Memory that was just given up while kernels still use it is what is allocated next.
    let busy = churn(&mut dice, device)?;
    let verify = |tensors: &HashMap<String, Tensor>| {
        model.verify_all(|name| bytes(tensors.get(name).with_context(|| format!("no {name}"))?))
    };
    match dice.roll(5) {
        0 => verify(&loader.load()?.tensors)?,
        1 => {
            let builder = loader.var_builder()?;
            let mut tensors = HashMap::new();
            for (number, name) in model.tensors.keys().enumerate() {
                // In the order of the model, or not.
                let name = if dice.roll(4) == 0 { model.tensors.keys().nth_back(number) } else { Some(name) };
                let name = name.context("a bug")?;
                tensors.insert(name.clone(), builder.get_unchecked(name)?);
            }
            for (name, tensor) in &tensors {
                model.verify(name, &bytes(tensor)?)?;
            }
        }
        2 => {
            // To the other dtype and back, compared with Candle on the CPU.
            let other = if float == Float::Bf16 { DType::F32 } else { DType::BF16 };
            let whole = Loader::new(&ckpt).load()?.tensors;
            for (name, tensor) in loader.dtype(other).load()?.tensors {
                let expected = whole.get(&name).context("no such tensor")?.to_dtype(other)?;
                ensure!(bytes(&tensor)? == bytes(&expected)?, "{name} as {other:?} differs");
            }
        }
        3 => {
            let whole = Loader::new(&ckpt).load()?.tensors;
            let builder = loader.sharded_var_builder()?;
            for (name, tensor) in &whole {
                let (dim, world_size) = (dice.roll(tensor.rank() as u64) as usize, 1 << dice.roll(4));
                let rank = dice.roll(world_size as u64) as usize;
                let part = builder.get_with_hints((), name, Shard { dim, rank, world_size })?;
                let size = tensor.dim(dim)? / world_size;
                let expected = tensor.narrow(dim, rank * size, size)?.contiguous()?;
                ensure!(bytes(&part)? == bytes(&expected)?, "part {rank} of {world_size} of {name} differs");
            }
        }
        _ => {
            // Abandoned in the middle, then loaded, computed with at once, and saved as views.
            let builder = Loader::new(&ckpt).device(device).staging(staging).var_builder()?;
            let _ = builder.get_unchecked("head.weight")?;
            drop(builder);
            let tensors = loader.load()?.tensors;
            let turned: HashMap<_, _> = tensors
                .iter()
                .map(|(name, tensor)| {
                    Ok((name.clone(), if tensor.rank() == 2 { tensor.t()? } else { tensor.clone() }))
                })
                .collect::<Result<_>>()?;
            let saver = Saver::new().staging(staging);
            // Once as views, in memory, once as they are, in a file that several threads write.
            let path = directory.join("saved.safetensors");
            saver.file(&path, &tensors)?;
            let whole = candle_core::safetensors::load(&path, &Device::Cpu)?;
            model.verify_all(|name| bytes(whole.get(name).with_context(|| format!("no {name}"))?))?;
            let saved = saver.bytes(&turned)?;
            let saved = candle_core::safetensors::load_buffer(&saved, &Device::Cpu)?;
            let back = saved.into_iter().map(|(name, tensor)| {
                let tensor = if tensor.rank() == 2 { tensor.t()?.contiguous()? } else { tensor };
                Ok((name, tensor))
            });
            verify(&back.collect::<Result<_>>()?)?;
        }
    }
    drop(busy);
    Ok(())
}

/// Kernels that are at work for a moment, on memory some of which has been given up by the time that they are.
fn churn(dice: &mut Dice, device: &Device) -> Result<Vec<Tensor>> {
    let mut left = Vec::new();
    for _ in 0..dice.roll(6) {
        let size = 64 << dice.roll(5) as usize;
        let a = Tensor::ones((size, size), DType::F32, device)?;
        let b = (a.matmul(&a)? * 0.5)?;
        if dice.roll(2) == 0 {
            left.push(b);
        }
    }
    Ok(left)
}
