//! A directory of training checkpoints.

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use candle_nn::VarMap;
use weighbridge::epochs::{Epochs, Milestone, Opened, Scalar, Scalars};
use weighbridge::write::Save;
use weighbridge::{Error, ErrorKind, Result};

use super::ids::Ids;
use super::layout::BurnLayout;
use super::record::{self, IDS, NAMED, RECORD};
use super::schedule::Schedule;
use super::weights::{named, weights_for};
use crate::Saver;
use crate::ema::Ema;
use crate::optim::Stateful;
use crate::swap::exchange_all;
use crate::tensor::refused;

const MODEL: &str = "model";
const OPTIMIZER: &str = "optimizer";
const SCHEDULER: &str = "scheduler";
const EMA: &str = "ema";

/// Saves weights, optimizer and schedule in `directory`, as one: whenever the process or the machine stops,
/// what is there is this state or the one before. Older ones are removed, those that [`Checkpoints`] has in
/// this directory as well, which is for loops that keep several.
///
/// # Errors
///
/// As [`CheckpointSaver::save`].
pub fn save_training<O: Stateful>(
    directory: impl AsRef<Path>,
    map: &VarMap,
    optimizer: &O,
    schedule: &impl Schedule,
) -> Result<()> {
    let checkpoints = Checkpoints::new(directory).keep_last(1);
    let epoch = checkpoints.latest()?.map_or(1, |latest| latest.epoch_number() + 1);
    checkpoints.at(Milestone::epoch(epoch)).save(map, optimizer, schedule)
}

/// Loads what was saved last in `directory`, by [`save_training`], [`Checkpoints`] or one of Burn's that has
/// the [layout](BurnLayout) of Candle.
///
/// # Errors
///
/// Fails with [`ErrorKind::NotFound`] when there is nothing, otherwise as [`Checkpoints::load`].
pub fn load_training<O: Stateful>(
    directory: impl AsRef<Path>,
    map: &VarMap,
    optimizer: &mut O,
    schedule: &mut impl Schedule,
) -> Result<Resumed> {
    let directory = directory.as_ref();
    let resumed = Checkpoints::new(directory).resume(map, optimizer, schedule)?;
    resumed.ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no checkpoint").in_file(directory))
}

/// Training checkpoints in a directory, as safetensors that Python opens.
///
/// A checkpoint counts when all its parts are written and synced, and none is deleted before another one
/// counts. So after a crash [`latest`](Self::latest) is one whose parts belong together. One process at a
/// time can save in a directory; another one gets an error.
///
/// With the feature `remote` the directory may be in an object store: `s3://bucket/run`, `gs://...`, `az://...`. Nothing is
/// written to the disk then, and what is loaded is read straight into tensors; see
/// [`weighbridge::epochs`] for what is promised there.
///
/// ```
/// use weighbridge_candle::weighbridge::epochs::Milestone;
/// use weighbridge_candle::{AdamW, Checkpoints, Cosine, Ema, Schedule};
/// # use weighbridge_candle::candle_core::{DType, Device, Module, Tensor};
/// # use weighbridge_candle::candle_nn::{Optimizer, VarBuilder, VarMap, linear};
/// # fn batch(seed: u64, step: u64) -> Tensor { Tensor::ones((1, 3), DType::F32, &Device::Cpu).unwrap() }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let run = tempfile::tempdir()?;
/// # let map = VarMap::new();
/// # let model = linear(3, 2, VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu))?;
/// let mut optimizer = AdamW::of(&map, Default::default())?;
/// let mut schedule = Cosine::new(1e-3, 0.0, 10);
/// let mut ema = Ema::new(&map, 0.999)?;
/// let checkpoints = Checkpoints::new(&run).keep_last(3).every(4).note("seed", 7_u64);
/// const BATCHES: u64 = 5; // of an epoch
/// let mut step = 0;
/// if let Some(resumed) = checkpoints.resume(&map, &mut optimizer, &mut schedule)? {
///     resumed.load_ema(&mut ema)?;
///     let (epoch, done) = resumed.next(); // a run of Burn's may have stopped at the end of an epoch
///     step = epoch.saturating_sub(1) as u64 * BATCHES + done;
/// }
/// while step < 10 {
///     optimizer.set_learning_rate(schedule.step());
///     let loss = model.forward(&batch(7, step))?.sqr()?.mean_all()?;
///     optimizer.backward_step(&loss)?;
///     ema.update()?;
///     step += 1;
///     if checkpoints.is_due(step) || step == 10 {
///         checkpoints.at(Milestone::at_step(step)).ema(&ema).save(&map, &optimizer, &schedule)?;
///     }
/// }
/// # assert_eq!(checkpoints.latest()?, Some(Milestone::at_step(10)));
/// # Ok(())
/// # }
/// ```
///
/// The files are `{model,optimizer,scheduler,ema}.safetensors` in `step-00001200/`, or in `epoch-00003/` for
/// a [`Milestone`] that is the end of an epoch; `checkpoints.json` names the directories that count and holds
/// the numbers. They are those of `weighbridge-burn`, in the same layout, so that with a [`BurnLayout`] a run
/// goes on in Burn.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    directory: PathBuf,
    keep_last: Option<usize>,
    every: Option<u64>,
    scalars: Scalars,
    layout: BurnLayout,
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
    opened: Opened,
    layout: BurnLayout,
}

