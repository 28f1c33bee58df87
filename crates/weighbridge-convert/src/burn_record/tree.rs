//! A record as a tree of values; what is large in it stays in the file.

use std::ops::Range;

use weighbridge::{Result, Source};

use crate::cursor::{Cursor, malformed};
use crate::msgpack::{Token, token};

/// Values in values.
const DEEPEST: usize = 128;
/// Of values, numbers in lists not counted.
const MOST: usize = 1 << 20;
/// Of a text, and of all.
const LONGEST: u64 = 4 << 10;
const MOST_TEXT: u64 = 64 << 20;

/// A value.
pub(super) enum Node {
    Nil,
    /// A number or a truth value by itself.
    Value(String),
    Text(String),
    /// A text that is too long to be kept.
    Long,
    Bytes(Range<u64>),
    Numbers(Numbers),
    List(Vec<Node>),
    Dict(Vec<(Name, Node)>),
}

/// A key.
pub(super) struct Name {
    pub(super) text: String,
    pub(super) is_text: bool,
}

/// A list of numbers of one kind.
pub(super) struct Numbers {
    /// Where the first begins and the last ends.
    range: Range<u64>,
    pub(super) count: u64,
    pub(super) kind: Kind,
}

/// What the numbers of a list are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    F32,
    F64,
    Bool,
    /// The least and the greatest.
    Int(i128, i128),
}

/// A number of a list.
#[derive(Clone, Copy, Debug)]
pub(super) enum Number {
    F32(f32),
    F64(f64),
    Bool(bool),
    Int(i128),
}

impl Node {
    /// What a dict holds; nothing for anything else.
    pub(super) fn entries(&self) -> &[(Name, Node)] {
        match self {
            Self::Dict(entries) => entries,
            _ => &[],
        }
    }

    /// What a dict holds under a key.
    pub(super) fn entry(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|(name, _)| name.text == key).map(|(_, node)| node)
    }
}

impl Numbers {
    /// Calls `each` with every number, in order.
    pub(super) fn for_each(
        &self,
        source: &dyn Source,
        mut each: impl FnMut(Number) -> Result<()>,
    ) -> Result<()> {
        let mut cursor = Cursor::new(source, self.range.start, self.range.end);
        for _ in 0..self.count {
            let number = number(&mut cursor)?.ok_or_else(|| malformed("a list of numbers has changed"))?;
            each(number)?;
        }
        Ok(())
    }

    /// The numbers as a list of JSON's.
    pub(super) fn text(&self, source: &dyn Source) -> Result<String> {
        let mut texts = Vec::new();
        self.for_each(source, |number| {
            texts.push(match number {
                Number::F32(value) => value.to_string(),
                Number::F64(value) => value.to_string(),
                Number::Bool(value) => value.to_string(),
                Number::Int(value) => value.to_string(),
            });
            Ok(())
        })?;
        Ok(format!("[{}]", texts.join(", ")))
    }
}

/// Reads a value and all that it holds.
pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Node> {
    Reader { cursor, values: 0, text: 0 }.node(0)
}

struct Reader<'c, 's> {
    cursor: &'c mut Cursor<'s>,
    values: usize,
    text: u64,
}

