//! Training checkpoints in object stores.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{Linear, Optimizer, VarBuilder, VarMap, linear};
use remote_server::Fault;
use weighbridge::epochs::Milestone;
use weighbridge_candle::{AdamW, Checkpoints, Cosine, Ema, Saver, Schedule, vars};
use weighbridge_tests::stores::{PROTOCOLS, store_of};

struct Run {
    map: VarMap,
    layer: Linear,
    optimizer: AdamW,
    schedule: Cosine,
    ema: Ema,
}

impl Run {
    /// A model whose weights are the same every time.
    fn new() -> Self {
        let map = VarMap::new();
        let layer = linear(3, 4, VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu)).unwrap();
        for (_, var) in map.data().lock().unwrap().iter() {
            var.set(&Tensor::full(0.5_f32, var.shape(), &Device::Cpu).unwrap()).unwrap();
        }
        let optimizer = AdamW::of(&map, Default::default()).unwrap();
        let ema = Ema::new(&map, 0.9).unwrap();
        Self { map, layer, optimizer, schedule: Cosine::new(0.05, 0.0, 20), ema }
    }

    fn step(&mut self, step: u64) {
        let input = Tensor::new(&[[step as f32, 1.0, -0.5]], &Device::Cpu).unwrap();
        let loss = self.layer.forward(&input).unwrap().sqr().unwrap().sum_all().unwrap();
        self.optimizer.set_learning_rate(self.schedule.step());
        self.optimizer.backward_step(&loss).unwrap();
        self.ema.update().unwrap();
    }

    fn save(&self, checkpoints: &Checkpoints, step: u64) -> weighbridge::Result<()> {
        let saver = checkpoints.at(Milestone::at_step(step)).ema(&self.ema).note("loss", 0.1);
        saver.save(&self.map, &self.optimizer, &self.schedule)
    }

    /// What it is, with its average.
    fn bytes(&self) -> Vec<u8> {
        let average = self.ema.tensors().into_iter().map(|(name, tensor)| (format!("ema.{name}"), tensor));
        let weights = vars(&self.map).into_iter();
        Saver::new().bytes(weights.chain(average)).unwrap()
    }
}

#[test]
fn a_run_goes_on_from_a_store() {
    for protocol in PROTOCOLS {
        let (store, remote, scheme) = store_of(protocol);
        let checkpoints =
            Checkpoints::new(format!("{scheme}://bucket/run")).remote(remote).keep_last(2).every(2);
        let mut through = Run::new();
        for step in 1..=8 {
            through.step(step);
            if checkpoints.is_due(step) && step < 8 {
                through.save(&checkpoints, step).unwrap();
            }
        }
        assert_eq!(checkpoints.milestones().unwrap(), [4, 6].map(Milestone::at_step));
        assert_eq!((store.keys().len(), store.uploads()), (9, 0), "{:?}", store.keys());

        let mut run = Run::new();
        run.step(17); // what is here is replaced
        let resumed = checkpoints.resume(&run.map, &mut run.optimizer, &mut run.schedule).unwrap().unwrap();
        resumed.load_ema(&mut run.ema).unwrap();
        assert_eq!((resumed.step(), resumed.scalars["loss"]), (6, 0.1.into()));
        for step in 7..=8 {
            run.step(step);
        }
        assert!(through.bytes() == run.bytes());
    }
}

#[test]
fn a_save_that_is_denied_leaves_the_last_one() {
    for protocol in PROTOCOLS {
        let (store, remote, scheme) = store_of(protocol);
        let checkpoints = Checkpoints::new(format!("{scheme}://bucket/run")).remote(remote).keep_last(1);
        let mut run = Run::new();
        run.step(1);
        run.save(&checkpoints, 1).unwrap();
        let saved = run.bytes();
        run.step(2);
        for part in ["model", "optimizer", "scheduler", "ema", "checkpoints.json"] {
            let denied = Fault::Status(403, vec![], "<Error><Code>AccessDenied</Code></Error>");
            // Those of the last one are read before.
            store.refusals.add_after(part, 1, usize::MAX, denied);
            assert!(run.save(&checkpoints, 2).is_err(), "{part}");
            store.refusals.clear();
            let mut old = Run::new();
            let resumed =
                checkpoints.resume(&old.map, &mut old.optimizer, &mut old.schedule).unwrap().unwrap();
            resumed.load_ema(&mut old.ema).unwrap();
            assert!(resumed.step() == 1 && saved == old.bytes(), "{part}");
        }
        run.save(&checkpoints, 2).unwrap();
        assert_eq!(checkpoints.milestones().unwrap(), [Milestone::at_step(2)]);
    }
}