impl Resumed {
    /// Loads the average that was saved with this checkpoint, also if it was saved anew or removed since.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::NotFound`] when it has none, and as [`Checkpoints::load`]; the average is as it was
    /// then.
    pub fn load_ema(&self, ema: &mut Ema) -> Result<()> {
        self.opened.read(EMA, |ckpt| ema.load_laid_out(ckpt, &self.layout))
    }

    /// Whether it was saved with an average.
    pub fn has_ema(&self) -> bool {
        self.opened.has(EMA)
    }

    /// Where the run goes on: in which epoch, from 1 on, and after how many of its steps. The epoch is 0 where
    /// none are counted, and the steps are those of the run then.
    pub fn next(&self) -> (usize, u64) {
        match self.milestone.step_number() {
            Some(step) => (self.milestone.epoch_number(), step),
            None => (self.milestone.epoch_number() + 1, 0),
        }
    }

    /// The steps that were done, of the epoch if these are counted; 0 at the end of one, from where
    /// [`next`](Self::next) says the epoch to go on with.
    pub fn step(&self) -> u64 {
        self.milestone.step_number().unwrap_or(0)
    }
}

impl Checkpoints {
    /// Checkpoints in `directory`, which is made when the first one is saved.
    pub fn new(directory: impl AsRef<Path>) -> Self {
        Self {
            directory: directory.as_ref().to_owned(),
            keep_last: None,
            every: None,
            scalars: Scalars::new(),
            layout: BurnLayout::new(),
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

    /// Keeps the `count` checkpoints that were saved last, at least one; otherwise all.
    #[must_use]
    pub fn keep_last(mut self, count: usize) -> Self {
        self.keep_last = Some(count);
        self
    }

    /// Says after how many steps a checkpoint [is due](Self::is_due); 0 is never.
    #[must_use]
    pub fn every(mut self, steps: u64) -> Self {
        self.every = Some(steps).filter(|&steps| steps > 0);
        self
    }

    /// Keeps a number with each checkpoint that is saved from now on, a seed for example.
    #[must_use]
    pub fn note(mut self, name: impl Into<String>, number: impl Into<Scalar>) -> Self {
        self.scalars.insert(name.into(), number.into());
        self
    }

    /// Writes and reads the files as Burn does: for runs that begin or go on there.
    #[must_use]
    pub fn burn(mut self, layout: BurnLayout) -> Self {
        self.layout = layout;
        self
    }

    /// Whether a checkpoint is to be saved after so many steps.
    pub fn is_due(&self, step: u64) -> bool {
        self.every.is_some_and(|every| step.is_multiple_of(every))
    }

    /// The checkpoint that was saved last.
    ///
    /// # Errors
    ///
    /// Fails when the manifest cannot be read.
    pub fn latest(&self) -> Result<Option<Milestone>> {
        self.epochs(&[]).latest()
    }

    /// All that are there, in the order in which they were saved.
    ///
    /// # Errors
    ///
    /// As [`latest`](Self::latest).
    pub fn milestones(&self) -> Result<Vec<Milestone>> {
        self.epochs(&[]).milestones()
    }

    /// The numbers that were kept with a checkpoint.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::NotFound`] when there is no such checkpoint.
    pub fn scalars(&self, milestone: Milestone) -> Result<Scalars> {
        self.epochs(&[]).scalars(milestone)
    }

    /// Starts to save a checkpoint. One that is there already is replaced when the new one is whole.
    pub fn at(&self, milestone: Milestone) -> CheckpointSaver<'_> {
        CheckpointSaver { checkpoints: self, milestone, scalars: self.scalars.clone(), average: None }
    }

    /// Loads the checkpoint that was saved last, if there is one.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn resume<O: Stateful>(
        &self,
        map: &VarMap,
        optimizer: &mut O,
        schedule: &mut impl Schedule,
    ) -> Result<Option<Resumed>> {
        let opened = self.epochs(&[]).open_latest()?;
        opened.map(|opened| self.load_opened(opened, map, optimizer, schedule)).transpose()
    }

