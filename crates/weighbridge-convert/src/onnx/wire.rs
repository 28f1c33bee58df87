//! Protocol buffers: the fields of a message, as they are in the file.

use std::ops::Range;

use weighbridge::Result;

use crate::cursor::{Cursor, malformed};

/// A field of a message.
#[derive(Clone, Debug)]
pub(super) struct Field {
    pub(super) number: u32,
    pub(super) value: Value,
    /// Everything, the tag included.
    pub(super) whole: Range<u64>,
}

/// What a field holds.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    /// Text, bytes, packed numbers or a message: where their length stands, and where they are.
    Bytes {
        len: Range<u64>,
        body: Range<u64>,
    },
}

impl Field {
    /// Where the message or text is that it must be.
    pub(super) fn body(&self) -> Result<Range<u64>> {
        match &self.value {
            Value::Bytes { body, .. } => Ok(body.clone()),
            _ => Err(malformed(format!(
                "its field {} at position {} is a number",
                self.number, self.whole.start
            ))),
        }
    }

    pub(super) fn number_value(&self) -> Result<u64> {
        match self.value {
            Value::Varint(value) => Ok(value),
            _ => Err(malformed(format!(
                "its field {} at position {} is not a number",
                self.number, self.whole.start
            ))),
        }
    }
}

/// Calls `each` with every field of a message, which may read whatever it likes.
pub(super) fn message<'s>(
    cursor: &mut Cursor<'s>,
    range: Range<u64>,
    each: &mut dyn FnMut(&mut Cursor<'s>, Field) -> Result<()>,
) -> Result<()> {
    cursor.seek(range.start);
    while cursor.at() < range.end {
        let field = field(cursor)?;
        let end = field.whole.end;
        if end > range.end {
            let (start, past) = (field.whole.start, end - range.end);
            return Err(malformed(format!(
                "its field at position {start} is {past} bytes longer than the message"
            )));
        }
        each(cursor, field)?;
        cursor.seek(end);
    }
    Ok(())
}

fn field(cursor: &mut Cursor<'_>) -> Result<Field> {
    let start = cursor.at();
    let tag = varint(cursor)?;
    let number = u32::try_from(tag >> 3).ok().filter(|&number| number > 0);
    let number = number.ok_or_else(|| malformed(format!("the bytes at position {start} are not a field")))?;
    let value = match tag & 7 {
        0 => Value::Varint(varint(cursor)?),
        1 => Value::Fixed64(cursor.array()?),
        2 => {
            let at = cursor.at();
            let len = varint(cursor)?;
            let body = cursor.at();
            cursor.skip(len)?;
            Value::Bytes { len: at..body, body: body..body + len }
        }
        5 => Value::Fixed32(cursor.array()?),
        kind => {
            return Err(malformed(format!("its field at position {start} is of the unknown kind {kind}")));
        }
    };
    Ok(Field { number, value, whole: start..cursor.at() })
}

/// A number of 7 bits a byte, the low ones first.
pub(super) fn varint(cursor: &mut Cursor<'_>) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = cursor.byte()?;
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(malformed(format!("the number before position {} does not end", cursor.at())))
}

/// The same, to be written.
#[cfg(feature = "fs")]
pub(super) fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The bytes of a field, of which there may be any number.
pub(super) fn bytes(cursor: &mut Cursor<'_>, body: Range<u64>) -> Result<Vec<u8>> {
    const STEP: u64 = 32 << 10;
    cursor.seek(body.start);
    let mut bytes = Vec::new();
    while cursor.at() < body.end {
        let step = STEP.min(body.end - cursor.at());
        bytes.extend_from_slice(cursor.take(step as usize)?);
    }
    Ok(bytes)
}

/// The text of a field.
pub(super) fn text(cursor: &mut Cursor<'_>, field: &Field) -> Result<String> {
    let bytes = bytes(cursor, field.body()?)?;
    String::from_utf8(bytes).map_err(|_| malformed("a name in it is not UTF-8"))
}
