//! The state of a training loop that is written by hand.

use std::path::Path;

use burn::lr_scheduler::LrSchedulerRecord;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::module::Module;
use burn::optim::{ModuleOptimizer, OptimizerRecord};
use burn::store::RecordError;
use burn_pack::Reader;
use weighbridge::write::Save;
use weighbridge::{Checkpoint, Error, ErrorKind, Result};

use crate::epochs::{Epochs, Part, io};
use crate::loader::load;
use crate::pack;
use crate::place::caught;
use crate::report::Report;
use crate::saver::save;

/// Saves model, optimizer and scheduler in `directory`, as one: whenever the process or the machine stops, what is there
/// is this state or the one before. Older ones are removed.
///
/// ```
/// use weighbridge_burn::burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
/// use weighbridge_burn::burn::nn::LinearConfig;
/// use weighbridge_burn::burn::optim::AdamWConfig;
/// use weighbridge_burn::{load_training, save_training};
/// # use weighbridge_burn::burn::tensor::Device;
///
/// # fn main() -> weighbridge_burn::weighbridge::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let device = Device::default().autodiff();
/// let mut model = LinearConfig::new(3, 2).init(&device);
/// let mut optimizer = AdamWConfig::new().init();
/// let mut scheduler = ModuleLrScheduler::from(1e-3); // or what a scheduler's configuration gives
/// save_training(&directory, &model, &optimizer, &scheduler)?;
/// load_training(&directory, &mut model, &mut optimizer, &mut scheduler)?;
/// # Ok(())
/// # }
/// ```
///
/// The files are safetensors, in `epoch-…/{model,optimizer,scheduler}.safetensors`; `checkpoints.json` names the directory
/// that counts.
///
/// # Errors
///
/// Fails when the state cannot be read from its device or written; what was saved before still counts then.
pub fn save_training<M: Module>(
    directory: impl AsRef<Path>,
    model: &M,
    optimizer: &ModuleOptimizer,
    scheduler: &ModuleLrScheduler,
) -> Result<()> {
    let epochs = Epochs::new(directory.as_ref(), Some(1));
    let epoch = epochs.epochs()?.last().map_or(1, |epoch| epoch + 1);

    let file = epochs.begin(epoch, Part::Model)?;
    save(model).ids().with(Save::new().metadata(pack::RECORD, pack::NAMED)).file(&file)?;
    epochs.done(epoch, Part::Model)?;

    let file = epochs.begin(epoch, Part::Optimizer)?;
    let packed = file.with_file_name(Part::Optimizer.pack());
    let written = caught("the optimizer's state was read", || optimizer.save(&packed).map_err(refused))
        .and_then(|()| pack::write(open(&packed)?, &file));
    let _ = std::fs::remove_file(&packed);
    written?;
    epochs.done(epoch, Part::Optimizer)?;

    let file = epochs.begin(epoch, Part::Scheduler)?;
    let bytes = scheduler.to_record().into_bytes().map_err(refused)?;
    pack::write(Reader::from_bytes(bytes).map_err(pack::refused)?, &file)?;
    epochs.done(epoch, Part::Scheduler)
}

/// Loads what [`save_training`] saved last, or the `Learner` with `Checkpoints`.
///
/// # Errors
///
/// Fails with [`ErrorKind::NotFound`] when there is nothing, and when the model is another one; all three are as they were
/// then.
pub fn load_training<M: Module>(
    directory: impl AsRef<Path>,
    model: &mut M,
    optimizer: &mut ModuleOptimizer,
    scheduler: &mut ModuleLrScheduler,
) -> Result<Report> {
    let directory = directory.as_ref();
    let epochs = Epochs::new(directory, None);
    let Some(epoch) = epochs.epochs()?.last().copied() else {
        return Err(Error::new(ErrorKind::NotFound, "there is no checkpoint").in_file(directory));
    };
    let opened = |part| Checkpoint::open(epochs.find(epoch, part)?);
    let bytes = pack::container(&opened(Part::Scheduler)?)?;
    let schedule = LrSchedulerRecord::from_bytes(bytes).map_err(refused)?;
    let bytes = pack::container(&opened(Part::Optimizer)?)?;
    let state = OptimizerRecord::from_bytes(bytes).map_err(refused)?;
    let restored = caught("the optimizer was restored", || Ok(optimizer.clone().load_record(state)))?;
    let rescheduled = caught("the scheduler was restored", || Ok(scheduler.clone().load_record(schedule)))?;
    let report = load(&opened(Part::Model)?).into(model)?;
    *optimizer = restored;
    *scheduler = rescheduled;
    Ok(report)
}

fn open(packed: &Path) -> Result<Reader> {
    // A file that is not there says so plainly.
    std::fs::metadata(packed).map_err(|error| io(packed, error))?;
    Reader::from_file_exact(packed).map_err(pack::refused)
}

fn refused(error: RecordError) -> Error {
    Error::new(ErrorKind::Value, error.to_string())
}
