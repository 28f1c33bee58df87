//! A directory of training checkpoints: for loops that are written by hand, and for burn-train's `Learner`.

use std::path::{Path, PathBuf};

use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::module::Module;
use burn::optim::ModuleOptimizer;
use weighbridge::epochs::{Epochs, Milestone, Opened, Scalar, Scalars};
use weighbridge::write::Save;
use weighbridge::{Error, ErrorKind, Result};

use crate::ema::Ema;
use crate::loader::load;
use crate::report::LoadReport;
use crate::saver::{Saver, save};
use crate::training::{self, Writing};

/// Training checkpoints in a directory, as safetensors that Python opens.
///
/// A checkpoint counts when all its parts are written and synced, and none is deleted before another one
/// counts. So after a crash [`newest`](Self::newest) is one whose parts belong together. One process at a
/// time can save in a directory: while a checkpoint is being written, the directory is locked, and another
/// process that wants to save there gets an error.
///
/// With the feature `remote` the directory may be in an object store: `s3://bucket/run`, `gs://...`, `az://...`. Nothing is
/// written to the disk then; Burn's container of the optimizer's state is in memory while it is sent. See
/// [`weighbridge::epochs`] for what is promised there.
///
/// A loop saves every so many steps, and when it is started again, goes on where it was:
///
/// ```
/// use weighbridge_burn::weighbridge::epochs::Milestone;
/// use weighbridge_burn::{Checkpoints, Ema};
/// # use weighbridge_burn::burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
/// # use weighbridge_burn::burn::nn::{Linear, LinearConfig};
/// # use weighbridge_burn::burn::optim::{AdamWConfig, ModuleOptimizer};
/// # use weighbridge_burn::burn::tensor::Device;
/// # fn batches(seed: u64, epoch: usize) -> std::ops::Range<u64> { 0..4 }
///
/// # fn main() -> weighbridge_burn::weighbridge::Result<()> {
/// # let run = tempfile::tempdir().unwrap();
/// # let device = Device::default().autodiff();
/// # let mut model = LinearConfig::new(3, 2).init(&device);
/// # let (mut optimizer, mut scheduler) = (AdamWConfig::new().init(), ModuleLrScheduler::from(1e-3));
/// # let train = |model: Linear, _: &mut ModuleOptimizer, _: &mut ModuleLrScheduler, _: u64| model;
/// let checkpoints = Checkpoints::new(&run).keep_last(3).note("seed", 7_u64);
/// let mut ema = Ema::new(&model, 0.999)?;
/// let (mut epoch, mut step) = (1, 0);
/// if let Some(resumed) = checkpoints.resume(&mut model, &mut optimizer, &mut scheduler)? {
///     resumed.load_ema(&mut ema)?;
///     (epoch, step) = resumed.next();
/// }
/// for epoch in epoch..=2 {
///     // The batches of an epoch depend on seed and epoch only; those that were seen are left out.
///     for batch in batches(7, epoch).skip(step as usize) {
///         model = train(model, &mut optimizer, &mut scheduler, batch);
///         ema.update(&model)?;
///         step += 1;
///         if step % 3 == 0 {
///             checkpoints
///                 .at(Milestone::epoch(epoch).step(step))
///                 .ema(&ema)
///                 .save(&model, &optimizer, &scheduler)?;
///         }
///     }
///     step = 0;
///     checkpoints.at(Milestone::epoch(epoch)).ema(&ema).save(&model, &optimizer, &scheduler)?;
/// }
/// # assert_eq!(checkpoints.newest()?, Some(Milestone::epoch(2)));
/// # Ok(())
/// # }
/// ```
///
/// The files are safetensors: `{model,optimizer,scheduler,ema}.safetensors` in `epoch-00003-step-00001200/`,
/// or in `epoch-00003/` at the end of an epoch. `checkpoints.json` names the directories that count, and
/// holds the numbers.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    directory: PathBuf,
    keep_last: Option<usize>,
    scalars: Scalars,
    #[cfg(feature = "remote")]
    remote: Option<weighbridge::remote::Remote>,
}

/// What was resumed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Resumed {
    /// When the checkpoint was taken.
    pub milestone: Milestone,
    /// The numbers that were kept with it.
    pub scalars: Scalars,
    /// What was loaded into the model.
    pub report: LoadReport,
    opened: Opened,
}

