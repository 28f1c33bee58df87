//! MessagePack, one token at a time, of which only small ones are ever in memory.

use std::ops::Range;

use weighbridge::Result;

use crate::cursor::{Cursor, malformed};

/// What comes next. Dicts and lists say how many values follow; texts, bytes and extensions, where they are, and the cursor
/// stands at their start.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Nil,
    /// A number or a truth value, as text.
    Value(String),
    Text(Range<u64>),
    Bytes(Range<u64>),
    Array(u64),
    Map(u64),
    Ext(i8, Range<u64>),
}

/// Reads a token.
pub(crate) fn token(cursor: &mut Cursor<'_>) -> Result<Token> {
    let byte = cursor.byte()?;
    Ok(match byte {
        0..=0x7F => Token::Value(byte.to_string()),
        0x80..=0x8F => Token::Map((byte & 15).into()),
        0x90..=0x9F => Token::Array((byte & 15).into()),
        0xA0..=0xBF => Token::Text(range(cursor, (byte & 31).into())?),
        0xC0 => Token::Nil,
        0xC1 => return Err(malformed(format!("at position {} is nothing of msgpack's", cursor.at() - 1))),
        0xC2 => Token::Value("false".to_owned()),
        0xC3 => Token::Value("true".to_owned()),
        0xC4..=0xC6 => {
            let len = length(cursor, byte - 0xC4)?;
            Token::Bytes(range(cursor, len)?)
        }
        0xC7..=0xC9 => {
            let len = length(cursor, byte - 0xC7)?;
            extension(cursor, len)?
        }
        0xCA => Token::Value(f32::from_be_bytes(cursor.array()?).to_string()),
        0xCB => Token::Value(f64::from_be_bytes(cursor.array()?).to_string()),
        0xCC => Token::Value(u8::from_be_bytes(cursor.array()?).to_string()),
        0xCD => Token::Value(u16::from_be_bytes(cursor.array()?).to_string()),
        0xCE => Token::Value(u32::from_be_bytes(cursor.array()?).to_string()),
        0xCF => Token::Value(u64::from_be_bytes(cursor.array()?).to_string()),
        0xD0 => Token::Value(i8::from_be_bytes(cursor.array()?).to_string()),
        0xD1 => Token::Value(i16::from_be_bytes(cursor.array()?).to_string()),
        0xD2 => Token::Value(i32::from_be_bytes(cursor.array()?).to_string()),
        0xD3 => Token::Value(i64::from_be_bytes(cursor.array()?).to_string()),
        0xD4..=0xD8 => extension(cursor, 1 << (byte - 0xD4))?,
        0xD9..=0xDB => {
            let len = length(cursor, byte - 0xD9)?;
            Token::Text(range(cursor, len)?)
        }
        0xDC | 0xDD => Token::Array(length(cursor, byte - 0xDB)?),
        0xDE | 0xDF => Token::Map(length(cursor, byte - 0xDD)?),
        0xE0..=0xFF => Token::Value(byte.cast_signed().to_string()),
    })
}

/// A length of one, two or four bytes.
fn length(cursor: &mut Cursor<'_>, size: u8) -> Result<u64> {
    Ok(match size {
        0 => cursor.byte()?.into(),
        1 => u16::from_be_bytes(cursor.array()?).into(),
        _ => u32::from_be_bytes(cursor.array()?).into(),
    })
}

fn extension(cursor: &mut Cursor<'_>, len: u64) -> Result<Token> {
    let kind = cursor.byte()?.cast_signed();
    Ok(Token::Ext(kind, range(cursor, len)?))
}

/// The next bytes, as many as are asked for, which must be there.
fn range(cursor: &mut Cursor<'_>, len: u64) -> Result<Range<u64>> {
    let start = cursor.at();
    cursor.skip(len)?;
    cursor.seek(start);
    Ok(start..start + len)
}
