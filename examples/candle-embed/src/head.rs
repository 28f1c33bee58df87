//! From the vectors of tokens to the one of a text: pooling, and the modules after it. All of it in `f32`.

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::{LayerNorm, Linear, Module, VarBuilder, layer_norm, linear_b};
use weighbridge_candle::Loader;

use crate::files::Files;
use crate::sentence::{Dense, DenseActivation, Pooling, Sentence, Step};

/// All that comes after the model.
pub(crate) struct Head {
    pooling: Vec<Pooling>,
    layers: Vec<Layer>,
    /// So many elements are kept.
    pub(crate) dimensions: usize,
}

enum Layer {
    Dense { linear: Linear, activation: DenseActivation, residual: Residual },
    LayerNorm(LayerNorm),
    Normalize,
}

enum Residual {
    None,
    Same,
    Projected(Linear),
}

impl Head {
    /// Loads the modules that have weights. `hidden` is how long the vectors of tokens are, `dimensions` how many elements
    /// are wanted.
    ///
    /// # Errors
    ///
    /// One line that names the module whose weights are missing or do not fit.
    pub(crate) fn load(
        files: &Files,
        sentence: &Sentence,
        hidden: usize,
        dimensions: Option<usize>,
        device: &Device,
    ) -> Result<Self> {
        let mut width = hidden * sentence.pooling.len();
        let mut layers = Vec::new();
        for step in &sentence.steps {
            layers.push(match step {
                Step::Normalize => Layer::Normalize,
                Step::LayerNorm(folder) => {
                    let weights = weights(files, folder, device)?;
                    Layer::LayerNorm(layer_norm(width, 1e-5, weights.pp("norm")).context(folder.clone())?)
                }
                Step::Dense(dense) => {
                    let folder = &dense.folder;
                    let inputs = dense.inputs;
                    ensure!(
                        inputs == width,
                        "{folder}: in_features is {inputs}, vectors have {width} elements"
                    );
                    width = dense.outputs;
                    dense_layer(dense, &weights(files, folder, device)?).context(folder.clone())?
                }
            });
        }
        let dimensions = dimensions.or(sentence.dimensions).unwrap_or(width);
        ensure!(dimensions <= width, "--dimensions {dimensions}: vectors have {width} elements");
        Ok(Self { pooling: sentence.pooling.clone(), layers, dimensions })
    }

    /// A vector for each text of a batch. `lengths` says how many tokens each has; the first `skipped` are not pooled.
    pub(crate) fn forward(
        &self,
        states: &Tensor,
        lengths: &[usize],
        skipped: usize,
    ) -> candle_core::Result<Tensor> {
        let states = states.to_dtype(DType::F32)?;
        let pooled = |mode: &Pooling| pool(&states, lengths, skipped, *mode);
        let pooled: Vec<_> = self.pooling.iter().map(pooled).collect::<candle_core::Result<_>>()?;
        let mut vectors = Tensor::cat(&pooled, 1)?;
        for layer in &self.layers {
            vectors = layer.forward(&vectors)?;
        }
        if self.dimensions == vectors.dim(1)? {
            return Ok(vectors);
        }
        // The first elements of a vector that was trained so are a good vector themselves.
        vectors = vectors.narrow(1, 0, self.dimensions)?;
        let was_normal = self.layers.iter().any(|layer| matches!(layer, Layer::Normalize));
        if was_normal { normalize(&vectors) } else { Ok(vectors) }
    }
}

impl Layer {
    fn forward(&self, input: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Normalize => normalize(input),
            Self::LayerNorm(norm) => norm.forward(input),
            Self::Dense { linear, activation, residual } => {
                let output = linear.forward(input)?;
                let output = match activation {
                    DenseActivation::Identity => output,
                    DenseActivation::Tanh => output.tanh()?,
                    DenseActivation::Of(activation) => activation.forward(&output)?,
                };
                match residual {
                    Residual::None => Ok(output),
                    Residual::Same => output + input,
                    Residual::Projected(linear) => output + linear.forward(input)?,
                }
            }
        }
    }
}

fn dense_layer(dense: &Dense, weights: &VarBuilder<'_>) -> candle_core::Result<Layer> {
    let Dense { inputs, outputs, bias, activation, .. } = *dense;
    let residual = match dense.residual {
        false => Residual::None,
        true if inputs == outputs => Residual::Same,
        true => Residual::Projected(linear_b(inputs, outputs, false, weights.pp("residual"))?),
    };
    let linear = linear_b(inputs, outputs, bias, weights.pp("linear"))?;
    Ok(Layer::Dense { linear, activation, residual })
}

/// The weights of a module, from safetensors or from a pickle.
fn weights(files: &Files, folder: &str, device: &Device) -> Result<VarBuilder<'static>> {
    for name in ["model.safetensors", "pytorch_model.bin"] {
        if let Some(path) = files.find(&format!("{folder}/{name}"))? {
            let checkpoint = weighbridge_convert::open_any(path)?;
            return Ok(Loader::new(&checkpoint).dtype(DType::F32).device(device).var_builder()?);
        }
    }
    bail!("{folder}: there is neither model.safetensors nor pytorch_model.bin")
}

