//! The `Learner` with checkpoints in the middle of epochs: a training strategy, since Burn's own ones tell
//! nobody about a step who could see the state.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::data::dataloader::Progress;
use burn::data::dataset::DatasetError;
use burn::lr_scheduler::LrSchedulerRecord;
use burn::optim::{GradientsAccumulator, OptimizerRecord};
use burn::train::checkpoint::{AsyncCheckpointer, CheckpointingAction, CheckpointingStrategy};
use burn::train::metric::store::EventStoreClient;
use burn::train::{
    EventProcessorTraining, InferenceStep, Interrupter, Learner, LearnerEvent, LearnerModel,
    LearningCheckpointer, SupervisedLearningStrategy, SupervisedTraining, SupervisedTrainingEventProcessor,
    TrainLoader, TrainingComponents, TrainingItem, TrainingStrategy, ValidLoader,
};
use weighbridge::epochs::{Milestone, Opened};
use weighbridge::{Checkpoint, Error, ErrorKind, Result};

use super::{read, unknown};
use crate::checkpoints::Checkpoints;
use crate::loader::load;
use crate::panics::caught;
use crate::training::{MODEL, OPTIMIZER, SCHEDULER};
use crate::walk;

impl Checkpoints {
    /// Has a training on one device save a checkpoint every `steps` batches and at the end of each epoch, and
    /// go on from the newest one that is there. In the middle of an epoch, batches that were seen are left
    /// out.
    ///
    /// ```no_run
    /// use weighbridge_burn::Checkpoints;
    /// # use weighbridge_burn::burn::train::{Learner, LearnerModel, SupervisedTraining};
    ///
    /// # fn train<M: LearnerModel + 'static>(training: SupervisedTraining<M>, learner: Learner<M>)
    /// # -> weighbridge_burn::weighbridge::Result<()> {
    /// let checkpoints = Checkpoints::new("run/checkpoints").keep_last(3);
    /// let trained = checkpoints.every(1000, training)?.launch(learner);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// It is the training's strategy, in the place of Burn's own for one device, which does not tell anybody
    /// about steps who could see the state. Metrics, validation, early stopping, the interrupter and the
    /// accumulation of gradients are the same; while gradients are accumulated, a checkpoint waits for the
    /// step of the optimizer.
    ///
    /// What the data loader gives has to be the same each time that the program is run: shuffled with a seed,
    /// by one worker. Loaders of epochs that are over are asked once, as they were before, so that the next
    /// shuffle is what it would have been. Burn does not say where its random numbers are; a model with
    /// dropout goes on with others.
    ///
    /// # Errors
    ///
    /// Fails when `steps` is 0, and when the newest checkpoint cannot be read; with [`ErrorKind::Value`], too,
    /// when it is of [a run that does not count epochs](Milestone::at_step) or counts them from 0: a data
    /// loader does not say how many batches an epoch has. What fails later ends the training and is in its
    /// result; so does an epoch that has fewer batches now than were seen of it.
    pub fn every<M: LearnerModel + 'static>(
        self,
        steps: u64,
        training: SupervisedTraining<M>,
    ) -> Result<SupervisedTraining<M>> {
        if steps == 0 {
            return Err(Error::new(ErrorKind::Value, "a checkpoint every 0 steps is none"));
        }
        let newest = self.state(&[]).open_latest()?;
        let resumed = newest.as_ref().map(Restored::read).transpose()?;
        let training = match resumed.as_ref().map(Restored::whole_epochs) {
            Some(epochs @ 1..) => training.checkpoint(epochs),
            _ => training,
        };
        let strategy = EverySteps { checkpoints: self, steps, resumed: Mutex::new(resumed) };
        Ok(training.with_training_strategy(TrainingStrategy::Custom(Arc::new(strategy))))
    }
}

/// A state that was read.
struct Restored {
    milestone: Milestone,
    /// Open, so that it stays what it is.
    model: Checkpoint,
    optimizer: OptimizerRecord,
    scheduler: LrSchedulerRecord,
}

impl Restored {
    fn read(opened: &Opened) -> Result<Self> {
        let milestone = opened.milestone();
        if milestone.epoch_number() == 0 {
            let message = format!(
                "the newest checkpoint is of {milestone}, and a `Learner` counts epochs from 1: where it would \
                 go on is not known; `resume` it in a loop of your own, or train in another directory"
            );
            return Err(Error::new(ErrorKind::Value, message).in_file(&opened.file(MODEL)));
        }
        Ok(Self {
            milestone,
            model: opened.part(MODEL)?.clone(),
            optimizer: read(opened, OPTIMIZER)?,
            scheduler: read(opened, SCHEDULER)?,
        })
    }

