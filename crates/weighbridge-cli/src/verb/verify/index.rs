//! An index read for what is wrong with it: every entry, those of files outside and duplicates included.

use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use weighbridge::index::Index;
use weighbridge::{Error, ErrorKind};

/// `{"metadata": {...}, "weight_map": {...}}`
#[derive(Debug, Deserialize)]
pub(super) struct Listed {
    #[serde(default)]
    metadata: Option<Metadata>,
    pub(super) weight_map: Pairs,
}

/// What matters of it; anything may stand there.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Metadata {
    Object {
        total_size: serde_json::Number,
    },
    #[allow(dead_code, reason = "serde wants a place for what is passed over")]
    Other(IgnoredAny),
}

/// Tensors and their shards, in the order of the text, as often as they stand there.
#[derive(Debug)]
pub(in crate::verb) struct Pairs(pub(in crate::verb) Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

impl Listed {
    pub(super) fn read(path: &Path) -> weighbridge::Result<Self> {
        let fail = |kind, message: String| Error::new(kind, message).in_file(path);
        let mut text = String::new();
        let file = std::fs::metadata(path).and_then(|data| match data.is_file() {
            true => std::fs::File::open(path),
            false => Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a regular file")),
        });
        let file = file.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                fail(ErrorKind::NotFound, format!("the index cannot be read: {error}"))
            }
            _ => fail(ErrorKind::Io, format!("the index cannot be read: {error}")),
        })?;
        let read = file.take(Index::LIMIT + 1).read_to_string(&mut text);
        read.map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => fail(ErrorKind::Index, "the index is not UTF-8".to_owned()),
            _ => fail(ErrorKind::Io, format!("the index cannot be read: {error}")),
        })?;
        if text.len() as u64 > Index::LIMIT {
            return Err(fail(ErrorKind::Index, format!("the index is longer than {} bytes", Index::LIMIT)));
        }
        serde_json::from_str(&text)
            .map_err(|error| fail(ErrorKind::Index, format!("it is not an index: {error}")))
    }

    /// `metadata.total_size`, where it is a number.
    pub(super) fn total_size(&self) -> Option<&serde_json::Number> {
        match self.metadata.as_ref()? {
            Metadata::Object { total_size } => Some(total_size),
            Metadata::Other(_) => None,
        }
    }
}
