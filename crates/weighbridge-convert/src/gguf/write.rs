//! The way back: what a plan makes as a GGUF file, streamed, and there when it is whole.

mod kinds;
mod stream;

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use weighbridge::plan::{Bound, Encode, Input, Operation, Piece, Tiles};
use weighbridge::write::OutputFile;
use weighbridge::{Dtype, Entry, Error, ErrorKind, Plan, Result};

use super::MAGIC;
use super::encode::Encoder;
use crate::note::{Note, NoteKind};
use kinds::Stored;
pub use kinds::Type;

/// Tensors begin at multiples of this.
const ALIGN: u64 = 32;

/// What llama.cpp reads.
const MOST_DIMS: usize = 4;
const LONGEST_NAME: usize = 63;

/// Writes what a plan makes as a GGUF file of version 3; returns what is to be said of it.
///
/// Names stay as they are: what llama.cpp needs to run a model (its own names, a permutation of some weights,
/// the hyperparameters and the tokenizer) is not made. Without a type, tensors keep their dtypes, of which
/// GGUF has `F64`, `F32`, `F16`, `BF16`, `I64`, `I32`, `I16` and `I8`. With one, floats of two and more
/// dimensions get it, rounded as llama.cpp's reference does, bit for bit; where rows do not divide into its
/// blocks, they get what llama.cpp would give them: of the K formats the block format of 32 values with a bit
/// more, else `F16`. Floats of one dimension, and the routers of experts, become `F32`. Metadata that is text
/// is kept.
///
/// # Errors
///
/// Fails with [`ErrorKind::Dtype`] for a dtype that GGUF does not have, with [`ErrorKind::Shape`] for more
/// than four dimensions, with [`ErrorKind::DuplicateTensor`] for two tensors of one name, with
/// [`ErrorKind::Value`] where NaN or infinity would be quantised, when a tensor cannot be read, and when the
/// file cannot be written. The destination is as it was then.
pub fn write(path: impl AsRef<Path>, plan: &Plan, kind: Option<Type>) -> Result<Vec<Note>> {
    let path = path.as_ref();
    let write = || {
        let mut notes = Vec::new();
        let file = File::of(plan, kind, &mut notes)?;
        let mut output = OutputFile::atomic(path)?;
        output.expect(file.size()?)?;
        output.write_all(&file.header).map_err(unwritten)?;
        for tensor in &file.tensors {
            let entry = Plan::new([tensor.entry.clone()]);
            for (_, made) in entry.tensors() {
                stream::write(&made, &mut output)?;
            }
            let filling = padding(tensor.entry.byte_len());
            output.write_all(&[0; ALIGN as usize][..filling as usize]).map_err(unwritten)?;
        }
        output.commit()?;
        Ok(notes)
    };
    write().map_err(|error: Error| error.in_file(path))
}

/// A file that is laid out.
struct File {
    /// Everything before the data of tensors.
    header: Vec<u8>,
    tensors: Vec<Tensor>,
}

struct Tensor {
    stored: Stored,
    /// The dimensions, in values.
    shape: Vec<usize>,
    /// Makes the bytes.
    entry: Entry,
}

impl File {
    fn of(plan: &Plan, kind: Option<Type>, notes: &mut Vec<Note>) -> Result<Self> {
        let mut names = HashSet::new();
        let mut tensors = Vec::with_capacity(plan.entries().len());
        for entry in plan.entries() {
            let tensor = Tensor::of(entry, kind, notes).map_err(|error| error.in_tensor(entry.name()))?;
            if !names.insert(entry.name()) {
                let message = "two tensors have this name";
                return Err(Error::new(ErrorKind::DuplicateTensor, message).in_tensor(entry.name()));
            }
            tensors.push(tensor);
        }
        let header = header(&tensors, &metadata(plan, kind, notes))?;
        Ok(Self { header, tensors })
    }

    fn size(&self) -> Result<u64> {
        let mut size = self.header.len() as u64;
        for Tensor { entry, .. } in &self.tensors {
            size = size
                .checked_add(entry.byte_len())
                .and_then(|size| size.checked_add(padding(entry.byte_len())))
                .ok_or_else(too_large)?;
        }
        Ok(size)
    }
}

