//! Training checkpoints in an object store.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use burn::lr_scheduler::exponential::ExponentialLrSchedulerConfig;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor};
use burn::train::checkpoint::Checkpointer;
use weighbridge_burn::weighbridge::epochs::Milestone;
use weighbridge_burn::{Checkpoints, Ema, save};
use weighbridge_tests::stores::{PROTOCOLS, store_of};

struct Run {
    model: Linear,
    optimizer: ModuleOptimizer,
    scheduler: ModuleLrScheduler,
}

impl Run {
    fn new() -> Self {
        let model = LinearConfig::new(3, 2).init(&Device::flex().autodiff());
        let scheduler = ExponentialLrSchedulerConfig::new(0.1, 0.9).init().unwrap();
        Self { model, optimizer: AdamWConfig::new().init(), scheduler }
    }

    fn step(&mut self, number: usize) {
        let device = Device::flex().autodiff();
        let input = Tensor::<2>::from_floats([[number as f32, 1.0, -0.5]], &device);
        let loss = self.model.forward(input).powi_scalar(2).sum();
        let gradients = GradientsParams::from_grads(loss.backward(), &self.model);
        let rate = self.scheduler.step();
        self.model = self.optimizer.step(rate, self.model.clone(), gradients);
    }

    fn bytes(&self) -> Vec<u8> {
        save(&self.model).bytes().unwrap()
    }
}

#[test]
fn a_run_goes_on_from_a_store() {
    for protocol in PROTOCOLS {
        let (store, remote, scheme) = store_of(protocol);
        let checkpoints = Checkpoints::new(format!("{scheme}://bucket/run")).remote(remote).keep_last(2);
        let mut through = Run::new();
        let mut ema = Ema::new(&through.model, 0.9).unwrap();
        for step in 1..=6 {
            through.step(step);
            ema.update(&through.model).unwrap();
            if step < 5 {
                let saver = checkpoints.at(Milestone::epoch(1).step(step as u64)).ema(&ema);
                saver.save(&through.model, &through.optimizer, &through.scheduler).unwrap();
            }
        }
        assert_eq!(checkpoints.milestones().unwrap(), [3, 4].map(|step| Milestone::epoch(1).step(step)));
        assert_eq!((store.keys().len(), store.uploads()), (9, 0), "{:?}", store.keys());
        let mut run = Run::new();
        let resumed =
            checkpoints.resume(&mut run.model, &mut run.optimizer, &mut run.scheduler).unwrap().unwrap();
        assert!(resumed.next() == (1, 4) && resumed.has_ema());
        for step in 5..=6 {
            run.step(step);
        }
        assert!(through.bytes() == run.bytes());
    }
}

#[test]
fn a_learner_saves_and_restores_there() {
    let (store, remote, scheme) = store_of(PROTOCOLS[0]);
    let checkpoints = Checkpoints::new(format!("{scheme}://bucket/run")).remote(remote).keep_last(1);
    let (model, optimizer, scheduler) = checkpoints.clone().split();
    let mut run = Run::new();
    for epoch in 1..=2 {
        run.step(epoch);
        model.save(epoch, run.model.clone().into_record()).unwrap();
        optimizer.save(epoch, run.optimizer.to_record()).unwrap();
        scheduler.save(epoch, run.scheduler.to_record()).unwrap();
    }
    assert_eq!(checkpoints.epochs().unwrap(), [2]);
    assert_eq!(store.keys().len(), 4, "{:?}", store.keys());
    let restored = Run::new().model.load_record(model.restore(2).unwrap());
    assert!(save(&restored).bytes().unwrap() == run.bytes());
    optimizer.restore(2).unwrap();
    scheduler.restore(2).unwrap();
}
