//! Checkpoints that are being written, and what is left of others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::manifest::{Committed, MANIFEST, committed, text};
use super::milestone::Milestone;
use super::scalar::Scalars;
use crate::error::{Error, ErrorKind, Result};
use crate::file_names;
use crate::write::{Directory, OutputFile};

/// Parts that any run may have: a dead one's are removed by one that has others.
const USUAL: [&str; 4] = ["model", "optimizer", "scheduler", "ema"];

/// The parts that each checkpoint has.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) names: BTreeSet<String>,
    /// The extension of the files that are there while parts are written.
    pub(super) scratch: Option<String>,
}

impl Parts {
    pub(super) fn new(names: impl Iterator<Item = String>) -> Self {
        Self { names: names.collect(), scratch: None }
    }

    pub(super) fn file_name(part: &str) -> String {
        format!("{part}.safetensors")
    }

    /// The file of one of the parts.
    pub(super) fn file(&self, part: &str) -> Result<String> {
        let fail = |why: &str| Err(Error::new(ErrorKind::Value, format!("{part:?} {why}")));
        if !self.names.contains(part) {
            return fail("is none of the parts that these checkpoints have");
        }
        let file = Self::file_name(part);
        if !file_names::is_plain(&file) || part.starts_with('.') {
            return fail("is no name for a part: it would not be a plain file name");
        }
        Ok(file)
    }

    /// Removes what is written into the directory of a checkpoint, and the directory if nothing else is in
    /// it. `committed` are the files that a manifest had of it.
    fn remove<'f>(&self, directory: &Path, committed: impl IntoIterator<Item = &'f String>) {
        let named = USUAL.into_iter().chain(self.names.iter().map(String::as_str));
        let mut files: BTreeSet<_> = named.map(Self::file_name).collect();
        files.extend(committed.into_iter().cloned());
        for file in &files {
            let file = directory.join(file);
            OutputFile::sweep(&file);
            let _ = fs::remove_file(file);
        }
        if let Some(extension) = &self.scratch {
            let scratch: Vec<_> = files.iter().map(|file| file.replace("safetensors", extension)).collect();
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let file = entry.file_name();
                if scratch.iter().any(|scratch| is_scratch(&file.to_string_lossy(), scratch)) {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
        let _ = fs::remove_dir(directory);
    }
}

/// Whether a file is `model.bpk`, or a temporary file for it, `model.bpk.4711-0.tmp`.
fn is_scratch(file: &str, scratch: &str) -> bool {
    let Some(rest) = file.strip_prefix(scratch) else { return false };
    let random = rest.strip_prefix('.').and_then(|rest| rest.strip_suffix(".tmp")).unwrap_or_default();
    rest.is_empty()
        || !random.is_empty() && random.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// The directory, locked for as long as a checkpoint is being written.
#[derive(Debug)]
pub(super) struct Saving {
    pub(super) directory: Directory,
    /// Being written.
    pub(super) pending: BTreeMap<Milestone, Pending>,
}

#[derive(Debug)]
pub(super) struct Pending {
    pub(super) directory: String,
    pub(super) done: BTreeSet<String>,
    pub(super) scalars: Scalars,
}

impl Saving {
    pub(super) fn new(directory: Directory) -> Self {
        Self { directory, pending: BTreeMap::new() }
    }

    /// The name of the directory for a checkpoint, which is created with the first part.
    pub(super) fn begin(&mut self, milestone: Milestone, parts: &Parts) -> Result<String> {
        if let Some(pending) = self.pending.get(&milestone) {
            return Ok(pending.directory.clone());
        }
        // One that is saved again leaves what was committed alone.
        let committed = committed(self.directory.path())?;
        let mut name = milestone.directory();
        let mut number = 1;
        while committed.iter().any(|other| other.directory == name) {
            number += 1;
            name = format!("{}-{number}", milestone.directory());
        }
        let path = self.directory.path().join(&name);
        // A process that died may have left it.
        parts.remove(&path, []);
        fs::create_dir_all(&path).map_err(|error| Error::io("it cannot be created", error).in_file(&path))?;
        let pending = Pending { directory: name.clone(), done: BTreeSet::new(), scalars: Scalars::new() };
        self.pending.insert(milestone, pending);
        Ok(name)
    }

    /// Gives up a checkpoint. What the manifest names stays, and all of it if that cannot be read: a commit may fail when the
    /// new manifest is in its place already.
    pub(super) fn abandon(&mut self, milestone: Milestone, parts: &Parts) {
        let Some(pending) = self.pending.remove(&milestone) else { return };
        let names = |committed: &Committed| committed.directory == pending.directory;
        if committed(self.directory.path()).is_ok_and(|committed| !committed.iter().any(names)) {
            parts.remove(&self.directory.path().join(pending.directory), []);
        }
    }

    pub(super) fn write(&self, committed: &[Committed]) -> Result<()> {
        self.directory.write(MANIFEST, text(committed).as_bytes())
    }

    /// Removes the directories of checkpoints that neither count any more nor are being written.
    pub(super) fn clean(&self, before: &[Committed], after: &[Committed], parts: &Parts) -> Result<()> {
        let path = self.directory.path();
        let entries =
            fs::read_dir(path).map_err(|error| Error::io("it cannot be read", error).in_file(path))?;
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let used = after.iter().any(|committed| committed.directory == name)
                || self.pending.values().any(|pending| pending.directory == name);
            if Milestone::is_directory(&name) && !used {
                let was = before.iter().find(|committed| committed.directory == name);
                parts.remove(&entry.path(), was.iter().flat_map(|was| was.bytes.keys()));
            }
        }
        Ok(())
    }
}

impl Pending {
    /// The entry for the manifest, when all parts are written.
    pub(super) fn whole(&self, directory: &Path, milestone: Milestone, parts: &Parts) -> Result<Committed> {
        let place = directory.join(&self.directory);
        let bytes = parts.names.iter().map(|part| {
            let file = Parts::file_name(part);
            let bytes = length(&place.join(&file))?;
            Ok((file, bytes))
        });
        Ok(Committed {
            milestone,
            directory: self.directory.clone(),
            bytes: bytes.collect::<Result<_>>()?,
            scalars: self.scalars.clone(),
        })
    }
}

/// Fails unless a file has the length that was committed.
pub(super) fn check_length(file: &Path, committed: u64) -> Result<()> {
    if length(file)? == committed {
        return Ok(());
    }
    let message = "it does not have the length that was committed";
    Err(Error::new(ErrorKind::DataLength, message).in_file(file))
}

fn length(file: &Path) -> Result<u64> {
    let metadata = fs::metadata(file);
    Ok(metadata.map_err(|error| Error::io("it cannot be read", error).in_file(file))?.len())
}
