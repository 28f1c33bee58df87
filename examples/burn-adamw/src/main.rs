//! Trains a small model in Burn, lets PyTorch take the next step, and goes on with what PyTorch made of it:
//! with AdamW, with AMSGrad, and with SGD and momentum.
//!
//! ```sh
//! cargo run --release -p burn-adamw -- DIRECTORY
//! python examples/burn-adamw/adamw.py DIRECTORY     # needs torch and safetensors
//! cargo run --release -p burn-adamw -- DIRECTORY --resume
//! ```
//!
//! `adamw.py` turns the optimizer's file into the `state_dict` of a PyTorch optimizer, takes a step, compares
//! it with Burn's, and writes a checkpoint of Burn's. With `--resume` the run goes on from there, and is
//! compared with the one that never left Burn.

mod model;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::module::{Module, ModuleMapper, Param};
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::{Device, Gradients, Tensor};
use weighbridge_burn::weighbridge::Checkpoint;
use weighbridge_burn::weighbridge::epochs::Milestone;
use weighbridge_burn::{Checkpoints, save};

use model::{Model, ids};

/// What `adamw.py` gives its optimizers, too.
const RATE: f64 = 0.01;
const WEIGHT_DECAY: f64 = 0.05;
/// The last step before PyTorch takes one.
const LAST: u32 = 5;
/// How far apart two frameworks may be.
const CLOSE: f32 = 1e-6;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let directory: PathBuf = arguments.next().context("usage: burn-adamw DIRECTORY [--resume]")?.into();
    let resumed = match arguments.next() {
        None => false,
        Some(argument) if argument == "--resume" => true,
        Some(other) => bail!("unexpected argument {other:?}; usage: burn-adamw DIRECTORY [--resume]"),
    };
    for (name, optimizer) in optimizers() {
        let directory = directory.join(name);
        let run = Run::new(optimizer);
        match resumed {
            false => run.begin(&directory)?,
            true => println!("{name}: {}", run.resume(&directory)?),
        }
    }
    Ok(())
}

fn optimizers() -> [(&'static str, ModuleOptimizer); 3] {
    let adamw = AdamWConfig::new().with_weight_decay(WEIGHT_DECAY as f32);
    // PyTorch has no dampening unless it is asked for, Burn 0.1.
    let momentum = MomentumConfig::new().with_momentum(0.9).with_dampening(0.0);
    [
        ("adamw", adamw.init()),
        ("amsgrad", adamw.with_amsgrad(true).init()),
        ("sgd", SgdConfig::new().with_momentum(Some(momentum)).init()),
    ]
}

struct Run {
    device: Device,
    model: Model,
    optimizer: ModuleOptimizer,
    scheduler: ModuleLrScheduler,
}

impl Run {
    fn new(optimizer: ModuleOptimizer) -> Self {
        let device = Device::flex().autodiff();
        device.seed(7);
        let model = Model::new(&device);
        Self { device, model, optimizer, scheduler: ModuleLrScheduler::from(RATE) }
    }

    fn step(&mut self, number: u32) {
        let gradients = self.gradients(number);
        let gradients = GradientsParams::from_grads(gradients, &self.model);
        self.model = self.optimizer.step(self.scheduler.step(), self.model.clone(), gradients);
    }

    fn gradients(&self, number: u32) -> Gradients {
        self.model.loss(ids(number, &self.device)).backward()
    }

    fn save(&self, directory: &Path, step: u32) -> Result<()> {
        let checkpoints = Checkpoints::new(directory).keep_last(1);
        let saver = checkpoints.at(Milestone::at_step(step.into()));
        Ok(saver.save(&self.model, &self.optimizer, &self.scheduler)?)
    }

    /// Trains, and writes what PyTorch needs for the next step, what that step gives in Burn, and the one
    /// after it.
    fn begin(mut self, directory: &Path) -> Result<()> {
        (0..LAST).for_each(|number| self.step(number));
        self.save(&directory.join("training"), LAST)?;
        save(&self.model).pytorch().file(directory.join("before.safetensors"))?;
        let gradients = self.gradients(LAST);
        let as_values = self.model.clone().map(&mut InPlaceOfValues(&gradients));
        save(&as_values).pytorch().file(directory.join("gradients.safetensors"))?;
        self.step(LAST);
        save(&self.model).pytorch().file(directory.join("after.safetensors"))?;
        self.save(&directory.join("after"), LAST + 1)?;
        self.step(LAST + 1);
        Ok(save(&self.model).pytorch().file(directory.join("end.safetensors"))?)
    }

    /// Goes on from PyTorch's checkpoint, and says how far the result is from that of the run which never
    /// left Burn.
    fn resume(mut self, directory: &Path) -> Result<String> {
        let Self { model, optimizer, scheduler, .. } = &mut self;
        let checkpoints = Checkpoints::new(directory.join("pytorch"));
        let resumed = checkpoints.resume(model, optimizer, scheduler)?;
        let (_, step) = resumed.context("there is no checkpoint of PyTorch's: run adamw.py first")?.next();
        ensure!(step == u64::from(LAST + 1), "PyTorch's checkpoint is of step {step}");
        self.step(LAST + 1);
        let own = Checkpoint::from_bytes(save(&self.model).pytorch().bytes()?)?;
        let apart = apart(&own, &Checkpoint::open(directory.join("end.safetensors"))?)?;
        ensure!(apart < CLOSE, "a step behind PyTorch's is {apart:.1e} from Burn's own");
        Ok(format!("a step in PyTorch and one in Burn, and two in Burn: at most {apart:.1e} apart"))
    }
}

/// The largest difference of two checkpoints of `F32`.
fn apart(one: &Checkpoint, other: &Checkpoint) -> Result<f32> {
    let mut largest = 0_f32;
    for tensor in one.tensors() {
        let (a, b) = (one.read(tensor.name())?, other.read(tensor.name())?);
        let floats = |bytes: &[u8]| -> Vec<f32> {
            let words = bytes.chunks_exact(4).filter_map(|word| word.try_into().ok());
            words.map(f32::from_le_bytes).collect()
        };
        let pairs = floats(a.as_bytes()).into_iter().zip(floats(b.as_bytes()));
        largest = pairs.fold(largest, |largest, (a, b)| largest.max((a - b).abs()));
    }
    Ok(largest)
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
