//! A directory of training checkpoints, each of several parts, that counts whole checkpoints only.
//!
//! ```text
//! checkpoints.json              the manifest: which checkpoints count, in the order in which they were committed
//! epoch-00004/model.safetensors
//! epoch-00004/optimizer.safetensors
//! epoch-00004/scheduler.safetensors
//! epoch-00005-step-00001200/model.safetensors      in the middle of an epoch
//! step-00001200/model.safetensors                  where epochs are not counted
//! ```
//!
//! A checkpoint counts from the moment that a manifest which names it is renamed over the old one, which
//! happens when all its parts are written and synced. So whenever the process or the machine stops, the
//! manifest names whole checkpoints only. What it does not name is removed with the next commit.
//!
//! The directory is locked while a checkpoint is being written, so that no other process takes it for what a
//! dead one left. Readers need no lock.
//!
//! With the feature `remote` the directory may be an address: `s3://bucket/run`, `gs://...`, `az://...`. There the manifest is
//! written if it is still the one that was there when the save began, which fails with [`ErrorKind::Busy`] if
//! another was committed meanwhile. Directories have names that none had before, `epoch-00004-1839204857`. What an old manifest
//! named is deleted at once, and what no manifest names when it is a day old. Whoever reads a checkpoint that is deleted gets an
//! error. On the hub and on web servers checkpoints are only read.
//!
//! The adapters write and read these directories; programs that keep parts of their own use [`Epochs`]
//! itself:
//!
//! ```
//! use weighbridge::epochs::{Epochs, Milestone};
//! use weighbridge::write::{Save, Values};
//!
//! # fn main() -> weighbridge::Result<()> {
//! # let run = tempfile::tempdir().unwrap();
//! let epochs = Epochs::new(run.path(), ["model", "ema"]).keep_last(3);
//! let weights = Values::new(&[2], &[0.5_f32, -1.0])?;
//! epochs.save(Milestone::at_step(1200), |_part, file| Save::new().file(file, [("w", &weights)]))?;
//! assert_eq!(epochs.latest()?, Some(Milestone::at_step(1200)));
//! let opened = epochs.open(Milestone::at_step(1200))?;
//! let model = opened.part("model")?; // of the same moment as all other parts
//! assert!(model.tensor("w").is_some());
//! # Ok(())
//! # }
//! ```

mod manifest;
mod milestone;
mod opened;
mod parts;
mod place;
mod saving;
mod scalar;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use milestone::Milestone;
pub use opened::Opened;
pub use scalar::{Scalar, Scalars};

use crate::error::{Error, ErrorKind, Result};
use manifest::{Committed, Manifest};
use parts::Parts;
use place::{InDirectory, Place};
use saving::Saving;

/// The checkpoints of a directory.
#[derive(Debug)]
pub struct Epochs {
    directory: PathBuf,
    parts: Parts,
    /// How many are kept.
    keep_last: Option<usize>,
    state: Mutex<State>,
    #[cfg(feature = "remote")]
    remote: Option<weighbridge_remote::Remote>,
}

#[derive(Debug, Default)]
struct State {
    saving: Option<Saving>,
    /// To be deleted when another one is committed.
    unwanted: BTreeSet<Milestone>,
}

impl Epochs {
    /// Checkpoints in `directory`, which is made when the first one is saved, or with the feature `remote` in an object store:
    /// `s3://bucket/prefix`, `gs://...`, `az://...`. Each that is saved has these parts; the part `model` is the file
    /// `model.safetensors`.
    pub fn new(directory: impl AsRef<Path>, parts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let directory = directory.as_ref().to_owned();
        // What signs a URL is not shown in errors.
        #[cfg(feature = "remote")]
        let directory = match crate::remote::address(&directory) {
            Some(Ok(address)) => PathBuf::from(address.to_string()),
            _ => directory,
        };
        Self {
            directory,
            parts: Parts::new(parts.into_iter().map(Into::into)),
            keep_last: None,
            state: Mutex::default(),
            #[cfg(feature = "remote")]
            remote: None,
        }
    }

    /// Sets what a store is read and written with: credentials, limits. Otherwise it is what the environment says. What
    /// writes the parts needs it, too: [`Save::remote`](crate::write::Save::remote).
    #[cfg(feature = "remote")]
    #[must_use]
    pub fn remote(mut self, remote: weighbridge_remote::Remote) -> Self {
        self.remote = Some(remote);
        self
    }

    /// Whether parts are written to an address, where there are no files beside them.
    pub fn is_remote(&self) -> bool {
        #[cfg(feature = "remote")]
        return crate::remote::address(&self.directory).is_some();
        #[cfg(not(feature = "remote"))]
        false
    }

