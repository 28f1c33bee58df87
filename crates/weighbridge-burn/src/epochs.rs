//! A directory of training checkpoints of three parts each, and its manifest.
//!
//! ```text
//! checkpoints.json              the manifest: which checkpoints count, in the order in which they were committed
//! epoch-00004/model.safetensors
//! epoch-00004/optimizer.safetensors
//! epoch-00004/scheduler.safetensors
//! ```
//!
//! A checkpoint counts from the moment that a manifest which names it is renamed over the old one, which
//! happens when its three parts are written and synced. So whenever the process or the machine stops, the
//! manifest names whole checkpoints only. What it does not name is removed with the next commit.
//!
//! The directory is locked while a checkpoint is being written, so that no other process takes it for what a
//! dead one left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use weighbridge::write::{Directory, OutputFile};
use weighbridge::{Error, ErrorKind, Result};

/// A part of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Model,
    Optimizer,
    Scheduler,
}

impl Part {
    const ALL: [Self; 3] = [Self::Model, Self::Optimizer, Self::Scheduler];

    fn file(self) -> &'static str {
        match self {
            Self::Model => "model.safetensors",
            Self::Optimizer => "optimizer.safetensors",
            Self::Scheduler => "scheduler.safetensors",
        }
    }
}

/// The checkpoints of a directory.
#[derive(Debug)]
pub(crate) struct Epochs {
    directory: PathBuf,
    /// How many are kept.
    keep_last: Option<usize>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    saving: Option<Saving>,
    /// To be deleted when another one is committed.
    unwanted: BTreeSet<usize>,
}

/// The directory, locked for as long as a checkpoint is being written.
#[derive(Debug)]
struct Saving {
    directory: Directory,
    /// Being written, by epoch.
    pending: BTreeMap<usize, Pending>,
}

#[derive(Debug)]
struct Pending {
    directory: String,
    done: BTreeSet<Part>,
}

/// An entry of the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Committed {
    epoch: usize,
    directory: String,
    /// The bytes of each part, as a check that it is there as it was written.
    bytes: BTreeMap<Part, u64>,
}

const MANIFEST: &str = "checkpoints.json";

impl Epochs {
    pub(crate) fn new(directory: &Path, keep_last: Option<usize>) -> Self {
        let keep_last = keep_last.map(|keep| keep.max(1));
        Self { directory: directory.to_owned(), keep_last, state: Mutex::default() }
    }

    /// Where a part of an epoch's checkpoint is to be written; call [`done`](Self::done) when it is. Fails
    /// with [`ErrorKind::Busy`] while another process is saving in the directory.
    pub(crate) fn begin(&self, epoch: usize, part: Part) -> Result<PathBuf> {
        let mut state = self.lock();
        let saving = match &mut state.saving {
            Some(saving) => saving,
            none => none.insert(Saving::new(Directory::create(&self.directory)?)),
        };
        let begun = saving.begin(epoch);
        let begun = begun.map(|name| self.directory.join(name).join(part.file()));
        state.unlock_if_idle();
        begun
    }

    /// A part is written and synced; with the last one the checkpoint is committed. Where that fails, the
    /// directory stays locked, and the checkpoint can be saved again.
    pub(crate) fn done(&self, epoch: usize, part: Part) -> Result<()> {
        let mut state = self.lock();
        let State { saving: Some(saving), unwanted } = &mut *state else { return Ok(()) };
        let Some(pending) = saving.pending.get_mut(&epoch) else { return Ok(()) };
        pending.done.insert(part);
        if pending.done.len() < Part::ALL.len() {
            return Ok(());
        }
        let new = pending.whole(saving.directory.path(), epoch)?;
        let mut after = committed(saving.directory.path())?;
        after.retain(|old| old.epoch != epoch && !unwanted.contains(&old.epoch));
        after.push(new);
        if let Some(keep) = self.keep_last {
            after.drain(..after.len().saturating_sub(keep));
        }
        // The name of the parts' directory is on the disk before the manifest that needs it.
        saving.directory.sync()?;
        saving.write(&after)?;
        saving.pending.remove(&epoch);
        unwanted.clear();
        let cleaned = saving.clean(&after);
        state.unlock_if_idle();
        cleaned
    }