impl Resumed {
    /// Loads the average that was saved with this checkpoint, also if it was saved anew or removed since.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::NotFound`] when it has none, and as [`Loader::into`](crate::Loader::into); the average
    /// is as it was then.
    pub fn load_ema<M: Module>(&self, ema: &mut Ema<M>) -> Result<LoadReport> {
        ema.load(load(self.opened.part(EMA)?))
    }

    /// Whether it was saved with an average.
    pub fn has_ema(&self) -> bool {
        self.opened.has(EMA)
    }

    /// Where the run goes on: in which epoch, and after how many of its steps.
    pub fn next(&self) -> (usize, u64) {
        match self.milestone.step_number() {
            Some(step) => (self.milestone.epoch_number(), step),
            None => (self.milestone.epoch_number() + 1, 0),
        }
    }
}

impl Checkpoints {
    /// Checkpoints in `directory`, which is made when the first one is saved.
    pub fn new(directory: impl AsRef<Path>) -> Self {
        Self {
            directory: directory.as_ref().to_owned(),
            keep_last: None,
            scalars: Scalars::new(),
            #[cfg(feature = "remote")]
            remote: None,
        }
    }

    /// Sets what a store is read and written with: credentials, limits. Otherwise it is what the environment says.
    #[cfg(feature = "remote")]
    #[must_use]
    pub fn remote(mut self, remote: weighbridge::remote::Remote) -> Self {
        self.remote = Some(remote);
        self
    }

    /// Keeps the `count` checkpoints that were committed last, at least one, whatever Burn's own strategy
    /// keeps or deletes. Without it those are kept that the `Learner` does not delete.
    #[must_use]
    pub fn keep_last(mut self, count: usize) -> Self {
        self.keep_last = Some(count);
        self
    }

    /// Keeps a number with each checkpoint that is saved from now on, a seed for example.
    #[must_use]
    pub fn note(mut self, name: impl Into<String>, number: impl Into<Scalar>) -> Self {
        self.scalars.insert(name.into(), number.into());
        self
    }

    /// The newest of the epochs that were saved at their ends, as `Learner` does it: what
    /// `SupervisedTraining::checkpoint` is given.
    ///
    /// # Errors
    ///
    /// Fails when the manifest cannot be read.
    pub fn latest(&self) -> Result<Option<usize>> {
        Ok(self.epochs()?.last().copied())
    }

    /// The epochs that were saved at their ends, in the order in which they were committed.
    ///
    /// # Errors
    ///
    /// As [`latest`](Self::latest).
    pub fn epochs(&self) -> Result<Vec<usize>> {
        let ends = self.milestones()?.into_iter().filter(|milestone| milestone.step_number().is_none());
        Ok(ends.map(Milestone::epoch_number).collect())
    }

    /// The checkpoint that was committed last.
    ///
    /// # Errors
    ///
    /// As [`latest`](Self::latest).
    pub fn newest(&self) -> Result<Option<Milestone>> {
        Ok(self.milestones()?.pop())
    }

    /// All that are there, in the order in which they were committed.
    ///
    /// # Errors
    ///
    /// As [`latest`](Self::latest).
    pub fn milestones(&self) -> Result<Vec<Milestone>> {
        self.state(&[]).milestones()
    }

