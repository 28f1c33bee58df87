//! The manifest: which checkpoints count.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::milestone::Milestone;
use super::place::{Place, Read};
use super::scalar::Scalars;
use crate::error::{Error, ErrorKind, Result};

pub(super) const MANIFEST: &str = "checkpoints.json";

/// What a manifest of version 1 has of each checkpoint, and nothing else.
const FIRST: [&str; 3] = ["model.safetensors", "optimizer.safetensors", "scheduler.safetensors"];

/// An entry of the manifest.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Committed {
    pub(super) milestone: Milestone,
    pub(super) directory: String,
    /// The bytes of each file, as a check that it is there as it was written.
    pub(super) bytes: BTreeMap<String, u64>,
    pub(super) scalars: Scalars,
}

/// A manifest that was read.
pub(super) struct Manifest<'p> {
    place: &'p dyn Place,
    pub(super) committed: Vec<Committed>,
    is_current: Box<dyn Fn() -> Result<bool> + 'p>,
}

impl<'p> Manifest<'p> {
    /// An empty one if there is none.
    pub(super) fn read(place: &'p dyn Place) -> Result<Self> {
        let Read { text, is_current } = place.manifest()?;
        Ok(Self { place, committed: parse(text.as_deref(), &place.path(MANIFEST))?, is_current })
    }

    /// What it has of a checkpoint.
    pub(super) fn find(&self, milestone: Milestone) -> Result<&Committed> {
        self.committed.iter().find(|committed| committed.milestone == milestone).ok_or_else(|| {
            let known: Vec<_> = self.committed.iter().map(|other| other.milestone.to_string()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join("; ") };
            let message = format!("there is no checkpoint of {milestone}; there are: {known}");
            Error::new(ErrorKind::NotFound, message).in_file(&self.place.root())
        })
    }

    /// Whether no other one was put in its place since it was read.
    pub(super) fn is_current(&self) -> Result<bool> {
        (self.is_current)()
    }
}

/// The text of a manifest: of version 1 where that has everything, so that an older version reads it.
pub(super) fn text(committed: &[Committed]) -> String {
    let version = if committed.iter().all(Committed::is_of_the_first_version) { 1 } else { 2 };
    let entries: Vec<_> = committed.iter().map(Committed::to_json).collect();
    format!("{:#}\n", json!({ "version": version, "checkpoints": entries }))
}

/// What a manifest names; nothing if there is none.
pub(super) fn parse(text: Option<&str>, path: &Path) -> Result<Vec<Committed>> {
    text.map_or(Some(Vec::new()), parsed).ok_or_else(|| {
        let message = "it is not a manifest of checkpoints that this version can read";
        Error::new(ErrorKind::Value, message).in_file(path)
    })
}

fn parsed(text: &str) -> Option<Vec<Committed>> {
    let manifest: Value = serde_json::from_str(text).ok()?;
    if !matches!(manifest.get("version")?.as_u64()?, 1 | 2) {
        return None;
    }
    manifest.get("checkpoints")?.as_array()?.iter().map(Committed::from_json).collect()
}

impl Committed {
    fn is_of_the_first_version(&self) -> bool {
        self.milestone.step_number().is_none() && self.scalars.is_empty() && self.bytes.keys().eq(FIRST)
    }

    fn to_json(&self) -> Value {
        let mut entry = Map::new();
        let mut put = |key: &str, value: Value| entry.insert(key.to_owned(), value);
        put("epoch", json!(self.milestone.epoch_number()));
        if let Some(step) = self.milestone.step_number() {
            put("step", json!(step));
        }
        put("directory", json!(self.directory));
        put("bytes", json!(self.bytes));
        if !self.scalars.is_empty() {
            let scalars = self.scalars.iter().map(|(name, scalar)| (name.clone(), json!(scalar.to_string())));
            put("scalars", Value::Object(scalars.collect()));
        }
        Value::Object(entry)
    }

    fn from_json(entry: &Value) -> Option<Self> {
        let directory = entry.get("directory")?.as_str()?.to_owned();
        let mut milestone = Milestone::epoch(usize::try_from(entry.get("epoch")?.as_u64()?).ok()?);
        if let Some(step) = entry.get("step") {
            milestone = milestone.step(step.as_u64()?);
        }
        let bytes: BTreeMap<_, _> = entry
            .get("bytes")?
            .as_object()?
            .iter()
            .map(|(file, bytes)| Some((file.clone(), bytes.as_u64()?)))
            .collect::<Option<_>>()?;
        // Names in the directory, whatever a manifest says.
        if !is_inside(&directory) || !bytes.keys().all(|file| is_inside(file)) || bytes.is_empty() {
            return None;
        }
        let none = Map::new();
        let scalars = entry.get("scalars").map_or(Some(&none), Value::as_object)?;
        let scalars = scalars.iter().map(|(name, text)| Some((name.clone(), text.as_str()?.parse().ok()?)));
        Some(Self { milestone, directory, bytes, scalars: scalars.collect::<Option<_>>()? })
    }
}

fn is_inside(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', ':', '\0'])
}
