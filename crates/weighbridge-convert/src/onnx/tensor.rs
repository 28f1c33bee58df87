//! A tensor's message: what it says, and where its data is.

use std::ops::Range;

use weighbridge::{Dtype, Result};

use super::wire::{self, Field, Value, message};
use crate::cursor::{Cursor, malformed, unsupported};

/// What a tensor's message says.
pub(super) struct Proto {
    /// The number of its type.
    pub(super) kind: u64,
    pub(super) shape: Vec<usize>,
    pub(super) data: Data,
    pub(super) body: Range<u64>,
    segmented: bool,
}

/// Where the data is.
pub(super) enum Data {
    Nothing,
    /// Bytes in the message.
    Raw(Range<u64>),
    /// Numbers in a field of that number; where they are if they are in one piece.
    Typed(u32, Option<Range<u64>>),
    External(External),
}

/// Bytes in another file.
#[derive(Debug, Default)]
pub(super) struct External {
    pub(super) location: String,
    pub(super) offset: u64,
    pub(super) len: Option<u64>,
}

/// What values are, and how they are had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain(Dtype),
    /// Numbers of less than a byte for which safetensors has no dtype: their name, and bits.
    Packed(&'static str, u64),
    Text,
    /// What safetensors cannot hold: the number of its type.
    Other(u64),
    /// A piece of a tensor.
    Segment,
}

impl Kind {
    /// What it is that safetensors does not have.
    pub(super) fn what(self) -> String {
        match self {
            Self::Plain(dtype) => dtype.name().to_owned(),
            Self::Packed(name, _) => name.to_owned(),
            Self::Text => "text".to_owned(),
            Self::Other(15) => "COMPLEX128".to_owned(),
            Self::Other(number) => format!("of the unknown ONNX type {number}"),
            Self::Segment => "a segment of a tensor".to_owned(),
        }
    }
}

/// Every field that holds data or says where it is.
#[cfg(feature = "fs")]
pub(super) const DATA: [u32; 9] = [4, 5, 6, 7, 9, 10, 11, 13, 14];

/// As in NumPy.
const MOST_DIMS: usize = 64;
/// Of the texts that say where external data is.
const LONGEST: u64 = 4 << 10;

impl Proto {
    pub(super) fn read(cursor: &mut Cursor<'_>, body: Range<u64>) -> Result<Self> {
        let mut proto =
            Self { kind: 0, shape: Vec::new(), data: Data::Nothing, body: body.clone(), segmented: false };
        let (mut external, mut location) = (External::default(), 0);
        message(cursor, body, &mut |cursor, field| {
            match (field.number, &field.value) {
                (1, Value::Varint(dim)) => proto.dim(*dim)?,
                (1, Value::Bytes { body, .. }) => {
                    cursor.seek(body.start);
                    while cursor.at() < body.end {
                        let dim = wire::varint(cursor)?;
                        proto.dim(dim)?;
                    }
                }
                (2, _) => proto.kind = field.number_value()?,
                (3, _) => proto.segmented = true,
                (4..=7 | 10 | 11, value) => {
                    let piece = match value {
                        Value::Bytes { body, .. } if body.is_empty() => return Ok(()),
                        Value::Bytes { body, .. } => Some(body.clone()),
                        _ => None,
                    };
                    proto.data = match &proto.data {
                        Data::Nothing => Data::Typed(field.number, piece),
                        Data::Typed(number, _) if *number == field.number => Data::Typed(field.number, None),
                        _ => return Err(malformed("it has data in two fields")),
                    };
                }
                (9, _) if matches!(proto.data, Data::Nothing | Data::Raw(_)) => {
                    let body = field.body()?;
                    // An empty one beside typed data says nothing.
                    proto.data = Data::Raw(body);
                }
                (9, _) if field.body()?.is_empty() => {}
                (9, _) => return Err(malformed("it has data in two fields")),
                (13, _) => external_entry(cursor, field.body()?, &mut external)?,
                (14, _) => location = field.number_value()?,
                _ => {}
            }
            Ok(())
        })?;
        match (location, &proto.data) {
            (0, _) => {}
            (1, Data::Nothing) => proto.data = Data::External(external),
            (1, Data::Raw(body)) if body.is_empty() => proto.data = Data::External(external),
            (1, _) => return Err(malformed("it has data in the model and outside")),
            (other, _) => return Err(malformed(format!("its data is at the unknown location {other}"))),
        }
        Ok(proto)
    }

