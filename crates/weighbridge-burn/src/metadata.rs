//! What Burn knows about tensors and the format does not: entries of `__metadata__`.

use std::collections::BTreeMap;

use burn::tensor::DType;
use serde_json::{Map, Value, json};
use weighbridge::{Checkpoint, Error, ErrorKind, Result, Shard};

/// The ids of parameters: a JSON object from names to ids, which are strings of decimal digits, because
/// JSON's numbers are not exact above 2^53.
pub(crate) const IDS: &str = "weighbridge.burn.ids";

/// The quantised tensors: a JSON object from names to shapes and Burn's schemes. Their bytes are stored as
/// `U8` of one dimension.
pub(crate) const QUANTISED: &str = "weighbridge.burn.quantised";

/// A quantised tensor's shape and dtype.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Quantised {
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: DType,
}

/// Both entries, of all shards.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) ids: BTreeMap<String, u64>,
    pub(crate) quantised: BTreeMap<String, Quantised>,
}

impl Known {
    pub(crate) fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let mut known = Self::default();
        for (shard, prefix) in checkpoint.shards().iter().zip(checkpoint.prefixes()) {
            known.add(shard, prefix).map_err(|error| in_shard(error, shard))?;
        }
        Ok(known)
    }

    /// Adds the entries of a shard, whose names the checkpoint has behind a prefix.
    fn add(&mut self, shard: &Shard, prefix: &str) -> Result<()> {
        let entry = |key| object(shard.header().metadata_value(key), key);
        for (name, id) in entry(IDS)? {
            let id = id.as_str().and_then(|id| id.parse().ok()).ok_or_else(|| wrong(IDS, &name))?;
            self.ids.insert(format!("{prefix}{name}"), id);
        }
        for (name, value) in entry(QUANTISED)? {
            let quantised = quantised(&value).ok_or_else(|| wrong(QUANTISED, &name))?;
            self.quantised.insert(format!("{prefix}{name}"), quantised);
        }
        Ok(())
    }
}

/// The error with the name of the file, if it is in one.
pub(crate) fn in_shard(error: Error, shard: &Shard) -> Error {
    match shard.label() {
        Some(label) => error.in_file(label),
        None => error,
    }
}

/// An entry that is a JSON object; empty if there is none.
pub(crate) fn object(text: Option<&str>, key: &str) -> Result<Map<String, Value>> {
    let Some(text) = text else { return Ok(Map::new()) };
    serde_json::from_str(text).map_err(|error| {
        let message = format!("the metadata entry {key:?} is not the JSON object that was saved: {error}");
        Error::new(ErrorKind::Value, message)
    })
}

fn wrong(key: &str, name: &str) -> Error {
    Error::new(ErrorKind::Value, format!("the metadata entry {key:?} is wrong for {name:?}"))
}

fn quantised(value: &Value) -> Option<Quantised> {
    let shape = serde_json::from_value(value.get("shape")?.clone()).ok()?;
    let scheme = serde_json::from_value(value.get("scheme")?.clone()).ok()?;
    Some(Quantised { shape, dtype: DType::QFloat(scheme) })
}

/// The metadata entry for ids.
pub(crate) fn ids<'n>(ids: impl IntoIterator<Item = (&'n str, u64)>) -> String {
    let ids: BTreeMap<_, _> = ids.into_iter().map(|(name, id)| (name, id.to_string())).collect();
    json!(ids).to_string()
}

/// The metadata entry for quantised tensors.
pub(crate) fn quantised_entry(tensors: &BTreeMap<String, Quantised>) -> String {
    let entry = |quantised: &Quantised| match quantised.dtype {
        DType::QFloat(scheme) => json!({ "shape": quantised.shape, "scheme": scheme }),
        _ => Value::Null,
    };
    let entries: BTreeMap<_, _> = tensors.iter().map(|(name, quantised)| (name, entry(quantised))).collect();
    json!(entries).to_string()
}

#[cfg(test)]
mod tests {
    use weighbridge::write::{Save, Values};

    use super::*;

    #[test]
    fn names_in_metadata_are_those_of_the_file() -> Result<()> {
        let part = || {
            let save = Save::new().metadata(IDS, ids([("w", 7)]));
            Checkpoint::from_bytes(save.bytes([("w", Values::new(&[1], &[1.0_f32])?)])?)
        };
        let union = Checkpoint::union([("a.", part()?), ("b.", part()?)])?;
        let known = Known::of(&union)?.ids;
        assert_eq!(known.into_iter().collect::<Vec<_>>(), [("a.w".to_owned(), 7), ("b.w".to_owned(), 7)]);
        Ok(())
    }
}
