//! What stands before the data: keys and values, and where each tensor is.

use weighbridge::{Result, Source};

use super::MAGIC;
use crate::cursor::{Cursor, malformed, unsupported};

/// The header of a file.
pub(super) struct Header {
    /// Whether numbers are big-endian.
    pub(super) big: bool,
    pub(super) entries: Vec<(String, Value)>,
    pub(super) tensors: Vec<Info>,
    /// Where the data begins.
    pub(super) data: u64,
    /// Every tensor begins at a multiple from there.
    pub(super) align: u64,
}

/// A value of the metadata.
pub(super) enum Value {
    Text(String),
    /// An array, skipped, and its number of values.
    Array(u64),
    /// A text that is too long to keep, and its length in bytes.
    Long(u64),
    /// A text that is not UTF-8, or a value whose key is not.
    Binary,
}

/// A tensor.
pub(super) struct Info {
    pub(super) name: String,
    /// As safetensors has it: the dimension that runs fastest is the last.
    pub(super) shape: Vec<usize>,
    /// The number of its type.
    pub(super) kind: u32,
    /// Counted from the start of the data.
    pub(super) offset: u64,
}

/// GGML has four; nobody has more.
const MOST_DIMS: u32 = 8;
/// Arrays in arrays.
const DEEPEST: u32 = 8;
/// Longer texts are not kept. Chat templates have some kilobytes.
const LONGEST: u64 = 64 << 10;
/// Of keys and texts together, and what each adds.
const MOST_TEXT: u64 = 16 << 20;
const EACH: u64 = 64;
/// The largest models have some thousands.
const MOST_TENSORS: u64 = 1 << 20;

impl Header {
    pub(super) fn read(file: &dyn Source) -> Result<Self> {
        let mut reader = Reader { cursor: Cursor::new(file, 0, file.size()), big: false };
        if reader.cursor.array::<4>()? != *MAGIC {
            return Err(malformed("it is not a GGUF file"));
        }
        // Whoever reads the version the wrong way round sees a number of millions.
        let version = reader.u32()?;
        reader.big = version & 0xFFFF == 0;
        let version = if reader.big { version.swap_bytes() } else { version };
        if !(2..=3).contains(&version) {
            return Err(unsupported(format!("it is GGUF of version {version}; versions 2 and 3 are read")));
        }
        let (tensors, entries) = (reader.u64()?, reader.u64()?);
        if tensors > MOST_TENSORS {
            return Err(malformed(format!("it has {tensors} tensors; {MOST_TENSORS} are the most")));
        }
        let mut header =
            Self { big: reader.big, entries: Vec::new(), tensors: Vec::new(), data: 0, align: 32 };
        let mut text = 0;
        // Each takes bytes, so that a count that lies ends with the file.
        for _ in 0..entries {
            let (key, is_text) = reader.key()?;
            let kind = reader.u32()?;
            let value = reader.value(kind, 0);
            let value = value.map_err(|error| malformed(format!("metadata {key:?}: {error}")))?;
            if let ("general.alignment", Value::Text(given)) = (&*key, &value) {
                header.align = given
                    .parse()
                    .ok()
                    .filter(|align: &u64| align.is_power_of_two() && *align <= 1 << 30)
                    .ok_or_else(|| {
                        malformed(format!("an alignment to {given} bytes is not a power of two"))
                    })?;
            }
            let value = if is_text { value } else { Value::Binary };
            text += key.len() as u64 + EACH;
            if let Value::Text(value) = &value {
                text += value.len() as u64;
            }
            if text > MOST_TEXT {
                return Err(malformed(format!("its metadata is longer than {MOST_TEXT} bytes")));
            }
            header.entries.push((key, value));
        }
        for _ in 0..tensors {
            header.tensors.push(reader.info()?);
        }
        header.data = reader.cursor.at().next_multiple_of(header.align);
        Ok(header)
    }

    /// The number that is kept under a key.
    pub(super) fn number(&self, key: &str) -> Result<Option<u64>> {
        let Some((_, value)) = self.entries.iter().find(|entry| entry.0 == key) else { return Ok(None) };
        let number = match value {
            Value::Text(text) => text.parse().ok(),
            _ => None,
        };
        number.map(Some).ok_or_else(|| malformed(format!("metadata {key:?} is not a number")))
    }
}

