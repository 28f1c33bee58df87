//! Burn's `Learner` with checkpoints in the middle of epochs.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataloader::{DataLoader, DataLoaderBuilder};
use burn::data::dataset::InMemDataset;
use burn::lr_scheduler::exponential::ExponentialLrSchedulerConfig;
use burn::module::Module;
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::optim::AdamWConfig;
use burn::tensor::{Device, Tensor};
use burn::train::logger::{EvaluationProgressLogger, InMemoryMetricLogger, TrainingProgressLogger};
use burn::train::metric::{LossMetric, MetricDefinition};
use burn::train::renderer::{
    EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation, MetricsRendererTraining,
};
use burn::train::{
    InferenceStep, Interrupter, Learner, LearningResult, RegressionOutput, SupervisedTraining, TrainOutput,
    TrainStep,
};
use weighbridge_burn::weighbridge::epochs::{Milestone, Scalar};
use weighbridge_burn::weighbridge::{Checkpoint, ErrorKind};
use weighbridge_burn::{Checkpoints, load, save};

#[derive(Module, Debug)]
struct Model {
    first: Linear,
    norm: BatchNorm,
    second: Linear,
}

impl Model {
    fn new(hidden: usize, device: &Device) -> Self {
        Self {
            first: LinearConfig::new(2, hidden).init(device),
            norm: BatchNormConfig::new(hidden).init(device),
            second: LinearConfig::new(hidden, 2).init(device),
        }
    }

    fn output(&self, batch: Tensor<2>) -> RegressionOutput {
        let output = self.second.forward(self.norm.forward(self.first.forward(batch.clone())));
        let loss = (output.clone() - batch.clone()).powi_scalar(2).mean();
        RegressionOutput::new(loss, output, batch)
    }
}

impl TrainStep for Model {
    type Input = Tensor<2>;
    type Output = RegressionOutput;

    fn step(&self, batch: Tensor<2>) -> TrainOutput<RegressionOutput> {
        let output = self.output(batch);
        TrainOutput::new(self, output.loss.backward(), output)
    }
}

impl InferenceStep for Model {
    type Input = Tensor<2>;
    type Output = RegressionOutput;

    fn step(&self, batch: Tensor<2>) -> RegressionOutput {
        self.output(batch)
    }
}

/// The batches that were made, and when to stop.
#[derive(Clone)]
struct Batches {
    made: Arc<Mutex<Vec<Vec<usize>>>>,
    left: Arc<AtomicUsize>,
    interrupter: Interrupter,
}

impl Batcher<usize, Tensor<2>> for Batches {
    fn batch(&self, items: Vec<usize>, device: &Device) -> Tensor<2> {
        if device.is_autodiff() {
            self.made.lock().unwrap().push(items.clone());
            if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
                self.interrupter.stop(Some("it was told to"));
            }
        }
        let values: Vec<f32> = items.iter().flat_map(|&item| [item as f32 / 9.0, 0.5]).collect();
        Tensor::<1>::from_floats(&*values, device).reshape([items.len(), 2])
    }
}

const ITEMS: usize = 14;
const BATCH: usize = 2;
const EPOCH: usize = ITEMS / BATCH;
const EPOCHS: usize = 3;

/// Trains for three epochs, or so many batches.
fn train(directory: &Path, every: u64, batches: usize, accumulation: usize) -> (Vec<u8>, Vec<Vec<usize>>) {
    let start = directory.with_extension("safetensors");
    let (LearningResult { model, error, interrupted, .. }, made) =
        launch(directory, every, batches, accumulation, 4, &start);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(interrupted.is_some(), batches < EPOCHS * EPOCH, "{interrupted:?}");
    (save(&model).bytes().unwrap(), made)
}

/// The result, and the batches that were made. The weights at the start are those of a file, which is made if it is not
/// there.
fn launch(
    directory: &Path,
    every: u64,
    batches: usize,
    accumulation: usize,
    hidden: usize,
    start: &Path,
) -> (LearningResult<Model>, Vec<Vec<usize>>) {
    let device = Device::flex().autodiff();
    let interrupter = Interrupter::new();
    let batcher =
        Batches { made: Arc::default(), left: Arc::new(batches.into()), interrupter: interrupter.clone() };
    let loader = |shuffled: bool| -> Arc<dyn DataLoader<Tensor<2>>> {
        let loader = DataLoaderBuilder::new(batcher.clone()).batch_size(BATCH).set_device(device.clone());
        let loader = if shuffled { loader.shuffle(3) } else { loader };
        loader.build(InMemDataset::new((0..ITEMS).collect()))
    };
    let mut model = Model::new(hidden, &device);
    if !start.exists() {
        save(&model).ids().file(start).unwrap();
    }
    load(&Checkpoint::open(start).unwrap()).into(&mut model).unwrap();
    let scheduler = ExponentialLrSchedulerConfig::new(0.1, 0.9).init().unwrap();
    let learner = Learner::new(model, AdamWConfig::new().init(), scheduler);
    let training = SupervisedTraining::<Model>::new(directory, loader(true), loader(false))
        .num_epochs(EPOCHS)
        .grads_accumulation(accumulation)
        .metric_train_numeric(LossMetric::new())
        .metric_valid_numeric(LossMetric::new())
        .with_metric_logger(InMemoryMetricLogger::new())
        .with_application_logger(None)
        .with_interrupter(interrupter)
        .renderer(Box::new(Silent));
    let checkpoints = Checkpoints::new(directory.join("checkpoints")).note("seed", 3_u64);
    let result = checkpoints.every(every, training).unwrap().launch(learner);
    let made = batcher.made.lock().unwrap().clone();
    (result, made)
}

