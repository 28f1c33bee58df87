//! Sound files.

use std::path::Path;

use anyhow::{Result, bail};
use hound::{SampleFormat, WavReader};

use crate::model::RATE;

/// A recording at the rate that the model was made for.
pub(crate) struct Recording {
    /// From -1 to 1, of one channel.
    pub(crate) samples: Vec<f32>,
    /// How many samples of the file one of these stands for.
    pub(crate) step: usize,
}

/// Reads a wav file. Channels are averaged; of a rate that is a multiple of the model's, samples in between are left
/// out, as the Python package does it.
pub(crate) fn read(path: &Path) -> Result<Recording> {
    let mut reader = WavReader::open(path)?;
    let spec = reader.spec();
    let (rate, channels) = (spec.sample_rate as usize, usize::from(spec.channels));
    if rate == 0 || !rate.is_multiple_of(RATE) {
        bail!(
            "it has {rate} samples a second, and {RATE} or a multiple is wanted; sox IN.wav -r {RATE} OUT.wav makes one"
        );
    }
    let values: Vec<f32> = match spec.sample_format {
        SampleFormat::Float => reader.samples::<f32>().collect::<Result<_, _>>()?,
        SampleFormat::Int => {
            let full = f64::from(1_u32 << (spec.bits_per_sample.clamp(1, 32) - 1));
            let scaled = |value: i32| (f64::from(value) / full) as f32;
            reader.samples::<i32>().map(|value| value.map(scaled)).collect::<Result<_, _>>()?
        }
    };
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        bail!("sample {} is not a number", at / channels.max(1));
    }
    let step = rate / RATE;
    let frames = values.chunks_exact(channels.max(1)).step_by(step);
    let samples = frames.map(|frame| frame.iter().sum::<f32>() / frame.len() as f32).collect();
    Ok(Recording { samples, step })
}
