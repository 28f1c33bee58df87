//! The opcodes of a pickle, one after another.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use weighbridge::{Error, ErrorKind, Result, Source};

/// Longer texts are not read into memory.
pub(crate) const LONGEST_TEXT: u64 = 64 << 20;
/// The longest line of an opcode that has its argument as text; names are far below it.
const LONGEST_LINE: usize = 64 << 10;

/// An opcode and its argument.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Op {
    Proto(u8),
    Stop,
    Mark,
    Pop,
    PopMark,
    Dup,
    None,
    Bool(bool),
    Int(i64),
    /// An integer of so many bytes, which 64 bits may not hold.
    BigInt,
    Float(f64),
    Text(Box<str>),
    /// A text too long to be read.
    LongText(Range<u64>),
    /// Where bytes lie in the file.
    Bytes(Range<u64>),
    /// What Python 2 calls a string, which may be either.
    String(Box<[u8]>),
    EmptyList,
    EmptyTuple,
    EmptyDict,
    EmptySet,
    List,
    Tuple,
    /// A tuple of the topmost items of the stack, so many.
    TupleOf(usize),
    Dict,
    FrozenSet,
    Append,
    Appends,
    SetItem,
    SetItems,
    AddItems,
    Get(u64),
    Put(u64),
    Memoize,
    Global(Box<str>, Box<str>),
    StackGlobal,
    Inst(Box<str>, Box<str>),
    Obj,
    Reduce,
    NewObj,
    NewObjEx,
    Build,
    PersId(Box<str>),
    BinPersId,
    Ext(u32),
    NextBuffer,
    ReadonlyBuffer,
}

/// Reads opcodes from any position of a source, through a small window.
pub(crate) struct Opcodes {
    source: Arc<dyn Source>,
    /// Where the next byte is.
    at: u64,
    window: Vec<u8>,
    window_start: u64,
}

impl Opcodes {
    pub(crate) fn new(source: Arc<dyn Source>, at: u64) -> Self {
        Self { source, at, window: Vec::new(), window_start: at }
    }

    /// Where the next opcode is.
    pub(crate) fn position(&self) -> u64 {
        self.at
    }

