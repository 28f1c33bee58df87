//! GGUF, the files of llama.cpp and whisper.cpp: versions 2 and 3, of either byte order. What is quantised is dequantised
//! when it is read. [`write`](write()) makes files of version 3.

mod block;
mod codebook;
mod dequantised;
#[cfg(feature = "fs")]
mod encode;
mod grids;
mod header;
mod quants;
mod split;
#[cfg(feature = "fs")]
mod write;

use std::ops::RangeInclusive;
use std::sync::Arc;

use weighbridge::{Dtype, Result, Source};

use crate::arranged::{Order, arranged};
use crate::contents::{Contents, Tensor};
use crate::cursor::malformed;
use crate::input::Input;
use crate::note::{Note, NoteKind};
use crate::options::Options;
use block::Kind;
use dequantised::Dequantised;
use header::{Header, Info, Value};
use split::Part;
#[cfg(feature = "fs")]
pub use write::{Type, write};

/// What every such file begins with.
pub(crate) const MAGIC: &[u8] = b"GGUF";

/// Where a file may end: behind its last tensor, or where that is filled up to.
pub(crate) fn ends(file: &dyn Source) -> Result<RangeInclusive<u64>> {
    let header = Header::read(file)?;
    let mut end = header.data;
    for info in &header.tensors {
        let start = header.data.saturating_add(info.offset);
        let kind = Kind::of(info.kind).ok_or_else(|| malformed(format!("the unknown type {}", info.kind)))?;
        let kind = kind.in_room(&info.shape, file.size().saturating_sub(start), header.align);
        let bytes = kind.byte_len(&info.shape);
        let bytes = bytes.ok_or_else(|| malformed("a shape that does not go with its type"))?;
        end = end.max(start.saturating_add(bytes));
    }
    let filled = end.checked_next_multiple_of(header.align);
    Ok(end..=filled.ok_or_else(|| malformed("a tensor that ends behind every file"))?)
}

/// Reads a file that was recognised, and with a part of a split model the others.
pub(crate) fn read(input: &Input, options: &Options) -> Result<Contents> {
    let parts = split::parts(input)?;
    let mut contents = Contents::default();
    for (number, part) in parts.into_iter().enumerate() {
        let path = part.input.path().to_owned();
        read_part(part, number > 0, options, &mut contents).map_err(|error| error.in_file(&path))?;
    }
    Ok(contents)
}

fn read_part(part: Part, follows: bool, options: &Options, contents: &mut Contents) -> Result<()> {
    let Part { input, header } = part;
    for (key, value) in header.entries {
        if split::is_own(&key) {
            continue;
        }
        let why = match value {
            Value::Text(text) if !follows => {
                contents.put(key, text);
                continue;
            }
            Value::Text(text) if contents.metadata.get(&key) == Some(&text) => continue,
            Value::Text(_) => "metadata of a part that is not the first".to_owned(),
            Value::Array(len) => format!("an array of {len} values, which safetensors cannot hold"),
            Value::Long(len) => format!("a text of {len} bytes, too long for the metadata"),
            Value::Binary => "metadata that is not UTF-8".to_owned(),
        };
        contents.notes.push(Note::new(NoteKind::Dropped, key, why));
    }
    let mut starts: Vec<u64> = header.tensors.iter().map(|info| info.offset).collect();
    starts.sort_unstable();
    let place = Place { input: &input, start: header.data, align: header.align, big: header.big, starts };
    for info in header.tensors {
        place.tensor(info, options, contents)?;
    }
    Ok(())
}

/// Where the data of tensors is.
struct Place<'i> {
    input: &'i Input,
    start: u64,
    align: u64,
    big: bool,
    /// Where tensors begin, in order.
    starts: Vec<u64>,
}

impl Place<'_> {
    fn tensor(&self, info: Info, options: &Options, contents: &mut Contents) -> Result<()> {
        if !options.wants(&info.name) {
            contents.unchosen += 1;
            return Ok(());
        }
        let Some(kind) = Kind::of(info.kind) else {
            let what = format!("of the unknown GGUF type {}", info.kind);
            return contents.leave_out(options, &info.name, &what);
        };
        let name = info.name.clone();
        let data = self.data(info, kind, options, contents);
        data.map_err(|error| error.in_tensor(&name))
    }

    fn data(&self, info: Info, kind: Kind, options: &Options, contents: &mut Contents) -> Result<()> {
        let kind = kind.in_room(&info.shape, self.room(info.offset), self.align);
        let bytes = kind
            .byte_len(&info.shape)
            .ok_or_else(|| malformed(format!("shape {:?} does not go with {}", info.shape, kind.name())))?;
        let range =
            self.start.checked_add(info.offset).and_then(|start| Some(start..start.checked_add(bytes)?));
        let part = range.and_then(|range| self.input.part(range)).ok_or_else(|| {
            malformed(format!("its {bytes} bytes at offset {} are not within the file", info.offset))
        })?;
        let Info { name, shape, .. } = info;
        match kind {
            Kind::Plain(dtype) => {
                let order = Order { big: self.big, fortran: false };
                let data = arranged(part, dtype, &shape, order);
                contents.tensors.push(Tensor { name, dtype, shape, data });
            }
            Kind::Quantised(quant) => {
                let dtype = options.dequantise.unwrap_or(Dtype::F32);
                let why = format!("{} dequantised to {dtype}", quant.name);
                contents.notes.push(Note::new(NoteKind::Changed, &name, why));
                let blocks: Arc<dyn Source> = Arc::new(part);
                // Frameworks have them little-endian.
                if !self.big {
                    contents.blocks.insert(name.clone(), (quant.block_type(), Arc::clone(&blocks)));
                }
                let data = Arc::new(Dequantised::new(blocks, quant, self.big, dtype)?);
                contents.tensors.push(Tensor { name, dtype, shape, data });
            }
        }
        Ok(())
    }

    /// The bytes from the start of a tensor to the next, or to the end of the file.
    fn room(&self, offset: u64) -> u64 {
        let next = self.starts.partition_point(|&start| start <= offset);
        let end = self.input.size().saturating_sub(self.start);
        self.starts.get(next).copied().unwrap_or(end).saturating_sub(offset)
    }
}
