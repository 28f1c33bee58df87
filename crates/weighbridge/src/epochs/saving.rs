//! Checkpoints that are being written.

use std::collections::{BTreeMap, BTreeSet};

use super::manifest::{Committed, text};
use super::milestone::Milestone;
use super::parts::Parts;
use super::place::Hold;
use super::scalar::Scalars;
use crate::error::Result;

/// The place, held for as long as a checkpoint is being written.
#[derive(Debug)]
pub(super) struct Saving {
    pub(super) hold: Box<dyn Hold>,
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
    pub(super) fn new(hold: Box<dyn Hold>) -> Self {
        Self { hold, pending: BTreeMap::new() }
    }

    /// The name of the directory for a checkpoint, which is made with the first part.
    pub(super) fn begin(&mut self, milestone: Milestone, parts: &Parts) -> Result<String> {
        if let Some(pending) = self.pending.get(&milestone) {
            return Ok(pending.directory.clone());
        }
        let name = self.hold.begin(milestone, parts)?;
        let pending = Pending { directory: name.clone(), done: BTreeSet::new(), scalars: Scalars::new() };
        self.pending.insert(milestone, pending);
        Ok(name)
    }

    /// Gives up a checkpoint. What the manifest names stays.
    pub(super) fn abandon(&mut self, milestone: Milestone, parts: &Parts) {
        if let Some(pending) = self.pending.remove(&milestone) {
            self.hold.give_up(&pending.directory, parts);
        }
    }

    /// The entry for the manifest of a checkpoint whose parts are all written.
    pub(super) fn whole(&self, milestone: Milestone, parts: &Parts) -> Result<Option<Committed>> {
        let Some(pending) = self.pending.get(&milestone) else { return Ok(None) };
        Ok(Some(Committed {
            milestone,
            directory: pending.directory.clone(),
            bytes: self.hold.lengths(&pending.directory, parts.files())?,
            scalars: pending.scalars.clone(),
        }))
    }

    pub(super) fn write(&mut self, committed: &[Committed]) -> Result<()> {
        self.hold.commit(&text(committed))
    }

    /// Removes the directories of checkpoints that neither count any more nor are being written.
    pub(super) fn clean(&self, before: &[Committed], after: &[Committed], parts: &Parts) -> Result<()> {
        let is_used = |name: &str| {
            after.iter().any(|committed| committed.directory == name)
                || self.pending.values().any(|pending| pending.directory == name)
        };
        self.hold.clean(&is_used, before, parts)
    }
}