    /// Starts to save a checkpoint. One that is there already is replaced when the new one is whole.
    pub fn at(&self, milestone: Milestone) -> CheckpointSaver<'_> {
        CheckpointSaver { checkpoints: self, milestone, scalars: self.scalars.clone(), ema: None }
    }

    /// Loads the newest checkpoint, if there is one.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn resume<M: Module>(
        &self,
        model: &mut M,
        optimizer: &mut ModuleOptimizer,
        scheduler: &mut ModuleLrScheduler,
    ) -> Result<Option<Resumed>> {
        let newest = self.state(&[]).open_latest()?;
        newest.map(|opened| load_opened(opened, model, optimizer, scheduler)).transpose()
    }

    /// Loads a checkpoint.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::NotFound`] when there is none of that moment, and when the model is another
    /// one, or the optimizer has no place for the state that is there; all three are as they were then.
    pub fn load<M: Module>(
        &self,
        milestone: Milestone,
        model: &mut M,
        optimizer: &mut ModuleOptimizer,
        scheduler: &mut ModuleLrScheduler,
    ) -> Result<Resumed> {
        load_opened(self.state(&[]).open(milestone)?, model, optimizer, scheduler)
    }

    /// Loads the average of a checkpoint that was saved with [one](CheckpointSaver::ema).
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::NotFound`] when there is no such checkpoint or it has none, and as
    /// [`Loader::into`](crate::Loader::into); the average is as it was then.
    pub fn load_ema<M: Module>(&self, milestone: Milestone, ema: &mut Ema<M>) -> Result<LoadReport> {
        ema.load(load(self.state(&[]).open(milestone)?.part(EMA)?))
    }

    pub(crate) fn state(&self, more: &[&str]) -> Epochs {
        let epochs = Epochs::new(&self.directory, training::PARTS.iter().chain(more).copied());
        // Burn's own container of a part is there while it is written.
        let mut epochs = epochs.scratch(training::PACK);
        if let Some(count) = self.keep_last {
            epochs = epochs.keep_last(count);
        }
        #[cfg(feature = "remote")]
        if let Some(remote) = &self.remote {
            epochs = epochs.remote(remote.clone());
        }
        epochs
    }

    pub(crate) fn writing(&self) -> Writing {
        let save = Save::new();
        #[cfg(feature = "remote")]
        let save = match &self.remote {
            Some(remote) => save.remote(remote.clone()),
            None => save,
        };
        Writing { save, in_memory: self.state(&[]).is_remote() }
    }

    #[cfg(feature = "train")]
    pub(crate) fn numbers(&self) -> &Scalars {
        &self.scalars
    }
}

fn load_opened<M: Module>(
    opened: Opened,
    model: &mut M,
    optimizer: &mut ModuleOptimizer,
    scheduler: &mut ModuleLrScheduler,
) -> Result<Resumed> {
    let report = training::load(&opened, model, optimizer, scheduler)?;
    Ok(Resumed { milestone: opened.milestone(), scalars: opened.scalars().clone(), report, opened })
}

/// The part of a checkpoint that has an average.
const EMA: &str = "ema";

/// Saves a checkpoint; see [`Checkpoints::at`].
#[derive(Debug)]
#[must_use = "nothing is saved until `save` is called"]
pub struct CheckpointSaver<'c> {
    checkpoints: &'c Checkpoints,
    milestone: Milestone,
    scalars: Scalars,
    ema: Option<Saver>,
}

impl CheckpointSaver<'_> {
    /// Keeps a number with this checkpoint: a position in the data, a loss. [`Resumed::scalars`] has it.
    pub fn note(mut self, name: impl Into<String>, number: impl Into<Scalar>) -> Self {
        self.scalars.insert(name.into(), number.into());
        self
    }

    /// Saves an average of the weights, too: `ema.safetensors` is a checkpoint of the model by itself.
    pub fn ema<M: Module>(mut self, ema: &Ema<M>) -> Self {
        self.ema = Some(save(ema.model()).ids().with(self.checkpoints.writing().save));
        self
    }

    /// Saves model, optimizer and scheduler as one: whenever the process or the machine stops, either all of
    /// it counts or the checkpoints before it.
    ///
    /// # Errors
    ///
    /// Fails when the state cannot be read from its device or written, and with [`ErrorKind::Busy`] while
    /// another process is saving in the directory; what was saved before still counts then.
    pub fn save<M: Module>(
        &self,
        model: &M,
        optimizer: &ModuleOptimizer,
        scheduler: &ModuleLrScheduler,
    ) -> Result<()> {
        let epochs = self.checkpoints.state(if self.ema.is_some() { &[EMA] } else { &[] });
        let writing = self.checkpoints.writing();
        epochs.save_with(self.milestone, &self.scalars, |part, file| match part {
            training::MODEL => training::write_model(model, &writing, file),
            training::OPTIMIZER => training::write_record(optimizer, &writing, file),
            training::SCHEDULER => training::write_scheduler(scheduler, &writing, file),
            _ => match &self.ema {
                Some(ema) => ema.file(file),
                None => Err(Error::new(ErrorKind::Internal, format!("nothing writes {part:?}"))),
            },
        })
    }
}
