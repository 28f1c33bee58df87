//! Flax's msgpack files: a tree of dicts whose leaves are arrays. Names are the keys on the way, with dots between them.

use std::ops::Range;
use std::sync::Arc;

use weighbridge::source::{Concat, Source};
use weighbridge::{Dtype, Result};

use crate::arranged::{Order, arranged};
use crate::contents::{Contents, Tensor};
use crate::cursor::{Cursor, malformed};
use crate::input::Input;
use crate::keys::{Key, Keys};
use crate::msgpack::{Token, token};
use crate::note::{Note, NoteKind};
use crate::numpy::dtypes;
use crate::options::Options;

/// The key of an array that was cut into several, because msgpack has no longer ones.
const CHUNKED: &str = "__msgpack_chunked_array__";
/// Dicts in dicts.
const DEEPEST: usize = 64;
/// Of tensors and of values in the metadata.
const MOST: usize = 1 << 20;
const MOST_DIMS: u64 = 64;
/// Of texts.
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
pub(crate) fn read(input: &Input, options: &Options) -> Result<Contents> {
    let mut reader = Reader {
        input,
        options,
        cursor: Cursor::new(input.file(), 0, input.size()),
        contents: Contents::default(),
        keys: Keys::default(),
        values: 0,
    };
    reader.value()?;
    if reader.cursor.left() > 0 {
        return Err(malformed(format!("{} bytes stand behind its end", reader.cursor.left())));
    }
    Ok(reader.contents)
}

struct Reader<'i> {
    input: &'i Input,
    options: &'i Options,
    cursor: Cursor<'i>,
    contents: Contents,
    /// The way to the value at hand.
    keys: Keys,
    values: usize,
}

/// An array in the file.
struct Array {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Arc<dyn Source>,
}

