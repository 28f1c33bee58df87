//! `*.safetensors.index.json`: which tensor lies in which shard.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::header::Cursor;
use crate::source::open_regular;

/// The largest known index, Kimi-K2's, has 13.5 MB.
const MOST_BYTES: u64 = 256 << 20;

/// The `weight_map` of an index; whatever else it holds is free-form and passed over.
#[derive(Debug)]
pub(super) struct Index {
    /// Tensor, and the number of its shard.
    weights: Vec<(String, usize)>,
    /// Sorted, so that a shard's number is its place among the sorted names.
    shards: Vec<String>,
}

impl Index {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let cannot = |error| Error::io("the index cannot be read", error);
        let mut text = String::new();
        open_regular(path)
            .and_then(|file| file.take(MOST_BYTES + 1).read_to_string(&mut text))
            .map_err(cannot)
            .and_then(|read| match read as u64 > MOST_BYTES {
                true => Err(Error::new(ErrorKind::Index, "the index is larger than 256 MiB")),
                false => Self::parse(&text),
            })
            .map_err(|error| error.in_file(path))
    }

    fn parse(text: &str) -> Result<Self> {
        let map = weight_map(text).map_err(|error| {
            let message = format!("{} (byte {} of the index)", error.message, error.position);
            Error::new(ErrorKind::Index, message)
        })?;
        let mut shards: BTreeMap<&str, usize> = map.values().map(|shard| (&**shard, 0)).collect();
        for (number, entry) in shards.values_mut().enumerate() {
            *entry = number;
        }
        if shards.is_empty() {
            return Err(Error::new(ErrorKind::Index, "the index lists no tensors"));
        }
        if let Some(shard) = shards.keys().find(|shard| !stays_inside(shard)) {
            let message = format!("the shard name {shard:?} leads outside the directory of the index");
            return Err(Error::new(ErrorKind::ShardName, message));
        }
        let weights = map.iter().map(|(tensor, shard)| (tensor.clone(), shards[&**shard])).collect();
        let shards = shards.into_keys().map(str::to_owned).collect();
        Ok(Self { weights, shards })
    }

    /// The tensors in the order of their names, each with the name of its shard.
    pub(super) fn weights(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.weights.iter().map(|(tensor, shard)| (&**tensor, &*self.shards[*shard]))
    }

    pub(super) fn shard_number(&self, shard: &str) -> Option<usize> {
        self.shards.binary_search_by(|other| (**other).cmp(shard)).ok()
    }

    /// Where the shards are, for an index at `path`.
    pub(super) fn shard_paths(&self, path: &Path) -> Result<Vec<PathBuf>> {
        let directory = path.parent().unwrap_or(Path::new(""));
        Ok(self.shards.iter().map(|shard| directory.join(shard)).collect())
    }
}

/// `{"metadata": {...}, "weight_map": {"tensor": "shard", ...}}`; where a key stands twice the last wins.
fn weight_map(text: &str) -> std::result::Result<BTreeMap<String, String>, crate::header::JsonError> {
    let mut cursor = Cursor::new(text);
    cursor.open(b'{', "the index is not a JSON object")?;
    let (mut map, mut first) = (None, true);
    while let Some(key) = cursor.key(first)? {
        first = false;
        if key.value() != "weight_map" {
            cursor.skip()?;
            continue;
        }
        cursor.open(b'{', "weight_map is not an object")?;
        let (mut weights, mut first) = (BTreeMap::new(), true);
        while let Some(tensor) = cursor.key(first)? {
            first = false;
            let shard = cursor.string("a shard name is not a string")?;
            weights.insert(tensor.value().into_owned(), shard.value().into_owned());
        }
        map = Some(weights);
    }
    cursor.end()?;
    match map {
        Some(map) => Ok(map),
        None => cursor.fail("the index has no weight_map"),
    }
}

/// Whether a shard's name stays inside the directory, read by the rules of Unix and of Windows.
///
/// Links are not looked at: the Hugging Face cache consists of them.
fn stays_inside(name: &str) -> bool {
    let plain = !name.is_empty() && !name.contains(['\\', ':', '\0']) && !name.starts_with('/');
    plain && name.split('/').all(|part| part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_numbered_by_name() {
        let text = r#"{"metadata":{"total_size":12.5},"weight_map":{"z":"b","a":"c","m":"b"},"x":[1]}"#;
        let index = Index::parse(text).unwrap();
        assert_eq!(index.weights().collect::<Vec<_>>(), [("a", "c"), ("m", "b"), ("z", "b")]);
        assert_eq!(index.shard_number("c"), Some(1));
        let paths = index.shard_paths(Path::new("d/i.json")).unwrap();
        assert_eq!(paths, [Path::new("d/b"), Path::new("d/c")]);
    }

    #[test]
    fn names_that_lead_outside_are_refused() {
        for name in ["../a", "a/../../b", "/etc/passwd", "..", "a\\..\\b", "C:x", "\\\\host\\x", "", "a\0b"] {
            let text = serde_json::json!({"weight_map": {"t": name}}).to_string();
            let error = Index::parse(&text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ShardName, "{name}");
        }
        for name in ["a.safetensors", "sub/a", "a..b", "./a", "..a"] {
            assert!(stays_inside(name), "{name}");
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for text in
            ["", "[]", "{}", r#"{"weight_map":[]}"#, r#"{"weight_map":{"a":1}}"#, r#"{"weight_map":{}}"#]
        {
            assert_eq!(Index::parse(text).unwrap_err().kind(), ErrorKind::Index, "{text}");
        }
    }
}