impl Reader<'_, '_> {
    fn node(&mut self, depth: usize) -> Result<Node> {
        if depth > DEEPEST {
            return Err(malformed(format!("it is nested deeper than {DEEPEST}")));
        }
        self.values += 1;
        if self.values > MOST {
            return Err(malformed(format!("it has more than {MOST} values")));
        }
        Ok(match token(self.cursor)? {
            Token::Nil => Node::Nil,
            Token::Value(text) => Node::Value(text),
            Token::Text(range) => {
                let len = range.end - range.start;
                if len > LONGEST {
                    self.cursor.seek(range.end);
                    return Ok(Node::Long);
                }
                Node::Text(self.text(len)?)
            }
            Token::Bytes(range) => {
                self.cursor.seek(range.end);
                Node::Bytes(range)
            }
            Token::Array(len) => {
                let start = self.cursor.at();
                if let Some(numbers) = numbers(self.cursor, len)? {
                    return Ok(Node::Numbers(numbers));
                }
                self.cursor.seek(start);
                let mut nodes = Vec::new();
                for _ in 0..len {
                    nodes.push(self.node(depth + 1)?);
                }
                Node::List(nodes)
            }
            Token::Map(len) => {
                let mut entries = Vec::new();
                for _ in 0..len {
                    let name = self.name()?;
                    entries.push((name, self.node(depth + 1)?));
                }
                Node::Dict(entries)
            }
            Token::Ext(kind, range) => {
                let message =
                    format!("at position {} is an extension of type {kind}; records have none", range.start);
                return Err(malformed(message));
            }
        })
    }

    fn name(&mut self) -> Result<Name> {
        match token(self.cursor)? {
            Token::Text(range) if range.end - range.start <= LONGEST => {
                Ok(Name { text: self.text(range.end - range.start)?, is_text: true })
            }
            Token::Value(text) => Ok(Name { text, is_text: false }),
            _ => Err(malformed(format!("a key before position {} is not text", self.cursor.at()))),
        }
    }

    fn text(&mut self, len: u64) -> Result<String> {
        self.text += len;
        if self.text > MOST_TEXT {
            return Err(malformed(format!("its texts have more than {MOST_TEXT} bytes")));
        }
        self.cursor.text(len)
    }
}

/// A list of at least one number, if they are all of one kind.
fn numbers(cursor: &mut Cursor<'_>, count: u64) -> Result<Option<Numbers>> {
    let start = cursor.at();
    let mut kind = None;
    for _ in 0..count {
        let Some(number) = number(cursor)? else { return Ok(None) };
        kind = match (kind, number) {
            (None | Some(Kind::F32), Number::F32(_)) => Some(Kind::F32),
            (None | Some(Kind::F64), Number::F64(_)) => Some(Kind::F64),
            (None | Some(Kind::Bool), Number::Bool(_)) => Some(Kind::Bool),
            (None, Number::Int(value)) => Some(Kind::Int(value, value)),
            (Some(Kind::Int(least, most)), Number::Int(value)) => {
                Some(Kind::Int(least.min(value), most.max(value)))
            }
            _ => return Ok(None),
        };
    }
    Ok(kind.map(|kind| Numbers { range: start..cursor.at(), count, kind }))
}

/// The number that comes next; `None` for anything else, of which nothing but the first byte was read then.
fn number(cursor: &mut Cursor<'_>) -> Result<Option<Number>> {
    Ok(Some(match cursor.byte()? {
        byte @ 0..=0x7F => Number::Int(byte.into()),
        byte @ 0xE0..=0xFF => Number::Int(byte.cast_signed().into()),
        0xC2 => Number::Bool(false),
        0xC3 => Number::Bool(true),
        0xCA => Number::F32(f32::from_be_bytes(cursor.array()?)),
        0xCB => Number::F64(f64::from_be_bytes(cursor.array()?)),
        0xCC => Number::Int(u8::from_be_bytes(cursor.array()?).into()),
        0xCD => Number::Int(u16::from_be_bytes(cursor.array()?).into()),
        0xCE => Number::Int(u32::from_be_bytes(cursor.array()?).into()),
        0xCF => Number::Int(u64::from_be_bytes(cursor.array()?).into()),
        0xD0 => Number::Int(i8::from_be_bytes(cursor.array()?).into()),
        0xD1 => Number::Int(i16::from_be_bytes(cursor.array()?).into()),
        0xD2 => Number::Int(i32::from_be_bytes(cursor.array()?).into()),
        0xD3 => Number::Int(i64::from_be_bytes(cursor.array()?).into()),
        _ => return Ok(None),
    }))
}
