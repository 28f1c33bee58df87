//! The state of a training loop that is written by hand.

use std::path::Path;

use burn::lr_scheduler::LrSchedulerRecord;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::module::Module;
use burn::optim::{ModuleOptimizer, OptimizerRecord};
use burn::tensor::Bytes;
use burn_pack::Reader;
use weighbridge::epochs::{Milestone, Opened};
use weighbridge::write::Save;
use weighbridge::{Checkpoint, Error, ErrorKind, Result};

use crate::checkpoints::Checkpoints;
use crate::loader;
use crate::pack;
use crate::panics::caught;
use crate::report::LoadReport;
use crate::saver::save;

/// Saves model, optimizer and scheduler in `directory`, as one: whenever the process or the machine stops,
/// what is there is this state or the one before. Older ones are removed, those that
/// [`Checkpoints`](crate::Checkpoints) has in this directory as well; it is for loops that keep several, or
/// save in the middle of an epoch.
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
    let checkpoints = Checkpoints::new(directory).keep_last(1);
    let next = checkpoints.newest()?.map_or(1, |newest| newest.epoch_number() + 1);
    checkpoints.at(Milestone::epoch(next)).save(model, optimizer, scheduler)
}

/// Loads what [`save_training`] saved last, or [`Checkpoints`](crate::Checkpoints).
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
    match Checkpoints::new(directory).resume(model, optimizer, scheduler)? {
        Some(resumed) => Ok(resumed.report),
        None => Err(Error::new(ErrorKind::NotFound, "there is no checkpoint").in_file(directory)),
    }
}

/// The parts of a training state.
pub(crate) const PARTS: [&str; 3] = [MODEL, OPTIMIZER, SCHEDULER];
pub(crate) const MODEL: &str = "model";
pub(crate) const OPTIMIZER: &str = "optimizer";
pub(crate) const SCHEDULER: &str = "scheduler";

/// The extension of Burn's own container of a part, which is there while the part is written.
pub(crate) const PACK: &str = "bpk";

/// How the files of parts are written.
#[derive(Clone, Debug)]
pub(crate) struct Writing {
    pub(crate) save: Save,
    /// Burn's own container of a part is in memory while the part is written: an address has no place beside it.
    pub(crate) in_memory: bool,
}

/// What Burn makes its own container of: a file, or bytes.
pub(crate) trait Pack {
    fn into_file(self, packed: &Path) -> Result<()>;
    fn into_memory(self) -> Result<Bytes>;
}

impl Pack for &ModuleOptimizer {
    fn into_file(self, packed: &Path) -> Result<()> {
        caught("the optimizer's state was read", || self.save(packed).map_err(pack::refused))
    }

    fn into_memory(self) -> Result<Bytes> {
        caught("the optimizer's state was read", || self.into_bytes().map_err(pack::refused))
    }
}

pub(crate) fn write_model<M: Module>(model: &M, writing: &Writing, file: &Path) -> Result<()> {
    save(model).ids().with(writing.save.clone().metadata(pack::RECORD, pack::NAMED)).file(file)
}

pub(crate) fn write_scheduler(scheduler: &ModuleLrScheduler, writing: &Writing, file: &Path) -> Result<()> {
    let written = || {
        let bytes = scheduler.to_record().into_bytes().map_err(pack::refused)?;
        write_bytes(bytes, writing, file)
    };
    written().map_err(|error| error.in_file(file))
}

/// Writes a record to `file`. There is no way out of a record but Burn's own container, which is on the disk for a moment, or
/// for an address in memory.
pub(crate) fn write_record(record: impl Pack, writing: &Writing, file: &Path) -> Result<()> {
    if writing.in_memory {
        let written = record.into_memory().and_then(|bytes| write_bytes(bytes, writing, file));
        return written.map_err(|error| error.in_file(file));
    }
    let packed = file.with_extension(PACK);
    let written =
        record.into_file(&packed).and_then(|()| pack::write(open(&packed)?, writing.save.clone(), file));
    let _ = std::fs::remove_file(&packed);
    written.map_err(|error| error.in_file(file))
}

fn write_bytes(container: Bytes, writing: &Writing, file: &Path) -> Result<()> {
    pack::write(Reader::from_bytes(container).map_err(pack::refused)?, writing.save.clone(), file)
}

/// Loads a checkpoint; nothing is changed before all of it is read.
pub(crate) fn load<M: Module>(
    opened: &Opened,
    model: &mut M,
    optimizer: &mut ModuleOptimizer,
    scheduler: &mut ModuleLrScheduler,
) -> Result<LoadReport> {
    let restored = opened.read(OPTIMIZER, |ckpt| restored(ckpt, optimizer))?;
    let rescheduled = opened.read(SCHEDULER, |ckpt| rescheduled(ckpt, scheduler))?;
    let report = loader::load(opened.part(MODEL)?).into(model)?;
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