    /// Deletes an epoch's checkpoint, unless a number of checkpoints to keep is set. The newest one, and any
    /// while another process is saving, is deleted with the next commit.
    #[cfg(any(test, feature = "train"))]
    pub(crate) fn delete(&self, epoch: usize) -> Result<()> {
        if self.keep_last.is_some() || !self.epochs()?.contains(&epoch) {
            return Ok(());
        }
        let mut state = self.lock();
        let State { saving, unwanted } = &mut *state;
        let mut idle = None;
        let saving = match saving {
            Some(saving) => saving,
            None => match Directory::lock(&self.directory) {
                Ok(directory) => idle.insert(Saving::new(directory)),
                Err(error) if error.kind() == ErrorKind::Busy => {
                    unwanted.insert(epoch);
                    return Ok(());
                }
                Err(error) => return Err(error),
            },
        };
        let mut after = committed(&self.directory)?;
        if after.last().is_some_and(|newest| newest.epoch == epoch) {
            unwanted.insert(epoch);
            return Ok(());
        }
        after.retain(|old| old.epoch != epoch);
        saving.write(&after)?;
        saving.clean(&after)
    }

    /// The file of a part of a committed checkpoint.
    pub(crate) fn find(&self, epoch: usize, part: Part) -> Result<PathBuf> {
        let committed = committed(&self.directory)?;
        let Some(found) = committed.iter().find(|committed| committed.epoch == epoch) else {
            let known: Vec<_> = committed.iter().map(|committed| committed.epoch.to_string()).collect();
            let message = format!("there is no checkpoint of epoch {epoch}; there are: {}", known.join(", "));
            return Err(Error::new(ErrorKind::NotFound, message).in_file(&self.directory));
        };
        let file = self.directory.join(&found.directory).join(part.file());
        let bytes = length(&file)?;
        match found.bytes.get(&part) {
            Some(&committed) if committed == bytes => Ok(file),
            _ => {
                let message = "it does not have the length that was committed";
                Err(Error::new(ErrorKind::DataLength, message).in_file(&file))
            }
        }
    }

    /// The epochs of the checkpoints that count, in the order in which they were committed.
    pub(crate) fn epochs(&self) -> Result<Vec<usize>> {
        Ok(committed(&self.directory)?.iter().map(|committed| committed.epoch).collect())
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

impl Saving {
    fn new(directory: Directory) -> Self {
        Self { directory, pending: BTreeMap::new() }
    }

    /// The name of the directory for an epoch's checkpoint, which is created with the first part.
    fn begin(&mut self, epoch: usize) -> Result<String> {
        if let Some(pending) = self.pending.get(&epoch) {
            return Ok(pending.directory.clone());
        }
        // An epoch that is saved again leaves what was committed alone.
        let committed = committed(self.directory.path())?;
        let mut name = format!("epoch-{epoch:05}");
        let mut number = 1;
        while committed.iter().any(|other| other.directory == name) {
            number += 1;
            name = format!("epoch-{epoch:05}-{number}");
        }
        let path = self.directory.path().join(&name);
        // A process that died may have left it.
        remove(&path);
        fs::create_dir_all(&path).map_err(|error| Error::io("it cannot be created", error).in_file(&path))?;
        self.pending.insert(epoch, Pending { directory: name.clone(), done: BTreeSet::new() });
        Ok(name)
    }

    fn write(&self, committed: &[Committed]) -> Result<()> {
        self.directory.write(MANIFEST, text(committed).as_bytes())
    }

    /// Removes the directories of checkpoints that neither count nor are being written.
    fn clean(&self, committed: &[Committed]) -> Result<()> {
        let path = self.directory.path();
        let entries =
            fs::read_dir(path).map_err(|error| Error::io("it cannot be read", error).in_file(path))?;
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let number = name.strip_prefix("epoch-").unwrap_or_default();
            let ours = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
            let used = committed.iter().any(|committed| committed.directory == name)
                || self.pending.values().any(|pending| pending.directory == name);
            if ours && !used {
                remove(&entry.path());
            }
        }
        Ok(())
    }
}

impl Pending {
    /// The entry for the manifest, when all parts are written.
    fn whole(&self, directory: &Path, epoch: usize) -> Result<Committed> {
        let parts = directory.join(&self.directory);
        let bytes = Part::ALL.into_iter().map(|part| Ok((part, length(&parts.join(part.file()))?)));
        Ok(Committed { epoch, directory: self.directory.clone(), bytes: bytes.collect::<Result<_>>()? })
    }
}

/// What the manifest names; nothing if there is none.
fn committed(directory: &Path) -> Result<Vec<Committed>> {
    let file = directory.join(MANIFEST);
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("it cannot be read", error).in_file(&file)),
    };
    parse(&text).ok_or_else(|| {
        let message = "it is not a manifest of checkpoints that this version can read";
        Error::new(ErrorKind::Value, message).in_file(&file)
    })
}

