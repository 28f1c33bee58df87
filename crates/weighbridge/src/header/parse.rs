//! From the header's JSON to records, in one pass and in bounded memory.
//!
//! Names stay where they are in the text; shapes share memory that does not move. Beyond the text itself the
//! memory is at most four times the text's length whatever it holds: a tensor takes at least 20 bytes of text and
//! 40 of record, a dimension at least 2 and 8, and growth never reserves more than what the rest of the text
//! could fill.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::dims::Dims;
use super::json::{Cursor, JsonError, RawStr, unescape};
use super::rules::{Findings, Profile};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::rule::Rule;

/// The least text for a tensor, `"":["F4",[],[0,0]],`, a dimension, `1,`, and a metadata entry, `"":"",`.
const LEAST_TENSOR: usize = 19;
const LEAST_DIM: usize = 2;
const LEAST_ENTRY: usize = 6;

/// The schema's bound for numbers: 48 bits.
pub(crate) const MOST_IN_SCHEMA: u64 = (1 << 48) - 1;

/// A header's JSON, read but not yet proven.
#[derive(Debug)]
pub(super) struct Parsed {
    text: String,
    /// Names and metadata that were written with escapes, without them.
    unescaped: String,
    dims: Dims,
    /// In the order of the text; the same name may occur twice.
    pub(super) records: Vec<Record>,
    pub(super) metadata: Option<Vec<(Span, Span)>>,
    pub(super) findings: Findings,
}

/// One tensor as the header gives it.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) begin: u64,
    pub(super) end: u64,
    pub(super) name: Span,
    /// Where the name is in the text.
    pub(super) position: u32,
    dims_start: u32,
    rank: u32,
    pub(super) dtype: Dtype,
}

/// A piece of the text, or of the unescaped names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    start: u32,
    /// The length; its highest bit tells the unescaped names from the text.
    len: u32,
}

const UNESCAPED: u32 = 1 << 31;

/// The text may be this long: spans have 31 bits for their length.
pub(super) const MOST_TEXT: u64 = (UNESCAPED - 1) as u64;

impl Parsed {
    pub(super) fn text(&self, span: Span) -> &str {
        text(&self.text, &self.unescaped, span)
    }

    pub(super) fn dims(&self, record: &Record) -> &[usize] {
        self.dims.shape(record.dims_start as usize, record.rank as usize)
    }
}

fn text<'a>(text: &'a str, unescaped: &'a str, span: Span) -> &'a str {
    let start = span.start as usize;
    let len = span.len & !UNESCAPED;
    let whole = if span.len == len { text } else { unescaped };
    &whole[start..start + len as usize]
}

/// Reads the JSON of a header; `text` is at most [`MOST_TEXT`] long.
pub(super) fn parse(text: String, profile: Profile) -> Result<Parsed> {
    let mut parser = Parser {
        cursor: Cursor::new(&text),
        unescaped: String::new(),
        dims: Dims::default(),
        records: Vec::new(),
        metadata: None,
        findings: Findings::new(profile),
        dims_bits: 0,
    };
    parser.header()?;
    let Parser { unescaped, dims, records, metadata, findings, cursor, .. } = parser;
    let used = cursor.position();
    // Padding need not be kept; there may be megabytes of it.
    let mut text = text;
    if text.trim_ascii_end().len() < used / 2 {
        text.truncate(text.trim_ascii_end().len());
        text.shrink_to_fit();
    }
    Ok(Parsed { unescaped, dims, records, metadata: metadata.flatten(), findings, text })
}

struct Parser<'a> {
    cursor: Cursor<'a>,
    unescaped: String,
    dims: Dims,
    records: Vec<Record>,
    /// Outer `Some` once the key was seen, inner unless it is `null`.
    metadata: Option<Option<Vec<(Span, Span)>>>,
    findings: Findings,
    /// The bits that are set in any dimension of the tensor at hand.
    dims_bits: usize,
}