    /// The learner with this state. What does not fit the model is an error here; Burn would panic.
    fn put_into<M: LearnerModel>(self, learner: &Learner<M>) -> Result<Learner<M>> {
        let mut learner = learner.clone();
        let mut model = learner.model();
        load(&self.model).into(&mut model)?;
        caught("the state was restored", || {
            learner.load_model(model.into_record());
            learner.load_optim(self.optimizer);
            learner.load_scheduler(self.scheduler);
            Ok(learner)
        })
    }

    /// The number of epochs that are over.
    fn whole_epochs(&self) -> usize {
        match self.milestone.step_number() {
            Some(_) => self.milestone.epoch_number().saturating_sub(1),
            None => self.milestone.epoch_number(),
        }
    }
}

struct EverySteps {
    checkpoints: Checkpoints,
    steps: u64,
    /// Taken when the training starts.
    resumed: Mutex<Option<Restored>>,
}

impl<M: LearnerModel + 'static> SupervisedLearningStrategy<M> for EverySteps {
    fn fit(
        &self,
        components: TrainingComponents<M>,
        mut learner: Learner<M>,
        train: TrainLoader<M>,
        valid: ValidLoader<M>,
        starting_epoch: usize,
    ) -> (M, SupervisedTrainingEventProcessor<M>) {
        let TrainingComponents { num_epochs, grad_accumulation, interrupter, event_store, .. } = components;
        let mut early_stopping = components.early_stopping;
        let mut events = components.event_processor;

        let mut seen = 0;
        let resumed = self.resumed.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(resumed) = resumed {
            seen = resumed.milestone.step_number().unwrap_or(0);
            match resumed.put_into(&learner) {
                Ok(restored) => learner = restored,
                Err(error) => {
                    interrupter.fail(unknown(error));
                    return (learner.model(), events);
                }
            }
        }
        if let Some(device) = learner.model().devices().first().cloned() {
            let device = if device.is_autodiff() { device } else { device.autodiff() };
            learner.fork(&device);
        }
        let model = learner.model();
        let Some(device) = model.devices().first().cloned() else { return (model, events) };
        drop(model);
        let (train, valid) = (train.to_device(&device), valid.to_device(&device.clone().inner()));
        // Each shuffle depends on those before it.
        for _ in 1..starting_epoch {
            drop((train.iter(), valid.iter()));
        }

        let mut saver = StepSaver::new(&self.checkpoints, &interrupter);
        let mut epoch = Epoch {
            number: starting_epoch,
            seen,
            every: self.steps,
            accumulation: grad_accumulation,
            interrupter: &interrupter,
            store: &event_store,
        };
        while epoch.number <= num_epochs && !interrupter.should_stop() {
            let batches = epoch.train(&mut learner, &train, &mut events, &mut saver);
            if batches < epoch.seen && !interrupter.should_stop() {
                interrupter.fail(unknown(self.too_few(&epoch, batches)));
            }
            if interrupter.should_stop() {
                break;
            }
            epoch.validate(&learner, &valid, &mut events);
            interrupter.fail_on_error(events.process_train(LearnerEvent::EndEpoch(epoch.number)));
            interrupter.fail_on_error(events.flush());
            if interrupter.should_stop() {
                break;
            }
            saver.save(&learner, Milestone::epoch(epoch.number), &event_store);
            if early_stopping.as_mut().is_some_and(|early| early.should_stop(epoch.number, &event_store)) {
                break;
            }
            epoch.number += 1;
            epoch.seen = 0;
        }
        // Waits until everything is written.
        drop(saver);
        (learner.model(), events)
    }
}

impl EverySteps {
    /// The error for an epoch that ended among the batches that were seen before.
    fn too_few(&self, epoch: &Epoch<'_>, batches: u64) -> Error {
        let Epoch { number, seen, .. } = *epoch;
        let message = format!(
            "it was saved after {seen} batches of epoch {number}, which has {batches} now; train with the data \
             and the batch size of that run"
        );
        let error = Error::new(ErrorKind::Value, message);
        match self.checkpoints.state(&[]).find(Milestone::epoch(number).step(seen), MODEL) {
            Ok(file) => error.in_file(&file),
            Err(_) => error,
        }
    }
}

/// One epoch, or the rest of it.
struct Epoch<'t> {
    number: usize,
    /// The batches at its start that were seen before.
    seen: u64,
    every: u64,
    accumulation: Option<usize>,
    interrupter: &'t Interrupter,
    store: &'t EventStoreClient,
}

