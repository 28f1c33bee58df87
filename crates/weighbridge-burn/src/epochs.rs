//! A directory of training checkpoints of three parts each, and its manifest.
//!
//! ```text
//! checkpoints.json              the manifest: which checkpoints count, in the order in which they were committed
//! epoch-00004/model.safetensors
//! epoch-00004/optimizer.safetensors
//! epoch-00004/scheduler.safetensors
//! ```
//!
//! A checkpoint counts from the moment the manifest that names it is renamed to its place, which happens when its three
//! parts are written and synced. So whenever the process or the machine stops, the manifest names whole checkpoints only.
//! What it does not name is removed with the next commit.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use weighbridge::write::OutputFile;
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
    /// Being written.
    pending: BTreeMap<usize, Pending>,
    /// To be deleted when another one is committed.
    unwanted: BTreeSet<usize>,
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

    /// Where a part of an epoch's checkpoint is to be written; tell when it is [done](Self::done).
    pub(crate) fn begin(&self, epoch: usize, part: Part) -> Result<PathBuf> {
        let mut state = self.lock();
        let name = match state.pending.entry(epoch) {
            Entry::Occupied(pending) => pending.get().directory.clone(),
            Entry::Vacant(place) => {
                let directory = self.make(epoch)?;
                place.insert(Pending { directory, done: BTreeSet::new() }).directory.clone()
            }
        };
        Ok(self.directory.join(name).join(part.file()))
    }

    /// Makes a directory for a checkpoint; an epoch that is saved once more does not touch what is there of it.
    fn make(&self, epoch: usize) -> Result<String> {
        let committed = self.committed()?;
        let mut name = format!("epoch-{epoch:05}");
        let mut number = 1;
        while committed.iter().any(|other| other.directory == name) {
            number += 1;
            name = format!("epoch-{epoch:05}-{number}");
        }
        // What a process that died left there.
        self.remove(&name)?;
        let directory = self.directory.join(&name);
        fs::create_dir_all(&directory).map_err(|error| io(&directory, error))?;
        Ok(name)
    }

    /// A part is written and synced; with the last one the checkpoint is committed.
    pub(crate) fn done(&self, epoch: usize, part: Part) -> Result<()> {
        let mut state = self.lock();
        let Some(pending) = state.pending.get_mut(&epoch) else { return Ok(()) };
        pending.done.insert(part);
        if pending.done.len() < Part::ALL.len() {
            return Ok(());
        }
        let directory = pending.directory.clone();
        let mut bytes = BTreeMap::new();
        for part in Part::ALL {
            let file = self.directory.join(&directory).join(part.file());
            bytes.insert(part, fs::metadata(&file).map_err(|error| io(&file, error))?.len());
        }
        self.commit(&mut state, Committed { epoch, directory, bytes })
    }

    fn commit(&self, state: &mut State, new: Committed) -> Result<()> {
        let before = self.committed()?;
        let epoch = new.epoch;
        let mut after: Vec<_> = before
            .iter()
            .filter(|old| old.epoch != epoch && !state.unwanted.contains(&old.epoch))
            .cloned()
            .collect();
        after.push(new);
        if let Some(keep) = self.keep_last {
            after.drain(..after.len().saturating_sub(keep));
        }
        // The names of the parts' directory are on the disk before the manifest that needs them.
        sync(&self.directory)?;
        self.write(&after)?;
        state.pending.remove(&epoch);
        state.unwanted.clear();
        self.clean(state, &after)
    }

    /// Has an epoch's checkpoint deleted, when another one was committed after it, unless it is said how many are kept.
    #[cfg(any(test, feature = "train"))]
    pub(crate) fn delete(&self, epoch: usize) -> Result<()> {
        if self.keep_last.is_some() {
            return Ok(());
        }
        let mut state = self.lock();
        let committed = self.committed()?;
        let Some(at) = committed.iter().position(|old| old.epoch == epoch) else { return Ok(()) };
        if at + 1 == committed.len() {
            state.unwanted.insert(epoch);
            return Ok(());
        }
        let after: Vec<_> = committed.into_iter().filter(|old| old.epoch != epoch).collect();
        self.write(&after)?;
        self.clean(&state, &after)
    }

    /// The file of a part of a committed checkpoint.
    pub(crate) fn find(&self, epoch: usize, part: Part) -> Result<PathBuf> {
        let committed = self.committed()?;
        let Some(found) = committed.iter().find(|committed| committed.epoch == epoch) else {
            let known: Vec<_> = committed.iter().map(|committed| committed.epoch.to_string()).collect();
            let message = format!("there is no checkpoint of epoch {epoch}; there are: {}", known.join(", "));
            return Err(Error::new(ErrorKind::NotFound, message).in_file(&self.directory));
        };
        let file = self.directory.join(&found.directory).join(part.file());
        let bytes = fs::metadata(&file).map_err(|error| io(&file, error))?.len();
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
        Ok(self.committed()?.iter().map(|committed| committed.epoch).collect())
    }

    fn committed(&self) -> Result<Vec<Committed>> {
        let file = self.directory.join(MANIFEST);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io(&file, error)),
        };
        parse(&text).ok_or_else(|| {
            let message = "it is no manifest of checkpoints";
            Error::new(ErrorKind::Value, message).in_file(&file)
        })
    }

    fn write(&self, committed: &[Committed]) -> Result<()> {
        let file = self.directory.join(MANIFEST);
        let mut output = OutputFile::atomic(&file)?;
        output.write_all(text(committed).as_bytes()).map_err(|error| io(&file, error))?;
        output.commit()
    }

    /// Removes the directories of checkpoints that neither count nor are being written.
    fn clean(&self, state: &State, committed: &[Committed]) -> Result<()> {
        let entries = fs::read_dir(&self.directory).map_err(|error| io(&self.directory, error))?;
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let number = name.strip_prefix("epoch-").unwrap_or_default();
            let ours = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
            let used = committed.iter().any(|committed| committed.directory == name)
                || state.pending.values().any(|pending| pending.directory == name);
            if ours && !used {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Removes what we write into a checkpoint's directory, and the directory if nothing else is in it.
    fn remove(&self, name: &str) -> Result<()> {
        let directory = self.directory.join(name);
        let Ok(entries) = fs::read_dir(&directory) else { return Ok(()) };
        for entry in entries.flatten() {
            let file = entry.file_name();
            let file = file.to_string_lossy();
            if Part::ALL.iter().any(|part| is_of(&file, part.file()) || is_of(&file, &part.pack())) {
                let _ = fs::remove_file(entry.path());
            }
        }
        let _ = fs::remove_dir(&directory);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Part {
    /// The name of Burn's own container of it, which is there while it is written.
    pub(crate) fn pack(self) -> String {
        self.file().replace(".safetensors", ".bpk")
    }
}

/// Whether a file is that one or a temporary one for it: `.model.safetensors.aB3xYz.tmp` of ours,
/// `model.bpk.4711-0.tmp` of Burn's.
fn is_of(file: &str, name: &str) -> bool {
    let random = || {
        let file = file.strip_suffix(".tmp")?;
        file.strip_prefix('.').unwrap_or(file).strip_prefix(name)?.strip_prefix('.')
    };
    let is_random =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    file == name || random().is_some_and(is_random)
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

fn sync(directory: &Path) -> Result<()> {
    // Where directories cannot be opened, renaming syncs them.
    match cfg!(unix) {
        true => File::open(directory).and_then(|file| file.sync_all()).map_err(|error| io(directory, error)),
        false => Ok(()),
    }
}

pub(crate) fn io(path: &Path, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => ErrorKind::NotFound,
        _ => ErrorKind::Io,
    };
    Error::new(kind, error.to_string()).with_source(error).in_file(path)
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