impl<'a> Parser<'a> {
    fn header(&mut self) -> Result<()> {
        let start = self.cursor.peek();
        if self.cursor.position() > 0 && start.is_some() {
            self.findings.note(Rule::LeadingSpace, 0, || None)?;
        }
        self.cursor.open(b'{', "expected '{'").map_err(syntax)?;
        let mut first = true;
        while let Some(key) = self.cursor.key(first).map_err(syntax)? {
            first = false;
            if key.value() == "__metadata__" {
                self.metadata(key)?;
            } else {
                self.tensor(key)?;
            }
        }
        let end = self.cursor.position();
        let padding = self.cursor.clone();
        self.cursor.end().map_err(syntax)?;
        if padding.rest().bytes().any(|byte| byte != b' ') {
            self.findings.note(Rule::Padding, end, || None)?;
        }
        Ok(())
    }

    fn metadata(&mut self, key: RawStr<'a>) -> Result<()> {
        if self.metadata.is_some() {
            return Err(syntax(JsonError { position: key.position, message: "__metadata__ appears twice" }));
        }
        if key.escaped {
            self.findings.note(Rule::EscapedMetadataKey, key.position, || None)?;
        }
        if self.cursor.peek() == Some(b'n') {
            self.cursor.literal("null").map_err(syntax)?;
            self.findings.note(Rule::NullMetadata, key.position, || None)?;
            self.metadata = Some(None);
            return Ok(());
        }
        self.cursor.open(b'{', "__metadata__ is not an object").map_err(syntax)?;
        let (hasher, mut by_key) = (RandomState::new(), HashTable::<u32>::new());
        let mut entries: Vec<(Span, Span)> = Vec::new();
        let mut first = true;
        while let Some(key) = self.cursor.key(first).map_err(syntax)? {
            first = false;
            let value = self.cursor.string("a metadata value is not a string").map_err(syntax)?;
            let value = self.span(value);
            let name = key.value();
            let (source, unescaped) = (self.cursor.text(), &self.unescaped);
            let at = |place: u32| text(source, unescaped, entries[place as usize].0);
            let slot = by_key.entry(
                hasher.hash_one(&*name),
                |&place| at(place) == name,
                |&place| hasher.hash_one(at(place)),
            );
            match slot {
                Entry::Occupied(slot) => {
                    let place = *slot.get() as usize;
                    self.findings.note(Rule::DuplicateMetadata, key.position, || None)?;
                    entries[place].1 = value;
                }
                Entry::Vacant(slot) => {
                    slot.insert(entries.len() as u32);
                    let key = self.span(key);
                    push(&mut entries, (key, value), self.cursor.remaining() / LEAST_ENTRY);
                }
            }
        }
        self.metadata = Some(Some(entries));
        Ok(())
    }

    fn tensor(&mut self, name: RawStr<'a>) -> Result<()> {
        let span = self.span(name);
        let fields = match self.cursor.peek() {
            Some(b'{') => self.usual_fields().map_or_else(|| self.fields(name), Ok),
            Some(b'[') => {
                let position = name.position;
                self.findings.note(Rule::TensorAsArray, position, || Some(name.start()))?;
                self.elements(name)
            }
            _ => Err(self.expected("its entry is not an object").into()),
        };
        let Fields { dtype, dims_start, rank, begin, end } = fields.map_err(|error| error.named(&name))?;
        if (begin | end | std::mem::take(&mut self.dims_bits) as u64) > MOST_IN_SCHEMA {
            self.findings.note(Rule::LargeNumber, name.position, || Some(name.start()))?;
        }
        // A NUL as it is would be a control character in a string, which is refused.
        if name.escaped && text(self.cursor.text(), &self.unescaped, span).contains('\0') {
            self.findings.note(Rule::NulInName, name.position, || Some(name.start()))?;
        }
        let position = name.position as u32;
        let record = Record { begin, end, name: span, position, dims_start, rank, dtype };
        if self.records.is_empty() {
            // Entries are about as long as the first, so that the vector seldom has to grow.
            let text = self.cursor.position() - name.position + 1;
            self.records.reserve_exact(1 + self.cursor.remaining() / text.max(LEAST_TENSOR));
        }
        push(&mut self.records, record, self.cursor.remaining() / LEAST_TENSOR);
        Ok(())
    }

