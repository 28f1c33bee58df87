//! Whether the files keep the rules of their formats.

use serde::Serialize;
use weighbridge::Checkpoint;
use weighbridge::header::Decode;
use weighbridge_convert::{Note, NoteKind};

use crate::open::Files;

/// What was found; lists are cut where nobody would read on.
#[derive(Default, Serialize)]
pub(crate) struct Checks {
    format: &'static str,
    /// What readers refuse.
    errors: List,
    /// What is not as it should be.
    warnings: List,
    /// What had to be changed or left out to show it.
    notes: List,
}

#[derive(Default, Serialize)]
struct List {
    count: usize,
    lines: Vec<String>,
}

/// Lines of a list.
const MOST: usize = 50;

impl Checks {
    /// Of a checkpoint that was opened: the rules hold, or it would not have been.
    pub(crate) fn of(checkpoint: &Checkpoint, format: &'static str) -> Self {
        Self { format, warnings: checkpoint.warnings().iter().cloned().collect(), ..Self::default() }
    }

    /// Of safetensors files one of which is broken.
    pub(crate) fn of_broken(files: &Files) -> Self {
        let diagnoses = files.safetensors().flat_map(|(name, source)| match Decode::new().diagnose(source) {
            Ok(diagnosis) => diagnosis.errors.into_iter().map(|error| error.in_file(name.as_ref())).collect(),
            Err(error) => vec![error.in_file(name.as_ref())],
        });
        Self {
            format: "safetensors",
            errors: diagnoses.map(|error| error.to_string()).collect(),
            ..Self::default()
        }
    }

    pub(crate) fn with_notes(self, notes: &[Note]) -> Self {
        let worth = notes.iter().filter(|note| note.kind() != NoteKind::Metadata);
        Self { notes: worth.map(ToString::to_string).collect(), ..self }
    }

    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl FromIterator<String> for List {
    fn from_iter<I: IntoIterator<Item = String>>(lines: I) -> Self {
        let mut list = Self::default();
        for line in lines {
            list.count += 1;
            if list.lines.len() < MOST {
                list.lines.push(line);
            }
        }
        list
    }
}