struct Reader<'s> {
    cursor: Cursor<'s>,
    big: bool,
}

impl Reader<'_> {
    fn number<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = self.cursor.array::<N>()?;
        if self.big {
            bytes.reverse();
        }
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.number()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.number()?))
    }

    fn string(&mut self) -> Result<String> {
        let len = self.u64()?;
        self.cursor.text(len)
    }

    /// A key, and whether it is text as it is.
    fn key(&mut self) -> Result<(String, bool)> {
        let len = self.u64()?;
        let bytes = self.cursor.take(usize::try_from(len).unwrap_or(usize::MAX))?;
        Ok(match std::str::from_utf8(bytes) {
            Ok(key) => (key.to_owned(), true),
            Err(_) => (String::from_utf8_lossy(bytes).into_owned(), false),
        })
    }

    fn value(&mut self, kind: u32, depth: u32) -> Result<Value> {
        Ok(Value::Text(match kind {
            0 => self.cursor.byte()?.to_string(),
            1 => i8::from_le_bytes(self.number()?).to_string(),
            2 => u16::from_le_bytes(self.number()?).to_string(),
            3 => i16::from_le_bytes(self.number()?).to_string(),
            4 => self.u32()?.to_string(),
            5 => i32::from_le_bytes(self.number()?).to_string(),
            6 => f32::from_le_bytes(self.number()?).to_string(),
            7 => (self.cursor.byte()? != 0).to_string(),
            8 => {
                let len = self.u64()?;
                if len > LONGEST {
                    self.cursor.skip(len)?;
                    return Ok(Value::Long(len));
                }
                match std::str::from_utf8(self.cursor.take(len as usize)?) {
                    Ok(text) => text.to_owned(),
                    Err(_) => return Ok(Value::Binary),
                }
            }
            9 => return self.array(depth),
            10 => self.u64()?.to_string(),
            11 => i64::from_le_bytes(self.number()?).to_string(),
            12 => f64::from_le_bytes(self.number()?).to_string(),
            _ => return Err(malformed(format!("{kind} is not the type of a value"))),
        }))
    }

    /// Passes over an array.
    fn array(&mut self, depth: u32) -> Result<Value> {
        if depth >= DEEPEST {
            return Err(malformed(format!("arrays are nested deeper than {DEEPEST}")));
        }
        let (kind, len) = (self.u32()?, self.u64()?);
        let width = match kind {
            0 | 1 | 7 => Some(1),
            2 | 3 => Some(2),
            4..=6 => Some(4),
            10..=12 => Some(8),
            _ => None,
        };
        match width {
            Some(width) => {
                let bytes = len.checked_mul(width);
                self.cursor.skip(bytes.ok_or_else(|| malformed(format!("{len} values are in no file")))?)?;
            }
            None => {
                for _ in 0..len {
                    match kind {
                        8 => {
                            let bytes = self.u64()?;
                            self.cursor.skip(bytes)?;
                        }
                        _ => drop(self.value(kind, depth + 1)?),
                    }
                }
            }
        }
        Ok(Value::Array(len))
    }

    fn info(&mut self) -> Result<Info> {
        let name = self.string()?;
        let read = |reader: &mut Self| {
            let dims = reader.u32()?;
            if dims > MOST_DIMS {
                return Err(malformed(format!("it has {dims} dimensions; {MOST_DIMS} are the most")));
            }
            let mut shape = Vec::with_capacity(dims as usize);
            for _ in 0..dims {
                let dim = reader.u64()?;
                shape.push(
                    usize::try_from(dim)
                        .map_err(|_| malformed(format!("a dimension of {dim} is too large")))?,
                );
            }
            shape.reverse();
            Ok((shape, reader.u32()?, reader.u64()?))
        };
        let (shape, kind, offset) = read(self).map_err(|error| error.in_tensor(&name))?;
        Ok(Info { name, shape, kind, offset })
    }
}
