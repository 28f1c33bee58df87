//! What Burn can move at most: one large tensor there, and back.

use std::time::Instant;

use anyhow::{Result, anyhow};
use burn::tensor::{Device, Tensor, TensorData};
use gpu_check_common::table::Results;

/// Measures upload and read-back.
pub(crate) fn measure(device: &Device, results: &mut Results) -> Result<()> {
    const VALUES: usize = 64 << 20;
    let sync = || device.sync().map_err(|error| anyhow!("{error:?}"));
    let (mut there, mut back) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..3 {
        let data = TensorData::new(vec![1.0_f32; VALUES], [VALUES]);
        sync()?;
        let start = Instant::now();
        let tensor = Tensor::<1>::from_data(data, device);
        sync()?;
        there = there.min(start.elapsed().as_secs_f64());
        let start = Instant::now();
        let data = tensor.try_into_data().map_err(|error| anyhow!("{error:?}"))?;
        back = back.min(start.elapsed().as_secs_f64());
        drop(data);
    }
    let gigabytes = (VALUES * size_of::<f32>()) as f64 / 1e9;
    results.bus = Some(gigabytes / there);
    results.ceiling("Burn's own upload of a tensor of 256 MiB", gigabytes / there, "GB/s");
    results.ceiling("and its read-back", gigabytes / back, "GB/s");
    Ok(())
}
