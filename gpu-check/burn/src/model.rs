//! The module that a checkpoint is for.

use anyhow::{Result, anyhow};
use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::{Device, Tensor};
use gpu_check_common::checkpoint::Model;

/// The layers of a Llama, so to speak.
#[derive(Module, Debug)]
pub(crate) struct Llama {
    embed: Embedding,
    layers: Vec<Layer>,
    head: Linear,
}

#[derive(Module, Debug)]
struct Layer {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    gate: Linear,
    up: Linear,
    down: Linear,
    norm: RmsNorm,
}

impl Llama {
    /// A module of that size. Its parameters are not initialised before somebody looks at them.
    pub(crate) fn new(model: &Model, device: &Device) -> Self {
        let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(device);
        let (width, inner) = (model.width, model.inner);
        let layer = |_| Layer {
            q: linear(width, width),
            k: linear(width, width),
            v: linear(width, width),
            o: linear(width, width),
            gate: linear(width, inner),
            up: linear(width, inner),
            down: linear(inner, width),
            norm: RmsNormConfig::new(width).init(device),
        };
        Self {
            embed: EmbeddingConfig::new(model.vocabulary, width).init(device),
            layers: (0..model.layers).map(layer).collect(),
            head: linear(width, model.vocabulary),
        }
    }

    /// Compares each parameter with what it should be, one after the other.
    pub(crate) fn verify(&self, model: &Model) -> Result<()> {
        let matrix = |name: &str, tensor: Tensor<2>| model.verify(name, &bytes(tensor)?);
        matrix("embed.weight", self.embed.weight.val())?;
        for (number, layer) in self.layers.iter().enumerate() {
            let Layer { q, k, v, o, gate, up, down, norm } = layer;
            let linears =
                [("q", q), ("k", k), ("v", v), ("o", o), ("gate", gate), ("up", up), ("down", down)];
            for (name, linear) in linears {
                // As it is in the file.
                matrix(&format!("layers.{number}.{name}.weight"), linear.weight.val().transpose())?;
            }
            model.verify(&format!("layers.{number}.norm.gamma"), &bytes(norm.gamma.val())?)?;
        }
        matrix("head.weight", self.head.weight.val().transpose())
    }
}

fn bytes<const D: usize>(tensor: Tensor<D>) -> Result<Vec<u8>> {
    let data = tensor.try_into_data().map_err(|error| anyhow!("it cannot be read: {error:?}"))?;
    Ok(data.as_bytes().to_vec())
}