impl Reader<'_> {
    /// Reads a value, and what it holds.
    fn value(&mut self) -> Result<()> {
        if self.keys.depth() > DEEPEST {
            return Err(malformed(format!("it is nested deeper than {DEEPEST}")));
        }
        self.values += 1;
        if self.values > MOST {
            return Err(malformed(format!("it has more than {MOST} values")));
        }
        match token(&mut self.cursor)? {
            Token::Map(len) => return self.dict(len),
            Token::Array(len) => {
                for place in 0..len {
                    self.child(Key::Number(&place.to_string()))?;
                }
            }
            Token::Ext(1 | 3, range) => {
                if self.is_wanted() {
                    let array = self.array(range.clone()).map_err(|error| error.in_tensor(self.name()))?;
                    self.push(array)?;
                }
                self.cursor.seek(range.end);
            }
            Token::Ext(2, range) => {
                self.cursor.seek(range.end);
                self.note(NoteKind::Dropped, "it is a complex number, not an array");
            }
            Token::Ext(kind, range) => {
                self.cursor.seek(range.end);
                let what = format!("a msgpack extension of type {kind}, of which Flax has 1, 2 and 3");
                self.contents.leave_out(self.options, self.keys.name(), &what)?;
            }
            Token::Nil => self.note(NoteKind::Dropped, "it is nothing"),
            Token::Value(text) => self.keep(text),
            Token::Text(range) | Token::Bytes(range) if range.end - range.start > LONGEST => {
                self.cursor.seek(range.end);
                self.note(NoteKind::Dropped, "it is text or bytes, and long");
            }
            Token::Text(range) => {
                let text = self.cursor.text(range.end - range.start)?;
                self.keep(text);
            }
            Token::Bytes(range) => {
                self.cursor.seek(range.end);
                self.note(NoteKind::Dropped, "it is bytes, not an array");
            }
        }
        Ok(())
    }

    fn dict(&mut self, len: u64) -> Result<()> {
        for place in 0..len {
            let (key, is_text) = self.key()?;
            if is_text && key == CHUNKED {
                let chunked = match place {
                    0 => self.chunked(len),
                    _ => Err(not_chunked()),
                };
                return chunked.map_err(|error| error.in_tensor(self.name()));
            }
            self.child(if is_text { Key::Text(&key) } else { Key::Number(&key) })?;
        }
        Ok(())
    }

    fn child(&mut self, key: Key<'_>) -> Result<()> {
        self.keys.enter(key)?;
        self.value()?;
        self.keys.leave();
        Ok(())
    }

    /// A key, and whether it is a text.
    fn key(&mut self) -> Result<(String, bool)> {
        match token(&mut self.cursor)? {
            Token::Text(range) => Ok((self.cursor.text(range.end - range.start)?, true)),
            Token::Value(number) => Ok((number, false)),
            _ => Err(malformed(format!("a key before position {} is not text", self.cursor.at()))),
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

    /// `[shape, dtype, bytes]`, in the extension that flax has for arrays; the error is what safetensors does not have.
    fn array(&mut self, range: Range<u64>) -> Result<std::result::Result<Array, String>> {
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
        let (dtype, big) = match dtypes::spelled(&name) {
            Some((known, big)) if !known.pair => (known.dtype, big),
            // Old versions wrote bfloat16 so.
            None if name == "V2" => (Dtype::BF16, false),
            _ => {
                self.cursor.seek(range.end);
                return Ok(Err(dtypes::unheld(&name)));
            }
        };
        let (Token::Bytes(bytes) | Token::Text(bytes)) = token(&mut self.cursor)? else {
            return Err(broken("no bytes"));
        };
        let (need, given) = (dtype.size_of(&shape)?, bytes.end - bytes.start);
        if need != given || bytes.end != range.end {
            return Err(malformed(format!("{dtype} of shape {shape:?} needs {need} bytes, it has {given}")));
        }
        self.cursor.seek(bytes.end);
        let data = self.input.part(bytes).ok_or_else(|| broken("bytes that are not there"))?;
        let data = arranged(data, dtype, &shape, Order { big, fortran: false });
        Ok(Ok(Array { dtype, shape, data }))
    }

    /// An array that was cut into several; its first key was read.
    fn chunked(&mut self, len: u64) -> Result<()> {
        let (Token::Value(_) | Token::Map(0) | Token::Array(0)) = token(&mut self.cursor)? else {
            return Err(not_chunked());
        };
        let (mut shape, mut dtype, mut parts, mut unheld) = (None, None, Vec::new(), None);
        for _ in 1..len {
            let (key, _) = self.key()?;
            let (count, keyed) = match token(&mut self.cursor)? {
                Token::Map(count) => (count, true),
                Token::Array(count) => (count, false),
                _ => return Err(not_chunked()),
            };
            if key == "shape" && count > MOST_DIMS {
                return Err(not_chunked());
            }
            let mut dims = Vec::new();
            for place in 0..count {
                if keyed && self.key()?.0 != place.to_string() {
                    return Err(not_chunked());
                }
                match &*key {
                    "shape" => dims.push(usize::try_from(self.number()?).map_err(|_| not_chunked())?),
                    "chunks" => {
                        let Token::Ext(1, range) = token(&mut self.cursor)? else {
                            return Err(not_chunked());
                        };
                        match self.array(range)? {
                            Ok(array) if *dtype.get_or_insert(array.dtype) == array.dtype => {
                                parts.push(array.data);
                            }
                            Ok(_) => return Err(not_chunked()),
                            Err(what) => unheld = Some(what),
                        }
                        if parts.len() > MOST {
                            return Err(not_chunked());
                        }
                    }
                    _ => return Err(not_chunked()),
                }
            }
            if key == "shape" {
                shape = Some(dims);
            }
        }
        if let Some(what) = unheld {
            return self.push(Err(what));
        }
        let (Some(shape), Some(dtype)) = (shape, dtype) else { return Err(not_chunked()) };
        let data = Concat::new(parts).ok_or_else(not_chunked)?;
        let (need, given) = (dtype.size_of(&shape)?, data.size());
        if need != given {
            return Err(malformed(format!(
                "{dtype} of shape {shape:?} needs {need} bytes, its pieces have {given}"
            )));
        }
        self.push(Ok(Array { dtype, shape, data: Arc::new(data) }))
    }

    /// The name of what is here; of a file that is nothing but an array, one of ours.
    fn name(&self) -> &str {
        if self.keys.is_top() { "array" } else { self.keys.name() }
    }

    /// Whether the tensor here is chosen; it is counted if not.
    fn is_wanted(&mut self) -> bool {
        let wanted = self.options.wants(self.name());
        self.contents.unchosen += usize::from(!wanted);
        wanted
    }

    fn push(&mut self, array: std::result::Result<Array, String>) -> Result<()> {
        let name = self.name().to_owned();
        if !self.options.wants(&name) {
            self.contents.unchosen += 1;
            return Ok(());
        }
        match array {
            Ok(Array { dtype, shape, data }) => {
                self.keys.give()?;
                self.contents.tensors.push(Tensor { name, dtype, shape, data });
                Ok(())
            }
            Err(what) => self.contents.leave_out(self.options, &name, &what),
        }
    }

    fn keep(&mut self, text: String) {
        let name = self.keys.name().to_owned();
        if self.contents.metadata.contains_key(&name) {
            return self.note(NoteKind::Dropped, "another value has this name");
        }
        self.note(NoteKind::Metadata, "it is not an array");
        self.contents.metadata.insert(name, text);
    }

    fn note(&mut self, kind: NoteKind, why: &str) {
        self.contents.notes.push(Note::new(kind, self.keys.name(), why));
    }
}

fn not_chunked() -> weighbridge::Error {
    malformed("it is cut into pieces that are not put together as flax does")
}
