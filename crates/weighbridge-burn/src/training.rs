//! The state of a training loop that is written by hand.

use std::path::Path;

use burn::lr_scheduler::LrSchedulerRecord;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::module::Module;
use burn::optim::{ModuleOptimizer, OptimizerRecord};
use burn_pack::Reader;
use weighbridge::write::Save;
use weighbridge::{Checkpoint, Error, ErrorKind, Result};

use crate::epochs::{Epochs, Part};
use crate::loader::load;
use crate::pack;
use crate::panics::caught;
use crate::report::LoadReport;
use crate::saver::save;

/// Saves model, optimizer and scheduler in `directory`, as one: whenever the process or the machine stops,
/// what is there is this state or the one before. Older ones are removed, those that the `Learner` saved with
/// `Checkpoints` in this directory as well.
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
/// The files are safetensors, in `epoch-…/{model,optimizer,scheduler}.safetensors`; `checkpoints.json` names
/// the directory that counts.
///
/// # Errors
///
/// Fails when the state cannot be read from its device or written, and with [`ErrorKind::Busy`] while another
/// process is saving in `directory`; what was saved before still counts then.
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
    let read = || optimizer.save(&packed).map_err(pack::refused);
    let written =
        caught("the optimizer's state was read", read).and_then(|()| pack::write(open(&packed)?, &file));
    let _ = std::fs::remove_file(&packed);
    written.map_err(|error| error.in_file(&file))?;
    epochs.done(epoch, Part::Optimizer)?;

    let file = epochs.begin(epoch, Part::Scheduler)?;
    let bytes = scheduler.to_record().into_bytes().map_err(|error| pack::refused(error).in_file(&file))?;
    let reader = Reader::from_bytes(bytes).map_err(|error| pack::refused(error).in_file(&file))?;
    pack::write(reader, &file)?;
    epochs.done(epoch, Part::Scheduler)
}

/// Loads what [`save_training`] saved last, or the `Learner` with `Checkpoints`.
///
/// # Errors
///
/// Fails with [`ErrorKind::NotFound`] when there is nothing, and when the model is another one, or the
/// optimizer has no place for the state that is there; all three are as they were then.
pub fn load_training<M: Module>(
    directory: impl AsRef<Path>,
    model: &mut M,
    optimizer: &mut ModuleOptimizer,
    scheduler: &mut ModuleLrScheduler,
) -> Result<LoadReport> {
    let directory = directory.as_ref();
    let epochs = Epochs::new(directory, None);
    let Some(epoch) = epochs.epochs()?.last().copied() else {
        return Err(Error::new(ErrorKind::NotFound, "there is no checkpoint").in_file(directory));
    };
    let restored = {
        let file = epochs.find(epoch, Part::Optimizer)?;
        restored(&Checkpoint::open(&file)?, optimizer).map_err(|error| error.in_file(&file))?
    };
    let rescheduled = {
        let file = epochs.find(epoch, Part::Scheduler)?;
        rescheduled(&Checkpoint::open(&file)?, scheduler).map_err(|error| error.in_file(&file))?
    };
    let report = load(&Checkpoint::open(epochs.find(epoch, Part::Model)?)?).into(model)?;
    *optimizer = restored;
    *scheduler = rescheduled;
    Ok(report)
}

fn restored(ckpt: &Checkpoint, optimizer: &ModuleOptimizer) -> Result<ModuleOptimizer> {
    let with = |container| {
        let state = OptimizerRecord::from_bytes(container).map_err(pack::refused)?;
        caught("the optimizer was restored", || Ok(optimizer.clone().load_record(state)))
    };
    // Burn leaves out without a word what an optimizer does not know. What it would leave out, an outline
    // shows.
    let taken = with(pack::outline(ckpt)?)?.to_record();
    if taken.len() < ckpt.len() {
        let taken = pack::names(taken.into_bytes().map_err(pack::refused)?)?;
        let lost = ckpt.tensors().find(|tensor| !taken.contains(tensor.name()));
        let error = Error::new(
            ErrorKind::Value,
            "the optimizer does not take it: it is the state of another optimizer",
        );
        return Err(lost.map_or(error.clone(), |lost| error.in_tensor(lost.name())));
    }
    with(pack::container(ckpt)?)
}

fn rescheduled(ckpt: &Checkpoint, scheduler: &ModuleLrScheduler) -> Result<ModuleLrScheduler> {
    let state = LrSchedulerRecord::from_bytes(pack::container(ckpt)?).map_err(pack::refused)?;
    caught("the scheduler was restored", || Ok(scheduler.clone().load_record(state)))
}

fn open(packed: &Path) -> Result<Reader> {
    // A file that is not there says so plainly.
    std::fs::metadata(packed).map_err(|error| Error::io("it cannot be read", error).in_file(packed))?;
    Reader::from_file_exact(packed).map_err(pack::refused)
}
