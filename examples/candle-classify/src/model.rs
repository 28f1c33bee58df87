//! EfficientNet-Lite0: the first of the EfficientNets without squeezes, and with activations that end at 6.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{D, Device, Tensor};
use candle_nn::{
    BatchNorm, BatchNormConfig, Conv2d, Conv2dConfig, Linear, Module, ModuleT, VarBuilder, batch_norm,
    conv2d_no_bias, linear,
};
use weighbridge_candle::Loader;

pub(crate) const CLASSES: usize = 1000;

/// Blocks of the same kind: how many, the kernel's side, the stride of the first, how much wider they are inside, and the
/// channels that come out.
const STAGES: [(usize, usize, usize, usize, usize); 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];
const STEM: usize = 32;
const HEAD: usize = 1280;

/// A convolution that makes an output of the input's side divided by the stride, and its norm.
struct Normed {
    convolution: Conv2d,
    norm: BatchNorm,
    kernel: usize,
    stride: usize,
}

impl Normed {
    /// Channels in and out, the kernel's side, the stride, whether each channel is by itself; and the names of both.
    fn build(
        (from, to, kernel, stride, is_depthwise): (usize, usize, usize, usize, bool),
        weights: &VarBuilder<'_>,
        (convolution, norm): (&str, &str),
    ) -> Result<Self> {
        let groups = if is_depthwise { from } else { 1 };
        let config = Conv2dConfig { stride, groups, ..Conv2dConfig::default() };
        let norms = BatchNormConfig { eps: 1e-3, ..BatchNormConfig::default() };
        Ok(Self {
            convolution: conv2d_no_bias(from, to, kernel, config, weights.pp(convolution))?,
            norm: batch_norm(to, norms, weights.pp(norm))?,
            kernel,
            stride,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        // As TensorFlow pads: what is odd goes behind.
        let pad = |x: &Tensor, dim: usize| {
            let side = x.dim(dim)?;
            let missing = ((side.div_ceil(self.stride) - 1) * self.stride + self.kernel).saturating_sub(side);
            x.pad_with_zeros(dim, missing / 2, missing - missing / 2)
        };
        let x = pad(&pad(x, 2)?, 3)?;
        Ok(self.norm.forward_t(&self.convolution.forward(&x)?, false)?)
    }

    fn activated(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.forward(x)?.clamp(0.0, 6.0)?)
    }
}

struct Block {
    expand: Option<Normed>,
    depthwise: Normed,
    project: Normed,
    is_residual: bool,
}

impl Block {
    fn build(
        (from, to, kernel, stride, wider): (usize, usize, usize, usize, usize),
        weights: &VarBuilder<'_>,
    ) -> Result<Self> {
        let inside = from * wider;
        let expand = || Normed::build((from, inside, 1, 1, false), weights, ("_expand_conv", "_bn0"));
        let depthwise = (inside, inside, kernel, stride, true);
        Ok(Self {
            expand: (wider > 1).then(expand).transpose()?,
            depthwise: Normed::build(depthwise, weights, ("_depthwise_conv", "_bn1"))?,
            project: Normed::build((inside, to, 1, 1, false), weights, ("_project_conv", "_bn2"))?,
            is_residual: stride == 1 && from == to,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let wide = self.expand.as_ref().map(|expand| expand.activated(x)).transpose()?;
        let y = self.project.forward(&self.depthwise.activated(wide.as_ref().unwrap_or(x))?)?;
        Ok(if self.is_residual { (y + x)? } else { y })
    }
}

pub(crate) struct EfficientNet {
    stem: Normed,
    blocks: Vec<Block>,
    head: Normed,
    classes: Linear,
}

impl EfficientNet {
    /// Loads the weights: a pickle is read as data, and refused if it asks for more.
    pub(crate) fn load(path: &Path, device: &Device) -> Result<Self> {
        let checkpoint = weighbridge_convert::open_any(path)?;
        let weights = Loader::new(&checkpoint).device(device).var_builder()?;
        Self::build(&weights).with_context(|| path.display().to_string())
    }

    fn build(weights: &VarBuilder<'_>) -> Result<Self> {
        let (mut blocks, mut from) = (Vec::new(), STEM);
        for (count, kernel, stride, wider, to) in STAGES {
            for number in 0..count {
                let stride = if number == 0 { stride } else { 1 };
                let weights = weights.pp("_blocks").pp(blocks.len());
                blocks.push(Block::build((from, to, kernel, stride, wider), &weights)?);
                from = to;
            }
        }
        Ok(Self {
            stem: Normed::build((3, STEM, 3, 2, false), weights, ("_conv_stem", "_bn0"))?,
            blocks,
            head: Normed::build((from, HEAD, 1, 1, false), weights, ("_conv_head", "_bn1"))?,
            classes: linear(HEAD, CLASSES, weights.pp("_fc"))?,
        })
    }

    /// The logits of one picture.
    pub(crate) fn forward(&self, picture: &Tensor) -> Result<Tensor> {
        let mut x = self.stem.activated(picture)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        let x = self.head.activated(&x)?.mean(D::Minus1)?.mean(D::Minus1)?;
        Ok(self.classes.forward(&x)?.squeeze(0)?)
    }
}
