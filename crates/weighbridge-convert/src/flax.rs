//! Flax's msgpack files: a tree of dicts whose leaves are arrays. Names are the keys on the way, with dots between them.

mod msgpack;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use weighbridge::{Dtype, Result, Source};

use crate::contents::{Contents, Tensor};
use crate::cursor::{Cursor, malformed, unsupported};
use crate::input::{FilePart, Input};
use crate::note::{Note, NoteKind};
use crate::options::Options;
use msgpack::{Token, token};

/// The key of an array that was cut into several, because msgpack has no longer ones.
const CHUNKED: &str = "__msgpack_chunked_array__";
/// Dicts in dicts.
const DEEPEST: u32 = 64;
/// Of tensors and of values in the metadata.
const MOST: usize = 1 << 20;
const MOST_TEXT: u64 = 64 << 20;
const MOST_DIMS: u64 = 64;
/// Of names and texts.
const LONGEST: u64 = 4 << 10;

/// Whether these are the first bytes of a file: a dict that begins with a text.
pub(crate) fn is_tree(head: &[u8]) -> bool {
    let key = match head {
        [0x81..=0x8F, key, ..] | [0xDE, _, _, key, ..] | [0xDF, _, _, _, _, key, ..] => *key,
        _ => return false,
    };
    matches!(key, 0xA0..=0xBF | 0xD9)
}

/// Reads a file that was recognised.
pub(crate) fn read(input: &Input, _options: &Options) -> Result<Contents> {
    let mut reader = Reader {
        input,
        cursor: Cursor::new(input, 0, input.size()),
        contents: Contents::default(),
        values: 0,
        text: 0,
    };
    reader.value(&mut String::new(), 0)?;
    if reader.cursor.left() > 0 {
        return Err(malformed(format!("{} bytes stand behind its end", reader.cursor.left())));
    }
    Ok(reader.contents)
}

struct Reader<'i> {
    input: &'i Input,
    cursor: Cursor<'i>,
    contents: Contents,
    values: usize,
    /// Bytes of all names together.
    text: u64,
}

/// An array in the file.
struct Array {
    dtype: Dtype,
    shape: Vec<usize>,
    data: FilePart,
}

