//! Checkpoints of burn-train's `Learner`: at the end of each epoch, and every so many steps.

mod steps;

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::lr_scheduler::LrSchedulerRecord;
use burn::optim::OptimizerRecord;
use burn::store::ModuleRecord;
use burn::tensor::Bytes;
use burn::train::checkpoint::{Checkpoint as Record, Checkpointer, CheckpointerError};
use weighbridge::epochs::{Epochs, Milestone, Opened, Scalars};
use weighbridge::{Error, Result};

use crate::checkpoints::Checkpoints;
use crate::pack;
use crate::training::{MODEL, OPTIMIZER, PARTS, Pack, SCHEDULER, Writing, write_record};

impl Checkpoints {
    /// The checkpointers of model, optimizer and scheduler, which belong together, for the ends of epochs.
    ///
    /// Burn saves the three from three threads, and deletes them so. Here an epoch counts when all three are
    /// written, and none is deleted before another one counts. [`every`](Self::every) saves in the middle of
    /// epochs, too.
    ///
    /// The `Learner` panics when it cannot restore an epoch; [`latest`](Self::latest) says first which there
    /// is.
    ///
    /// ```no_run
    /// use weighbridge_burn::Checkpoints;
    /// # use weighbridge_burn::burn::train::{Learner, LearnerModel, SupervisedTraining};
    ///
    /// # fn train<M: LearnerModel>(training: SupervisedTraining<M>, learner: Learner<M>, resume: bool)
    /// # -> weighbridge_burn::weighbridge::Result<()> {
    /// let checkpoints = Checkpoints::new("run/checkpoints").keep_last(3);
    /// let latest = checkpoints.latest()?;
    /// let (model, optimizer, scheduler) = checkpoints.split();
    /// let mut training = training.with_custom_checkpointers(model, optimizer, scheduler);
    /// if let Some(epoch) = latest {
    ///     training = training.checkpoint(epoch);
    /// }
    /// let trained = training.launch(learner);
    /// # Ok(())
    /// # }
    /// ```
    pub fn split(
        self,
    ) -> (
        PartCheckpointer<ModuleRecord>,
        PartCheckpointer<OptimizerRecord>,
        PartCheckpointer<LrSchedulerRecord>,
    ) {
        self.split_at(Milestone::epoch)
    }

    /// The checkpointers for moments that Burn has a number for.
    fn split_at(
        self,
        moment: impl Fn(usize) -> Milestone + Send + Sync + 'static,
    ) -> (
        PartCheckpointer<ModuleRecord>,
        PartCheckpointer<OptimizerRecord>,
        PartCheckpointer<LrSchedulerRecord>,
    ) {
        let shared = Arc::new(Shared {
            epochs: self.state(&[]),
            writing: self.writing(),
            scalars: self.numbers().clone(),
            moment: Box::new(moment),
            restoring: Mutex::default(),
        });
        (
            PartCheckpointer::new(&shared, MODEL),
            PartCheckpointer::new(&shared, OPTIMIZER),
            PartCheckpointer::new(&shared, SCHEDULER),
        )
    }
}

/// Saves and restores one part of [`Checkpoints`].
pub struct PartCheckpointer<R> {
    shared: Arc<Shared>,
    part: &'static str,
    record: PhantomData<fn() -> R>,
}

struct Shared {
    epochs: Epochs,
    writing: Writing,
    scalars: Scalars,
    /// The moment that a number of Burn's stands for.
    moment: Box<dyn Fn(usize) -> Milestone + Send + Sync>,
    /// Of which some parts were restored: Burn asks for one after the other, and they belong together.
    restoring: Mutex<Option<(Opened, BTreeSet<&'static str>)>>,
}

impl Shared {
    /// The checkpoint to read a part from: the one that other parts were read from, until all were.
    fn opened(&self, milestone: Milestone, part: &'static str) -> Result<Opened> {
        let mut restoring = self.restoring();
        let before = restoring.take().filter(|(opened, _)| opened.milestone() == milestone);
        let (opened, mut read) = match before.filter(|(_, read)| !read.contains(part)) {
            Some(before) => before,
            None => (self.epochs.open(milestone)?, BTreeSet::new()),
        };
        read.insert(part);
        if read.len() < PARTS.len() {
            *restoring = Some((opened.clone(), read));
        }
        Ok(opened)
    }

    fn restoring(&self) -> MutexGuard<'_, Option<(Opened, BTreeSet<&'static str>)>> {
        self.restoring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R> PartCheckpointer<R> {
    fn new(shared: &Arc<Shared>, part: &'static str) -> Self {
        Self { shared: Arc::clone(shared), part, record: PhantomData }
    }
}

impl<R: Record> PartCheckpointer<R> {
    fn write(&self, milestone: Milestone, record: R) -> Result<()> {
        *self.shared.restoring() = None;
        let Shared { epochs, writing, scalars, .. } = &*self.shared;
        let file = epochs.begin(milestone, self.part)?;
        epochs.note(milestone, scalars);
        write_record(Packed(record), writing, &file)?;
        epochs.done(milestone, self.part)
    }

    fn read(&self, milestone: Milestone) -> Result<R> {
        read(&self.shared.opened(milestone, self.part)?, self.part)
    }
}

struct Packed<R>(R);

impl<R: Record> Pack for Packed<R> {
    fn into_file(self, packed: &Path) -> Result<()> {
        self.0.save(packed.to_owned()).map_err(pack::refused)
    }

    fn into_memory(self) -> Result<Bytes> {
        self.0.checkpoint_into_bytes().map_err(pack::refused)
    }
}

fn read<R: Record>(opened: &Opened, part: &str) -> Result<R> {
    opened.read(part, |ckpt| R::checkpoint_from_bytes(pack::container(ckpt)?).map_err(pack::refused))
}

impl<R: Record> Checkpointer<R> for PartCheckpointer<R> {
    fn save(&self, epoch: usize, record: R) -> std::result::Result<(), CheckpointerError> {
        self.write((self.shared.moment)(epoch), record).map_err(unknown)
    }

    fn delete(&self, epoch: usize) -> std::result::Result<(), CheckpointerError> {
        self.shared.epochs.delete((self.shared.moment)(epoch)).map_err(unknown)
    }

    fn restore(&self, epoch: usize) -> std::result::Result<R, CheckpointerError> {
        self.read((self.shared.moment)(epoch)).map_err(unknown)
    }
}

impl<R> std::fmt::Debug for PartCheckpointer<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartCheckpointer").field("part", &self.part).finish_non_exhaustive()
    }
}

fn unknown(error: Error) -> CheckpointerError {
    CheckpointerError::Unknown(error.to_string())
}