/// Vectors of length 1, those of zeros excepted.
fn normalize(vectors: &Tensor) -> candle_core::Result<Tensor> {
    let lengths = vectors.sqr()?.sum_keepdim(1)?.sqrt()?;
    vectors.broadcast_div(&lengths.maximum(1e-12f32)?)
}

/// Every mode but one gives each token a weight; then it is a sum.
fn pool(states: &Tensor, lengths: &[usize], skipped: usize, mode: Pooling) -> candle_core::Result<Tensor> {
    let longest = states.dim(1)?;
    let of_tokens =
        |weights: Vec<f32>| Tensor::from_vec(weights, (lengths.len(), 1, longest), states.device());
    if mode == Pooling::Max {
        let masked = |length: &usize| {
            let length = *length;
            (0..longest)
                .map(move |token| if (skipped..length).contains(&token) { 0.0 } else { f32::NEG_INFINITY })
        };
        let mask = of_tokens(lengths.iter().flat_map(masked).collect())?.transpose(1, 2)?;
        return states.broadcast_add(&mask)?.max(1);
    }
    let weights = lengths.iter().flat_map(|&length| token_weights(longest, skipped, length, mode)).collect();
    of_tokens(weights)?.matmul(states)?.squeeze(1)
}

/// What each token of a text counts.
#[expect(clippy::cast_precision_loss, reason = "numbers of tokens")]
fn token_weights(longest: usize, skipped: usize, length: usize, mode: Pooling) -> Vec<f32> {
    let pooled = skipped..length;
    let mut weights = vec![0.0; longest];
    match mode {
        // Where all is skipped, sentence-transformers takes the first token for the first, and nothing for the last.
        Pooling::Cls => weights[if pooled.is_empty() { 0 } else { skipped }] = 1.0,
        Pooling::LastToken if !pooled.is_empty() => weights[length - 1] = 1.0,
        Pooling::LastToken | Pooling::Max => {}
        Pooling::Mean | Pooling::MeanSqrtLen => {
            let count = pooled.len() as f32;
            let each = 1.0 / if mode == Pooling::Mean { count } else { count.sqrt() };
            pooled.for_each(|token| weights[token] = each);
        }
        Pooling::WeightedMean => {
            let sum: f32 = pooled.clone().map(|token| (token + 1) as f32).sum();
            pooled.for_each(|token| weights[token] = (token + 1) as f32 / sum);
        }
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two texts, of two tokens and of three, whose vectors have two elements.
    fn pooled(mode: Pooling, skipped: usize) -> Vec<Vec<f32>> {
        let states = [[[1.0f32, -2.0], [3.0, 4.0], [9.0, 9.0]], [[1.0, 5.0], [2.0, 6.0], [6.0, -8.0]]];
        let states = Tensor::new(&states, &Device::Cpu).unwrap();
        pool(&states, &[2, 3], skipped, mode).unwrap().to_vec2().unwrap()
    }

    #[test]
    fn every_mode_by_hand() {
        let root = |x: f32, n: f32| x / n.sqrt();
        for (mode, expected) in [
            (Pooling::Cls, [[1.0, -2.0], [1.0, 5.0]]),
            (Pooling::LastToken, [[3.0, 4.0], [6.0, -8.0]]),
            (Pooling::Max, [[3.0, 4.0], [6.0, 6.0]]),
            (Pooling::Mean, [[2.0, 1.0], [3.0, 1.0]]),
            (Pooling::MeanSqrtLen, [[root(4.0, 2.0), root(2.0, 2.0)], [root(9.0, 3.0), root(3.0, 3.0)]]),
            (Pooling::WeightedMean, [[7.0 / 3.0, 2.0], [23.0 / 6.0, -7.0 / 6.0]]),
        ] {
            for (vector, expected) in pooled(mode, 0).iter().zip(expected) {
                let near = vector.iter().zip(expected).all(|(x, y)| (x - y).abs() < 1e-6);
                assert!(near, "{mode:?}: {vector:?}, expected {expected:?}");
            }
        }
    }

    #[test]
    fn a_prompt_is_left_out() {
        assert_eq!(pooled(Pooling::Mean, 1), [[3.0, 4.0], [4.0, -1.0]]);
        assert_eq!(pooled(Pooling::Cls, 1), [[3.0, 4.0], [2.0, 6.0]]);
        assert_eq!(pooled(Pooling::LastToken, 2)[0], [0.0, 0.0]);
    }

    #[test]
    fn lengths_are_one() {
        let vectors = Tensor::new(&[[3.0f32, 4.0], [0.0, 0.0]], &Device::Cpu).unwrap();
        let normal: Vec<Vec<f32>> = normalize(&vectors).unwrap().to_vec2().unwrap();
        assert_eq!(normal, [[0.6, 0.8], [0.0, 0.0]]);
    }
}
