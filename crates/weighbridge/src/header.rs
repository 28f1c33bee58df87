//! The header of a file: what is in it, proven to be right.
//!
//! ```text
//!  0          8                        8+n                                              size
//!  ├──────────┼─────────────────────────┼───────────────────────────────────────────────────┤
//!  │ n, u64 LE│ JSON, n bytes of UTF-8  │ data of the tensors, back to back, no holes       │
//!  └──────────┴─────────────────────────┴───────────────────────────────────────────────────┘
//! ```
//!
//! The rules are in [`format`](mod@crate::format), each with its source. A header is decoded under one of two
//! [profiles](Profile), in memory of at most four times its text, whatever it holds.
//!
//! [`HeaderDecoder`] takes bytes and says which ones it wants, `parse` reads the JSON,
//! this file holds the result and checks the rules that bind tensors together.

mod decode;
mod dims;
mod disguise;
mod json;
mod parse;
mod rules;

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

use hashbrown::HashTable;

#[cfg(all(feature = "fs", target_os = "linux"))]
pub(crate) use decode::FIRST_READ;
pub use decode::{Decode, Diagnosis, HeaderDecoder};
pub use disguise::disguise;
pub(crate) use json::{Cursor, JsonError};
pub(crate) use parse::MOST_IN_SCHEMA;
pub use rules::{Finding, Profile};

use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
pub use crate::rule::Rule;
use crate::text::{brief, start_of};
use parse::{Parsed, Record};

/// A decoded header: every tensor's name, dtype, shape and place.
///
/// The rules of the format hold for it: the data of the tensors covers everything behind the header without
/// holes or overlaps, and every tensor's dtype and shape need exactly the bytes that it has.
#[derive(Debug)]
pub struct Header {
    parsed: Parsed,
    /// Places in `parsed.records`, by name.
    by_name: HashTable<u32>,
    hasher: RandomState,
    /// Where the data starts in the file: 8 and the length of the JSON.
    data_start: u64,
}

impl Header {
    /// Sorts, indexes and checks what the JSON said.
    fn prove(parsed: Parsed, data_start: u64, file_size: Option<u64>) -> Result<Self> {
        let header = Self::sorted(parsed, data_start)?;
        header.check(file_size, &mut Err)?;
        Ok(header)
    }

    /// Sorts and indexes; whether tensors fit together is not known yet.
    fn sorted(mut parsed: Parsed, data_start: u64) -> Result<Self> {
        let key = |r: &Record| (r.begin, r.end, r.position);
        if !parsed.records.is_sorted_by_key(key) {
            parsed.records.sort_unstable_by_key(key);
        }
        let mut header = Self { parsed, by_name: HashTable::new(), hasher: RandomState::new(), data_start };
        header.index()?;
        Ok(header)
    }

    /// Builds the index by name. Where a name appears twice the last in the text wins, as in `serde_json`.
    fn index(&mut self) -> Result<()> {
        let mut superseded = self.insert_names();
        if superseded.is_empty() {
            return Ok(());
        }
        for &place in &superseded {
            let record = &self.parsed.records[place as usize];
            let (position, name) =
                (record.position as usize, start_of(self.parsed.text(record.name)).to_owned());
            self.parsed.findings.note(Rule::DuplicateTensor, position, || Some(name.into()))?;
        }
        superseded.sort_unstable();
        let mut place = 0;
        self.parsed.records.retain(|_| {
            place += 1;
            superseded.binary_search(&(place - 1)).is_err()
        });
        self.insert_names();
        Ok(())
    }

    /// Fills the index; returns the places of records that a later one of the same name supersedes.
    fn insert_names(&mut self) -> Vec<u32> {
        let (parsed, hasher) = (&self.parsed, &self.hasher);
        let records = &parsed.records;
        let name = |place: u32| parsed.text(records[place as usize].name);
        let hash = |place: &u32| hasher.hash_one(name(*place));
        let mut superseded = Vec::new();
        self.by_name = HashTable::with_capacity(records.len());
        for place in 0..u32::try_from(records.len()).unwrap_or(u32::MAX) {
            let same = |other: &u32| name(*other) == name(place);
            match self.by_name.entry(hash(&place), same, hash) {
                hashbrown::hash_table::Entry::Vacant(slot) => {
                    slot.insert(place);
                }
                hashbrown::hash_table::Entry::Occupied(mut slot) => {
                    let first = *slot.get();
                    if records[first as usize].position < records[place as usize].position {
                        superseded.push(first);
                        *slot.get_mut() = place;
                    } else {
                        superseded.push(place);
                    }
                }
            }
        }
        superseded
    }

