//! The opcodes of a pickle, one after another, by the rules of CPython's C unpickler.

use std::ops::Range;
use std::sync::Arc;

use weighbridge::{Error, Result, Source};

use super::bytes::{Bytes, LONGEST_NAME, LONGEST_TEXT};
use super::text::{self, Integer, Text};

pub(crate) use super::bytes::malformed;

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
    /// An integer of this many bytes, which 64 bits may not hold.
    BigInt,
    Float(f64),
    Text(Box<str>),
    /// A text with lone surrogates, written as `\ud800`.
    Surrogates(Box<str>),
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
    /// A tuple of this number of items from the top of the stack.
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

/// Reads opcodes from any position of a source.
pub(crate) struct Opcodes {
    bytes: Bytes,
    /// Where the last opcode begins.
    opcode: u64,
}

impl Opcodes {
    pub(crate) fn new(source: Arc<dyn Source>, at: u64) -> Self {
        Self { bytes: Bytes::new(source, at), opcode: at }
    }

    /// Where the next opcode is.
    pub(crate) fn position(&self) -> u64 {
        self.bytes.at()
    }

    /// Goes on at another position, behind what is no opcode.
    pub(crate) fn jump(&mut self, at: u64) {
        self.bytes.jump(at);
    }

    /// Why readers of CPython's would disagree about what was read so far.
    pub(crate) fn ambiguous(&self) -> Option<&'static str> {
        self.bytes.ambiguous()
    }

    /// The module and the name of a global whose last line the file cuts off: CPython's reader in Python takes that for a
    /// line, and imports what is left of it.
    pub(crate) fn cut_global(&self) -> Option<(String, String)> {
        let rest = self.bytes.rest(self.opcode)?;
        let mut lines =
            rest.strip_prefix(b"c").or(rest.strip_prefix(b"i"))?.split_inclusive(|&byte| byte == b'\n');
        let mut name = || {
            let line = lines.next().unwrap_or_default();
            String::from_utf8_lossy(&line[..line.len().saturating_sub(1)]).into_owned()
        };
        Some((name(), name()))
    }

    /// The next opcode.
    pub(crate) fn next(&mut self) -> Result<Op> {
        let mut code = self.bytes.byte()?;
        while code == 0x95 {
            self.bytes.begin_frame()?;
            code = self.bytes.byte()?;
        }
        self.opcode = self.position() - 1;
        Ok(match code {
            0x80 => Op::Proto(self.bytes.byte()?),
            b'.' => {
                self.bytes.stop();
                Op::Stop
            }
            b'(' => Op::Mark,
            b'0' => Op::Pop,
            b'1' => Op::PopMark,
            b'2' => Op::Dup,
            b'N' => Op::None,
            0x88 => Op::Bool(true),
            0x89 => Op::Bool(false),
            b'I' => self.integer(text::integer)?,
            b'J' => Op::Int(i32::from_le_bytes(self.bytes.array()?).into()),
            b'K' => Op::Int(self.bytes.byte()?.into()),
            b'M' => Op::Int(u16::from_le_bytes(self.bytes.array()?).into()),
            b'L' => self.integer(text::long)?,
            0x8a => {
                let len = self.short()?;
                self.long(len)?
            }
            0x8b => {
                let len = self.signed()?;
                self.long(len)?
            }
            b'F' => {
                let line = self.bytes.line()?;
                Op::Float(match (text::float(&line), text::python_float(&line)) {
                    (Some(value), _) => value,
                    (None, Some(value)) => {
                        self.bytes.doubt("a float in a form of its own");
                        value
                    }
                    (None, None) => return Err(self.malformed("an invalid float")),
                })
            }
            b'G' => Op::Float(f64::from_be_bytes(self.bytes.array()?)),
            b'S' => {
                let line = self.bytes.line()?;
                let bytes = text::unquoted(&line);
                Op::String(bytes.ok_or_else(|| self.malformed("an invalid string"))?.into())
            }
            b'T' => {
                let len = self.signed()?;
                self.string(len)?
            }
            b'U' => {
                let len = self.short()?;
                self.string(len)?
            }
            b'V' => {
                let line = self.bytes.line()?;
                self.text(text::raw_unicode(&line))?
            }
            0x8c => {
                let len = self.short()?;
                self.utf8(len)?
            }
            b'X' => {
                let len = self.word()?;
                self.utf8(len)?
            }
            0x8d => {
                let len = self.wide()?;
                self.utf8(len)?
            }
            b'C' => {
                let len = self.short()?;
                Op::Bytes(self.bytes.skip(len)?)
            }
            b'B' => {
                let len = self.word()?;
                Op::Bytes(self.bytes.skip(len)?)
            }
            0x8e | 0x96 => {
                let len = self.wide()?;
                Op::Bytes(self.bytes.skip(len)?)
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
            b'g' => Op::Get(self.index()?),
            b'h' => Op::Get(self.short()?),
            b'j' => Op::Get(self.word()?),
            b'p' => Op::Put(self.index()?),
            b'q' => Op::Put(self.short()?),
            b'r' => Op::Put(self.word()?),
            0x94 => Op::Memoize,
            b'c' => Op::Global(self.name()?, self.name()?),
            0x93 => Op::StackGlobal,
            b'i' => Op::Inst(self.name()?, self.name()?),
            b'o' => Op::Obj,
            b'R' => Op::Reduce,
            0x81 => Op::NewObj,
            0x92 => Op::NewObjEx,
            b'b' => Op::Build,
            b'P' => {
                let line = self.bytes.line()?;
                Op::PersId(String::from_utf8_lossy(&line).into())
            }
            b'Q' => Op::BinPersId,
            0x82 => Op::Ext(self.bytes.byte()?.into()),
            0x83 => Op::Ext(u16::from_le_bytes(self.bytes.array()?).into()),
            0x84 => Op::Ext(u32::from_le_bytes(self.bytes.array()?)),
            0x97 => Op::NextBuffer,
            0x98 => Op::ReadonlyBuffer,
            code => {
                let at = self.position() - 1;
                return Err(malformed(at, &format!("unknown opcode {code:#04x}")));
            }
        })
    }

    fn short(&mut self) -> Result<u64> {
        Ok(self.bytes.byte()?.into())
    }

    fn word(&mut self) -> Result<u64> {
        Ok(u32::from_le_bytes(self.bytes.array()?).into())
    }

    fn wide(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes.array()?))
    }

    /// A length of 32 bits with a sign.
    fn signed(&mut self) -> Result<u64> {
        let len = i32::from_le_bytes(self.bytes.array()?);
        u64::try_from(len).map_err(|_| self.malformed("a negative length"))
    }

    fn string(&mut self, len: u64) -> Result<Op> {
        if len > LONGEST_TEXT {
            return Err(self.malformed(&format!("a string of {len} bytes, {LONGEST_TEXT} are the limit")));
        }
        Ok(Op::String(self.bytes.take(len)?.into()))
    }

    fn utf8(&mut self, len: u64) -> Result<Op> {
        if len > LONGEST_TEXT {
            return Ok(Op::LongText(self.bytes.skip(len)?));
        }
        let bytes = self.bytes.take(len)?;
        self.text(text::utf8(bytes))
    }

    fn text(&self, text: Option<Text>) -> Result<Op> {
        match text {
            Some(Text::Plain(text)) => Ok(Op::Text(text)),
            Some(Text::Surrogates(text)) => Ok(Op::Surrogates(text)),
            None => Err(self.malformed("a text in an invalid encoding")),
        }
    }

    fn long(&mut self, len: u64) -> Result<Op> {
        if len > 8 {
            self.bytes.skip(len)?;
            return Ok(Op::BigInt);
        }
        let bytes = self.bytes.take(len)?;
        let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
        let mut value = [if negative { 0xff } else { 0 }; 8];
        value[..bytes.len()].copy_from_slice(&bytes);
        Ok(Op::Int(i64::from_le_bytes(value)))
    }

    fn integer(&mut self, read: fn(&[u8]) -> Option<Integer>) -> Result<Op> {
        let line = self.bytes.line()?;
        match read(&line) {
            Some(Integer::Bool(value)) => Ok(Op::Bool(value)),
            Some(Integer::Small(value)) => Ok(Op::Int(value)),
            Some(Integer::Big) => Ok(Op::BigInt),
            None => Err(self.malformed("an invalid integer")),
        }
    }

    fn index(&mut self) -> Result<u64> {
        let line = self.bytes.line()?;
        text::index(&line).ok_or_else(|| self.malformed("an invalid index of the memo"))
    }

    /// The module or the name of a global.
    fn name(&mut self) -> Result<Box<str>> {
        let line = self.bytes.line_of(LONGEST_NAME)?;
        let name = String::from_utf8(line).map_err(|_| self.malformed("a name that is not UTF-8"))?;
        Ok(name.into())
    }

    fn malformed(&self, what: &str) -> Error {
        self.bytes.malformed(what)
    }
}