impl Tensor {
    fn of(entry: &Entry, kind: Option<Type>, notes: &mut Vec<Note>) -> Result<Self> {
        let (name, shape) = (entry.name(), entry.shape().to_vec());
        if shape.len() > MOST_DIMS {
            let message = format!("it has {} dimensions; GGUF has {MOST_DIMS} at most", shape.len());
            return Err(Error::new(ErrorKind::Shape, message));
        }
        if name.len() > LONGEST_NAME {
            let why = format!("its name has {} bytes; llama.cpp reads {LONGEST_NAME} at most", name.len());
            notes.push(Note::new(NoteKind::Kept, name, why));
        }
        let stored = Stored::of(entry, kind)?;
        if let Some(other) = kind.and_then(|kind| stored.instead_of(kind, entry)) {
            notes.push(Note::new(NoteKind::Changed, name, other));
        }
        let entry = match stored {
            Stored::Plain(_, dtype) if dtype == entry.dtype() => entry.clone(),
            Stored::Plain(_, dtype) => entry.recast(dtype)?,
            Stored::Blocks(_, encoder) => {
                let values = entry.recast(Dtype::F32)?;
                let inputs = values.inputs().to_vec();
                Entry::new(name, inputs, Arc::new(Blocks { values, encoder }))?
            }
        };
        Ok(Self { stored, shape, entry })
    }
}

/// The values of an entry in blocks.
#[derive(Debug)]
struct Blocks {
    values: Entry,
    encoder: Encoder,
}

impl Operation for Blocks {
    fn bind(&self, _: &[Input]) -> Result<Bound> {
        let mut shape = self.values.shape().to_vec();
        if let Some(row) = shape.last_mut() {
            *row = *row / self.encoder.values() * self.encoder.bytes(self.encoder.values());
        }
        let values = Bound::new(Dtype::F32, self.values.shape(), Values(self.values.clone()));
        values.encoded(self.encoder, Dtype::U8, shape)
    }
}

/// The tiles of an entry.
#[derive(Debug)]
struct Values(Entry);

impl Tiles for Values {
    fn gather(&self, tile: Range<u64>, pieces: &mut Vec<Piece>) {
        self.0.tiles().gather(tile, pieces);
    }

    fn run(&self, tile: &Range<u64>) -> Option<Range<u64>> {
        self.0.tiles().run(tile)
    }

    fn is_direct(&self) -> bool {
        self.0.tiles().is_direct()
    }

    fn compute<'t>(
        &self,
        tile: Range<u64>,
        gathered: &[u8],
        out: &'t mut [std::mem::MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]> {
        self.0.tiles().compute(tile, gathered, out)
    }

    fn step(&self) -> u64 {
        self.0.tiles().step()
    }

    fn is_native(&self) -> bool {
        self.0.tiles().is_native()
    }
}

/// A value of the metadata.
enum Value {
    Text(String),
    Number(u32),
}

/// What the file says about itself.
fn metadata(plan: &Plan, kind: Option<Type>, notes: &mut Vec<Note>) -> BTreeMap<String, Value> {
    let mut values = BTreeMap::new();
    let shards = plan.checkpoints().iter().flat_map(weighbridge::Checkpoint::shards);
    for (key, text) in shards.flat_map(|shard| shard.header().metadata().into_iter().flatten()) {
        // Of safetensors: which framework wrote it.
        if key == "format" || values.contains_key(key) {
            continue;
        }
        if text.parse::<f64>().is_ok() || matches!(text, "true" | "false") {
            let why = "a number or a truth value, whose type GGUF needs and safetensors does not tell";
            notes.push(Note::new(NoteKind::Dropped, key, why));
            continue;
        }
        values.insert(key.to_owned(), Value::Text(text.to_owned()));
    }
    if let Some(kind) = kind {
        values.insert("general.file_type".to_owned(), Value::Number(kind.file_type()));
        if kind.is_quantised() {
            values.insert("general.quantization_version".to_owned(), Value::Number(2));
        }
    }
    values
}

/// Everything before the data.
fn header(tensors: &[Tensor], metadata: &BTreeMap<String, Value>) -> Result<Vec<u8>> {
    const VERSION: u32 = 3;
    const NUMBER: u32 = 4;
    const TEXT: u32 = 8;
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(key, &mut out);
        match value {
            Value::Text(value) => {
                out.extend(TEXT.to_le_bytes());
                text(value, &mut out);
            }
            Value::Number(value) => {
                out.extend(NUMBER.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
        }
    }
    let mut offset = 0_u64;
    for Tensor { stored, shape, entry } in tensors {
        text(entry.name(), &mut out);
        // A scalar is one value of one dimension to ggml.
        let scalar = [1];
        let shape = if shape.is_empty() { &scalar[..] } else { shape };
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&dim| out.extend((dim as u64).to_le_bytes()));
        out.extend(stored.id().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = offset
            .checked_add(entry.byte_len())
            .and_then(|end| end.checked_next_multiple_of(ALIGN))
            .ok_or_else(too_large)?;
    }
    out.resize(out.len().next_multiple_of(ALIGN as usize), 0);
    Ok(out)
}

fn text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The bytes that fill up to the next tensor.
fn padding(len: u64) -> u64 {
    len.wrapping_neg() % ALIGN
}

fn too_large() -> Error {
    Error::new(ErrorKind::Overflow, "the file would be larger than any can be")
}

fn unwritten(error: std::io::Error) -> Error {
    Error::io("it cannot be written", error)
}