impl Epoch<'_> {
    /// A batch; where the loader has failed, that ends the training.
    fn given<T>(&self, batch: std::result::Result<T, DatasetError>) -> Option<T> {
        batch.map_err(|error| self.interrupter.fail(error)).ok()
    }

    /// The number of batches that the loader gave.
    fn train<M: LearnerModel>(
        &self,
        learner: &mut Learner<M>,
        loader: &TrainLoader<M>,
        events: &mut SupervisedTrainingEventProcessor<M>,
        saver: &mut StepSaver<M>,
    ) -> u64 {
        let start = LearnerEvent::StartSplit { epoch_number: self.number, total_items: loader.num_items() };
        self.interrupter.fail_on_error(events.process_train(start));
        let mut batches = loader.iter();
        let mut accumulator = GradientsAccumulator::new();
        let (mut accumulated, mut step, mut is_due) = (0, 0, false);
        while let Some(batch) = batches.next() {
            let Some(batch) = self.given(batch) else { break };
            step += 1;
            if step <= self.seen {
                continue;
            }
            let progress: Progress = batches.progress();
            let output = learner.train_step(batch);
            accumulated += 1;
            let gradients = match self.accumulation {
                None => Some(output.grads),
                Some(count) => {
                    accumulator.accumulate(&learner.model(), output.grads);
                    (accumulated >= count || progress.is_completed()).then(|| accumulator.grads())
                }
            };
            is_due |= step.is_multiple_of(self.every);
            if let Some(gradients) = gradients {
                learner.lr_step();
                learner.optimizer_step(gradients);
                accumulated = 0;
                if std::mem::take(&mut is_due) {
                    saver.save(learner, Milestone::epoch(self.number).step(step), self.store);
                }
            }
            let item = TrainingItem::new(
                output.item,
                progress,
                usize::try_from(step).ok(),
                Some(learner.lr_current()),
            );
            self.interrupter.fail_on_error(events.process_train(LearnerEvent::ProcessedItem(item)));
            if self.interrupter.should_stop() {
                break;
            }
        }
        self.interrupter.fail_on_error(events.process_train(LearnerEvent::EndSplit(self.number)));
        step
    }

    fn validate<M: LearnerModel>(
        &self,
        learner: &Learner<M>,
        loader: &ValidLoader<M>,
        events: &mut SupervisedTrainingEventProcessor<M>,
    ) {
        let start = LearnerEvent::StartSplit { epoch_number: self.number, total_items: loader.num_items() };
        self.interrupter.fail_on_error(events.process_valid(start));
        let model = learner.model().valid();
        let mut batches = loader.iter();
        let mut step = 0;
        while let Some(batch) = batches.next() {
            let Some(batch) = self.given(batch) else { break };
            step += 1;
            let progress = batches.progress();
            let item = TrainingItem::new(InferenceStep::step(&model, batch), progress, Some(step), None);
            self.interrupter.fail_on_error(events.process_valid(LearnerEvent::ProcessedItem(item)));
            if self.interrupter.should_stop() {
                break;
            }
        }
        self.interrupter.fail_on_error(events.process_valid(LearnerEvent::EndSplit(self.number)));
    }
}

/// Saves the state of a `Learner`, which gives it to a [`LearningCheckpointer`] only, in the background.
struct StepSaver<M: LearnerModel> {
    checkpointer: LearningCheckpointer<M>,
    /// Burn counts what it saves; this is what its numbers stand for.
    moments: Arc<Mutex<Vec<Milestone>>>,
}

impl<M: LearnerModel> StepSaver<M> {
    fn new(checkpoints: &Checkpoints, interrupter: &Interrupter) -> Self {
        let moments = Arc::new(Mutex::new(Vec::new()));
        let known = Arc::clone(&moments);
        let moment = move |number: usize| {
            let known: MutexGuard<'_, Vec<Milestone>> = known.lock().unwrap_or_else(PoisonError::into_inner);
            known.get(number).copied().unwrap_or(Milestone::epoch(number))
        };
        let (model, optimizer, scheduler) = checkpoints.clone().split_at(moment);
        let checkpointer = LearningCheckpointer::new(
            AsyncCheckpointer::new(model).with_interrupter(interrupter.clone()),
            AsyncCheckpointer::new(optimizer).with_interrupter(interrupter.clone()),
            AsyncCheckpointer::new(scheduler).with_interrupter(interrupter.clone()),
            Box::new(Always),
        );
        Self { checkpointer, moments }
    }

    fn save(&mut self, learner: &Learner<M>, milestone: Milestone, store: &EventStoreClient) {
        let number = {
            let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
            moments.push(milestone);
            moments.len() - 1
        };
        // A record of Burn's lacks the last update of running statistics, unless they were asked for.
        walk::settle(&learner.model());
        self.checkpointer.checkpoint(learner, number, store);
    }
}

/// Saves whenever it is asked.
struct Always;

impl CheckpointingStrategy for Always {
    fn checkpointing(&mut self, _: usize, _: &EventStoreClient) -> Vec<CheckpointingAction> {
        vec![CheckpointingAction::Save]
    }
}