    /// Loads a checkpoint: the variables of the map, the state of the optimizer and the place of the
    /// schedule. Values are cast to the dtypes of the variables, as PyTorch casts them.
    ///
    /// # Errors
    ///
    /// Fails, and says which file and which tensor, with [`ErrorKind::NotFound`] when there is no such
    /// checkpoint, and when it is one of another model, optimizer or schedule: a tensor is missing, left over
    /// or has another shape. All three are as they were then.
    pub fn load<O: Stateful>(
        &self,
        milestone: Milestone,
        map: &VarMap,
        optimizer: &mut O,
        schedule: &mut impl Schedule,
    ) -> Result<Resumed> {
        self.load_opened(self.epochs(&[]).open(milestone)?, map, optimizer, schedule)
    }

    fn load_opened<O: Stateful>(
        &self,
        opened: Opened,
        map: &VarMap,
        optimizer: &mut O,
        schedule: &mut impl Schedule,
    ) -> Result<Resumed> {
        let vars = named(map);
        let weights = opened.read(MODEL, |ckpt| weights_for(&vars, ckpt, &self.layout))?;
        let moments = opened.read(OPTIMIZER, |ckpt| record::read(ckpt, optimizer, &vars, &self.layout))?;
        let place = opened.read(SCHEDULER, record::read_schedule)?;

        // From here on what may fail changes nothing then, and what was changed is changed back.
        let before = schedule.state();
        schedule.load_state(&place).map_err(|error| error.in_file(&opened.file(SCHEDULER)))?;
        let pairs = vars.iter().map(|(_, var)| var.as_tensor()).zip(&weights);
        if let Err((number, error)) = exchange_all(pairs) {
            schedule.load_state(&before)?;
            let name = vars.get(number).map_or("", |(name, _)| name);
            return Err(refused(&error).in_tensor(name).in_file(&opened.file(MODEL)));
        }
        for (slot, moments) in optimizer.slots_mut().iter_mut().zip(moments) {
            slot.moments = moments;
        }
        let (milestone, scalars) = (opened.milestone(), opened.scalars().clone());
        Ok(Resumed { milestone, scalars, opened, layout: self.layout.clone() })
    }

