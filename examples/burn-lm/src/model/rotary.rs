//! Rotary positions: where in a text a head's values stand, as angles by which they are turned.

use std::f32::consts::TAU;

use anyhow::{Result, bail};
use burn::tensor::{DType, Device, Tensor, TensorData};
use examples_support::rope::{Llama3, Rope, Scaling};

/// By how much each pair of a head's elements is turned from one token to the next, in radians.
///
/// # Errors
///
/// The kind of rope is not computed here.
pub(crate) fn speeds(rope: &Rope, head_dim: usize, who: &str) -> Result<Vec<f32>> {
    rope.whole_heads(who)?;
    let pairs = (0..head_dim / 2).map(|pair| (2 * pair) as f32 / head_dim as f32);
    let speeds = pairs.map(|exponent| 1.0 / (rope.theta as f32).powf(exponent));
    let other = |kind| bail!("the rope type is \"{kind}\", {who} computes \"default\" and \"llama3\"");
    match &rope.scaling {
        Scaling::None => Ok(speeds.collect()),
        Scaling::Llama3(scaling) => Ok(speeds.map(|speed| stretched(speed, scaling)).collect()),
        Scaling::LongRope(_) => other("longrope"),
        Scaling::Other(kind) => other(kind),
    }
}

/// How Llama 3.1 and later stretch slow turns, so that longer texts than those of the first training make sense: fast
/// turns stay as they are, slow ones are divided by the factor, and between them it goes over smoothly, as in
/// `_compute_llama3_parameters` of transformers.
fn stretched(speed: f32, scaling: &Llama3) -> f32 {
    let length = scaling.original_max_position_embeddings as f32;
    let (factor, low, high) =
        (scaling.factor as f32, scaling.low_freq_factor as f32, scaling.high_freq_factor as f32);
    let wavelength = TAU / speed;
    if wavelength < length / high {
        speed
    } else if wavelength > length / low {
        speed / factor
    } else {
        let smooth = (length / wavelength - low) / (high - low);
        (1.0 - smooth) * speed / factor + smooth * speed
    }
}

/// The angles of a part of a text, as Hugging Face has them: an element of a head's first half is turned together with
/// its like of the second half.
///
/// They follow from the configuration and are no parameters; it is no work to compute them.
pub(crate) struct Rotary {
    /// `[1, 1, length, head_dim / 2]`
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rotary {
    /// For `length` tokens that come after `start` others.
    pub(crate) fn new(start: usize, length: usize, speeds: &[f32], dtype: DType, device: &Device) -> Self {
        let table = |function: fn(f32) -> f32| {
            let places = start..start + length;
            let angles = places.flat_map(|place| speeds.iter().map(move |speed| place as f32 * speed));
            let values: Vec<f32> = angles.map(function).collect();
            let data = TensorData::new(values, [1, 1, length, speeds.len()]);
            Tensor::<4>::from_data(data, (device, dtype))
        };
        Self { cos: table(f32::cos), sin: table(f32::sin) }
    }

    pub(crate) fn turn(&self, heads: Tensor<4>) -> Tensor<4> {
        let [_, _, _, head_dim] = heads.dims();
        let half = head_dim / 2;
        let (first, second) = (heads.clone().narrow(3, 0, half), heads.narrow(3, half, half));
        let (cos, sin) = (|| self.cos.clone(), || self.sin.clone());
        let turned_first = first.clone() * cos() - second.clone() * sin();
        let turned_second = second * cos() + first * sin();
        Tensor::cat(vec![turned_first, turned_second], 3)
    }
}
