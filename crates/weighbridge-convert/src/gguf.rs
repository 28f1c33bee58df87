//! GGUF, the files of llama.cpp and whisper.cpp: versions 2 and 3, of either byte order. What is quantised is dequantised
//! when it is read.

mod block;
mod dequantised;
mod header;
mod quants;

use std::sync::Arc;

use weighbridge::{Dtype, Result};

use crate::arranged::{Order, arranged};
use crate::contents::{Contents, Tensor};
use crate::cursor::{malformed, unsupported};
use crate::input::Input;
use crate::note::{Note, NoteKind};
use crate::options::Options;
use block::Kind;
use dequantised::Dequantised;
use header::{Header, Info, Value};

/// What every such file begins with.
pub(crate) const MAGIC: &[u8] = b"GGUF";

/// Reads a file that was recognised.
pub(crate) fn read(input: &Input, options: &Options) -> Result<Contents> {
    let header = Header::read(input)?;
    let mut contents = Contents::default();
    for (key, value) in header.entries {
        match value {
            Value::Text(text) => drop(contents.metadata.insert(key, text)),
            Value::Array(len) => {
                let why = format!("an array of {len} values, for which safetensors has no place");
                contents.notes.push(Note::new(NoteKind::Dropped, key, why));
            }
            Value::Long(len) => {
                let why = format!("a text of {len} bytes, too long for the metadata");
                contents.notes.push(Note::new(NoteKind::Dropped, key, why));
            }
        }
    }
    for info in header.tensors {
        let name = info.name.clone();
        let place = Place { input, start: header.data, big: header.big };
        let (tensor, note) = place.tensor(info, options).map_err(|error| error.in_tensor(&name))?;
        contents.tensors.push(tensor);
        contents.notes.extend(note);
    }
    Ok(contents)
}

/// Where the data of tensors is.
struct Place<'i> {
    input: &'i Input,
    start: u64,
    big: bool,
}

impl Place<'_> {
    fn tensor(&self, info: Info, options: &Options) -> Result<(Tensor, Option<Note>)> {
        let Some(kind) = Kind::of(info.kind) else {
            let what = block::unread(info.kind);
            return Err(unsupported(format!("its values are {what}, which is not read here")));
        };
        let bytes = kind.byte_len(&info.shape).ok_or_else(|| {
            malformed(format!("shape {:?} is none that {} can have", info.shape, kind.name()))
        })?;
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
                Ok((Tensor { name, dtype, shape, data }, None))
            }
            Kind::Quantised(quant) => {
                let dtype = options.dequantise.unwrap_or(Dtype::F32);
                let why = format!("{} dequantised to {dtype}", quant.name);
                let note = Note::new(NoteKind::Changed, &name, why);
                let data = Arc::new(Dequantised::new(Arc::new(part), quant, self.big, dtype)?);
                Ok((Tensor { name, dtype, shape, data }, Some(note)))
            }
        }
    }
}