    fn place(&self) -> Result<Box<dyn Place + '_>> {
        #[cfg(feature = "remote")]
        if let Some(address) = crate::remote::address(&self.directory) {
            return Ok(Box::new(place::Far::at(&address?, self.remote.as_ref())?));
        }
        Ok(Box::new(InDirectory(&self.directory)))
    }

    /// Keeps the `count` checkpoints that were committed last, at least one.
    #[must_use]
    pub fn keep_last(mut self, count: usize) -> Self {
        self.keep_last = Some(count.max(1));
        self
    }

    /// Says that a part may lie beside its file under another extension for as long as it is written:
    /// with `bpk`, `model.bpk` and `model.bpk.4711-0.tmp`. What dead processes left of it is removed, too.
    #[must_use]
    pub fn scratch(mut self, extension: impl Into<String>) -> Self {
        self.parts.scratch = Some(extension.into());
        self
    }

    /// Where a part of a checkpoint is to be written; call [`done`](Self::done) when it is.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Busy`] while another process is saving in the directory, with
    /// [`ErrorKind::Value`] for a part that was not named, and when a directory cannot be made.
    pub fn begin(&self, milestone: Milestone, part: &str) -> Result<PathBuf> {
        let file = self.parts.file(part).map_err(|error| error.in_file(&self.directory))?;
        let mut state = self.lock();
        let saving = match &mut state.saving {
            Some(saving) => saving,
            none => none.insert(Saving::new(self.place()?.hold(true)?)),
        };
        let begun = saving.begin(milestone, &self.parts);
        let begun = begun.and_then(|name| Ok(self.place()?.path(&format!("{name}/{file}"))));
        state.unlock_if_idle();
        begun
    }

    /// Keeps numbers with a checkpoint that was begun: a step, a seed, a position in the data.
    /// [`scalars`](Self::scalars) gives them back.
    pub fn note(&self, milestone: Milestone, scalars: &Scalars) {
        let mut state = self.lock();
        if let Some(pending) = state.saving.as_mut().and_then(|saving| saving.pending.get_mut(&milestone)) {
            pending.scalars.clone_from(scalars);
        }
    }

    /// A part is written and synced; with the last one the checkpoint is committed. Where that fails, it is given up as a
    /// whole, and can be saved again from its first part on.
    ///
    /// # Errors
    ///
    /// Fails when a part is not there, when the manifest cannot be written, with [`ErrorKind::Value`] for a
    /// checkpoint that was not [begun](Self::begin), or was given up since, and in a store with [`ErrorKind::Busy`] when
    /// another process has committed one since. What was committed before still counts then.
    pub fn done(&self, milestone: Milestone, part: &str) -> Result<()> {
        let mut state = self.lock();
        let State { saving, unwanted } = &mut *state;
        let pending = saving.as_mut().and_then(|saving| saving.pending.get_mut(&milestone));
        let Some(pending) = pending else {
            let message = format!("the checkpoint of {milestone} is not being saved");
            return Err(Error::new(ErrorKind::Value, message).in_file(&self.directory));
        };
        pending.done.insert(part.to_owned());
        if !self.parts.names.is_subset(&pending.done) {
            return Ok(());
        }
        let Some(saving) = saving else { return Ok(()) };
        let committed = self.commit(saving, milestone, unwanted);
        if committed.is_err() {
            // Parts that come again must not be put together with these.
            saving.abandon(milestone, &self.parts);
        }
        state.unlock_if_idle();
        committed
    }

    fn commit(
        &self,
        saving: &mut Saving,
        milestone: Milestone,
        unwanted: &mut BTreeSet<Milestone>,
    ) -> Result<()> {
        let Some(new) = saving.whole(milestone, &self.parts)? else { return Ok(()) };
        let before = saving.hold.committed()?;
        let mut after = before.clone();
        after.retain(|old| old.milestone != milestone && !unwanted.contains(&old.milestone));
        after.push(new);
        if let Some(keep) = self.keep_last {
            after.drain(..after.len().saturating_sub(keep));
        }
        saving.write(&after)?;
        saving.pending.remove(&milestone);
        unwanted.clear();
        saving.clean(&before, &after, &self.parts)
    }

    /// Saves a checkpoint: `write` writes each part to its file, in the order of their names. One that fails
    /// leaves nothing behind.
    ///
    /// # Errors
    ///
    /// As [`begin`](Self::begin), `write` and [`done`](Self::done).
    pub fn save(&self, milestone: Milestone, write: impl FnMut(&str, &Path) -> Result<()>) -> Result<()> {
        self.save_with(milestone, &Scalars::new(), write)
    }

    /// The same with [numbers](Self::note) beside it.
    ///
    /// # Errors
    ///
    /// As [`save`](Self::save).
    pub fn save_with(
        &self,
        milestone: Milestone,
        scalars: &Scalars,
        mut write: impl FnMut(&str, &Path) -> Result<()>,
    ) -> Result<()> {
        let mut all = || {
            for part in &self.parts.names {
                let file = self.begin(milestone, part)?;
                self.note(milestone, scalars);
                write(part, &file)?;
                self.done(milestone, part)?;
            }
            Ok(())
        };
        let saved = all();
        if saved.is_err() {
            self.abandon(milestone);
        }
        saved
    }

    /// Gives up a checkpoint that is being written, with what is there of it. One that is committed stays.
    pub fn abandon(&self, milestone: Milestone) {
        let mut state = self.lock();
        if let Some(saving) = &mut state.saving {
            saving.abandon(milestone, &self.parts);
        }
        state.unlock_if_idle();
    }

    /// Deletes a checkpoint, unless a number of checkpoints to keep is set. The newest one, and any
    /// while another process is saving, is deleted with the next commit. What is not there is no error.
    ///
    /// # Errors
    ///
    /// Fails when the manifest cannot be read or written.
    pub fn delete(&self, milestone: Milestone) -> Result<()> {
        if self.keep_last.is_some() || !self.milestones()?.contains(&milestone) {
            return Ok(());
        }
        let mut state = self.lock();
        let State { saving, unwanted } = &mut *state;
        let mut idle = None;
        let saving = match saving {
            Some(saving) => saving,
            None => match self.place()?.hold(false) {
                Ok(hold) => idle.insert(Saving::new(hold)),
                Err(error) if error.kind() == ErrorKind::Busy => {
                    unwanted.insert(milestone);
                    return Ok(());
                }
                Err(error) => return Err(error),
            },
        };
        let before = saving.hold.committed()?;
        if before.last().is_some_and(|newest| newest.milestone == milestone) {
            unwanted.insert(milestone);
            return Ok(());
        }
        let mut after = before.clone();
        after.retain(|old| old.milestone != milestone);
        match saving.write(&after) {
            Err(error) if error.kind() == ErrorKind::Busy => {
                unwanted.insert(milestone);
                Ok(())
            }
            written => written.and_then(|()| saving.clean(&before, &after, &self.parts)),
        }
    }

    /// The file of a part of a committed checkpoint. Another process may save the checkpoint anew at any moment;
    /// [`open`](Self::open) gives parts that belong together.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::NotFound`] when there is no such checkpoint or it has no such part, and with
    /// [`ErrorKind::DataLength`] when the file does not have the length that was committed.
    pub fn find(&self, milestone: Milestone, part: &str) -> Result<PathBuf> {
        let place = self.place()?;
        let manifest = Manifest::read(&*place)?;
        let found = manifest.find(milestone)?;
        let name = Parts::file_name(part);
        let Some(&bytes) = found.bytes.get(&name) else {
            let message = format!("the checkpoint of {milestone} has no part {part:?}");
            return Err(Error::new(ErrorKind::NotFound, message).in_file(&self.directory));
        };
        let name = format!("{}/{name}", found.directory);
        place::check_length(place.length(&name)?, bytes, &place.path(&name))?;
        Ok(place.path(&name))
    }

    /// The numbers that were [kept](Self::note) with a committed checkpoint.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::NotFound`] when there is no such checkpoint.
    pub fn scalars(&self, milestone: Milestone) -> Result<Scalars> {
        Ok(self.committed(milestone)?.scalars)
    }

    /// Whether a committed checkpoint has a part.
    ///
    /// # Errors
    ///
    /// As [`scalars`](Self::scalars).
    pub fn has(&self, milestone: Milestone, part: &str) -> Result<bool> {
        Ok(self.committed(milestone)?.bytes.contains_key(&Parts::file_name(part)))
    }

    /// The checkpoints that count, in the order in which they were committed.
    ///
    /// # Errors
    ///
    /// Fails when the manifest cannot be read.
    pub fn milestones(&self) -> Result<Vec<Milestone>> {
        let place = self.place()?;
        Ok(Manifest::read(&*place)?.committed.iter().map(|committed| committed.milestone).collect())
    }

    /// The one that was committed last.
    ///
    /// # Errors
    ///
    /// As [`milestones`](Self::milestones).
    pub fn latest(&self) -> Result<Option<Milestone>> {
        Ok(self.milestones()?.pop())
    }

    fn committed(&self, milestone: Milestone) -> Result<Committed> {
        let place = self.place()?;
        Manifest::read(&*place)?.find(milestone).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Unlocks the directory if nothing is being written.
    fn unlock_if_idle(&mut self) {
        if self.saving.as_ref().is_some_and(|saving| saving.pending.is_empty()) {
            self.saving = None;
        }
    }
}
