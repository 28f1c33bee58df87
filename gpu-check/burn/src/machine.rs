//! What Burn can move at most: one large tensor there, and back.

use std::hint::black_box;
use std::iter;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use burn::tensor::{Device, ExecutionError, Tensor, TensorData};
use burn_std::AllocationProperty;
use gpu_check_common::table::Results;

/// Measures upload and read-back of one tensor. Loads are measured by the upload from page-locked memory, or from
/// usual memory where there is no other.
pub(crate) fn measure(device: &Device, results: &mut Results) -> Result<()> {
    // Some devices have no buffers of the first size.
    let large = Large { device, mib: 256 };
    let (large, usual) = match large.upload(false) {
        Ok(usual) => (large, usual),
        Err(_) => {
            let large = Large { device, mib: 64 };
            (large, large.upload(false)?)
        }
    };
    let usual = usual.context("usual memory is page-locked")?;
    let name = format!("Burn's upload of a tensor of {} MiB from usual memory", large.mib);
    results.ceiling(name, usual, "GB/s");
    results.bus = Some(usual);
    if let Some(pinned) = large.upload(true)? {
        let name = format!("Burn's upload of a tensor of {} MiB from page-locked memory", large.mib);
        results.ceiling(name, pinned, "GB/s");
        results.bus = Some(pinned);
    }
    results.ceiling("Burn's read-back of such a tensor", large.read_back()?, "GB/s");
    Ok(())
}

/// A tensor of so many MiB.
#[derive(Clone, Copy)]
struct Large<'a> {
    device: &'a Device,
    mib: usize,
}

impl Large<'_> {
    fn values(self) -> usize {
        (self.mib << 20) / size_of::<f32>()
    }

    fn rate(self, seconds: f64) -> f64 {
        (self.mib << 20) as f64 / seconds / 1e9
    }

    /// The best upload in GB/s, from page-locked memory or not. `None` if the device has no page-locked memory.
    fn upload(self, from_pinned: bool) -> Result<Option<f64>> {
        let mut best = f64::INFINITY;
        for round in 0..5 {
            let values = self.values();
            let mut data = TensorData::new(vec![round as f32; values], [values]);
            if from_pinned {
                self.device.staging(iter::once(&mut data));
                if data.bytes().property() != AllocationProperty::Pinned {
                    return Ok(None);
                }
            }
            self.settle()?;
            let start = Instant::now();
            let tensor = Tensor::<1>::from_data(data, self.device);
            self.settle()?;
            best = best.min(start.elapsed().as_secs_f64());
            // What went wrong is said to who reads it.
            let last = tensor.narrow(0, values - 1, 1).try_into_data().map_err(failed)?;
            ensure!(last.as_slice::<f32>().ok() == Some(&[round as f32]), "the upload is wrong");
            // The device gives up what it was given last when it has been told twice.
            self.device.flush().map_err(failed)?;
            self.device.flush().map_err(failed)?;
        }
        Ok(Some(self.rate(best)))
    }

    /// The best read-back, in GB/s, of a tensor that the device has computed.
    fn read_back(self) -> Result<f64> {
        let (mut best, values) = (f64::INFINITY, self.values());
        for round in 2..5 {
            let tensor = Tensor::<1>::ones([values], self.device) * round as f32;
            self.settle()?;
            let start = Instant::now();
            let data = tensor.try_into_data().map_err(failed)?;
            // It is read when somebody looks at it, and not before.
            let read = data.as_slice::<f32>().map_err(|error| anyhow!("{error:?}"))?;
            let sum: f32 = black_box(read).iter().step_by(1024).sum();
            best = best.min(start.elapsed().as_secs_f64());
            ensure!(sum == (round * values / 1024) as f32, "the read-back is wrong");
        }
        Ok(self.rate(best))
    }

    fn settle(self) -> Result<()> {
        self.device.sync().map_err(failed)
    }
}

fn failed(error: ExecutionError) -> anyhow::Error {
    anyhow!("{error:?}")
}