#[test]
fn a_learner_goes_on_in_the_middle_of_an_epoch() {
    let home = tempfile::tempdir().unwrap();
    let whole = home.path().join("whole");
    let (expected, batches) = train(&whole, 3, usize::MAX, 1);
    assert_eq!(batches.len(), EPOCHS * EPOCH);
    assert_ne!(batches[..EPOCH], batches[EPOCH..2 * EPOCH], "not shuffled");
    let checkpoints = Checkpoints::new(whole.join("checkpoints"));
    let epoch =
        |epoch| [Milestone::epoch(epoch).step(3), Milestone::epoch(epoch).step(6), Milestone::epoch(epoch)];
    assert_eq!(checkpoints.milestones().unwrap(), [epoch(1), epoch(2), epoch(3)].concat());

    for (stopped, newest) in [
        (4, Milestone::epoch(1).step(3)),
        (6, Milestone::epoch(1).step(6)),
        (8, Milestone::epoch(1)),
        (EPOCH + 5, Milestone::epoch(2).step(3)),
        (2 * EPOCH + 6, Milestone::epoch(3).step(6)),
    ] {
        let run = home.path().join(format!("stopped-{stopped}"));
        std::fs::copy(whole.with_extension("safetensors"), run.with_extension("safetensors")).unwrap();
        let (_, first) = train(&run, 3, stopped, 1);
        assert_eq!(first, batches[..stopped]);
        let checkpoints = Checkpoints::new(run.join("checkpoints"));
        assert_eq!(checkpoints.newest().unwrap(), Some(newest));
        let (end, second) = train(&run, 3, usize::MAX, 1);
        assert_eq!(end, expected, "stopped after {stopped} batches");
        // Those of the epoch that were seen are made again and left out.
        let at = (newest.epoch_number() - usize::from(newest.step_number().is_some())) * EPOCH;
        assert_eq!(second, batches[at..]);
    }
}

#[test]
fn a_checkpoint_waits_for_the_step_of_the_optimizer() {
    let home = tempfile::tempdir().unwrap();
    let whole = home.path().join("whole");
    let (expected, _) = train(&whole, 3, usize::MAX, 2);
    let checkpoints = Checkpoints::new(whole.join("checkpoints"));
    let epoch =
        |epoch| [Milestone::epoch(epoch).step(4), Milestone::epoch(epoch).step(6), Milestone::epoch(epoch)];
    assert_eq!(checkpoints.milestones().unwrap(), [epoch(1), epoch(2), epoch(3)].concat());
    let run = home.path().join("run");
    std::fs::copy(whole.with_extension("safetensors"), run.with_extension("safetensors")).unwrap();
    train(&run, 3, EPOCH + 5, 2);
    assert_eq!(train(&run, 3, usize::MAX, 2).0, expected);
}

