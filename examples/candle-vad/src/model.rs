//! The Silero voice activity model, version 6, for 16000 samples a second.
//!
//! A frame of 512 samples, with the 64 before it, becomes a spectrum (a convolution whose kernels are sines and
//! cosines), four convolutions make 128 features of that, and an LSTM that goes through all frames says how likely the
//! frame is speech.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{D, Device, Tensor};
use candle_nn::rnn::{LSTM, LSTMConfig, LSTMState};
use candle_nn::{Conv1d, Conv1dConfig, Module, RNN, VarBuilder, conv1d, conv1d_no_bias, lstm};
use weighbridge::{Names, Renames};
use weighbridge_candle::Loader;

/// Samples a second.
pub(crate) const RATE: usize = 16_000;
/// Samples in a frame: 32 milliseconds.
pub(crate) const FRAME: usize = 512;
/// Samples before a frame that are looked at with it.
const CONTEXT: usize = 64;
/// Samples that are mirrored at the end of a frame.
const MIRRORED: usize = 64;
/// The length of the spectrum's kernels, and how many frequencies they are of.
const WINDOW: usize = 256;
const FREQUENCIES: usize = WINDOW / 2 + 1;
/// Weights and biases of six convolutions, the first without, and four of the LSTM.
const TENSORS: usize = 15;
/// How names begin in ONNX and in TorchScript, and one that is there.
const PREFIXES: [&str; 2] = ["model.", "_model."];
const SPECTRUM: &str = "stft.forward_basis_buffer";

/// From the names of those files to the names of the safetensors file, which this program uses.
fn renames(prefix: &str) -> Renames {
    let renames = Renames::new()
        .exact(format!("{prefix}{SPECTRUM}"), "stft_conv.weight")
        .prefix(format!("{prefix}decoder.rnn."), "lstm_cell.")
        .prefix(format!("{prefix}decoder.decoder.2."), "final_conv.");
    (0..4).fold(renames, |renames, n| {
        renames.prefix(format!("{prefix}encoder.{n}.reparam_conv."), format!("conv{}.", n + 1))
    })
}

/// Frames that go through the convolutions together.
const BATCH: usize = 128;

pub(crate) struct Silero {
    spectrum: Conv1d,
    convolutions: [Conv1d; 4],
    lstm: LSTM,
    output: Conv1d,
    device: Device,
}

impl Silero {
    /// Loads the weights from safetensors, ONNX or TorchScript; such as are missing, have another shape or are too many
    /// are an error.
    pub(crate) fn load(path: &Path, device: &Device) -> Result<Self> {
        let checkpoint = weighbridge_convert::open_any(path)?;
        // The TorchScript file has a model for 8 kHz, too.
        let is_there = |prefix: &&str| checkpoint.tensor(&format!("{prefix}{SPECTRUM}")).is_some();
        let prefix = PREFIXES.into_iter().find(is_there).unwrap_or_default();
        let names = if prefix.is_empty() { Names::all() } else { Names::prefix(prefix) };
        let count = checkpoint.tensors().filter(|tensor| names.contains(tensor.name())).count();
        ensure!(
            count == TENSORS,
            "{}: {count} tensors, and the model for 16 kHz has {TENSORS}",
            path.display()
        );
        let loader = Loader::new(&checkpoint).device(device).only(names).rename(renames(prefix));
        Self::build(loader.var_builder()?, device).with_context(|| path.display().to_string())
    }