    /// An entry exactly as writers have it, `{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}`, which is read
    /// several times faster. `None`, with nothing taken, for whatever else may stand there.
    fn usual_fields(&mut self) -> Option<Fields> {
        const MOST_DIMS: usize = 8;
        let mut cursor = self.cursor.clone();
        let dtype = cursor.took(b"{\"dtype\":\"")?.plain_word()?.parse().ok()?;
        cursor.took(b"\",\"shape\":[")?;
        let (mut dims, mut rank) = ([0; MOST_DIMS], 0);
        if cursor.took(b"]").is_none() {
            loop {
                *dims.get_mut(rank)? = usize::try_from(cursor.plain_unsigned()?).ok()?;
                rank += 1;
                if cursor.took(b",").is_none() {
                    cursor.took(b"]")?;
                    break;
                }
            }
        }
        let begin = cursor.took(b",\"data_offsets\":[")?.plain_unsigned()?;
        let end = cursor.took(b",")?.plain_unsigned()?;
        cursor.took(b"]}")?;
        self.cursor = cursor;
        let start = self.dims.begin(rank, rank + self.cursor.remaining() / LEAST_DIM);
        dims[..rank].iter().for_each(|&dim| self.push_dim(dim));
        Some(Fields { dtype, dims_start: start as u32, rank: rank as u32, begin, end })
    }

    /// `{"dtype": ..., "shape": ..., "data_offsets": ...}` in any order, other fields passed over.
    fn fields(&mut self, name: RawStr<'a>) -> std::result::Result<Fields, Fault> {
        self.cursor.open(b'{', "")?;
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        let mut first = true;
        while let Some(key) = self.cursor.key(first)? {
            first = false;
            let twice = match &*key.value() {
                "dtype" => dtype.replace(self.dtype(name)?).is_some(),
                "shape" => shape.replace(self.shape()?).is_some(),
                "data_offsets" => offsets.replace(self.offsets()?).is_some(),
                _ => {
                    self.findings.note(Rule::UnknownField, key.position, || Some(name.start()))?;
                    self.cursor.skip()?;
                    false
                }
            };
            if twice {
                return Err(self.expected("a field of its entry appears twice").into());
            }
        }
        let Some(dtype) = dtype else {
            return Err(self.expected("its entry has no dtype").into());
        };
        let Some((dims_start, rank)) = shape else {
            return Err(self.expected("its entry has no shape").into());
        };
        let Some((begin, end)) = offsets else {
            return Err(self.expected("its entry has no data_offsets").into());
        };
        Ok(Fields { dtype, dims_start, rank, begin, end })
    }

    /// `[dtype, shape, data_offsets]`, as `serde` reads a struct from an array.
    fn elements(&mut self, name: RawStr<'a>) -> std::result::Result<Fields, Fault> {
        const COUNT: &str = "its entry is an array without exactly three elements";
        self.cursor.open(b'[', "")?;
        let next = |parser: &mut Self, first| match parser.cursor.more(first, b']') {
            Ok(true) => Ok(()),
            Ok(false) => Err(Fault::from(parser.expected(COUNT))),
            Err(error) => Err(error.into()),
        };
        next(self, true)?;
        let dtype = self.dtype(name)?;
        next(self, false)?;
        let (dims_start, rank) = self.shape()?;
        next(self, false)?;
        let (begin, end) = self.offsets()?;
        if self.cursor.more(false, b']')? {
            return Err(self.expected(COUNT).into());
        }
        Ok(Fields { dtype, dims_start, rank, begin, end })
    }

    /// `"F32"`, or `{"F32": null}` as `serde` reads an enum.
    fn dtype(&mut self, name: RawStr<'a>) -> std::result::Result<Dtype, Fault> {
        const WHAT: &str = "its dtype is not a string";
        if self.cursor.peek() != Some(b'{') {
            let dtype = self.cursor.string(WHAT)?;
            return self.known_dtype(dtype);
        }
        let position = self.cursor.position();
        self.cursor.open(b'{', WHAT)?;
        let Some(key) = self.cursor.key(true)? else {
            return Err(self.expected(WHAT).into());
        };
        let dtype = self.known_dtype(key)?;
        self.cursor.peek();
        self.cursor.literal("null")?;
        if self.cursor.key(false)?.is_some() {
            return Err(self.expected(WHAT).into());
        }
        self.findings.note(Rule::DtypeAsObject, position, || Some(name.start()))?;
        Ok(dtype)
    }

