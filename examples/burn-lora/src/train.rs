//! The loop: a batch, gradients of the factors, a step, and now and then a checkpoint.

use std::fs;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::Device;
use burn_lm::model::{Llama, Lora, TARGETS, floats};
use examples_support::note;
use weighbridge_burn::Checkpoints;
use weighbridge_burn::weighbridge::epochs::{Milestone, Scalar};

use crate::cli::Cli;
use crate::task::Task;

/// How many checkpoints are kept.
const KEPT: usize = 2;

/// The learning rate grows over so many steps, and then stays. It does not fall in the end, because what was learned
/// after so many steps would then depend on how many more were asked for.
const WARM_UP: usize = 20;

/// A run.
pub(crate) struct Training<'a> {
    cli: &'a Cli,
    model: &'a Llama,
    task: &'a Task,
    device: &'a Device,
    checkpoints: Checkpoints,
    optimizer: ModuleOptimizer,
    scheduler: ModuleLrScheduler,
    /// What learns.
    pub(crate) lora: Lora,
    /// So many steps are done, those before `--resume` included.
    pub(crate) done: u64,
    /// The mean of the steps since the checkpoint before the last.
    pub(crate) loss: Option<f64>,
}

impl<'a> Training<'a> {
    pub(crate) fn new(
        cli: &'a Cli,
        model: &'a Llama,
        task: &'a Task,
        device: &'a Device,
        lora: Lora,
    ) -> Result<Self> {
        let scheduler = LinearLrSchedulerConfig::new(cli.rate / WARM_UP as f64, cli.rate, WARM_UP).init();
        Ok(Self {
            cli,
            model,
            task,
            device,
            checkpoints: Checkpoints::new(&cli.checkpoint_dir).keep_last(KEPT),
            optimizer: AdamWConfig::new().with_beta_2(0.98).with_weight_decay(0.0).init(),
            scheduler: scheduler.map_err(|error| anyhow!("the learning rate: {error}"))?,
            lora,
            done: 0,
            loss: None,
        })
    }

    /// With `--resume` goes on from the last checkpoint, with `--force` forgets those that are there.
    ///
    /// # Errors
    ///
    /// Fails when there is none, when it is damaged, when the run was begun with other options, and when it would be replaced
    /// unasked.
    pub(crate) fn resume(&mut self) -> Result<()> {
        let directory = self.cli.checkpoint_dir.display();
        if !self.cli.resume {
            let replaces = self.cli.steps > 0 && !self.cli.force && self.checkpoints.newest()?.is_some();
            ensure!(
                !replaces,
                "{directory}: there is a run already; --resume goes on with it, --force replaces it"
            );
            if self.cli.steps == 0 {
                return Ok(());
            }
            let manifest = self.cli.checkpoint_dir.join("checkpoints.json");
            return match fs::remove_file(&manifest) {
                Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                    Err(error).with_context(|| manifest.display().to_string())
                }
                _ => Ok(()),
            };
        }
        let resumed = self.checkpoints.resume(&mut self.lora, &mut self.optimizer, &mut self.scheduler);
        let Some(resumed) = resumed.context("the checkpoint to resume from")? else {
            bail!("{directory}: there is no checkpoint to resume from");
        };
        for (name, asked) in self.options() {
            let begun = resumed.scalars.get(name);
            ensure!(
                begun == Some(&asked),
                "--{name} is not that which the run to resume was begun with: {directory}"
            );
        }
        (_, self.done) = resumed.next();
        note(&format!("{directory}: going on after step {}", self.done));
        Ok(())
    }

    /// Trains until the steps are done that were asked for.
    ///
    /// # Errors
    ///
    /// Fails when the loss is no number any more, and when a checkpoint cannot be written.
    pub(crate) fn run(&mut self) -> Result<()> {
        let Cli { steps, every, .. } = *self.cli;
        let (start, in_place) = (Instant::now(), io::stderr().is_terminal());
        let (mut sum, mut count) = (0.0, 0_u32);
        while self.done < steps {
            let loss = self.step()?;
            ensure!(loss.is_finite(), "the loss of step {} is {loss}: a lower --rate may help", self.done);
            (sum, count) = (sum + loss, count + 1);
            if in_place {
                let mut out = io::stderr();
                let line = format!("step {} of {steps}: loss {loss:.4}", self.done);
                let _ = write!(out, "\r\x1b[2K{line}\r").and_then(|()| out.flush());
            }
            if self.done.is_multiple_of(every) || self.done == steps {
                self.save()?;
                let mean = sum / f64::from(count);
                let seconds = start.elapsed().as_secs_f64();
                note(&format!("step {} of {steps}: loss {mean:.4}; {seconds:.0} s", self.done));
                self.loss = Some(mean);
                (sum, count) = (0.0, 0);
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<f64> {
        let Cli { seed, batch_size, .. } = *self.cli;
        let batch = self.task.batch(seed, self.done, batch_size, self.device)?;
        let loss = self.model.measure(batch, Some(&self.lora)).loss;
        // Only the factors have gradients.
        let gradients = GradientsParams::from_grads(loss.backward(), &self.lora);
        self.lora = self.optimizer.step(self.scheduler.step(), self.lora.clone(), gradients);
        self.done += 1;
        Ok(floats(loss)?.first().copied().map_or(f64::NAN, f64::from))
    }

    fn save(&self) -> Result<()> {
        let mut saver = self.checkpoints.at(Milestone::at_step(self.done));
        for (name, value) in self.options() {
            saver = saver.note(name, value);
        }
        Ok(saver.save(&self.lora, &self.optimizer, &self.scheduler)?)
    }

    /// What the numbers depend on, besides the shapes of the factors.
    fn options(&self) -> [(&'static str, Scalar); 5] {
        let Cli { alpha, batch_size, rate, seed, .. } = *self.cli;
        // A bit for each.
        let is_target = |name: &str| u64::from(self.cli.targets.iter().any(|target| target == name));
        let targets = TARGETS.iter().fold(0, |bits, name| bits << 1 | is_target(name));
        [
            ("alpha", alpha.into()),
            ("batch-size", (batch_size as u64).into()),
            ("rate", rate.into()),
            ("seed", seed.into()),
            ("targets", targets.into()),
        ]
    }
}
