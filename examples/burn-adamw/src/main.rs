//! Trains a small model in Burn and writes what PyTorch needs to take the next step itself.
//!
//! ```sh
//! cargo run --release -p burn-adamw -- DIRECTORY
//! python examples/burn-adamw/adamw.py DIRECTORY     # needs torch and safetensors
//! ```
//!
//! `adamw.py` turns the optimizer's file into the `state_dict` of a PyTorch AdamW, takes the step, and compares.

use std::path::PathBuf;

use anyhow::{Context, Result};
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::module::{Module, ModuleMapper, Param};
use burn::nn::{
    Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig, PRelu, PReluConfig,
    RmsNorm, RmsNormConfig,
};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Gradients, Int, Tensor};
use weighbridge_burn::{load_training, save, save_training};

#[derive(Module, Debug)]
struct Model {
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
    fn loss(&self, ids: Tensor<2, Int>) -> Tensor<1> {
        let hidden = self.norm.forward(self.up.forward(self.embed.forward(ids)));
        let hidden = self.prelu.forward(self.scale.forward(hidden));
        self.down.forward(hidden).powi_scalar(2).mean()
    }
}

/// Puts the gradients of parameters in their places, so that they are saved as the parameters are.
struct InPlaceOfValues<'g>(&'g Gradients);

impl ModuleMapper for InPlaceOfValues<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match param.val().grad(self.0) {
            Some(gradient) => Param::initialized(param.id, gradient),
            None => param,
        }
    }
}

const RATE: f64 = 0.01;

fn main() -> Result<()> {
    let directory: PathBuf = std::env::args_os().nth(1).context("usage: burn-adamw DIRECTORY")?.into();
    let device = Device::flex().autodiff();
    device.seed(7);
    let mut model = Model {
        embed: EmbeddingConfig::new(7, 6).init(&device),
        up: LinearConfig::new(6, 6).init(&device),
        norm: LayerNormConfig::new(6).init(&device),
        scale: RmsNormConfig::new(6).init(&device),
        prelu: PReluConfig::new().init(&device),
        down: LinearConfig::new(6, 3).init(&device),
        unused: LinearConfig::new(2, 2).init(&device),
    };
    // What `adamw.py` gives its AdamW, too.
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.05).init();
    let mut scheduler = ModuleLrScheduler::from(RATE);
    let ids = |step: i64| {
        let ids: Vec<i64> = (0..8).map(|i| (i * 3 + step) % 7).collect();
        Tensor::<1, Int>::from_ints(&*ids, &device).reshape([2, 4])
    };
    for step in 0..5 {
        let gradients = GradientsParams::from_grads(model.loss(ids(step)).backward(), &model);
        model = optimizer.step(scheduler.step(), model, gradients);
    }
    save_training(directory.join("training"), &model, &optimizer, &scheduler)?;
    save(&model).pytorch().file(directory.join("before.safetensors"))?;

    // What was saved is what goes on.
    load_training(directory.join("training"), &mut model, &mut optimizer, &mut scheduler)?;
    let gradients = model.loss(ids(5)).backward();
    let as_values = model.clone().map(&mut InPlaceOfValues(&gradients));
    save(&as_values).pytorch().file(directory.join("gradients.safetensors"))?;
    let gradients = GradientsParams::from_grads(gradients, &model);
    model = optimizer.step(scheduler.step(), model, gradients);
    save(&model).pytorch().file(directory.join("after.safetensors"))?;
    save_training(directory.join("after"), &model, &optimizer, &scheduler)?;
    Ok(())
}
