//! Checkpoints in the middle of epochs: runs that were stopped and went on are runs that never stopped.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use burn::lr_scheduler::exponential::ExponentialLrSchedulerConfig;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::module::Module;
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor};
use weighbridge_burn::weighbridge::epochs::{Milestone, Scalar};
use weighbridge_burn::weighbridge::{Checkpoint, ErrorKind};
use weighbridge_burn::{Checkpoints, Ema, load, load_training, save};

#[derive(Module, Debug)]
struct Model {
    first: Linear,
    norm: BatchNorm,
    second: Linear,
}

struct Run {
    model: Model,
    optimizer: ModuleOptimizer,
    scheduler: ModuleLrScheduler,
    ema: Ema<Model>,
}

const STEPS: u64 = 5;

impl Run {
    /// The same each time.
    fn new(hidden: usize) -> Self {
        let device = Device::flex().autodiff();
        let filled = |values: usize| {
            let values = (0..values).map(|i| ((i * 31) % 17) as f32 / 17.0 - 0.5).collect::<Vec<_>>();
            Tensor::<1>::from_floats(&*values, &device)
        };
        let linear = |inputs: usize, outputs: usize| {
            let mut linear = LinearConfig::new(inputs, outputs).init(&device);
            linear.weight =
                linear.weight.map(|_| filled(inputs * outputs).reshape([inputs, outputs]).require_grad());
            linear.bias = linear.bias.map(|bias| bias.map(|_| filled(outputs).require_grad()));
            linear
        };
        let model = Model {
            first: linear(3, hidden),
            norm: BatchNormConfig::new(hidden).init(&device),
            second: linear(hidden, 2),
        };
        let scheduler = ExponentialLrSchedulerConfig::new(0.1, 0.9).init().unwrap();
        let ema = Ema::new(&model, 0.9).unwrap();
        Self { model, optimizer: AdamWConfig::new().init(), scheduler, ema }
    }

    /// A step on a batch that depends on the epoch and the number of the step in it.
    fn step(&mut self, epoch: usize, step: u64) {
        let device = Device::flex().autodiff();
        let number = epoch * 100 + step as usize;
        let values: Vec<f32> = (0..15).map(|i| ((i * 7 + number * 13) % 11) as f32 / 5.0 - 1.0).collect();
        let input = Tensor::<1>::from_floats(&*values, &device).reshape([5, 3]);
        let hidden = self.model.norm.forward(self.model.first.forward(input));
        let loss = self.model.second.forward(hidden).powi_scalar(2).mean();
        let gradients = GradientsParams::from_grads(loss.backward(), &self.model);
        let rate = self.scheduler.step();
        self.model = self.optimizer.step(rate, self.model.clone(), gradients);
        self.ema.update(&self.model).unwrap();
    }

    /// Trains from a moment to another one, and saves after each step if it is told where.
    fn train(&mut self, mut at: (usize, u64), to: (usize, u64), checkpoints: Option<&Checkpoints>) {
        while at < to {
            let (epoch, step) = at;
            self.step(epoch, step);
            at = (epoch, step + 1);
            let mut moment = Milestone::epoch(epoch).step(step + 1);
            if step + 1 == STEPS {
                (at, moment) = ((epoch + 1, 0), Milestone::epoch(epoch));
            }
            if let Some(checkpoints) = checkpoints {
                self.save(checkpoints, moment);
            }
        }
    }

    fn save(&self, checkpoints: &Checkpoints, moment: Milestone) {
        checkpoints
            .at(moment)
            .note("position", position(moment))
            .ema(&self.ema)
            .save(&self.model, &self.optimizer, &self.scheduler)
            .unwrap();
    }

    /// Loads the newest checkpoint; where it goes on, and how many steps were done.
    fn resume(&mut self, checkpoints: &Checkpoints) -> Option<((usize, u64), u64)> {
        let Self { model, optimizer, scheduler, ema } = self;
        let resumed = checkpoints.resume(model, optimizer, scheduler).unwrap()?;
        resumed.load_ema(ema).unwrap();
        assert_eq!(resumed.scalars["seed"], Scalar::UInt(7));
        Some((resumed.next(), resumed.scalars["position"].as_u64().unwrap()))
    }

    fn bytes(&self) -> (Vec<u8>, Vec<u8>) {
        (save(&self.model).bytes().unwrap(), save(self.ema.model()).bytes().unwrap())
    }
}

/// The number of steps before a moment.
fn position(moment: Milestone) -> u64 {
    let whole = moment.epoch_number() as u64 - 1;
    moment.step_number().map_or((whole + 1) * STEPS, |step| whole * STEPS + step)
}

fn checkpoints(directory: &Path) -> Checkpoints {
    Checkpoints::new(directory).keep_last(2).note("seed", 7_u64)
}

