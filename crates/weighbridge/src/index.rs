//! `*.safetensors.index.json`: which tensor lies in which shard.
//!
//! ```json
//! {
//!   "metadata": { "total_size": 4400193536 },
//!   "weight_map": {
//!     "lm_head.weight": "model-00002-of-00002.safetensors",
//!     "model.embed_tokens.weight": "model-00001-of-00002.safetensors"
//!   }
//! }
//! ```
//!
//! The form is that of `transformers` and `huggingface_hub`; shards lie in the directory of the index. Only
//! `weight_map` is needed; `metadata` is free-form.

#[cfg(feature = "fs")]
mod read;

use std::collections::HashMap;

use crate::error::{Error, ErrorKind, Result};
use crate::header::{Cursor, JsonError};

/// The index of a sharded checkpoint.
///
/// ```
/// use weighbridge::index::Index;
///
/// # fn main() -> weighbridge::Result<()> {
/// let index = Index::parse(r#"{"weight_map": {"b": "x.safetensors", "a": "y.safetensors"}}"#)?;
/// assert_eq!(index.weights().next(), Some(("a", "y.safetensors")));
/// assert_eq!(index.shards().collect::<Vec<_>>(), ["x.safetensors", "y.safetensors"]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Tensor, and the number of its shard; sorted.
    weights: Weights,
    /// Sorted, so that a shard's number is its place among the sorted names.
    shards: Vec<Box<str>>,
    total_size: Option<u64>,
}

impl Index {
    /// The greatest length of an index's text, in bytes: that of a header. The largest known index, Kimi-K2's,
    /// has 13.5 MB.
    pub const LIMIT: u64 = 100_000_000;

    /// An index of tensors, each with the name of its shard, and of the bytes of all their data.
    ///
    /// # Errors
    ///
    /// Fails when a tensor appears twice, and as [`parse`](Self::parse).
    pub fn new<T, S>(weights: impl IntoIterator<Item = (T, S)>, total_size: u64) -> Result<Self>
    where
        T: Into<Box<str>>,
        S: AsRef<str>,
    {
        let mut shards = Shards::default();
        let weights: Vec<_> = weights
            .into_iter()
            .map(|(tensor, shard)| (tensor.into(), shards.number(shard.as_ref())))
            .collect();
        let count = weights.len();
        let index = Self::sorted(weights, shards, Some(total_size))?;
        match index.weights.len() == count {
            true => Ok(index),
            false => Err(Error::new(ErrorKind::DuplicateTensor, "a tensor appears twice in the index")),
        }
    }

    /// Reads the text of an index. Where a key appears twice the last wins, as in Python and `serde_json`.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Index`] when the text is not JSON, has no `weight_map`, or lists nothing, and with
    /// [`ErrorKind::ShardName`] when a shard's name leads outside the directory, by the rules of Unix or of
    /// Windows. Links are not looked at: the Hugging Face cache consists of them.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() as u64 > Self::LIMIT {
            let message = format!("the index is longer than {} bytes", Self::LIMIT);
            return Err(Error::new(ErrorKind::Index, message));
        }
        let (weights, shards, total_size) = read(text).map_err(|error| {
            let message = format!("{} (byte {} of the index)", error.message, error.position);
            Error::new(ErrorKind::Index, message)
        })?;
        Self::sorted(weights, shards, total_size)
    }

    fn sorted(mut weights: Weights, shards: Shards, total_size: Option<u64>) -> Result<Self> {
        if weights.is_empty() {
            return Err(Error::new(ErrorKind::Index, "the index lists no tensors"));
        }
        // The sort is stable: of those with one name, the last one stays.
        weights.reverse();
        weights.sort_by(|a, b| a.0.cmp(&b.0));
        weights.dedup_by(|later, kept| later.0 == kept.0);
        let mut index = Self { weights, shards: Vec::new(), total_size };
        let mut used = vec![false; shards.0.len()];
        index.weights.iter().for_each(|weight| used[weight.1 as usize] = true);
        let mut named: Vec<_> = shards.0.into_iter().filter(|shard| used[shard.1 as usize]).collect();
        named.sort_unstable();
        let mut places = vec![0; used.len()];
        for (place, (name, number)) in (0..).zip(named) {
            if !stays_inside(&name) {
                let message = format!("the shard name {name:?} leads outside the directory of the index");
                return Err(Error::new(ErrorKind::ShardName, message));
            }
            places[number as usize] = place;
            index.shards.push(name);
        }
        index.weights.iter_mut().for_each(|weight| weight.1 = places[weight.1 as usize]);
        Ok(index)
    }

    /// The tensors in the order of their names, each with the name of its shard.
    pub fn weights(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.weights.iter().map(|(tensor, shard)| (&**tensor, &*self.shards[*shard as usize]))
    }

    /// The names of the shards, sorted.
    pub fn shards(&self) -> impl ExactSizeIterator<Item = &str> {
        self.shards.iter().map(|shard| &**shard)
    }

    /// `metadata.total_size`: the bytes of all tensors, where the index says so in a whole number.
    pub fn total_size(&self) -> Option<u64> {
        self.total_size
    }

    /// The text of the index as `transformers` writes it: two spaces of indentation, sorted, with a line end.
    pub fn to_json(&self) -> String {
        let weights: serde_json::Map<_, _> =
            self.weights().map(|(tensor, shard)| (tensor.to_owned(), shard.into())).collect();
        let mut metadata = serde_json::Map::new();
        metadata.extend(self.total_size.map(|size| ("total_size".to_owned(), size.into())));
        let index = serde_json::json!({"metadata": metadata, "weight_map": weights});
        format!("{index:#}\n")
    }

    /// Which of the [`shards`](Self::shards) holds a tensor.
    pub(crate) fn shard_of(&self, tensor: &str) -> Option<usize> {
        let found = self.weights.binary_search_by(|weight| (*weight.0).cmp(tensor)).ok()?;
        Some(self.weights[found].1 as usize)
    }

    pub(crate) fn shard_number(&self, shard: &str) -> Option<usize> {
        self.shards.binary_search_by(|other| (**other).cmp(shard)).ok()
    }
}

