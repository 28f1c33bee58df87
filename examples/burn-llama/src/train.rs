//! Training with Burn's `Learner`, whose state weighbridge keeps.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use burn::grad_clipping::GradientClippingConfig;
use burn::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::optim::{AdamWConfig, ModuleOptimizer};
use burn::tensor::Device;
use burn::train::checkpoint::KeepLastNCheckpoints;
use burn::train::logger::InMemoryMetricLogger;
use burn::train::metric::{AccuracyMetric, LossMetric};
use burn::train::{Learner, SupervisedTraining};
use burn_lm::model::Llama;
use weighbridge_burn::{Checkpoints, load_training};

use crate::cli::Cli;
use crate::data::Sums;
use crate::progress::{Losses, Progress};
use crate::settings::{KEPT, Run};
use crate::tokens::Tokens;
use examples_support::note;

/// The learning rate grows over so many steps, and then stays. It does not fall in the end, because the weights after an
/// epoch would then depend on how many more were asked for.
const WARM_UP: usize = 100;
const RATE: f64 = 1e-3;
/// For weights that are good already.
const GENTLE_RATE: f64 = 1e-4;

/// So many held-out sums are looked at after each epoch, so many at a time.
const HELD_OUT: usize = 256;
const HELD_OUT_BATCH: usize = 128;

/// A run that trains.
pub(crate) struct Training<'a> {
    pub(crate) cli: &'a Cli,
    pub(crate) run: &'a Run,
    pub(crate) tokens: &'a Arc<Tokens>,
    pub(crate) device: &'a Device,
}

/// What came of it.
pub(crate) struct Outcome {
    pub(crate) model: Llama,
    /// How many were done, those of earlier runs included.
    pub(crate) epochs: usize,
    pub(crate) losses: Losses,
}

impl Outcome {
    pub(crate) fn untrained(model: Llama) -> Self {
        Self { model, epochs: 0, losses: Losses::default() }
    }
}

impl Training<'_> {
    /// Trains until the epochs are done that were asked for. Whenever it is stopped, a checkpoint of the last whole epoch
    /// is there.
    ///
    /// # Errors
    ///
    /// Fails when the checkpoint to go on from does not fit or cannot be read, and when one cannot be written.
    pub(crate) fn run(&self, model: Llama) -> Result<Outcome> {
        let Self { cli, run, .. } = self;
        let directory = &cli.checkpoint_dir;
        run.begin(directory)?;
        let (optimizer, scheduler) = self.optimizer()?;
        let done = run.latest.unwrap_or(0);
        if run.latest.is_some() {
            check(&model, &optimizer, &scheduler, cli)?;
            note(&format!("{}: going on after epoch {done}", directory.display()));
            if done >= cli.epochs {
                note(&format!("there is nothing to train: --epochs is {}", cli.epochs));
            }
        }

        let settings = &run.settings;
        let (steps, size) = (settings.steps_per_epoch, settings.batch_size);
        let training = Sums::training(self.tokens, settings.seed, done + 1, steps, size, self.device);
        let held_out = Sums::held_out(self.tokens, HELD_OUT, HELD_OUT_BATCH, self.device);
        let losses = Arc::new(Mutex::new(Losses::default()));
        let checkpoints = Checkpoints::new(directory).keep_last(KEPT);
        let (models, optimizers, schedulers) = checkpoints.split();
        let mut training =
            SupervisedTraining::<Llama>::new(directory, Arc::new(training), Arc::new(held_out))
                .num_epochs(cli.epochs)
                .with_custom_checkpointers(models, optimizers, schedulers)
                .with_checkpointing_strategy(KeepLastNCheckpoints::new(KEPT))
                .metric_train_numeric(LossMetric::new())
                .metric_valid_numeric(LossMetric::new())
                .metric_valid_numeric(AccuracyMetric::new())
                // Neither logs nor a screen of its own.
                .with_metric_logger(InMemoryMetricLogger::new())
                .with_application_logger(None)
                .renderer(Box::new(Progress::new(&losses)));
        if let Some(epoch) = run.latest {
            training = training.checkpoint(epoch);
        }
        let result = training.launch(Learner::new(model, optimizer, scheduler));
        if let Some(error) = result.error {
            bail!("training stopped: {error}");
        }
        let losses = *losses.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Outcome { model: result.model, epochs: done.max(cli.epochs), losses })
    }

    fn optimizer(&self) -> Result<(ModuleOptimizer, ModuleLrScheduler)> {
        let optimizer = AdamWConfig::new()
            .with_beta_2(0.98)
            .with_epsilon(1e-8)
            .with_weight_decay(0.05)
            .with_grad_clipping(Some(GradientClippingConfig::Norm(1.0)))
            .init();
        let rate = if self.run.settings.from.is_some() { GENTLE_RATE } else { RATE };
        let scheduler = LinearLrSchedulerConfig::new(rate / WARM_UP as f64, rate, WARM_UP).init();
        Ok((optimizer, scheduler.map_err(|error| anyhow!("the learning rate: {error}"))?))
    }
}

/// Loads the checkpoint into copies: what is wrong with it is an error here, in the `Learner` it would be a panic.
fn check(model: &Llama, optimizer: &ModuleOptimizer, scheduler: &ModuleLrScheduler, cli: &Cli) -> Result<()> {
    let (mut model, mut optimizer, mut scheduler) = (model.clone(), optimizer.clone(), scheduler.clone());
    load_training(&cli.checkpoint_dir, &mut model, &mut optimizer, &mut scheduler)
        .map(drop)
        .context("the checkpoint to resume from")
}
