//! What a session did.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::dtype::Dtype;
use crate::plan::Entry;
use crate::progress::Progress;

/// What a session has done so far: a handle that outlives it. Cloning gives another to the same.
#[derive(Clone, Debug)]
pub struct Report(Arc<Mutex<Tally>>);

#[derive(Debug)]
struct Tally {
    bytes_total: u64,
    bytes_done: u64,
    bytes_read: u64,
    bytes_taken: u64,
    bytes_needed: u64,
    /// Name, and how often it was taken.
    taken: BTreeMap<String, u64>,
    casts: BTreeMap<String, (Dtype, Dtype)>,
}

impl Report {
    pub(super) fn new(entries: &[Arc<Entry>]) -> Self {
        let tally = Tally {
            bytes_total: entries.iter().fold(0, |sum, entry| sum.saturating_add(entry.byte_len())),
            bytes_done: 0,
            bytes_read: 0,
            bytes_taken: 0,
            bytes_needed: 0,
            taken: entries.iter().map(|entry| (entry.name().to_owned(), 0)).collect(),
            casts: BTreeMap::new(),
        };
        Self(Arc::new(Mutex::new(tally)))
    }

    fn with<T>(&self, look: impl FnOnce(&mut Tally) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn note_read(&self, read: u64, made: u64) -> Progress {
        self.with(|tally| {
            tally.bytes_read += read;
            // What is read a second time is no further progress.
            tally.bytes_done = (tally.bytes_done.saturating_add(made)).min(tally.bytes_total);
            Progress { bytes_done: tally.bytes_done, bytes_total: tally.bytes_total }
        })
    }

    pub(super) fn note_taken(&self, entry: &Entry) {
        self.with(|tally| {
            tally.bytes_taken = tally.bytes_taken.saturating_add(entry.byte_len());
            tally.bytes_needed = tally.bytes_needed.saturating_add(entry.stored_byte_len());
            if let Some(times) = tally.taken.get_mut(entry.name()) {
                *times += 1;
            }
            match entry.inputs() {
                [input] if input.dtype() != entry.dtype() => {
                    tally.casts.insert(entry.name().to_owned(), (input.dtype(), entry.dtype()));
                }
                _ => {}
            }
        });
    }

    /// Bytes of the tensors that were taken, as they were taken.
    pub fn bytes_taken(&self) -> u64 {
        self.with(|tally| tally.bytes_taken)
    }

    /// Bytes of the stored values that the tensors which were taken are made of: what had to be read for them at the
    /// least.
    pub fn bytes_needed(&self) -> u64 {
        self.with(|tally| tally.bytes_needed)
    }

    /// Bytes that were read from files: those [needed](Self::bytes_needed), those that were read ahead and never
    /// taken, and gaps between the pieces of a part that were cheaper to read than to skip. What was lent was not
    /// read.
    pub fn bytes_read(&self) -> u64 {
        self.with(|tally| tally.bytes_read)
    }

    /// The number of tensors that were taken.
    pub fn loaded(&self) -> usize {
        self.with(|tally| tally.taken.values().filter(|&&times| times > 0).count())
    }

    /// The tensors that were never taken, in the order of their names.
    pub fn unused(&self) -> Vec<String> {
        let unused = |tally: &mut Tally| {
            let unused = tally.taken.iter().filter(|(_, times)| **times == 0);
            unused.map(|(name, _)| name.clone()).collect()
        };
        self.with(unused)
    }

    /// The tensors whose dtype was changed: name, stored dtype, dtype as taken.
    pub fn casts(&self) -> Vec<(String, Dtype, Dtype)> {
        self.with(|tally| tally.casts.iter().map(|(name, &(from, to))| (name.clone(), from, to)).collect())
    }
}