    /// Loads the average of a checkpoint that was saved with [one](CheckpointSaver::ema).
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::NotFound`] when there is no such checkpoint or it has none, and as
    /// [`load`](Self::load); the average is as it was then.
    pub fn load_ema(&self, milestone: Milestone, ema: &mut Ema) -> Result<()> {
        self.epochs(&[]).open(milestone)?.read(EMA, |ckpt| ema.load_laid_out(ckpt, &self.layout))
    }

    fn epochs(&self, more: &[&str]) -> Epochs {
        let parts = [MODEL, OPTIMIZER, SCHEDULER];
        let mut epochs = Epochs::new(&self.directory, parts.iter().chain(more).copied());
        if let Some(count) = self.keep_last {
            epochs = epochs.keep_last(count);
        }
        #[cfg(feature = "remote")]
        if let Some(remote) = &self.remote {
            epochs = epochs.remote(remote.clone());
        }
        epochs
    }

    /// How the files of parts are written.
    fn writing(&self) -> Save {
        let save = Save::new().metadata("format", "pt");
        #[cfg(feature = "remote")]
        if let Some(remote) = &self.remote {
            return save.remote(remote.clone());
        }
        save
    }
}

/// Saves a checkpoint; see [`Checkpoints::at`].
#[derive(Debug)]
#[must_use = "nothing is saved until `save` is called"]
pub struct CheckpointSaver<'c> {
    checkpoints: &'c Checkpoints,
    milestone: Milestone,
    scalars: Scalars,
    average: Option<Vec<(String, Tensor)>>,
}

impl CheckpointSaver<'_> {
    /// Keeps a number with this checkpoint: a position in the data, a loss. [`Resumed::scalars`] has it.
    pub fn note(mut self, name: impl Into<String>, number: impl Into<Scalar>) -> Self {
        self.scalars.insert(name.into(), number.into());
        self
    }

    /// Saves an average of the weights, too: `ema.safetensors` is a checkpoint of the model by itself.
    pub fn ema(mut self, ema: &Ema) -> Self {
        self.average = Some(ema.tensors());
        self
    }

    /// Saves weights, optimizer and schedule as one: whenever the process or the machine stops, either all of
    /// it counts or the checkpoints before it.
    ///
    /// # Errors
    ///
    /// Fails when the optimizer has a variable that is not in the map, when the state cannot be read from its
    /// device or written, and with [`ErrorKind::Busy`] while another process is saving in the directory; what
    /// was saved before still counts then.
    pub fn save<O: Stateful>(&self, map: &VarMap, optimizer: &O, schedule: &impl Schedule) -> Result<()> {
        let layout = &self.checkpoints.layout;
        let epochs = self.checkpoints.epochs(if self.average.is_some() { &[EMA] } else { &[] });
        let vars = named(map);
        let names: Vec<_> = vars.iter().map(|(name, _)| layout.name(name)).collect();
        let ids = Ids::new(names.iter().map(String::as_str), &epochs);
        let writing = self.checkpoints.writing();
        let write_weights = |tensors: &mut dyn Iterator<Item = (&String, &Tensor)>, file: &Path| {
            let turned = tensors.map(|(name, tensor)| match layout.turned(name, tensor) {
                Ok(turned) => Ok((layout.name(name), turned)),
                Err(error) => Err(refused(&error).in_tensor(name)),
            });
            let save = writing.clone().metadata(RECORD, NAMED).metadata(IDS, ids.entry(|_| true));
            Saver::new().with(save).file(file, turned.collect::<Result<Vec<_>>>()?)
        };
        epochs.save_with(self.milestone, &self.scalars, |part, file| match part {
            MODEL => write_weights(&mut vars.iter().map(|(name, var)| (name, var.as_tensor())), file),
            OPTIMIZER => record::write(&writing, file, optimizer, &vars, layout, &ids),
            SCHEDULER => record::write_schedule(&writing, file, &schedule.state()),
            _ => {
                let average = self.average.iter().flatten();
                write_weights(&mut average.map(|(name, tensor)| (name, tensor)), file)
            }
        })
    }
}