    fn known_dtype(&self, name: RawStr<'a>) -> std::result::Result<Dtype, Fault> {
        let value = name.value();
        value.parse().map_err(|_| {
            let shown: String = value.chars().take(32).collect();
            let message = format!("unknown dtype {shown:?} (byte {} of the header)", name.position);
            Error::new(ErrorKind::HeaderSyntax, message).into()
        })
    }

    /// Returns the place of its first dimension among all, and how many it has.
    fn shape(&mut self) -> std::result::Result<(u32, u32), Fault> {
        const WHAT: &str = "its shape is not an array of whole numbers";
        self.cursor.open(b'[', WHAT)?;
        let inside = self.cursor.rest().bytes().take_while(|&byte| byte != b']');
        let commas = inside.filter(|&byte| byte == b',').count();
        let more = 1 + self.cursor.remaining() / LEAST_DIM;
        let start = self.dims.begin(more.min(1 + commas), more);
        let mut first = true;
        while self.cursor.more(first, b']')? {
            first = false;
            let dim = self.cursor.unsigned(WHAT)?;
            let Ok(dim) = usize::try_from(dim) else {
                return Err(self.expected("a dimension does not fit this machine's address space").into());
            };
            self.push_dim(dim);
        }
        Ok((start as u32, (self.dims.len() - start) as u32))
    }

    fn push_dim(&mut self, dim: usize) {
        self.dims_bits |= dim;
        self.dims.push(dim);
    }

    fn offsets(&mut self) -> std::result::Result<(u64, u64), Fault> {
        const WHAT: &str = "its data_offsets are not two whole numbers";
        self.cursor.open(b'[', WHAT)?;
        let mut next = |first| -> std::result::Result<u64, Fault> {
            if !self.cursor.more(first, b']')? {
                return Err(self.expected(WHAT).into());
            }
            Ok(self.cursor.unsigned(WHAT)?)
        };
        let (begin, end) = (next(true)?, next(false)?);
        if self.cursor.more(false, b']')? {
            return Err(self.expected(WHAT).into());
        }
        Ok((begin, end))
    }

    fn expected(&self, message: &'static str) -> JsonError {
        JsonError { position: self.cursor.position(), message }
    }

    fn span(&mut self, string: RawStr<'a>) -> Span {
        if !string.escaped {
            return Span { start: string.position as u32, len: string.raw.len() as u32 };
        }
        let start = self.unescaped.len();
        unescape(string.raw, &mut self.unescaped);
        let len = (self.unescaped.len() - start) as u32;
        Span { start: start as u32, len: len | UNESCAPED }
    }
}

struct Fields {
    dtype: Dtype,
    dims_start: u32,
    rank: u32,
    begin: u64,
    end: u64,
}

/// An error inside a tensor's entry.
enum Fault {
    Json(JsonError),
    Other(Error),
}

impl Fault {
    fn named(self, name: &RawStr<'_>) -> Error {
        match self {
            Self::Json(error) => syntax(error),
            Self::Other(error) => error,
        }
        .in_tensor(&name.start())
    }
}

impl From<JsonError> for Fault {
    fn from(error: JsonError) -> Self {
        Self::Json(error)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

fn syntax(error: JsonError) -> Error {
    let JsonError { position, message } = error;
    Error::new(ErrorKind::HeaderSyntax, format!("{message} (byte {position} of the header)"))
}

/// Appends `item`; `more` items at most can follow, so no more room than for them is made.
fn push<T>(items: &mut Vec<T>, item: T, more: usize) {
    if items.len() == items.capacity() {
        let double = items.len().max(8);
        items.reserve_exact(double.min(more + 1));
    }
    items.push(item);
}
