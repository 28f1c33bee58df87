//! Checkpointers for burn-train's `Learner`: three handles, one commit for each epoch.

use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

use burn::lr_scheduler::LrSchedulerRecord;
use burn::optim::OptimizerRecord;
use burn::store::ModuleRecord;
use burn::train::checkpoint::{Checkpoint as Record, Checkpointer, CheckpointerError};
use burn_pack::Reader;
use weighbridge::{Checkpoint, Error, Result};

use crate::epochs::{Epochs, Part};
use crate::pack;

/// Training checkpoints in a directory, as safetensors that Python opens.
///
/// Burn saves model, optimizer and scheduler from three threads, and deletes them so. Here an epoch counts
/// when all three are written and synced, and none is deleted before another one counts; so after a crash
/// [`latest`](Self::latest) is an epoch whose three parts belong together.
///
/// One process at a time can save in a directory: from the first part of an epoch to its commit the directory
/// is locked, and another process that wants to save there gets an error.
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
#[derive(Clone, Debug)]
pub struct Checkpoints {
    directory: std::path::PathBuf,
    keep_last: Option<usize>,
}

impl Checkpoints {
    /// Checkpoints in `directory`, which is made when the first one is saved.
    pub fn new(directory: impl AsRef<Path>) -> Self {
        Self { directory: directory.as_ref().to_owned(), keep_last: None }
    }

    /// Keeps the `count` checkpoints that were committed last, at least one, whatever Burn's own strategy
    /// keeps or deletes. Without it those are kept that the `Learner` does not delete.
    #[must_use]
    pub fn keep_last(mut self, count: usize) -> Self {
        self.keep_last = Some(count);
        self
    }

    /// The epoch that was committed last.
    ///
    /// # Errors
    ///
    /// Fails when the manifest cannot be read.
    pub fn latest(&self) -> Result<Option<usize>> {
        Ok(self.epochs()?.last().copied())
    }

    /// The epochs that are there, in the order in which they were committed.
    ///
    /// # Errors
    ///
    /// As [`latest`](Self::latest).
    pub fn epochs(&self) -> Result<Vec<usize>> {
        Epochs::new(&self.directory, self.keep_last).epochs()
    }

    /// The checkpointers of model, optimizer and scheduler, which belong together.
    ///
    /// The `Learner` panics when it cannot restore an epoch; [`latest`](Self::latest) says first which there
    /// is.
    pub fn split(
        self,
    ) -> (
        PartCheckpointer<ModuleRecord>,
        PartCheckpointer<OptimizerRecord>,
        PartCheckpointer<LrSchedulerRecord>,
    ) {
        let epochs = Arc::new(Epochs::new(&self.directory, self.keep_last));
        (
            PartCheckpointer::new(&epochs, Part::Model),
            PartCheckpointer::new(&epochs, Part::Optimizer),
            PartCheckpointer::new(&epochs, Part::Scheduler),
        )
    }
}

/// Saves and restores one part of [`Checkpoints`].
#[derive(Debug)]
pub struct PartCheckpointer<R> {
    epochs: Arc<Epochs>,
    part: Part,
    record: PhantomData<fn() -> R>,
}

impl<R> PartCheckpointer<R> {
    fn new(epochs: &Arc<Epochs>, part: Part) -> Self {
        Self { epochs: Arc::clone(epochs), part, record: PhantomData }
    }
}

impl<R: Record> Checkpointer<R> for PartCheckpointer<R> {
    fn save(&self, epoch: usize, record: R) -> std::result::Result<(), CheckpointerError> {
        let file = self.epochs.begin(epoch, self.part).map_err(unknown)?;
        // Burn's own container is the only way out of a record; it is on the disk for a moment, not in
        // memory.
        let packed = file.with_file_name(self.part.pack());
        let written = record
            .save(packed.clone())
            .map_err(pack::refused)
            .and_then(|()| Reader::from_file_exact(&packed).map_err(pack::refused))
            .and_then(|reader| pack::write(reader, &file));
        let _ = std::fs::remove_file(&packed);
        written.map_err(|error| unknown(error.in_file(&file)))?;
        self.epochs.done(epoch, self.part).map_err(unknown)
    }

    fn delete(&self, epoch: usize) -> std::result::Result<(), CheckpointerError> {
        self.epochs.delete(epoch).map_err(unknown)
    }

    fn restore(&self, epoch: usize) -> std::result::Result<R, CheckpointerError> {
        let file = self.epochs.find(epoch, self.part).map_err(unknown)?;
        Checkpoint::open(&file)
            .and_then(|ckpt| pack::container(&ckpt))
            .and_then(|bytes| R::checkpoint_from_bytes(bytes).map_err(pack::refused))
            .map_err(|error| unknown(error.in_file(&file)))
    }
}

fn unknown(error: Error) -> CheckpointerError {
    CheckpointerError::Unknown(error.to_string())
}
