//! Arrays and scalars of NumPy.

use weighbridge::{Error, ErrorKind, Result};

use super::element;
use super::machine::Machine;
use super::value::{Id, Place, Storage, Value, View};

/// Bytes of the pickle that are read into memory to be taken for a number or a text.
const SMALL: u64 = 1 << 10;

impl Machine {
    /// An array of NumPy.
    pub(super) fn array(&mut self, data: Id, dtype: Id, shape: Id, fortran: bool) -> Result<Value> {
        let &Value::NumpyType { element, kind, swap } = self.value(dtype) else {
            return Err(self.malformed("an array without a dtype"));
        };
        let Some(element) = element else { return Ok(self.unread_array(data, kind)) };
        let (place, len) = match self.value(data) {
            Value::Bytes(place @ Place::Range(range)) => (place.clone(), range.end - range.start),
            Value::Bytes(place @ Place::Memory(bytes)) => (place.clone(), bytes.len() as u64),
            // Python 2's string, where it happens to be UTF-8.
            Value::Text(text) => (Place::Memory(text.as_bytes().into()), text.len() as u64),
            _ => return Err(self.malformed("an array without bytes")),
        };
        let shape = self.shape(shape)?;
        let mut strides = vec![0; shape.len()];
        let mut stride = 1_u64;
        let mut fill = |place: usize| {
            strides[place] = stride;
            stride = stride.saturating_mul(shape[place].max(1) as u64);
        };
        match fortran {
            true => (0..shape.len()).for_each(&mut fill),
            false => (0..shape.len()).rev().for_each(&mut fill),
        }
        self.charge(128 + if let Place::Memory(bytes) = &place { bytes.len() } else { 0 })?;
        let number = self.storages.len() as u32;
        self.storages.push(Storage { place, len, unit: 1 });
        Ok(self.checked(View { storage: number, element, offset: 0, shape, strides, swap, quantiser: None }))
    }

    /// An array whose elements safetensors does not have.
    fn unread_array(&self, data: Id, kind: u8) -> Value {
        let is_plain = |&id: &Id| match self.value(id) {
            Value::Sequence(items) | Value::Set(items) => items.is_empty(),
            Value::Dict(pairs) => pairs.is_empty(),
            Value::Object(_) | Value::Tensor(_) | Value::NumpyBlank | Value::Refused(_) => false,
            _ => true,
        };
        match self.value(data) {
            // Objects that may hold tensors are taken as a list.
            Value::Sequence(items) if !items.iter().all(is_plain) => Value::Sequence(items.clone()),
            _ if matches!(kind, b'O' | b'S' | b'a' | b'U' | b'M' | b'm') => {
                Value::Opaque("an array of objects, texts or times".into())
            }
            _ => super::calls::unsupported("an array of records, or of numbers of another size"),
        }
    }

    /// A scalar of NumPy: a number.
    pub(super) fn scalar(&mut self, args: &[Id]) -> Result<Value> {
        let opaque = || Ok(Value::Opaque("a scalar of NumPy".into()));
        let &[dtype, data] = args else { return opaque() };
        let &Value::NumpyType { element: Some(element), swap, .. } = self.value(dtype) else {
            return opaque();
        };
        let mut bytes = match self.value(data) {
            Value::Bytes(place) => self.small(&place.clone())?,
            Value::Text(text) => text.as_bytes().to_vec(),
            _ => return opaque(),
        };
        if swap {
            bytes.reverse();
        }
        Ok(number(element.name, &bytes).unwrap_or(Value::Opaque("a scalar of NumPy".into())))
    }

    /// A few bytes.
    fn small(&self, place: &Place) -> Result<Vec<u8>> {
        match place {
            Place::Memory(bytes) => Ok(bytes.to_vec()),
            Place::Range(range) if range.end - range.start <= SMALL => {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                let read = self.source.read_at(range.start, &mut bytes);
                read.map_err(crate::input::unread)?;
                Ok(bytes)
            }
            _ => Err(Error::new(ErrorKind::Malformed, "a scalar that is too long")),
        }
    }
}

pub(super) fn numpy_type(name: &str) -> Value {
    let swap = name.starts_with('>');
    let bare = name.strip_prefix(['<', '>', '=', '|']).unwrap_or(name);
    let kind = bare.bytes().next().unwrap_or(b'V');
    Value::NumpyType { element: element::of_numpy(bare), kind, swap }
}

/// The number that little-endian bytes are.
fn number(name: &str, bytes: &[u8]) -> Option<Value> {
    let unsigned = |bytes: &[u8]| {
        let mut wide = [0; 8];
        wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(u64::from_le_bytes(wide))
    };
    Some(match (name, bytes.len()) {
        ("f8", 8) => Value::Float(f64::from_le_bytes(bytes.try_into().ok()?)),
        ("f4", 4) => Value::Float(f32::from_le_bytes(bytes.try_into().ok()?).into()),
        ("b1", 1) => Value::Bool(bytes[0] != 0),
        ("i1" | "i2" | "i4" | "i8", len @ 1..=8) => {
            let shift = 64 - 8 * len as u32;
            Value::Int((unsigned(bytes)? << shift).cast_signed() >> shift)
        }
        ("u1" | "u2" | "u4" | "u8", 1..=8) => Value::Int(i64::try_from(unsigned(bytes)?).ok()?),
        _ => return None,
    })
}
