//! Rotary positions: where in a text a head's values stand, as angles by which they are turned.

use std::f32::consts::TAU;

use burn::tensor::{Device, Tensor, TensorData};

/// What fixes the angles.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rope {
    pub(crate) theta: f64,
    /// Rope type `llama3`; none for `default`.
    pub(crate) scaling: Option<Scaling>,
}

/// How Llama 3.1 and later stretch slow turns, so that longer texts than those of the first training make sense.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scaling {
    pub(crate) factor: f64,
    pub(crate) low_freq_factor: f64,
    pub(crate) high_freq_factor: f64,
    /// Tokens of the longest text in the first training.
    pub(crate) original_length: f64,
}

impl Rope {
    /// By how much each pair of a head's elements is turned from one token to the next, in radians.
    fn speeds(&self, head_dim: usize) -> Vec<f32> {
        let pairs = (0..head_dim / 2).map(|pair| (2 * pair) as f32 / head_dim as f32);
        let speeds = pairs.map(|exponent| 1.0 / (self.theta as f32).powf(exponent));
        speeds.map(|speed| self.scaling.as_ref().map_or(speed, |scaling| scaling.scale(speed))).collect()
    }
}

impl Scaling {
    /// Fast turns stay as they are, slow ones are divided by the factor, and between them it goes over smoothly, as in
    /// `_compute_llama3_parameters` of transformers.
    fn scale(&self, speed: f32) -> f32 {
        let length = self.original_length as f32;
        let (factor, low, high) =
            (self.factor as f32, self.low_freq_factor as f32, self.high_freq_factor as f32);
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
}

/// The angles of a text, as Hugging Face has them: an element of a head's first half is turned together with its like of
/// the second half.
///
/// They follow from the configuration and are no parameters; for the lengths here it is no work to compute them.
pub(crate) struct Rotary {
    /// `[1, 1, length, head_dim / 2]`
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rotary {
    pub(crate) fn new(length: usize, head_dim: usize, rope: &Rope, device: &Device) -> Self {
        let speeds = rope.speeds(head_dim);
        let table = |function: fn(f32) -> f32| {
            let angles = (0..length).flat_map(|place| speeds.iter().map(move |speed| place as f32 * speed));
            let values: Vec<f32> = angles.map(function).collect();
            Tensor::<4>::from_data(TensorData::new(values, [1, 1, length, speeds.len()]), device)
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