    /// The next opcode.
    pub(crate) fn next(&mut self) -> Result<Op> {
        let start = self.at;
        let code = self.byte()?;
        let op = match code {
            0x80 => Op::Proto(self.byte()?),
            b'.' => Op::Stop,
            b'(' => Op::Mark,
            b'0' => Op::Pop,
            b'1' => Op::PopMark,
            b'2' => Op::Dup,
            b'N' => Op::None,
            0x88 => Op::Bool(true),
            0x89 => Op::Bool(false),
            b'I' => self.int_line()?,
            b'J' => Op::Int(i32::from_le_bytes(self.array()?).into()),
            b'K' => Op::Int(self.byte()?.into()),
            b'M' => Op::Int(u16::from_le_bytes(self.array()?).into()),
            b'L' => self.int_line()?,
            0x8a => {
                let len = self.byte()?.into();
                self.long(len)?
            }
            0x8b => {
                let len = self.length_i32()?;
                self.long(len)?
            }
            b'F' => {
                let line = self.line()?;
                Op::Float(line.parse().map_err(|_| self.malformed("a float that is none"))?)
            }
            b'G' => Op::Float(f64::from_be_bytes(self.array()?)),
            b'S' => {
                let line = self.line()?;
                Op::String(self.unquoted(&line)?)
            }
            b'T' => {
                let len = self.length_i32()?;
                Op::String(self.small(len)?)
            }
            b'U' => {
                let len = self.byte()?.into();
                Op::String(self.small(len)?)
            }
            b'V' => Op::Text(self.line()?),
            0x8c => {
                let len = self.byte()?.into();
                self.text(len)?
            }
            b'X' => {
                let len = u32::from_le_bytes(self.array()?).into();
                self.text(len)?
            }
            0x8d => {
                let len = u64::from_le_bytes(self.array()?);
                self.text(len)?
            }
            b'B' => {
                let len = u32::from_le_bytes(self.array()?).into();
                Op::Bytes(self.skip(len)?)
            }
            b'C' => {
                let len = self.byte()?.into();
                Op::Bytes(self.skip(len)?)
            }
            0x8e | 0x96 => {
                let len = u64::from_le_bytes(self.array()?);
                Op::Bytes(self.skip(len)?)
            }
            b']' => Op::EmptyList,
            b')' => Op::EmptyTuple,
            b'}' => Op::EmptyDict,
            0x8f => Op::EmptySet,
            b'l' => Op::List,
            b't' => Op::Tuple,
            0x85..=0x87 => Op::TupleOf((code - 0x84).into()),
            b'd' => Op::Dict,
            0x91 => Op::FrozenSet,
            b'a' => Op::Append,
            b'e' => Op::Appends,
            b's' => Op::SetItem,
            b'u' => Op::SetItems,
            0x90 => Op::AddItems,
            b'g' => Op::Get(self.number_line()?),
            b'h' => Op::Get(self.byte()?.into()),
            b'j' => Op::Get(u32::from_le_bytes(self.array()?).into()),
            b'p' => Op::Put(self.number_line()?),
            b'q' => Op::Put(self.byte()?.into()),
            b'r' => Op::Put(u32::from_le_bytes(self.array()?).into()),
            0x94 => Op::Memoize,
            b'c' => Op::Global(self.line()?, self.line()?),
            0x93 => Op::StackGlobal,
            b'i' => Op::Inst(self.line()?, self.line()?),
            b'o' => Op::Obj,
            b'R' => Op::Reduce,
            0x81 => Op::NewObj,
            0x92 => Op::NewObjEx,
            b'b' => Op::Build,
            b'P' => Op::PersId(self.line()?),
            b'Q' => Op::BinPersId,
            0x82 => Op::Ext(self.byte()?.into()),
            0x83 => Op::Ext(u16::from_le_bytes(self.array()?).into()),
            0x84 => Op::Ext(u32::from_le_bytes(self.array()?)),
            0x97 => Op::NextBuffer,
            0x98 => Op::ReadonlyBuffer,
            // A frame only says how many bytes may be read at a time.
            0x95 => {
                self.array::<8>()?;
                return self.next_after_frame(start);
            }
            code => return Err(malformed(start, &format!("unknown opcode {code:#04x}"))),
        };
        Ok(op)
    }

    /// Frames may follow one another without end; they are read in a loop, not by recursion.
    fn next_after_frame(&mut self, start: u64) -> Result<Op> {
        while self.peek() == Some(0x95) {
            self.byte()?;
            self.array::<8>()?;
        }
        match self.peek() {
            Some(_) => self.next(),
            None => Err(malformed(start, "the file ends in it")),
        }
    }

    /// The next byte, if there is one.
    pub(crate) fn peek(&mut self) -> Option<u8> {
        let byte = self.byte().ok()?;
        self.at -= 1;
        Some(byte)
    }

