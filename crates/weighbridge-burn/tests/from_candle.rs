//! A run that began in Candle goes on in Burn. The files are those that weighbridge-candle's example `for_burn` writes.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::path::Path;

use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::{Device, Tensor};
use weighbridge_burn::weighbridge::Checkpoint;
use weighbridge_burn::weighbridge::epochs::Milestone;
use weighbridge_burn::{Checkpoints, load, save};

const RATE: f64 = 0.01;

#[derive(Module, Debug)]
struct Model {
    up: Linear,
    norm: LayerNorm,
    down: Linear,
    /// Never trained.
    unused: Linear,
}

impl Model {
    fn new(device: &Device) -> Self {
        Self {
            up: LinearConfig::new(3, 6).init(device),
            norm: LayerNormConfig::new(6).init(device),
            down: LinearConfig::new(6, 2).init(device),
            unused: LinearConfig::new(2, 2).init(device),
        }
    }

    /// The loss whose gradients are the values of another model.
    fn loss(&self, gradients: &Self) -> Tensor<1> {
        fn linear(layer: &Linear, gradients: &Linear) -> Tensor<1> {
            let bias = layer.bias.as_ref().unwrap().val() * constant(gradients.bias.as_ref().unwrap().val());
            (layer.weight.val() * constant(gradients.weight.val())).sum() + bias.sum()
        }
        let (norm, of) = (&self.norm, &gradients.norm);
        let gamma = norm.gamma.val() * constant(of.gamma.val());
        let beta = norm.beta.as_ref().unwrap().val() * constant(of.beta.as_ref().unwrap().val());
        linear(&self.up, &gradients.up) + gamma.sum() + beta.sum() + linear(&self.down, &gradients.down)
    }
}

fn constant<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    tensor.detach()
}

/// The largest difference of what both have.
fn apart(one: &Checkpoint, other: &Checkpoint) -> f32 {
    let floats = |ckpt: &Checkpoint, name: &str| -> Vec<f32> {
        let bytes = ckpt.read(name).unwrap();
        bytes.as_bytes().chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
    };
    assert_eq!(one.len(), other.len());
    let mut largest = 0_f32;
    for tensor in one.tensors() {
        assert_eq!(other.tensor(tensor.name()).unwrap().shape(), tensor.shape(), "{}", tensor.name());
        let pairs = floats(one, tensor.name()).into_iter().zip(floats(other, tensor.name()));
        largest = pairs.fold(largest, |largest, (a, b)| largest.max((a - b).abs()));
    }
    largest
}

fn goes_on(name: &str, mut optimizer: ModuleOptimizer) {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/candle").join(name);
    let device = Device::flex().autodiff();
    let mut model = Model::new(&device);
    let mut scheduler = ModuleLrScheduler::from(RATE);
    let checkpoints = Checkpoints::new(files.join("training"));
    let resumed = checkpoints.resume(&mut model, &mut optimizer, &mut scheduler).unwrap().unwrap();
    assert_eq!((resumed.milestone, resumed.next()), (Milestone::at_step(5), (0, 5)));

    // Those of parameters that are not trained are none.
    let mut gradients = model.clone();
    let values = Checkpoint::open(files.join("gradients.safetensors")).unwrap();
    load(&values).pytorch().partial().into(&mut gradients).unwrap();
    let loss = model.loss(&gradients);
    let gradients = GradientsParams::from_grads(loss.backward(), &model);
    let before = save(&model).pytorch().bytes().unwrap();
    model = optimizer.step(scheduler.step(), model, gradients);

    let ours = Checkpoint::from_bytes(save(&model).pytorch().bytes().unwrap()).unwrap();
    let theirs = Checkpoint::open(files.join("after.safetensors")).unwrap();
    let apart_now = apart(&ours, &theirs);
    println!("{name}: {apart_now:.1e} apart");
    assert!(apart_now < 1e-6, "{name}: {apart_now:.1e}");
    assert!(apart(&Checkpoint::from_bytes(before).unwrap(), &theirs) > 1e-4, "{name}: it did not move");

    // A state that Burn saves now is one that it took over, not one that it began anew.
    let directory = tempfile::tempdir().unwrap();
    let saved = Checkpoints::new(&directory);
    saved.at(Milestone::at_step(6)).save(&model, &optimizer, &scheduler).unwrap();
    let state = Checkpoint::open(directory.path().join("step-00000006/optimizer.safetensors")).unwrap();
    let metadata = state.shards()[0].header().metadata_value("weighbridge.burn.scalars").unwrap().to_owned();
    assert!(name == "sgd" || metadata.contains(r#""up.weight.momentum.time":"uint 6""#), "{metadata}");
}

#[test]
fn the_next_step_is_that_of_candle() {
    // Candle's defaults, and what the example sets.
    let adamw = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.05);
    goes_on("adamw", adamw.clone().init());
    goes_on("amsgrad", adamw.with_amsgrad(true).init());
    let momentum = MomentumConfig::new().with_momentum(0.9).with_dampening(0.0);
    goes_on("sgd", SgdConfig::new().with_momentum(Some(momentum)).init());
}