#[test]
fn a_run_goes_on_in_the_middle_of_an_epoch() {
    let mut whole = Run::new(4);
    whole.train((1, 0), (3, 4), None);
    for stopped in [(1, 1), (1, 4), (2, 0), (2, 3), (3, 0)] {
        let directory = tempfile::tempdir().unwrap();
        let checkpoints = checkpoints(directory.path());
        let mut first = Run::new(4);
        assert!(first.resume(&checkpoints).is_none());
        first.train((1, 0), stopped, Some(&checkpoints));
        let mut second = Run::new(4);
        let (next, position) = second.resume(&checkpoints).unwrap();
        assert_eq!((next, position), (stopped, (stopped.0 as u64 - 1) * STEPS + stopped.1));
        assert_eq!(second.bytes(), first.bytes());
        second.train(next, (3, 4), Some(&checkpoints));
        assert_eq!(second.bytes(), whole.bytes());
        assert_eq!(
            checkpoints.milestones().unwrap(),
            [Milestone::epoch(3).step(3), Milestone::epoch(3).step(4)]
        );
    }
}

#[test]
fn any_checkpoint_can_be_loaded_by_its_moment() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(&directory).note("seed", 7_u64);
    let mut run = Run::new(4);
    run.train((1, 0), (2, 1), Some(&checkpoints));
    let expected: Vec<_> = (1..STEPS).map(|step| Milestone::epoch(1).step(step)).collect();
    let expected = [expected, vec![Milestone::epoch(1), Milestone::epoch(2).step(1)]].concat();
    assert_eq!(checkpoints.milestones().unwrap(), expected);
    // Burn's `Learner` knows of whole epochs.
    assert_eq!((checkpoints.epochs().unwrap(), checkpoints.latest().unwrap()), (vec![1], Some(1)));

    let mut other = Run::new(4);
    other.train((1, 0), (1, 2), None);
    let Run { model, optimizer, scheduler, ema } = &mut run;
    checkpoints.load(Milestone::epoch(1).step(2), model, optimizer, scheduler).unwrap();
    checkpoints.load_ema(Milestone::epoch(1).step(2), ema).unwrap();
    assert_eq!(run.bytes(), other.bytes());
    // The last one that was committed is what `load_training` takes, whatever moment it is of.
    let Run { model, optimizer, scheduler, .. } = &mut run;
    load_training(&directory, model, optimizer, scheduler).unwrap();
    other.train((1, 2), (2, 1), None);
    assert_eq!(run.bytes().0, other.bytes().0);

    let Run { model, optimizer, scheduler, ema } = &mut run;
    let absent = Milestone::epoch(9).step(1);
    let error = checkpoints.load(absent, model, optimizer, scheduler).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("there is no checkpoint of epoch 9, step 1"), "{error}");
    assert_eq!(checkpoints.load_ema(absent, ema).unwrap_err().kind(), ErrorKind::NotFound);
    checkpoints.at(absent).save(model, optimizer, scheduler).unwrap();
    let error = checkpoints.load_ema(absent, ema).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("has no part \"ema\""), "{error}");
}

#[test]
fn an_average_is_a_checkpoint_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = Run::new(4);
    run.train((1, 0), (1, 3), None);
    // Where epochs are not counted.
    let saver = Checkpoints::new(&directory);
    let saver = saver.at(Milestone::at_step(3)).ema(&run.ema);
    saver.save(&run.model, &run.optimizer, &run.scheduler).unwrap();
    let file = directory.path().join("step-00000003/ema.safetensors");
    let mut model = Run::new(4).model;
    load(&Checkpoint::open(file).unwrap()).into(&mut model).unwrap();
    assert_eq!(save(&model).bytes().unwrap(), run.bytes().1);
    assert_ne!(run.bytes().0, run.bytes().1);
}

const HIDDEN: usize = 5000;

/// Trains and saves until it is killed.
fn train_for_ever(directory: &Path) {
    let checkpoints = checkpoints(directory);
    let mut run = Run::new(HIDDEN);
    let next = run.resume(&checkpoints).map_or((1, 0), |(next, _)| next);
    run.train(next, (usize::MAX, 0), Some(&checkpoints));
}

#[test]
fn killed_100_times_and_still_the_same_run() {
    const DIRECTORY: &str = "WEIGHBRIDGE_TEST_DIRECTORY";
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return train_for_ever(directory.as_ref());
    }
    let directory = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(directory.path());
    // Never stopped.
    let (mut whole, mut at, mut done) = (Run::new(HIDDEN), (1, 0), 0);
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..100 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed_100_times_and_still_the_same_run"])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // It is killed somewhere in the steps after its first.
        while checkpoints.newest().unwrap().map_or(0, position) <= done {
            assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(random % 40_000));
        assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
        child.kill().unwrap();
        child.wait().unwrap();
        let mut resumed = Run::new(HIDDEN);
        let (next, position) = resumed.resume(&checkpoints).unwrap();
        assert!(position > done);
        whole.train(at, next, None);
        (at, done) = (next, position);
        assert!(resumed.bytes() == whole.bytes(), "after {position} steps");
    }
    // What the dead left is swept away by the living: what counts, the manifest, and what was being written.
    assert!(std::fs::read_dir(&directory).unwrap().count() <= 5);
}