    fn byte(&mut self) -> Result<u8> {
        const WINDOW: u64 = 64 << 10;
        let place = self.at.checked_sub(self.window_start).and_then(|place| usize::try_from(place).ok());
        if let Some(&byte) = place.and_then(|place| self.window.get(place)) {
            self.at += 1;
            return Ok(byte);
        }
        let len = self.source.size().saturating_sub(self.at).min(WINDOW) as usize;
        if len == 0 {
            return Err(self.malformed("the file ends in the middle of it"));
        }
        self.window.resize(len, 0);
        self.window_start = self.at;
        self.source.read_at(self.at, &mut self.window).map_err(|error| self.unread(error))?;
        self.at += 1;
        Ok(self.window[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        for byte in &mut bytes {
            *byte = self.byte()?;
        }
        Ok(bytes)
    }

    fn length_i32(&mut self) -> Result<u64> {
        let len = i32::from_le_bytes(self.array()?);
        u64::try_from(len).map_err(|_| self.malformed("a negative length"))
    }

    /// Passes over bytes without reading them.
    fn skip(&mut self, len: u64) -> Result<Range<u64>> {
        let start = self.at;
        match start.checked_add(len).filter(|&end| end <= self.source.size()) {
            Some(end) => {
                self.at = end;
                Ok(start..end)
            }
            None => Err(self.malformed(&format!("{len} bytes that are not in the file"))),
        }
    }

    fn small(&mut self, len: u64) -> Result<Box<[u8]>> {
        if len > LONGEST_TEXT {
            return Err(self.malformed(&format!("a text of {len} bytes, {LONGEST_TEXT} are the limit")));
        }
        let range = self.skip(len)?;
        let mut bytes = vec![0; len as usize];
        let place = range.start.checked_sub(self.window_start).and_then(|place| usize::try_from(place).ok());
        let in_window = place.and_then(|place| self.window.get(place..place.checked_add(len as usize)?));
        match in_window {
            Some(there) => bytes.copy_from_slice(there),
            None => self.source.read_at(range.start, &mut bytes).map_err(|error| self.unread(error))?,
        }
        Ok(bytes.into())
    }

    fn text(&mut self, len: u64) -> Result<Op> {
        if len > LONGEST_TEXT {
            return Ok(Op::LongText(self.skip(len)?));
        }
        let bytes = self.small(len)?.into_vec();
        // Python lets lone surrogates pass, which no name of a tensor has.
        Ok(Op::Text(String::from_utf8(bytes).map_err(|_| self.malformed("a text that is not UTF-8"))?.into()))
    }

    fn long(&mut self, len: u64) -> Result<Op> {
        if len > 8 {
            self.skip(len)?;
            return Ok(Op::BigInt);
        }
        let bytes = self.small(len)?;
        let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
        let mut value = [if negative { 0xff } else { 0 }; 8];
        value[..bytes.len()].copy_from_slice(&bytes);
        Ok(Op::Int(i64::from_le_bytes(value)))
    }

    fn int_line(&mut self) -> Result<Op> {
        let line = self.line()?;
        let digits = line.strip_suffix('L').unwrap_or(&line);
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        Ok(match digits {
            "00" => Op::Bool(false),
            "01" => Op::Bool(true),
            digits => match digits.parse() {
                Ok(value) => Op::Int(value),
                Err(_) if is_number(digits.trim_start_matches('-')) => Op::BigInt,
                Err(_) => return Err(self.malformed("an integer that is none")),
            },
        })
    }

    fn number_line(&mut self) -> Result<u64> {
        let line = self.line()?;
        line.parse().map_err(|_| self.malformed("the number of a memo that is none"))
    }

    fn line(&mut self) -> Result<Box<str>> {
        let mut bytes = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => break,
                _ if bytes.len() == LONGEST_LINE => return Err(self.malformed("a line that is too long")),
                byte => bytes.push(byte),
            }
        }
        let text = String::from_utf8(bytes).map_err(|_| self.malformed("a line that is not UTF-8"))?;
        Ok(text.strip_suffix('\r').unwrap_or(&text).into())
    }

    /// What stands between quotes.
    fn unquoted(&self, line: &str) -> Result<Box<[u8]>> {
        let inner = ['\'', '"'].iter().find_map(|&quote| line.strip_prefix(quote)?.strip_suffix(quote));
        let inner = inner.ok_or_else(|| self.malformed("a string without quotes"))?.as_bytes();
        let mut bytes = Vec::with_capacity(inner.len());
        let mut rest = inner;
        while let Some((&byte, more)) = rest.split_first() {
            rest = more;
            if byte != b'\\' {
                bytes.push(byte);
                continue;
            }
            let hex = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
            let (escaped, len) = match rest {
                [b'n', ..] => (b'\n', 1),
                [b't', ..] => (b'\t', 1),
                [b'r', ..] => (b'\r', 1),
                [b'x', a, b, ..] => (hex(&[*a, *b]).ok_or_else(|| self.malformed("an unknown escape"))?, 3),
                [other @ (b'\\' | b'\'' | b'"'), ..] => (*other, 1),
                _ => return Err(self.malformed("an unknown escape")),
            };
            bytes.push(escaped);
            rest = &rest[len..];
        }
        Ok(bytes.into())
    }

    fn malformed(&self, what: &str) -> Error {
        malformed(self.at, what)
    }

    fn unread(&self, error: io::Error) -> Error {
        crate::input::failed("it cannot be read", error)
    }
}

/// An error that says where in the pickle it is.
pub(crate) fn malformed(at: u64, what: &str) -> Error {
    Error::new(ErrorKind::Malformed, format!("the pickle is broken at byte {at}: {what}"))
}
