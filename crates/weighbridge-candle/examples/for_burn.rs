//! Trains a small model in Candle, with AdamW, AMSGrad, and SGD with momentum, and saves the run in the layout of Burn:
//! the files with which weighbridge-burn's test `from_candle` goes on.
//!
//! ```sh
//! cargo run -p weighbridge-candle --example for_burn -- crates/weighbridge-burn/tests/candle
//! ```
//!
//! Of each run there are the checkpoint after 5 steps, and the gradients and the weights of the next step, in the
//! names and the layout of PyTorch.

use std::path::Path;

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{Linear, ParamsAdamW, VarBuilder, VarMap, linear};
use weighbridge::Names;
use weighbridge::epochs::Milestone;
use weighbridge_candle::{AdamW, BurnLayout, Checkpoints, ParamsSgd, Saver, Sgd, Stateful, vars};

/// The last step before Burn takes one.
const LAST: u64 = 5;
const RATE: f64 = 0.01;

type Error = Box<dyn std::error::Error>;

fn main() -> std::result::Result<(), Error> {
    let directory = std::env::args_os().nth(1).ok_or("usage: for_burn DIRECTORY")?;
    let directory = Path::new(&directory);
    let params = || ParamsAdamW { lr: RATE, weight_decay: 0.05, ..Default::default() };
    write(&directory.join("adamw"), |map| AdamW::of(map, params()))?;
    write(&directory.join("amsgrad"), |map| Ok(AdamW::of(map, params())?.amsgrad()))?;
    write(&directory.join("sgd"), |map| {
        Sgd::of(map, ParamsSgd { lr: RATE, momentum: 0.9, ..Default::default() })
    })
}

fn write<O: Stateful>(
    directory: &Path,
    optimizer: impl Fn(&VarMap) -> Result<O>,
) -> std::result::Result<(), Error> {
    let map = VarMap::new();
    let model = Model::new(VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu))?;
    fill(&map)?;
    let mut optimizer = optimizer(&map)?;
    for step in 0..LAST {
        optimizer.backward_step(&model.loss(step)?)?;
    }
    // The same as `Checkpoints` of a program that trains would have them.
    let layout = BurnLayout::new().linear(Names::glob("*.weight")?).norm(Names::prefix("norm."));
    let checkpoints = Checkpoints::new(directory.join("training")).burn(layout).keep_last(1);
    checkpoints.at(Milestone::at_step(LAST)).save(&map, &optimizer, &RATE)?;

    let gradients = model.loss(LAST)?.backward()?;
    let of = |(name, tensor): (String, Tensor)| Some((name, gradients.get(&tensor)?.clone()));
    Saver::new().file(directory.join("gradients.safetensors"), vars(&map).into_iter().filter_map(of))?;
    optimizer.step(&gradients)?;
    Ok(Saver::new().file(directory.join("after.safetensors"), vars(&map))?)
}

struct Model {
    up: Linear,
    /// Weight and bias; Candle's own `LayerNorm` has no gradients.
    norm: [Tensor; 2],
    down: Linear,
}

impl Model {
    fn new(vb: VarBuilder<'_>) -> Result<Self> {
        // Never trained.
        linear(2, 2, vb.pp("unused"))?;
        Ok(Self {
            up: linear(3, 6, vb.pp("up"))?,
            norm: [vb.get(6, "norm.weight")?, vb.get(6, "norm.bias")?],
            down: linear(6, 2, vb.pp("down"))?,
        })
    }

    fn loss(&self, step: u64) -> Result<Tensor> {
        let input = Tensor::new(&[[step as f32, 1.0, -0.5], [0.25, -1.0, step as f32]], &Device::Cpu)?;
        let hidden = self.up.forward(&input)?;
        let centred = hidden.broadcast_sub(&hidden.mean_keepdim(1)?)?;
        let deviation = (centred.sqr()?.mean_keepdim(1)? + 1e-5)?.sqrt()?;
        let normed = centred.broadcast_div(&deviation)?.broadcast_mul(&self.norm[0])?;
        let hidden = normed.broadcast_add(&self.norm[1])?.tanh()?;
        self.down.forward(&hidden)?.sqr()?.mean_all()
    }
}

/// The same weights every time.
fn fill(map: &VarMap) -> Result<()> {
    let vars = map.data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for (name, var) in vars.iter() {
        let first: u32 = name.bytes().map(u32::from).sum();
        let values: Vec<_> = (0..var.elem_count()).map(|i| ((i as f32 + first as f32) * 0.7).sin()).collect();
        var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu)?)?;
    }
    Ok(())
}