#[test]
fn what_cannot_be_resumed_is_an_error_before_the_training() {
    let home = tempfile::tempdir().unwrap();
    let run = home.path().join("run");
    train(&run, 3, 4, 1);
    let checkpoints = || Checkpoints::new(run.join("checkpoints"));
    let device = Device::flex().autodiff();
    let loader = || {
        let batcher = Batches {
            made: Arc::default(),
            left: Arc::new(usize::MAX.into()),
            interrupter: Interrupter::new(),
        };
        let loader = DataLoaderBuilder::new(batcher).batch_size(BATCH).set_device(device.clone());
        loader.build(InMemDataset::new((0..ITEMS).collect()))
    };
    let training = || SupervisedTraining::<Model>::new(&run, loader(), loader());
    let error = checkpoints().every(0, training()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Value);
    let file = run.join("checkpoints/epoch-00001-step-00000003/optimizer.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 4]).unwrap();
    let error = checkpoints().every(3, training()).err().unwrap();
    assert_eq!((error.kind(), error.file()), (ErrorKind::DataLength, Some(&*file)));
    std::fs::write(&file, &bytes).unwrap();
    // Another model, which only the training can know.
    let (result, made) = launch(&run, 3, usize::MAX, 1, 5, &home.path().join("other.safetensors"));
    let error = result.error.unwrap().to_string();
    assert!(error.contains("model.safetensors") && error.contains("the module has"), "{error}");
    assert!(made.is_empty());
    // Numbers are kept with each of them.
    let manifest = std::fs::read_to_string(run.join("checkpoints/checkpoints.json")).unwrap();
    assert!(manifest.contains(&Scalar::UInt(3).to_string()), "{manifest}");
}

#[test]
fn a_run_that_does_not_count_epochs_is_not_resumed() {
    let home = tempfile::tempdir().unwrap();
    let device = Device::flex().autodiff();
    let batcher =
        Batches { made: Arc::default(), left: Arc::new(usize::MAX.into()), interrupter: Interrupter::new() };
    let model = Model::new(4, &device);
    let scheduler = ExponentialLrSchedulerConfig::new(0.1, 0.9).init().unwrap();
    // More steps than an epoch has, fewer, and an end of the first of epochs that are counted from 0.
    for (milestone, name) in [
        (Milestone::at_step(EPOCH as u64 + 2), "step-00000009"),
        (Milestone::at_step(3), "step-00000003"),
        (Milestone::epoch(0), "epoch-00000"),
    ] {
        let run = home.path().join(name);
        let checkpoints = Checkpoints::new(&run);
        checkpoints.at(milestone).save(&model, &AdamWConfig::new().init(), &scheduler).unwrap();
        let loader = || {
            let loader = DataLoaderBuilder::new(batcher.clone()).batch_size(BATCH).set_device(device.clone());
            loader.build(InMemDataset::new((0..ITEMS).collect()))
        };
        let training = SupervisedTraining::<Model>::new(&run, loader(), loader());
        let error = checkpoints.clone().every(3, training).err().unwrap();
        let file = run.join(name).join("model.safetensors");
        assert_eq!((error.kind(), error.file()), (ErrorKind::Value, Some(&*file)));
        assert!(error.to_string().contains(&format!("is of {milestone}, and")), "{error}");
        assert_eq!(checkpoints.milestones().unwrap(), [milestone]);
    }
    assert!(batcher.made.lock().unwrap().is_empty());
}

#[test]
fn an_epoch_of_fewer_batches_than_were_seen_is_not_over() {
    let home = tempfile::tempdir().unwrap();
    let run = home.path().join("run");
    let checkpoints = Checkpoints::new(run.join("checkpoints"));
    // Its batches were smaller.
    let newest = Milestone::epoch(2).step(EPOCH as u64 + 1);
    let model = Model::new(4, &Device::flex().autodiff());
    let scheduler = ExponentialLrSchedulerConfig::new(0.1, 0.9).init().unwrap();
    checkpoints.at(newest).save(&model, &AdamWConfig::new().init(), &scheduler).unwrap();
    let (result, made) = launch(&run, 3, usize::MAX, 1, 4, &run.with_extension("safetensors"));
    let error = result.error.unwrap().to_string();
    assert!(error.contains("after 8 batches of epoch 2, which has 7 now"), "{error}");
    assert!(error.contains("epoch-00002-step-00000008/model.safetensors"), "{error}");
    assert_eq!(made.len(), EPOCH);
    assert_eq!(checkpoints.milestones().unwrap(), [newest]);
}

/// Shows nothing.
struct Silent;

impl TrainingProgressLogger for Silent {
    fn start(&mut self, _: usize, _: usize, _: Option<usize>, _: Option<&str>) {}
    fn start_split(&mut self, _: &str, _: usize) {}
    fn update_split(&mut self, _: usize) {}
    fn update_epoch(&mut self, _: usize) {}
    fn end_split(&mut self) {}
    fn end(&mut self) {}
    fn log_event_training(&mut self, _: String) {}
}

impl MetricsRendererTraining for Silent {
    fn update_train(&mut self, _: MetricState) {}
    fn update_valid(&mut self, _: MetricState) {}
}

impl MetricsRenderer for Silent {
    fn manual_close(&mut self) {}
    fn register_metric(&mut self, _: MetricDefinition) {}
}

impl MetricsRendererEvaluation for Silent {
    fn update_test(&mut self, _: EvaluationName, _: MetricState) {}
}

impl EvaluationProgressLogger for Silent {
    fn start_global_progress(&mut self, _: usize) {}
    fn start_test(&mut self, _: &str, _: usize) {}
    fn update_test_progress(&mut self, _: usize) {}
    fn end_test(&mut self) {}
    fn end_global_progress(&mut self) {}
    fn log_event_evaluation(&mut self, _: String) {}
}