    fn build(weights: VarBuilder<'_>, device: &Device) -> Result<Self> {
        let of = |stride: usize| Conv1dConfig { stride, padding: 1, ..Conv1dConfig::default() };
        let spectrum = Conv1dConfig { stride: WINDOW / 2, ..Conv1dConfig::default() };
        // As a layer of `nn.LSTM` is called; these are of an `nn.LSTMCell`.
        let cell = weights.clone().rename_f(|name: &str| name.trim_end_matches("_l0").to_owned());
        Ok(Self {
            spectrum: conv1d_no_bias(1, 2 * FREQUENCIES, WINDOW, spectrum, weights.pp("stft_conv"))?,
            convolutions: [
                conv1d(FREQUENCIES, 128, 3, of(1), weights.pp("conv1"))?,
                conv1d(128, 64, 3, of(2), weights.pp("conv2"))?,
                conv1d(64, 64, 3, of(2), weights.pp("conv3"))?,
                conv1d(64, 128, 3, of(1), weights.pp("conv4"))?,
            ],
            lstm: lstm(128, 128, LSTMConfig::default(), cell.pp("lstm_cell"))?,
            output: conv1d(128, 1, 1, Conv1dConfig::default(), weights.pp("final_conv"))?,
            device: device.clone(),
        })
    }

    /// How likely each frame is speech; silence follows the last sample up to a whole frame.
    pub(crate) fn probabilities(&self, samples: &[f32]) -> Result<Vec<f32>> {
        let frames = samples.len().div_ceil(FRAME);
        let mut state = self.lstm.zero_state(1)?;
        let mut probabilities = Vec::with_capacity(frames);
        for first in (0..frames).step_by(BATCH) {
            let batch: Vec<_> = (first..frames.min(first + BATCH)).collect();
            let inputs: Vec<f32> = batch.iter().flat_map(|frame| input(samples, *frame)).collect();
            let inputs = Tensor::from_vec(inputs, (batch.len(), 1, ()), &self.device)?;
            let features = self.features(&inputs)?;
            for frame in 0..batch.len() {
                state = self.lstm.step(&features.narrow(0, frame, 1)?, &state)?;
                probabilities.push(self.probability(&state)?);
            }
        }
        Ok(probabilities)
    }

    /// 128 features of each input.
    fn features(&self, inputs: &Tensor) -> Result<Tensor> {
        let waves = self.spectrum.forward(inputs)?;
        let (real, imaginary) =
            (waves.narrow(1, 0, FREQUENCIES)?, waves.narrow(1, FREQUENCIES, FREQUENCIES)?);
        let mut features = (real.sqr()? + imaginary.sqr()?)?.sqrt()?;
        for convolution in &self.convolutions {
            features = convolution.forward(&features)?.relu()?;
        }
        Ok(features.squeeze(D::Minus1)?)
    }

    fn probability(&self, state: &LSTMState) -> Result<f32> {
        let logit = self.output.forward(&state.h().relu()?.unsqueeze(D::Minus1)?)?;
        Ok(candle_nn::ops::sigmoid(&logit)?.flatten_all()?.get(0)?.to_scalar()?)
    }
}

/// What the model sees of a frame: the samples before it, its own, and its end once more in the mirror.
fn input(samples: &[f32], frame: usize) -> Vec<f32> {
    let start = frame * FRAME;
    let at = |index: usize| index.checked_sub(CONTEXT).and_then(|index| samples.get(index)).copied();
    let mut input: Vec<f32> =
        (start..start + CONTEXT + FRAME).map(|index| at(index).unwrap_or_default()).collect();
    let last = input.len() - 1;
    for distance in 1..=MIRRORED {
        input.push(input[last - distance]);
    }
    input
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_seen_with_what_is_before_it_and_its_end_mirrored() {
        let samples: Vec<f32> = (0..600).map(|n| n as f32 + 1.0).collect();
        let first = input(&samples, 0);
        assert_eq!(first.len(), CONTEXT + FRAME + MIRRORED);
        assert_eq!((first[63], first[64], first[575]), (0.0, 1.0, 512.0));
        assert_eq!((first[576], first[577], first[639]), (511.0, 510.0, 448.0));
        let second = input(&samples, 1);
        assert_eq!((second[0], second[64], second[64 + 87], second[64 + 88]), (449.0, 513.0, 600.0, 0.0));
    }
}