fn length(file: &Path) -> Result<u64> {
    let metadata = fs::metadata(file);
    Ok(metadata.map_err(|error| Error::io("it cannot be read", error).in_file(file))?.len())
}

/// Removes what is written into the directory of a checkpoint, and the directory if nothing else is in it.
fn remove(directory: &Path) {
    for part in Part::ALL {
        let file = directory.join(part.file());
        OutputFile::sweep(&file);
        let _ = fs::remove_file(file);
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let file = entry.file_name();
        if Part::ALL.iter().any(|part| is_pack(&file.to_string_lossy(), &part.pack())) {
            let _ = fs::remove_file(entry.path());
        }
    }
    let _ = fs::remove_dir(directory);
}

impl Part {
    /// The name of Burn's own container of it, which is there while it is written.
    pub(crate) fn pack(self) -> String {
        self.file().replace(".safetensors", ".bpk")
    }
}

/// Whether a file is Burn's container, `model.bpk`, or a temporary file for it, `model.bpk.4711-0.tmp`.
fn is_pack(file: &str, pack: &str) -> bool {
    let Some(rest) = file.strip_prefix(pack) else { return false };
    let random = rest.strip_prefix('.').and_then(|rest| rest.strip_suffix(".tmp")).unwrap_or_default();
    rest.is_empty()
        || !random.is_empty() && random.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn text(committed: &[Committed]) -> String {
    let entry = |committed: &Committed| {
        let bytes: BTreeMap<_, _> =
            committed.bytes.iter().map(|(part, bytes)| (part.file(), bytes)).collect();
        json!({ "epoch": committed.epoch, "directory": committed.directory, "bytes": bytes })
    };
    let entries: Vec<_> = committed.iter().map(entry).collect();
    format!("{:#}\n", json!({ "version": 1, "checkpoints": entries }))
}

fn parse(text: &str) -> Option<Vec<Committed>> {
    let manifest: Value = serde_json::from_str(text).ok()?;
    if manifest.get("version")?.as_u64()? != 1 {
        return None;
    }
    let entry = |entry: &Value| {
        let directory = entry.get("directory")?.as_str()?.to_owned();
        // A name in the directory, whatever a manifest says.
        if directory.is_empty() || directory.starts_with('.') || directory.contains(['/', '\\', ':', '\0']) {
            return None;
        }
        let bytes = Part::ALL
            .iter()
            .map(|&part| Some((part, entry.get("bytes")?.get(part.file())?.as_u64()?)))
            .collect::<Option<_>>()?;
        Some(Committed { epoch: usize::try_from(entry.get("epoch")?.as_u64()?).ok()?, directory, bytes })
    };
    manifest.get("checkpoints")?.as_array()?.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save(epochs: &Epochs, epoch: usize) {
        for part in Part::ALL {
            fs::write(epochs.begin(epoch, part).unwrap(), format!("{part:?} {epoch}")).unwrap();
            epochs.done(epoch, part).unwrap();
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn an_epoch_counts_when_its_three_parts_are_there() {
        let directory = tempfile::tempdir().unwrap();
        let epochs = Epochs::new(directory.path(), None);
        save(&epochs, 1);
        for part in [Part::Scheduler, Part::Model] {
            fs::write(epochs.begin(2, part).unwrap(), "x").unwrap();
            epochs.done(2, part).unwrap();
            assert_eq!(epochs.epochs().unwrap(), [1]);
            assert_eq!(epochs.find(2, part).unwrap_err().kind(), ErrorKind::NotFound);
        }
        // The process stops here; the next one does not see it, and removes it.
        drop(epochs);
        let epochs = Epochs::new(directory.path(), Some(2));
        save(&epochs, 3);
        assert_eq!(names(directory.path()), ["checkpoints.json", "epoch-00001", "epoch-00003"]);
        save(&epochs, 4);
        assert_eq!(epochs.epochs().unwrap(), [3, 4]);
        assert_eq!(names(directory.path()), ["checkpoints.json", "epoch-00003", "epoch-00004"]);
        assert_eq!(fs::read_to_string(epochs.find(4, Part::Model).unwrap()).unwrap(), "Model 4");
    }

    #[test]
    fn a_deletion_waits_for_the_next_commit() {
        let directory = tempfile::tempdir().unwrap();
        let epochs = Epochs::new(directory.path(), None);
        save(&epochs, 1);
        epochs.begin(2, Part::Model).unwrap();
        epochs.delete(1).unwrap();
        assert_eq!(epochs.epochs().unwrap(), [1]);
        save(&epochs, 2);
        assert_eq!(epochs.epochs().unwrap(), [2]);
        save(&epochs, 3);
        epochs.delete(2).unwrap();
        epochs.delete(7).unwrap();
        assert_eq!(epochs.epochs().unwrap(), [3]);
        assert_eq!(names(directory.path()), ["checkpoints.json", "epoch-00003"]);
    }

    #[test]
    fn as_many_are_kept_as_was_said() {
        let directory = tempfile::tempdir().unwrap();
        let epochs = Epochs::new(directory.path(), Some(3));
        for epoch in 1..=5 {
            save(&epochs, epoch);
            epochs.delete(epoch.saturating_sub(1)).unwrap();
        }
        assert_eq!(epochs.epochs().unwrap(), [3, 4, 5]);
    }

    #[test]
    fn an_epoch_that_is_saved_again_leaves_the_old_one_until_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let epochs = Epochs::new(directory.path(), None);
        save(&epochs, 1);
        fs::write(epochs.begin(1, Part::Model).unwrap(), "half").unwrap();
        assert_eq!(fs::read_to_string(epochs.find(1, Part::Model).unwrap()).unwrap(), "Model 1");
        save(&epochs, 1);
        assert_eq!(names(directory.path()), ["checkpoints.json", "epoch-00001-2"]);
        assert_eq!(epochs.epochs().unwrap(), [1]);
    }

    #[cfg(unix)] // Elsewhere directories cannot be locked.
    #[test]
    fn one_saves_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("new");
        let [one, other] = [(); 2].map(|()| Epochs::new(&directory, None));
        save(&one, 1);
        save(&one, 2);
        fs::write(one.begin(3, Part::Model).unwrap(), "half").unwrap();
        let error = other.begin(4, Part::Model).unwrap_err();
        assert_eq!((error.kind(), error.file()), (ErrorKind::Busy, Some(&*directory)), "{error}");
        // Readers need not wait. A deletion does.
        assert_eq!(other.epochs().unwrap(), [1, 2]);
        other.delete(1).unwrap();
        assert_eq!(other.epochs().unwrap(), [1, 2]);

        save(&one, 3);
        assert_eq!(one.epochs().unwrap(), [1, 2, 3]);
        save(&other, 4);
        assert_eq!(one.epochs().unwrap(), [2, 3, 4]);
        let directories = ["checkpoints.json", "epoch-00002", "epoch-00003", "epoch-00004"];
        assert_eq!(names(&directory), directories);
        one.begin(5, Part::Model).unwrap();
        drop(one);
        save(&other, 6);
    }

    #[test]
    fn damage_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let epochs = Epochs::new(directory.path(), None);
        save(&epochs, 1);
        fs::write(epochs.find(1, Part::Model).unwrap(), "short").unwrap();
        assert_eq!(epochs.find(1, Part::Model).unwrap_err().kind(), ErrorKind::DataLength);
        let manifest = directory.path().join(MANIFEST);
        for bad in ["", "{}", "[]", r#"{"version":2,"checkpoints":[]}"#] {
            fs::write(&manifest, bad).unwrap();
            assert_eq!(epochs.epochs().unwrap_err().kind(), ErrorKind::Value);
        }
        let leaving = r#"{"version":1,"checkpoints":[{"epoch":1,"directory":"../x","bytes":{}}]}"#;
        fs::write(&manifest, leaving).unwrap();
        assert!(epochs.epochs().is_err());
    }

    #[test]
    fn what_is_not_ours_stays() {
        let directory = tempfile::tempdir().unwrap();
        let epochs = Epochs::new(directory.path(), Some(1));
        save(&epochs, 1);
        for mine in ["notes.txt", "ema_model.safetensors", "model.safetensors.best", ".model.safetensors.tmp"]
        {
            fs::write(directory.path().join("epoch-00001").join(mine), "mine").unwrap();
        }
        for left in [".model.safetensors.aB3xYz.tmp", "optimizer.bpk", "optimizer.bpk.4711-0.tmp"] {
            fs::write(directory.path().join("epoch-00001").join(left), "left").unwrap();
        }
        fs::create_dir(directory.path().join("epoch-best")).unwrap();
        save(&epochs, 2);
        assert_eq!(names(directory.path()), ["checkpoints.json", "epoch-00001", "epoch-00002", "epoch-best"]);
        assert_eq!(
            names(&directory.path().join("epoch-00001")),
            [".model.safetensors.tmp", "ema_model.safetensors", "model.safetensors.best", "notes.txt"]
        );
    }
}
