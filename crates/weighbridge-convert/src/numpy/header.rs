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
        let (text, data) = text(source)?;
        let mut found = Literal { rest: &text }.header()?;
        if let Found::Array(header) = &mut found {
            header.data = data;
        }
        Ok(found)
    }
}

/// Where an array ends that NumPy reads without a pickle, whatever its elements are; `None` for one of objects, and for what
/// is not understood.
pub(crate) fn end(source: &dyn Source) -> Result<Option<u64>> {
    let (text, data) = text(source)?;
    let Some((width, _, shape)) = Literal { rest: &text }.fields(Literal::width)? else { return Ok(None) };
    let size = shape.iter().try_fold(width, |size, &dim| size.checked_mul(dim as u64));
    Ok(size.and_then(|size| data.checked_add(size)))
}

/// The literal, and where the elements begin.
fn text(source: &dyn Source) -> Result<(Vec<u8>, u64)> {
    let mut cursor = Cursor::new(source, 0, source.size());
    if cursor.array::<6>()? != *MAGIC {
        return Err(malformed("it is not a NumPy array"));
    }
    let [major, minor] = cursor.array()?;
    let len = match major {
        1 => u32::from(u16::from_le_bytes(cursor.array()?)),
        2 | 3 => u32::from_le_bytes(cursor.array()?),
        _ => {
            return Err(unsupported(format!("it is NumPy's format {major}.{minor}; 1, 2 and 3 are read")));
        }
    };
    if len > LONGEST {
        return Err(unsupported(format!("its header has {len} bytes; NumPy reads {LONGEST} at most, too")));
    }
    let text = cursor.take(len as usize)?.to_vec();
    Ok((text, cursor.at()))
}

/// What is left of a literal.
struct Literal<'t> {
    rest: &'t [u8],
}

impl Literal<'_> {
    fn header(mut self) -> Result<Found> {
        let mut unheld = None;
        let fields = self.fields(|literal| match literal.descr()? {
            Ok(known) => Ok(Some(known)),
            Err(what) => {
                unheld = Some(what);
                Ok(None)
            }
        })?;
        Ok(match (fields, unheld) {
            (Some(((dtype, big), fortran, shape)), _) => {
                Found::Array(Header { dtype, big, fortran, shape, data: 0 })
            }
            (None, what) => Found::Unheld(what.unwrap_or_default()),
        })
    }

    /// The dtype as `read` takes it, `fortran_order` and the shape; `None` where it takes none.
    fn fields<D>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<Option<D>>,
    ) -> Result<Option<(D, bool, Vec<usize>)>> {
        let (mut read, mut descr, mut fortran, mut shape) = (Some(read), None, None, None);
        self.expect(b'{')?;
        while !self.ate(b'}') {
            let key = self.string()?;
            self.expect(b':')?;
            match (&*key, read.take()) {
                ("descr", Some(read)) => match read(self)? {
                    Some(known) => descr = Some(known),
                    None => return Ok(None),
                },
                ("fortran_order", later) if fortran.is_none() => {
                    (fortran, read) = (Some(self.boolean()?), later);
                }
                ("shape", later) if shape.is_none() => (shape, read) = (Some(self.tuple()?), later),
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
        let (Some(descr), Some(fortran), Some(shape), []) = (descr, fortran, shape, self.rest) else {
            return Err(malformed("its header is not a dict of descr, fortran_order and shape"));
        };
        Ok(Some((descr, fortran, shape)))
    }

    /// The bytes of an element that is written as it is; `None` for objects, and for what else may be a pickle.
    fn width(&mut self) -> Result<Option<u64>> {
        if !self.ate(b'[') {
            return Ok(dtypes::width(&self.string()?));
        }
        // Fields: a name, a dtype, and a shape where there are several.
        let mut sum = Some(0_u64);
        while !self.ate(b']') {
            self.expect(b'(')?;
            self.string()?;
            self.expect(b',')?;
            self.spaces();
            if self.rest.first() == Some(&b'[') {
                return Ok(None);
            }
            let mut width = dtypes::width(&self.string()?);
            let follows = self.ate(b',');
            self.spaces();
            if follows && self.rest.first() == Some(&b'(') {
                for dim in self.tuple()? {
                    width = width.and_then(|width| width.checked_mul(dim as u64));
                }
                self.ate(b',');
            }
            self.expect(b')')?;
            sum = sum.zip(width).and_then(|(sum, width)| sum.checked_add(width));
            if !self.ate(b',') {
                self.expect(b']')?;
                break;
            }
        }
        Ok(sum)
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