    fn dim(&mut self, dim: u64) -> Result<()> {
        // A negative one is very large here.
        let dim = usize::try_from(dim).ok().filter(|&dim| i64::try_from(dim).is_ok());
        let dim = dim.ok_or_else(|| malformed("it has a dimension that is negative"))?;
        if self.shape.len() == MOST_DIMS {
            return Err(malformed(format!("it has more than {MOST_DIMS} dimensions")));
        }
        self.shape.push(dim);
        Ok(())
    }

    /// What its values are.
    pub(super) fn values(&self) -> Kind {
        let whole = |dtype: Dtype, name| match dtype.size_of(&self.shape) {
            Ok(_) => Kind::Plain(dtype),
            Err(_) => Kind::Packed(name, u64::from(dtype.bits())),
        };
        if self.segmented {
            return Kind::Segment;
        }
        Kind::Plain(match self.kind {
            1 => Dtype::F32,
            2 => Dtype::U8,
            3 => Dtype::I8,
            4 => Dtype::U16,
            5 => Dtype::I16,
            6 => Dtype::I32,
            7 => Dtype::I64,
            8 => return Kind::Text,
            9 => Dtype::Bool,
            10 => Dtype::F16,
            11 => Dtype::F64,
            12 => Dtype::U32,
            13 => Dtype::U64,
            14 => Dtype::C64,
            16 => Dtype::BF16,
            17 => Dtype::F8_E4M3,
            18 => Dtype::F8_E4M3FNUZ,
            19 => Dtype::F8_E5M2,
            20 => Dtype::F8_E5M2FNUZ,
            21 => return Kind::Packed("UINT4", 4),
            22 => return Kind::Packed("INT4", 4),
            // Packed alike in both formats, unless the last byte is not full.
            23 => return whole(Dtype::F4, "FLOAT4E2M1"),
            24 => Dtype::F8_E8M0,
            25 => return Kind::Packed("UINT2", 2),
            26 => return Kind::Packed("INT2", 2),
            27 => return whole(Dtype::F6_E2M3, "FLOAT6E2M3"),
            28 => return whole(Dtype::F6_E3M2, "FLOAT6E3M2"),
            other => return Kind::Other(other),
        })
    }

    /// The dtype and shape that it has in safetensors; packed numbers are bytes there.
    pub(super) fn stored(&self, kind: Kind) -> Result<(Dtype, Vec<usize>)> {
        match kind {
            Kind::Plain(dtype) => Ok((dtype, self.shape.clone())),
            Kind::Packed(_, bits) => {
                let values =
                    self.shape.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim as u64));
                let bytes = values.and_then(|values| Some(values.checked_mul(bits)?.div_ceil(8)));
                let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
                let bytes = bytes.ok_or_else(|| malformed(format!("shape {:?} is too large", self.shape)))?;
                Ok((Dtype::U8, vec![bytes]))
            }
            Kind::Text | Kind::Other(_) | Kind::Segment => {
                Err(unsupported(format!("it is {}, which safetensors does not have", kind.what())))
            }
        }
    }
}

fn external_entry(cursor: &mut Cursor<'_>, body: Range<u64>, external: &mut External) -> Result<()> {
    let (mut key, mut value) = (None, None);
    message(cursor, body, &mut |_, field| {
        match field.number {
            1 => key = Some(field),
            2 => value = Some(field),
            _ => {}
        }
        Ok(())
    })?;
    let mut text = |field: Option<Field>| {
        let Some(field) = field else { return Ok(String::new()) };
        let body = field.body()?;
        match body.end - body.start > LONGEST {
            true => Err(malformed("what it says of its external data is too long")),
            false => wire::text(cursor, &field),
        }
    };
    let key = text(key)?;
    // Others, such as a checksum, do not matter.
    if !matches!(&*key, "location" | "offset" | "length") {
        return Ok(());
    }
    let value = text(value)?;
    let number = || {
        value
            .parse()
            .map_err(|_| malformed(format!("the {key} of its external data is {value:?}, not a number")))
    };
    match &*key {
        "offset" => external.offset = number()?,
        "length" => external.len = Some(number()?),
        _ => external.location = value,
    }
    Ok(())
}