/// The names of shards, numbered as they come.
#[derive(Default)]
struct Shards(HashMap<Box<str>, u32>);

impl Shards {
    fn number(&mut self, name: &str) -> u32 {
        // One file under several names would be opened as often.
        if name.split('/').skip(1).any(str::is_empty) || name.split('/').any(|part| part == ".") {
            let (root, rest) = name.split_at(usize::from(name.starts_with('/')));
            let parts: Vec<_> = rest.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
            return self.number(&format!("{root}{}", parts.join("/")));
        }
        if let Some(number) = self.0.get(name) {
            return *number;
        }
        let number = self.0.len() as u32;
        self.0.insert(name.into(), number);
        number
    }
}

type Weights = Vec<(Box<str>, u32)>;

/// `{"metadata": {"total_size": 1, ...}, "weight_map": {"tensor": "shard", ...}}`
fn read(text: &str) -> std::result::Result<(Weights, Shards, Option<u64>), JsonError> {
    let mut cursor = Cursor::new(text);
    cursor.open(b'{', "the index is not a JSON object")?;
    let (mut map, mut total_size, mut first) = (None, None, true);
    while let Some(key) = cursor.key(first)? {
        first = false;
        match &*key.value() {
            "weight_map" => map = Some(weight_map(&mut cursor)?),
            "metadata" => total_size = metadata(&mut cursor)?,
            _ => cursor.skip()?,
        }
    }
    cursor.end()?;
    match map {
        Some((weights, shards)) => Ok((weights, shards, total_size)),
        None => cursor.fail("the index has no weight_map"),
    }
}

fn weight_map(cursor: &mut Cursor<'_>) -> std::result::Result<(Weights, Shards), JsonError> {
    cursor.open(b'{', "weight_map is not an object")?;
    let (mut weights, mut shards, mut first) = (Vec::new(), Shards::default(), true);
    while let Some(tensor) = cursor.key(first)? {
        first = false;
        let shard = cursor.string("a shard name is not a string")?;
        weights.push((tensor.value().into(), shards.number(&shard.value())));
    }
    Ok((weights, shards))
}

/// The total size; whatever else is in the metadata is nobody's business.
fn metadata(cursor: &mut Cursor<'_>) -> std::result::Result<Option<u64>, JsonError> {
    if cursor.peek() != Some(b'{') {
        cursor.skip()?;
        return Ok(None);
    }
    cursor.open(b'{', "")?;
    let (mut total_size, mut first) = (None, true);
    while let Some(key) = cursor.key(first)? {
        first = false;
        let start = cursor.clone();
        cursor.skip()?;
        if key.value() == "total_size" {
            total_size = start.clone().unsigned("").ok();
        }
    }
    Ok(total_size)
}

/// Whether a shard's name stays inside the directory, read by the rules of Unix and of Windows.
///
/// Links are not looked at: the Hugging Face cache consists of them.
pub fn stays_inside(name: &str) -> bool {
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
        assert_eq!(index.shards().collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!((index.shard_number("c"), index.total_size()), (Some(1), None));
    }

    #[test]
    fn the_last_of_a_name_wins_and_unused_shards_are_none() {
        let text =
            r#"{"weight_map":{"a":"../x"},"metadata":{"total_size":7},"weight_map":{"b":"x","b":"y"}}"#;
        let index = Index::parse(text).unwrap();
        assert_eq!(index.weights().collect::<Vec<_>>(), [("b", "y")]);
        assert_eq!(index.shards().collect::<Vec<_>>(), ["y"]);
        assert_eq!(index.total_size(), Some(7));
    }

    #[test]
    fn writes_what_it_reads() {
        let index = Index::new([("z", "b"), ("a\"é", "c"), ("m", "b")], 12).unwrap();
        let text = index.to_json();
        assert!(
            text.starts_with("{\n  \"metadata\": {\n    \"total_size\": 12\n  },\n  \"weight_map\": {\n"),
            "{text}"
        );
        assert_eq!(Index::parse(&text).unwrap(), index);
        let error = Index::new([("a", "b"), ("a", "c")], 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DuplicateTensor);
    }

    #[test]
    fn one_file_has_one_name() {
        let text = r#"{"weight_map":{"a":"x","b":"./x","c":".//./x","d":"s//x","e":"s/./x/"}}"#;
        let index = Index::parse(text).unwrap();
        assert_eq!(index.shards().collect::<Vec<_>>(), ["s/x", "x"]);
        for name in ["//x", "/./x", "./"] {
            let error = Index::parse(&text.replace(".//./x", name)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ShardName, "{name}");
        }
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