impl Reader<'_> {
    /// Reads a value, and what it holds.
    fn value(&mut self, path: &mut String, depth: u32) -> Result<()> {
        if depth > DEEPEST {
            return Err(malformed(format!("it is nested deeper than {DEEPEST}")));
        }
        self.values += 1;
        self.text += path.len() as u64;
        if self.values > MOST || self.text > MOST_TEXT {
            return Err(malformed(format!("it has more than {MOST} values, or names of {MOST_TEXT} bytes")));
        }
        match token(&mut self.cursor)? {
            Token::Map(len) => return self.dict(len, path, depth),
            Token::Array(len) => {
                for place in 0..len {
                    self.child(&place.to_string(), path, depth)?;
                }
            }
            Token::Ext(1 | 3, range) => {
                let array = self.array(range).map_err(|error| error.in_tensor(path))?;
                self.push(path, array.dtype, array.shape, Arc::new(array.data));
            }
            Token::Ext(kind, range) => {
                self.cursor.seek(range.end);
                let what = if kind == 2 { "a complex number" } else { "a value of a kind unknown here" };
                self.note(NoteKind::Dropped, path, &format!("{what}, which is no array"));
            }
            Token::Nil => self.note(NoteKind::Dropped, path, "it is nothing"),
            Token::Value(text) => self.keep(path, text),
            Token::Text(range) | Token::Bytes(range) if range.end - range.start > LONGEST => {
                self.cursor.seek(range.end);
                self.note(NoteKind::Dropped, path, "it is text or bytes, and long");
            }
            Token::Text(range) => {
                let text = self.cursor.text(range.end - range.start)?;
                self.keep(path, text);
            }
            Token::Bytes(range) => {
                self.cursor.seek(range.end);
                self.note(NoteKind::Dropped, path, "it is bytes, not an array");
            }
        }
        Ok(())
    }

    fn dict(&mut self, len: u64, path: &mut String, depth: u32) -> Result<()> {
        for place in 0..len {
            let key = self.key()?;
            if place == 0 && key == CHUNKED {
                return self.chunked(len, path).map_err(|error| error.in_tensor(path));
            }
            self.child(&key, path, depth)?;
        }
        Ok(())
    }

    fn child(&mut self, key: &str, path: &mut String, depth: u32) -> Result<()> {
        let len = path.len();
        if len > 0 {
            path.push('.');
        }
        path.push_str(key);
        if path.len() as u64 > LONGEST {
            return Err(malformed(format!("a name in it has more than {LONGEST} bytes")));
        }
        self.value(path, depth + 1)?;
        path.truncate(len);
        Ok(())
    }

    fn key(&mut self) -> Result<String> {
        match token(&mut self.cursor)? {
            Token::Text(range) => self.cursor.text(range.end - range.start),
            Token::Value(number) => Ok(number),
            _ => Err(malformed(format!("a key before position {} is no text", self.cursor.at()))),
        }
    }

    /// The number that comes next.
    fn number(&mut self) -> Result<u64> {
        let value = match token(&mut self.cursor)? {
            Token::Value(number) => number.parse().ok(),
            _ => None,
        };
        value.ok_or_else(|| malformed(format!("before position {} belongs a number", self.cursor.at())))
    }

    /// `[shape, dtype, bytes]`, in the extension that flax has for arrays.
    fn array(&mut self, range: Range<u64>) -> Result<Array> {
        let broken = |what: &str| malformed(format!("an array in it has {what}"));
        let Token::Array(3) = token(&mut self.cursor)? else { return Err(broken("not three parts")) };
        let Token::Array(dims @ 0..=MOST_DIMS) = token(&mut self.cursor)? else {
            return Err(broken("no shape"));
        };
        let mut shape = Vec::with_capacity(dims as usize);
        for _ in 0..dims {
            let dim = self.number()?;
            shape.push(usize::try_from(dim).map_err(|_| broken("a dimension that is too large"))?);
        }
        let (Token::Text(name) | Token::Bytes(name)) = token(&mut self.cursor)? else {
            return Err(broken("no dtype"));
        };
        let name = match name.end - name.start {
            len @ 0..=LONGEST => self.cursor.text(len)?,
            _ => return Err(broken("a dtype whose name is too long")),
        };
        let dtype = dtype(&name)?;
        let (Token::Bytes(bytes) | Token::Text(bytes)) = token(&mut self.cursor)? else {
            return Err(broken("no bytes"));
        };
        let (need, given) = (dtype.size_of(&shape)?, bytes.end - bytes.start);
        if need != given || bytes.end != range.end {
            return Err(malformed(format!("{dtype} of shape {shape:?} needs {need} bytes, it has {given}")));
        }
        self.cursor.seek(bytes.end);
        let data = self.input.part(bytes).ok_or_else(|| broken("bytes that are not there"))?;
        Ok(Array { dtype, shape, data })
    }

    /// An array that was cut into several; its first key was read.
    fn chunked(&mut self, len: u64, path: &str) -> Result<()> {
        let broken = || malformed("it is cut into pieces that are not put together as flax does");
        let (Token::Value(_) | Token::Map(0) | Token::Array(0)) = token(&mut self.cursor)? else {
            return Err(broken());
        };
        let (mut shape, mut dtype, mut parts) = (None, None, Vec::new());
        for _ in 1..len {
            let key = self.key()?;
            let (count, keyed) = match token(&mut self.cursor)? {
                Token::Map(count) => (count, true),
                Token::Array(count) => (count, false),
                _ => return Err(broken()),
            };
            if key == "shape" && count > MOST_DIMS {
                return Err(broken());
            }
            let mut dims = Vec::new();
            for place in 0..count {
                if keyed && self.key()? != place.to_string() {
                    return Err(broken());
                }
                match &*key {
                    "shape" => dims.push(usize::try_from(self.number()?).map_err(|_| broken())?),
                    "chunks" => {
                        let Token::Ext(1, range) = token(&mut self.cursor)? else { return Err(broken()) };
                        let array = self.array(range)?;
                        if *dtype.get_or_insert(array.dtype) != array.dtype || parts.len() == MOST {
                            return Err(broken());
                        }
                        parts.push(array.data);
                    }
                    _ => return Err(broken()),
                }
            }
            if key == "shape" {
                shape = Some(dims);
            }
        }
        let (Some(shape), Some(dtype)) = (shape, dtype) else { return Err(broken()) };
        let data = Joined::new(parts);
        let (need, given) = (dtype.size_of(&shape)?, data.size());
        if need != given {
            return Err(malformed(format!(
                "{dtype} of shape {shape:?} needs {need} bytes, its pieces have {given}"
            )));
        }
        self.push(path, dtype, shape, Arc::new(data));
        Ok(())
    }

    fn push(&mut self, path: &str, dtype: Dtype, shape: Vec<usize>, data: Arc<dyn Source>) {
        // A file that is nothing but an array.
        let name = if path.is_empty() { "array" } else { path }.to_owned();
        self.contents.tensors.push(Tensor { name, dtype, shape, data });
    }

    fn keep(&mut self, path: &str, text: String) {
        self.note(NoteKind::Metadata, path, "it is no array");
        self.contents.metadata.insert(path.to_owned(), text);
    }

    fn note(&mut self, kind: NoteKind, path: &str, why: &str) {
        self.contents.notes.push(Note::new(kind, path, why));
    }
}

