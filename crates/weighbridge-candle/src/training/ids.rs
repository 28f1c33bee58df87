//! The ids by which Burn's optimizers know parameters.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use weighbridge::epochs::Epochs;
use weighbridge::{Checkpoint, Error, ErrorKind, Result};

use super::record::IDS;

/// The ids of parameters by their names in a file.
#[derive(Debug, Default)]
pub(super) struct Ids(BTreeMap<String, u64>);

impl Ids {
    /// An id for each name: the one that it has in the newest checkpoint, or one that is made of the name, so
    /// that the same run gives the same files.
    pub(super) fn new<'n>(names: impl Iterator<Item = &'n str>, epochs: &Epochs) -> Self {
        let known = known(epochs).unwrap_or_default();
        let mut taken: BTreeSet<u64> = known.values().copied().collect();
        let names: BTreeSet<_> = names.collect();
        let id = |name: &str| {
            known.get(name).copied().unwrap_or_else(|| {
                let mut id = hash(name);
                while !taken.insert(id) {
                    id = id.wrapping_add(1);
                }
                id
            })
        };
        let mut id = id;
        Self(names.into_iter().map(|name| (name.to_owned(), id(name))).collect())
    }

    /// The metadata entry for some of the names.
    pub(super) fn entry(&self, is_wanted: impl Fn(&str) -> bool) -> String {
        let wanted = self.0.iter().filter(|(name, _)| is_wanted(name));
        let ids: Map<String, Value> =
            wanted.map(|(name, id)| (name.clone(), Value::String(id.to_string()))).collect();
        Value::Object(ids).to_string()
    }
}

/// The ids in the newest checkpoint, if it has any.
fn known(epochs: &Epochs) -> Option<BTreeMap<String, u64>> {
    let newest = epochs.open_latest().ok()??;
    let ids = object(newest.part("model").ok()?, IDS).ok()?.into_iter();
    ids.map(|(name, id)| Some((name, id.as_str()?.parse().ok()?))).collect()
}

/// An entry of the metadata that is a JSON object; empty if there is none.
pub(super) fn object(ckpt: &Checkpoint, key: &str) -> Result<Map<String, Value>> {
    let text = ckpt.shards().first().and_then(|shard| shard.header().metadata_value(key));
    let Some(text) = text else { return Ok(Map::new()) };
    serde_json::from_str(text).map_err(|error| {
        let message = format!("the metadata entry {key:?} is not the JSON object that was saved: {error}");
        Error::new(ErrorKind::Value, message)
    })
}

/// FNV-1a.
fn hash(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
