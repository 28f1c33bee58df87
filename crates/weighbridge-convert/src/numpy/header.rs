//! The header of an array: a Python literal, of which only that much is understood which NumPy writes.

use weighbridge::{Dtype, Result, Source};

use super::dtypes;
use crate::cursor::{Cursor, malformed, unsupported};

/// What every such file begins with.
pub(crate) const MAGIC: &[u8] = b"\x93NUMPY";

/// What an array is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) dtype: Dtype,
    /// Whether elements are big-endian.
    pub(crate) big: bool,
    /// Whether the first dimension runs fastest.
    pub(crate) fortran: bool,
    pub(crate) shape: Vec<usize>,
    /// Where the elements begin.
    pub(crate) data: u64,
}

/// A header that was read, or what it says that safetensors does not have.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Array(Header),
    Unheld(String),
}

/// NumPy itself takes no header that is longer, unless it is told to.
const LONGEST: u32 = 10_000;
/// As in NumPy 2.
pub(crate) const MOST_DIMS: usize = 64;

impl Header {
    pub(crate) fn read(source: &dyn Source) -> Result<Found> {
        let mut cursor = Cursor::new(source, 0, source.size());
        if cursor.array::<6>()? != *MAGIC {
            return Err(malformed("it is not a NumPy array"));
        }
        let [major, minor] = cursor.array()?;
        let len = match major {
            1 => u32::from(u16::from_le_bytes(cursor.array()?)),
            2 | 3 => u32::from_le_bytes(cursor.array()?),
            _ => {
                return Err(unsupported(format!(
                    "it is NumPy's format {major}.{minor}; 1, 2 and 3 are read"
                )));
            }
        };
        if len > LONGEST {
            return Err(unsupported(format!(
                "its header has {len} bytes; NumPy reads {LONGEST} at the most, too"
            )));
        }
        let text = cursor.take(len as usize)?.to_vec();
        let mut found = Literal { rest: &text }.header()?;
        if let Found::Array(header) = &mut found {
            header.data = cursor.at();
        }
        Ok(found)
    }
}

/// What is left of a literal.
struct Literal<'t> {
    rest: &'t [u8],
}

impl Literal<'_> {
    fn header(mut self) -> Result<Found> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        self.expect(b'{')?;
        while !self.ate(b'}') {
            let key = self.string()?;
            self.expect(b':')?;
            match &*key {
                "descr" if descr.is_none() => match self.descr()? {
                    Ok(known) => descr = Some(known),
                    Err(what) => return Ok(Found::Unheld(what)),
                },
                "fortran_order" if fortran.is_none() => fortran = Some(self.boolean()?),
                "shape" if shape.is_none() => shape = Some(self.tuple()?),
                _ => {
                    return Err(malformed(format!(
                        "its header has {key:?}, which belongs there once or not at all"
                    )));
                }
            }
            if !self.ate(b',') {
                self.expect(b'}')?;
                break;
            }
        }
        self.spaces();
        let (Some((dtype, big)), Some(fortran), Some(shape), []) = (descr, fortran, shape, self.rest) else {
            return Err(malformed("its header is not a dict of descr, fortran_order and shape"));
        };
        Ok(Found::Array(Header { dtype, big, fortran, shape, data: 0 }))
    }

    fn spaces(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }

    fn ate(&mut self, byte: u8) -> bool {
        self.spaces();
        match self.rest.split_first() {
            Some((&first, rest)) if first == byte => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn expect(&mut self, byte: u8) -> Result<()> {
        match self.ate(byte) {
            true => Ok(()),
            false => Err(malformed(format!("its header lacks a {:?}", char::from(byte)))),
        }
    }

    /// A text without escapes: none that is understood has any.
    fn string(&mut self) -> Result<String> {
        self.spaces();
        // Python 2 marked texts so.
        self.rest = self.rest.strip_prefix(b"u").unwrap_or(self.rest);
        let quote = self.rest.first().copied().filter(|byte| matches!(byte, b'\'' | b'"'));
        let text = quote.and_then(|quote| self.rest[1..].split(|&byte| byte == quote).next());
        let text = text.filter(|text| text.len() + 2 <= self.rest.len() && !text.contains(&b'\\'));
        let Some(text) = text else {
            return Err(malformed("its header has something else where a text belongs"));
        };
        self.rest = &self.rest[text.len() + 2..];
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    fn boolean(&mut self) -> Result<bool> {
        self.spaces();
        for (name, value) in [(&b"True"[..], true), (b"False", false)] {
            if let Some(rest) = self.rest.strip_prefix(name) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(malformed("fortran_order in its header is neither True nor False"))
    }

    /// `()`, `(3,)`, `(3, 4)`.
    fn tuple(&mut self) -> Result<Vec<usize>> {
        let mut dims = Vec::new();
        self.expect(b'(')?;
        while !self.ate(b')') {
            self.spaces();
            let digits = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let (number, rest) = self.rest.split_at(digits);
            let number = std::str::from_utf8(number).ok().and_then(|number| number.parse().ok());
            let Some(dim) = number else {
                return Err(malformed("a dimension in its header is not a number"));
            };
            if dims.len() == MOST_DIMS {
                return Err(malformed(format!("it has more than {MOST_DIMS} dimensions")));
            }
            dims.push(dim);
            // Python 2 wrote long numbers so.
            self.rest = rest.strip_prefix(b"L").unwrap_or(rest);
            if !self.ate(b',') {
                self.expect(b')')?;
                break;
            }
        }
        Ok(dims)
    }

    /// The dtype, and whether it is big-endian; or what else the array consists of.
    fn descr(&mut self) -> Result<std::result::Result<(Dtype, bool), String>> {
        self.spaces();
        if matches!(self.rest.first(), Some(b'[' | b'{' | b'(')) {
            let what = "a structured array (save each of its fields as an array of its own)";
            return Ok(Err(what.to_owned()));
        }
        let descr = self.string()?;
        Ok(match dtypes::spelled(&descr) {
            Some((known, big)) if !known.pair => Ok((known.dtype, big)),
            _ => Err(dtypes::unheld(&descr)),
        })
    }
}
