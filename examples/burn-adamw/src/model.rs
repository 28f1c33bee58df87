//! A model with a layer of each kind that PyTorch names or lays out in another way.

use burn::module::Module;
use burn::nn::{
    Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig, PRelu, PReluConfig,
    RmsNorm, RmsNormConfig,
};
use burn::tensor::{Device, Int, Tensor};

#[derive(Module, Debug)]
pub(crate) struct Model {
    embed: Embedding,
    up: Linear,
    norm: LayerNorm,
    scale: RmsNorm,
    prelu: PRelu,
    down: Linear,
    /// Never trained.
    unused: Linear,
}

impl Model {
    pub(crate) fn new(device: &Device) -> Self {
        Self {
            embed: EmbeddingConfig::new(7, 6).init(device),
            up: LinearConfig::new(6, 6).init(device),
            norm: LayerNormConfig::new(6).init(device),
            scale: RmsNormConfig::new(6).init(device),
            prelu: PReluConfig::new().init(device),
            down: LinearConfig::new(6, 3).init(device),
            unused: LinearConfig::new(2, 2).init(device),
        }
    }

    pub(crate) fn loss(&self, ids: Tensor<2, Int>) -> Tensor<1> {
        let hidden = self.norm.forward(self.up.forward(self.embed.forward(ids)));
        let hidden = self.prelu.forward(self.scale.forward(hidden));
        self.down.forward(hidden).powi_scalar(2).mean()
    }
}

/// What a step is trained on.
pub(crate) fn ids(step: u32, device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i64> = (0..8).map(|i| (i * 3 + i64::from(step)) % 7).collect();
    Tensor::<1, Int>::from_ints(&*ids, device).reshape([2, 4])
}
