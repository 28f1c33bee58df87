//! What Burn can move at most: one large tensor there, and back.

use std::hint::black_box;
use std::iter;
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use burn_std::AllocationProperty;
use gpu_check_common::table::Results;

/// Values of the tensor.
const VALUES: usize = 64 << 20;
const GIGABYTES: f64 = (VALUES * size_of::<f32>()) as f64 / 1e9;

/// Measures upload and read-back. Loads are measured by the upload from page-locked memory, or from usual
/// memory where there is no other.
pub(crate) fn measure(device: &Device, results: &mut Results) -> Result<()> {
    let usual = upload(device, false)?.unwrap_or(f64::INFINITY);
    results.ceiling("Burn's upload of a tensor of 256 MiB from usual memory", GIGABYTES / usual, "GB/s");
    results.bus = Some(GIGABYTES / usual);
    if let Some(pinned) = upload(device, true)? {
        let name = "Burn's upload of a tensor of 256 MiB from page-locked memory";
        results.ceiling(name, GIGABYTES / pinned, "GB/s");
        results.bus = Some(GIGABYTES / pinned);
    }
    results.ceiling("Burn's read-back of such a tensor", GIGABYTES / read_back(device)?, "GB/s");
    Ok(())
}

/// Seconds of the best upload of one tensor, from page-locked memory or not. `None` if the device has no
/// page-locked memory.
fn upload(device: &Device, from_pinned: bool) -> Result<Option<f64>> {
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let mut data = TensorData::new(vec![1.0_f32; VALUES], [VALUES]);
        if from_pinned {
            device.staging(iter::once(&mut data));
            if data.bytes().property() != AllocationProperty::Pinned {
                return Ok(None);
            }
        }
        settle(device)?;
        let start = Instant::now();
        let tensor = Tensor::<1>::from_data(data, device);
        settle(device)?;
        best = best.min(start.elapsed().as_secs_f64());
        drop(tensor);
        // It gives up what it was given last when it has been told twice.
        for _ in 0..2 {
            device.flush().map_err(|error| anyhow!("{error:?}"))?;
        }
    }
    Ok(Some(best))
}

/// Seconds of the best read-back of a tensor that the device has computed.
fn read_back(device: &Device) -> Result<f64> {
    let mut best = f64::INFINITY;
    for round in 0..3 {
        let tensor = Tensor::<1>::ones([VALUES], device) * (round + 2) as f32;
        settle(device)?;
        let start = Instant::now();
        let data = tensor.try_into_data().map_err(|error| anyhow!("{error:?}"))?;
        // It is read when somebody looks at it, and not before.
        let values = data.as_slice::<f32>().map_err(|error| anyhow!("{error:?}"))?;
        let sum: f32 = black_box(values).iter().step_by(1024).sum();
        best = best.min(start.elapsed().as_secs_f64());
        ensure!(sum == ((round + 2) * VALUES / 1024) as f32, "the read-back is wrong");
    }
    Ok(best)
}

fn settle(device: &Device) -> Result<()> {
    device.sync().map_err(|error| anyhow!("{error:?}"))
}
