//! Data in typed fields: numbers of as many bytes as they need, unpacked when the model is opened.

use std::io::Write;
use std::sync::Arc;

use weighbridge::source::{MemorySource, Source};
use weighbridge::{Dtype, Result};

use super::tensor::{Kind, Proto};
use super::wire::{self, Value, message};
use crate::cursor::{Cursor, malformed};
use crate::input::Input;
use crate::spool::{Spool, unwritten};

/// Unpacked numbers of more bytes are put into a temporary file.
const IN_MEMORY: u64 = 4 << 10;

/// Whether numbers in a field of that kind may be in that field.
pub(super) fn belongs(kind: Kind, field: u32) -> bool {
    let expected = match kind {
        Kind::Packed(..) | Kind::Other(_) | Kind::Segment => 5,
        Kind::Text => 6,
        Kind::Plain(dtype) => match dtype {
            Dtype::F32 | Dtype::C64 => 4,
            Dtype::I64 => 7,
            Dtype::F64 => 10,
            Dtype::U32 | Dtype::U64 => 11,
            _ => 5,
        },
    };
    field == expected
}

/// Whether the field has the bytes just as safetensors wants them.
pub(super) fn is_plain(field: u32) -> bool {
    matches!(field, 4 | 10)
}

/// Unpacks the numbers of a field; `bytes` is what they have to become. Of floats of 6 bits each has a number of its own; of
/// other values of less than a byte a number has as many as a byte.
pub(super) fn unpack(
    input: &Input,
    proto: &Proto,
    field: u32,
    kind: Kind,
    bytes: u64,
    spool: &mut Spool,
) -> Result<Arc<dyn Source>> {
    let dtype = match kind {
        Kind::Plain(dtype) if dtype.bits() >= 8 => dtype,
        _ => Dtype::U8,
    };
    let six = matches!(kind, Kind::Plain(Dtype::F6_E2M3 | Dtype::F6_E3M2) | Kind::Packed(_, 6));
    let values = proto.shape.iter().fold(1_u64, |values, &dim| values.saturating_mul(dim as u64));
    let data = |out: &mut dyn Write| {
        let six = six.then_some(Sixes { values, bits: 0, pending: 0 });
        let mut unpacker = Unpacker { out, dtype, field, left: bytes, six };
        let mut cursor = Cursor::new(input.file(), proto.body.start, proto.body.end);
        message(&mut cursor, proto.body.clone(), &mut |cursor, part| match part.number == field {
            true => unpacker.field(cursor, part.value),
            false => Ok(()),
        })?;
        unpacker.finish()?;
        match unpacker.left {
            0 => Ok(()),
            left => Err(malformed(format!("it has fewer values than its shape: {left} bytes are missing"))),
        }
    };
    // A number has at least a byte.
    if bytes / 8 > proto.body.end - proto.body.start {
        return Err(malformed("it has fewer values than its shape"));
    }
    if bytes <= IN_MEMORY {
        let mut memory = Vec::new();
        data(&mut memory)?;
        return Ok(Arc::new(MemorySource(memory)));
    }
    Ok(Arc::new(spool.append(bytes, |out| data(out))?))
}

struct Unpacker<'o> {
    out: &'o mut dyn Write,
    dtype: Dtype,
    field: u32,
    /// Bytes that are still to come.
    left: u64,
    six: Option<Sixes>,
}

/// Numbers of 6 bits on their way into bytes, the low ones first.
struct Sixes {
    /// Numbers that are still to come.
    values: u64,
    bits: u32,
    /// How many bits of these there are.
    pending: u32,
}

impl Unpacker<'_> {
    /// The numbers of a field: one, or several in one piece.
    fn field(&mut self, cursor: &mut Cursor<'_>, value: Value) -> Result<()> {
        match (value, self.field) {
            (Value::Varint(value), _) => self.integer(value)?,
            (Value::Fixed32(bytes), 4) => self.put(&bytes)?,
            (Value::Fixed64(bytes), 10) => self.put(&bytes)?,
            (Value::Bytes { body, .. }, field) => {
                cursor.seek(body.start);
                while cursor.at() < body.end {
                    match field {
                        4 => self.put(&cursor.array::<4>()?)?,
                        10 => self.put(&cursor.array::<8>()?)?,
                        _ => {
                            let value = wire::varint(cursor)?;
                            self.integer(value)?;
                        }
                    }
                }
            }
            (_, field) => return Err(malformed(format!("its field {field} holds numbers of another kind"))),
        }
        Ok(())
    }

    fn integer(&mut self, value: u64) -> Result<()> {
        let signed = value.cast_signed();
        let bits = self.dtype.bits();
        // Patterns of bits are unsigned, but some writers extend the sign.
        let fits = match self.dtype {
            Dtype::I64 | Dtype::U64 => true,
            Dtype::Bool => (0..=1).contains(&signed),
            _ => (-(1_i64 << (bits - 1))..1_i64 << bits).contains(&signed),
        };
        if !fits || !matches!(self.field, 5 | 7 | 11) {
            return Err(malformed(format!("a value of {signed} does not fit {}", self.dtype)));
        }
        let Some(six) = &mut self.six else {
            return self.put(&value.to_le_bytes()[..(bits / 8).max(1) as usize]);
        };
        let values = six.values.checked_sub(1);
        six.values = values.ok_or_else(|| malformed("it has more values than its shape"))?;
        six.bits |= ((value & 63) as u32) << six.pending;
        six.pending += 6;
        if six.pending >= 8 {
            let byte = six.bits as u8;
            six.bits >>= 8;
            six.pending -= 8;
            self.put(&[byte])?;
        }
        Ok(())
    }

    /// Writes the byte that is not full.
    fn finish(&mut self) -> Result<()> {
        match self.six.take() {
            Some(six) if six.values > 0 => Err(malformed("it has fewer values than its shape")),
            Some(six) if six.pending > 0 => self.put(&[six.bits as u8]),
            _ => Ok(()),
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or_else(|| malformed("it has more values than its shape"))?;
        self.out.write_all(bytes).map_err(unwritten)
    }
}