/// The dtype of a name of NumPy's or ml_dtypes'.
fn dtype(name: &str) -> Result<Dtype> {
    Ok(match name {
        "bool" => Dtype::Bool,
        "int8" => Dtype::I8,
        "uint8" => Dtype::U8,
        "int16" => Dtype::I16,
        "uint16" => Dtype::U16,
        "int32" => Dtype::I32,
        "uint32" => Dtype::U32,
        "int64" => Dtype::I64,
        "uint64" => Dtype::U64,
        "float16" => Dtype::F16,
        // Old versions wrote it without its name.
        "bfloat16" | "V2" => Dtype::BF16,
        "float32" => Dtype::F32,
        "float64" => Dtype::F64,
        "complex64" => Dtype::C64,
        "float8_e4m3fn" => Dtype::F8_E4M3,
        "float8_e4m3fnuz" => Dtype::F8_E4M3FNUZ,
        "float8_e5m2" => Dtype::F8_E5M2,
        "float8_e5m2fnuz" => Dtype::F8_E5M2FNUZ,
        "float8_e8m0fnu" => Dtype::F8_E8M0,
        _ => return Err(unsupported(format!("its dtype {name:?} is none that safetensors knows"))),
    })
}

/// Pieces one behind the other.
struct Joined {
    /// Each with where it begins.
    parts: Vec<(u64, FilePart)>,
    size: u64,
}

impl Joined {
    fn new(parts: Vec<FilePart>) -> Self {
        let mut size = 0;
        let mut begun = Vec::with_capacity(parts.len());
        for part in parts.into_iter().filter(|part| part.size() > 0) {
            let start = size;
            size += part.size();
            begun.push((start, part));
        }
        Self { parts: begun, size }
    }
}

impl Source for Joined {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            let after = self.parts.partition_point(|part| part.0 <= offset);
            let part = after.checked_sub(1).and_then(|place| self.parts.get(place));
            let (start, part) = part.ok_or(io::ErrorKind::UnexpectedEof)?;
            let left = part.size().saturating_sub(offset - start);
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (now, behind) = buf.split_at_mut(len);
            part.read_at(offset - start, now)?;
            (offset, buf) = (offset + len as u64, behind);
        }
        Ok(())
    }
}