    /// The rules over all tensors, in the order in which the official crate applies them. What breaks one is given to
    /// `blame`, which may end the check.
    fn check(&self, file_size: Option<u64>, blame: &mut dyn FnMut(Error) -> Result<()>) -> Result<()> {
        let mut end = 0;
        for tensor in self.tensors() {
            let Record { begin, end: its_end, .. } = *tensor.record;
            let mut fail = |kind, message: String| blame(Error::new(kind, message).in_tensor(tensor.name()));
            if begin != end || its_end < begin {
                let what = match begin {
                    _ if its_end < begin => "its data ends before it starts",
                    b if b < end => "its data overlaps the data before it",
                    _ => "there is a hole before its data",
                };
                let offsets = format!("data_offsets [{begin}, {its_end}], expected to start at {end}");
                fail(ErrorKind::Offsets, format!("{what}: {offsets}"))?;
                if its_end < begin {
                    continue;
                }
            }
            end = end.max(its_end);
            let (dtype, shape) = (tensor.dtype(), tensor.shape());
            let needs = match dtype.size_of(shape) {
                Ok(needs) => needs,
                Err(error) => {
                    blame(error.in_tensor(tensor.name()))?;
                    continue;
                }
            };
            let gives = its_end - begin;
            if needs != gives {
                let shape = brief(shape);
                let message =
                    format!("shape {shape} of {dtype} needs {needs} bytes, the header gives {gives}");
                fail(ErrorKind::TensorSize, message)?;
            }
        }
        let expected = self.data_start.checked_add(end);
        // Without a size, too, places in the file must be numbers.
        let Some(size) = file_size.or_else(|| expected.is_none().then_some(u64::MAX)) else {
            return Ok(());
        };
        if expected == Some(size) {
            return Ok(());
        }
        let described = expected.map_or_else(|| "more than 2^64".to_owned(), |e| e.to_string());
        let state = if expected.is_some_and(|e| e < size) { "has bytes left over" } else { "is cut short" };
        let message =
            format!("the file {state}: the header describes {described} bytes, the file has {size}");
        blame(Error::new(ErrorKind::DataLength, message))
    }

    fn name_at(&self, place: u32) -> &str {
        self.parsed.text(self.parsed.records[place as usize].name)
    }

    /// The tensors, in the order of their data.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorInfo<'_>> + DoubleEndedIterator {
        self.parsed.records.iter().map(|record| TensorInfo { header: self, record })
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<TensorInfo<'_>> {
        self.place(name).and_then(|place| self.at(place))
    }

    /// Where in the order of the data a tensor stands.
    pub(crate) fn place(&self, name: &str) -> Option<usize> {
        self.by_name
            .find(self.hasher.hash_one(name), |&place| self.name_at(place) == name)
            .map(|&place| place as usize)
    }

    pub(crate) fn at(&self, place: usize) -> Option<TensorInfo<'_>> {
        let record = self.parsed.records.get(place)?;
        Some(TensorInfo { header: self, record })
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.parsed.records.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.parsed.records.is_empty()
    }

    /// The entries of `__metadata__`, or `None` where it is absent or `null`. Order as in the file.
    pub fn metadata(&self) -> Option<impl ExactSizeIterator<Item = (&str, &str)>> {
        let entries = self.parsed.metadata.as_ref()?;
        Some(entries.iter().map(|&(key, value)| (self.parsed.text(key), self.parsed.text(value))))
    }

    /// The value of one metadata entry.
    pub fn metadata_value(&self, key: &str) -> Option<&str> {
        self.metadata()?.find(|entry| entry.0 == key).map(|entry| entry.1)
    }

    /// The byte of the file at which the data starts.
    pub fn data_start(&self) -> u64 {
        self.data_start
    }

    /// The bytes of data behind the header.
    pub fn data_len(&self) -> u64 {
        self.parsed.records.last().map_or(0, |record| record.end)
    }

    /// Where the header departs from the specification. Always empty under [`Profile::Strict`], which makes
    /// the first of them an error; at most 64 are kept.
    pub fn findings(&self) -> &[Finding] {
        self.parsed.findings.as_slice()
    }
}

/// One tensor of a header.
#[derive(Clone, Copy)]
pub struct TensorInfo<'a> {
    header: &'a Header,
    record: &'a Record,
}

impl<'a> TensorInfo<'a> {
    /// The name.
    pub fn name(&self) -> &'a str {
        self.header.parsed.text(self.record.name)
    }

    /// The type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.record.dtype
    }

    /// The size of each dimension, in elements; empty for a scalar.
    pub fn shape(&self) -> &'a [usize] {
        self.header.parsed.dims(self.record)
    }

    /// The number of elements.
    pub fn elements(&self) -> u64 {
        // Proven not to overflow when the header was decoded.
        self.shape().iter().map(|&dim| dim as u64).product()
    }

    /// The number of bytes.
    pub fn byte_len(&self) -> u64 {
        self.record.end - self.record.begin
    }

    /// The bytes in the data, counted from [`Header::data_start`]: `data_offsets` as the header gives them.
    pub fn data_offsets(&self) -> Range<u64> {
        self.record.begin..self.record.end
    }

    /// The bytes in the file.
    pub fn file_range(&self) -> Range<u64> {
        let start = self.header.data_start;
        start + self.record.begin..start + self.record.end
    }
}

impl std::fmt::Debug for TensorInfo<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TensorInfo")
            .field("name", &self.name())
            .field("dtype", &self.dtype())
            .field("shape", &self.shape())
            .field("data_offsets", &self.data_offsets())
            .finish()
    }
}
