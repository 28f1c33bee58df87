//! Where everything goes in a file, fixed before the first byte is written.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::header::{Decode, MOST_IN_SCHEMA};

/// The order of the tensors in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Order {
    /// That of the official writer: the widest dtypes first, so that every tensor is aligned to its elements,
    /// then by name.
    #[default]
    Official,
    /// As they are given.
    Given,
}

/// What a layout depends on besides the tensors.
#[derive(Clone, Debug, Default)]
pub(super) struct Form {
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) order: Order,
    /// A power of two.
    pub(super) align: Option<u64>,
}

/// The plan of a file: order, offsets and header. Made by [`Save::layout`](super::Save::layout).
#[derive(Clone, Debug)]
pub struct Layout {
    tensors: Vec<Planned>,
    /// The length of the JSON and the JSON with its padding.
    header: Vec<u8>,
    data_len: u64,
}

/// A tensor of a [`Layout`].
#[derive(Clone, Debug)]
pub struct Planned {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Range<u64>,
    /// Its place in the order in which they were given.
    given: usize,
}

impl Planned {
    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The size of each dimension, in elements; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes in the data, counted from the end of the header.
    pub fn data_offsets(&self) -> Range<u64> {
        self.data.clone()
    }

    /// The number of bytes.
    pub fn byte_len(&self) -> u64 {
        self.data.end - self.data.start
    }

    pub(super) fn given(&self) -> usize {
        self.given
    }
}

impl Layout {
    /// The names were checked.
    pub(super) fn new(form: &Form, tensors: Vec<(String, Dtype, Vec<usize>)>) -> Result<Self> {
        let &Form { ref metadata, order, align } = form;
        let planned = tensors.into_iter().enumerate().map(|(given, (name, dtype, shape))| {
            let bytes = dtype.size_of(&shape).map_err(|error| error.in_tensor(&name))?;
            if shape.iter().any(|&dim| dim as u64 > MOST_IN_SCHEMA) {
                let message = "a dimension above 2^48-1, which the format's schema does not allow";
                return Err(Error::new(ErrorKind::Overflow, message).in_tensor(&name));
            }
            Ok(Planned { name, dtype, shape, data: 0..bytes, given })
        });
        let mut tensors = planned.collect::<Result<Vec<_>>>()?;
        if order == Order::Official {
            // Nothing that comes before a tensor has a length which is less aligned than its own.
            let alignment = |tensor: &Planned| align.map(|most| alignment(tensor.data.end, most));
            tensors.sort_by(|a, b| {
                let key = |tensor| Reverse((alignment(tensor), tensor.dtype));
                key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
            });
        }
        let mut end = 0_u64;
        for tensor in &mut tensors {
            let start = end;
            end = start.saturating_add(tensor.data.end);
            if end > MOST_IN_SCHEMA {
                let message = "it would end above 2^48-1 bytes, which the format's schema does not allow";
                return Err(Error::new(ErrorKind::Overflow, message).in_tensor(&tensor.name));
            }
            tensor.data = start..end;
        }
        let entries = tensors.iter().map(|t| Entry {
            name: &t.name,
            dtype: t.dtype,
            shape: &t.shape,
            data: t.data.clone(),
        });
        let mut header = encode(metadata, entries);
        pad(&mut header, align.unwrap_or(8));
        check_length(&header)?;
        Ok(Self { tensors, header, data_len: end })
    }

    /// The tensors, in the order of the file.
    pub fn tensors(&self) -> &[Planned] {
        &self.tensors
    }

    /// The start of the file: the length of the header and the header.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// The size of the whole file, in bytes.
    pub fn size(&self) -> u64 {
        self.header.len() as u64 + self.data_len
    }

    /// An empty vector with room for the file.
    pub(super) fn room(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let size = usize::try_from(self.size()).unwrap_or(usize::MAX);
        bytes.try_reserve_exact(size).map_err(|error| {
            let message = format!("{} bytes of memory cannot be allocated", self.size());
            Error::new(ErrorKind::Memory, message).with_source(error)
        })?;
        Ok(bytes)
    }
}

/// The largest power of two, up to `most`, that divides a length.
fn alignment(bytes: u64, most: u64) -> u64 {
    if bytes == 0 { most } else { most.min(1 << bytes.trailing_zeros()) }
}

/// Names that a strict reader accepts, each once.
pub(super) fn check_names<'n>(names: impl Iterator<Item = &'n str>) -> Result<()> {
    let mut seen = HashSet::new();
    for name in names {
        let fail = |kind, message: &str| Err(Error::new(kind, message).in_tensor(name));
        if name == "__metadata__" {
            return fail(ErrorKind::TensorName, "the format keeps this name for the metadata");
        }
        if name.contains('\0') {
            return fail(ErrorKind::TensorName, "the name holds a NUL character");
        }
        if !seen.insert(name) {
            return fail(ErrorKind::DuplicateTensor, "two tensors have this name");
        }
    }
    Ok(())
}

/// A tensor's entry in the header.
pub(super) struct Entry<'a> {
    pub(super) name: &'a str,
    pub(super) dtype: Dtype,
    pub(super) shape: &'a [usize],
    pub(super) data: Range<u64>,
}

/// Eight bytes for the length, still zero, and the JSON: as the official writer has it, but for metadata,
/// which that one leaves unsorted.
pub(super) fn encode<'e>(
    metadata: &BTreeMap<String, String>,
    entries: impl Iterator<Item = Entry<'e>>,
) -> Vec<u8> {
    let mut out = vec![0; 8];
    out.push(b'{');
    if !metadata.is_empty() {
        out.extend(b"\"__metadata__\":{");
        for (number, (key, value)) in metadata.iter().enumerate() {
            out.extend((number > 0).then_some(b','));
            string(&mut out, key);
            out.push(b':');
            string(&mut out, value);
        }
        out.push(b'}');
    }
    for (number, Entry { name, dtype, shape, data }) in entries.enumerate() {
        out.extend((number > 0 || !metadata.is_empty()).then_some(b','));
        string(&mut out, name);
        let mut numbers = String::new();
        for (place, dim) in shape.iter().enumerate() {
            numbers += if place > 0 { "," } else { "" };
            numbers += &dim.to_string();
        }
        let (start, end) = (data.start, data.end);
        let rest = format!(r#":{{"dtype":"{dtype}","shape":[{numbers}],"data_offsets":[{start},{end}]}}"#);
        out.extend(rest.bytes());
    }
    out.push(b'}');
    out
}

fn string(out: &mut Vec<u8>, text: &str) {
    // Writing to memory does not fail, and a string is always JSON.
    let _ = serde_json::to_writer(out, text);
}

/// Pads with spaces, so that the data starts at a multiple of `align`, and fills in the length.
pub(super) fn pad(header: &mut Vec<u8>, align: u64) {
    let len = header.len().next_multiple_of(align as usize);
    header.resize(len, b' ');
    header[..8].copy_from_slice(&(len as u64 - 8).to_le_bytes());
}

/// No header is written that readers would refuse.
pub(super) fn check_length(header: &[u8]) -> Result<()> {
    let len = header.len() as u64 - 8;
    if len > Decode::DEFAULT_LIMIT {
        let limit = Decode::DEFAULT_LIMIT;
        let message = format!("the header would have {len} bytes; readers accept {limit}");
        return Err(Error::new(ErrorKind::HeaderTooLarge, message));
    }
    Ok(())
}
