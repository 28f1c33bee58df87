//! What the harmless globals do when they are called, done without them.

use std::sync::Arc;

use weighbridge::{Error, ErrorKind, Result};

use super::element::{self, Element};
use super::globals::Callable;
use super::machine::Machine;
use super::value::{Id, Place, Quantiser, Storage, Value, View};

/// More dimensions than PyTorch and NumPy have.
const MOST_DIMS: usize = 64;
/// Bytes of the pickle that are read into memory to be taken for a number or a text.
const SMALL: u64 = 1 << 10;

impl Machine<'_> {
    /// Calls a global.
    pub(super) fn call(&mut self, global: u32, args: Vec<Id>) -> Result<Value> {
        let Some((module, name, callable)) = self.callable(global) else {
            return Err(self.malformed("an unknown global"));
        };
        let called = format!("{module}.{name}");
        match callable {
            Callable::Dict => self.dict(args.first().copied()),
            Callable::DefaultDict => self.dict(args.get(1).copied()),
            Callable::Sequence => {
                let items = match args.first() {
                    Some(&items) => self.sequence(items)?.to_vec(),
                    None => Vec::new(),
                };
                self.charge(size_of_val(&*items))?;
                Ok(Value::Sequence(items))
            }
            Callable::Encode => self.encode(&args),
            Callable::Bytes => match args.first().map(|&id| self.value(id).clone()) {
                Some(Value::Bytes(place)) => Ok(Value::Bytes(place)),
                None => Ok(Value::Bytes(Place::Memory(Arc::from([])))),
                Some(_) => self.encode(&args),
            },
            Callable::RebuildTensor => self.tensor(&args, None),
            Callable::RebuildTensorV2 => {
                self.plain(args.get(6))?;
                self.tensor(&args, None)
            }
            Callable::RebuildTensorV3 => {
                self.plain(args.get(7))?;
                let dtype = args.get(6).map(|&id| self.torch_dtype(id)).transpose()?;
                self.tensor(&args, dtype)
            }
            Callable::RebuildQuantised => self.quantised(&args),
            // Handled where it is met, unless it is called in another's name.
            Callable::RebuildParameter => match args.first().map(|&id| self.value(id)) {
                Some(value @ Value::Tensor(_)) => Ok(value.clone()),
                _ => Err(self.malformed("a parameter without data")),
            },
            Callable::RebuildFromType => {
                let (&[function, _, inner, ..], false) = (&*args, args.len() > 4) else {
                    return Err(self.malformed("a tensor with arguments that are not its own"));
                };
                let inner = self.sequence(inner)?.to_vec();
                self.charge(size_of_val(&*inner))?;
                match *self.value(function) {
                    Value::Global(number)
                        if self.callable(number).is_some_and(|it| it.2 != Callable::RebuildFromType) =>
                    {
                        self.call(number, inner)
                    }
                    _ => Err(self.malformed("a tensor that is made by what is no global")),
                }
            }
            Callable::Refused(what) => Ok(Value::Refused(what)),
            Callable::NumpyReconstruct => Ok(Value::NumpyBlank),
            Callable::NumpyFromBuffer => match args[..] {
                [data, dtype, shape, order] => {
                    let fortran = self.text(order) == Some("F");
                    self.array(data, dtype, shape, fortran)
                }
                _ => Err(self.malformed("an array with arguments that are not its own")),
            },
            Callable::NumpyScalar => self.scalar(&args),
            Callable::NumpyDtype => {
                let name = args.first().and_then(|&id| self.text(id)).unwrap_or_default();
                Ok(numpy_type(name))
            }
            Callable::Record => Ok(Value::Record(None)),
            Callable::Opaque | Callable::Marker | Callable::Storage | Callable::Dtype => {
                Ok(Value::Opaque(called.into()))
            }
        }
    }

    /// Gives an object its state.
    pub(super) fn build(&mut self, object: Id, state: Id) -> Result<()> {
        let built = match self.value(object) {
            Value::Record(_) => Value::Record(Some(self.attributes(state))),
            Value::NumpyBlank => match self.value(state) {
                Value::Sequence(items) => match items[..] {
                    [_, shape, dtype, fortran, data] => {
                        let fortran = matches!(self.value(fortran), Value::Bool(true) | Value::Int(1));
                        self.array(data, dtype, shape, fortran)?
                    }
                    _ => return Err(self.malformed("an array with a state that is not its own")),
                },
                _ => return Err(self.malformed("an array with a state that is not its own")),
            },
            &Value::NumpyType { element, .. } => {
                let items = self.sequence(state)?;
                let order = items.get(1).and_then(|&id| self.text(id));
                // Fields, or a shape of its own: a structured type.
                let plain = items.iter().skip(2).take(3).all(|&id| matches!(self.value(id), Value::None));
                Value::NumpyType { element: element.filter(|_| plain), swap: order == Some(">") }
            }
            // Attributes of tensors and dicts, `_metadata` above all, are no part of a checkpoint.
            Value::Tensor(_) | Value::Dict(_) | Value::Sequence(_) | Value::Opaque(_) | Value::Refused(_) => {
                return Ok(());
            }
            _ => return Err(self.malformed("a state for what has none")),
        };
        self.charge(64)?;
        if let Some(node) = self.nodes.get_mut(object as usize) {
            *node = built;
        }
        Ok(())
    }

    /// The attributes in a state: a dict, or a tuple of one and the slots.
    fn attributes(&self, state: Id) -> Id {
        match self.value(state) {
            Value::Sequence(items) => {
                items.iter().copied().find(|&id| matches!(self.value(id), Value::Dict(_))).unwrap_or(state)
            }
            _ => state,
        }
    }

    fn dict(&mut self, pairs: Option<Id>) -> Result<Value> {
        let pairs = match pairs.map(|id| self.value(id)) {
            None | Some(Value::None) => Vec::new(),
            Some(Value::Dict(pairs)) => pairs.clone(),
            Some(Value::Sequence(items)) => {
                let pair = |&id: &Id| match self.sequence(id)? {
                    &[key, value] => Ok((key, value)),
                    _ => Err(self.malformed("a key without a value")),
                };
                items.iter().map(pair).collect::<Result<_>>()?
            }
            Some(_) => return Err(self.malformed("a dict of what has no entries")),
        };
        self.charge(size_of_val(&*pairs))?;
        Ok(Value::Dict(pairs))
    }

    /// Bytes that were written as a text, each as the character of its number.
    fn encode(&mut self, args: &[Id]) -> Result<Value> {
        let text = args.first().and_then(|&id| self.text(id));
        let bytes: Option<Vec<u8>> =
            text.and_then(|text| text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect());
        let codec = args.get(1).and_then(|&id| self.text(id));
        match (bytes, codec) {
            (Some(bytes), Some("latin1" | "latin-1" | "iso-8859-1")) => {
                self.charge(bytes.len())?;
                Ok(Value::Bytes(Place::Memory(bytes.into())))
            }
            _ => Err(self.unsupported("bytes in another encoding than latin1")),
        }
    }

    /// Fails for metadata of a tensor that would change its values.
    fn plain(&self, metadata: Option<&Id>) -> Result<()> {
        let Some(Value::Dict(pairs)) = metadata.map(|&id| self.value(id)) else { return Ok(()) };
        for &(key, value) in pairs {
            if let (Some(key @ ("conj" | "neg")), Value::Bool(true)) = (self.text(key), self.value(value)) {
                let what =
                    format!("a tensor with its {key} bit set; call resolve_{key}() on it before it is saved");
                return Err(self.unsupported(&what));
            }
        }
        Ok(())
    }

    fn torch_dtype(&self, id: Id) -> Result<Element> {
        let name = match *self.value(id) {
            Value::Global(number) => self.callable(number).filter(|it| it.2 == Callable::Dtype),
            _ => None,
        };
        let element = name.and_then(|it| element::of_torch(it.1));
        element.ok_or_else(|| self.unsupported("a tensor of an unknown dtype"))
    }

    /// Storage, offset, shape and strides.
    fn tensor(&mut self, args: &[Id], dtype: Option<Element>) -> Result<Value> {
        let &[storage, offset, shape, strides, ..] = args else {
            return Err(self.malformed("a tensor with too few arguments"));
        };
        let &Value::Storage { number, element, first } = self.value(storage) else {
            return Err(self.malformed("a tensor without a storage"));
        };
        let Some(element) = dtype.or(element) else {
            return Err(self.malformed("a tensor of a storage without a dtype"));
        };
        let offset = self.unsigned(offset)?.checked_add(first);
        let offset = offset.ok_or_else(|| self.malformed("an offset that does not fit 64 bits"))?;
        let shape = self.shape(shape)?;
        let strides = self.dims(strides)?;
        let view = View { storage: number, element, offset, shape, strides, swap: false, quantiser: None };
        self.checked(view)
    }

    fn dims(&self, id: Id) -> Result<Vec<u64>> {
        let items = self.sequence(id)?;
        if items.len() > MOST_DIMS {
            return Err(self.malformed("a tensor with too many dimensions"));
        }
        items.iter().map(|&item| self.unsigned(item)).collect()
    }

    fn shape(&self, id: Id) -> Result<Vec<usize>> {
        let too_large = |_| self.malformed("a dimension that does not fit this machine");
        self.dims(id)?.into_iter().map(|dim| usize::try_from(dim).map_err(too_large)).collect()
    }

    /// A tensor whose elements are all within its storage.
    fn checked(&self, view: View) -> Result<Value> {
        let reach =
            super::view::reach(&view).ok_or_else(|| self.malformed("a shape that does not fit 64 bits"))?;
        let len = self.storages.get(view.storage as usize).map_or(0, |storage| storage.len);
        if view.shape.len() != view.strides.len() {
            return Err(self.malformed("a tensor with more dimensions than strides"));
        }
        if reach > len {
            let what = format!("a tensor that reaches to byte {reach} of a storage of {len} bytes");
            return Err(self.malformed(&what));
        }
        Ok(Value::Tensor(Box::new(view)))
    }

    fn quantised(&mut self, args: &[Id]) -> Result<Value> {
        let mut value = self.tensor(args, None)?;
        let parameters =
            args.get(4).copied().ok_or_else(|| self.malformed("a quantised tensor without a scale"))?;
        let quantiser = match *self.sequence(parameters)? {
            [_, scale, zero_point] => {
                let (&Value::Float(scale), &Value::Int(zero_point)) =
                    (self.value(scale), self.value(zero_point))
                else {
                    return Err(self.malformed("a scale that is no number"));
                };
                Quantiser::Tensor { scale, zero_point }
            }
            [_, scales, zero_points, axis] => {
                let (Value::Tensor(_), Value::Tensor(_), &Value::Int(axis)) =
                    (self.value(scales), self.value(zero_points), self.value(axis))
                else {
                    return Err(self.unsupported("scales that are no tensors"));
                };
                Quantiser::Channel { scales, zero_points, axis }
            }
            _ => return Err(self.unsupported("an unknown way of quantising")),
        };
        if let Value::Tensor(view) = &mut value {
            view.quantiser = Some(quantiser);
        }
        Ok(value)
    }

    /// An array of NumPy.
    fn array(&mut self, data: Id, dtype: Id, shape: Id, fortran: bool) -> Result<Value> {
        let &Value::NumpyType { element, swap } = self.value(dtype) else {
            return Err(self.malformed("an array without a dtype"));
        };
        let Some(element) = element else {
            return Ok(Value::Opaque("an array of objects, texts or records".into()));
        };
        let (place, len) = match self.value(data) {
            Value::Bytes(place @ Place::Range(range)) => (place.clone(), range.end - range.start),
            Value::Bytes(place @ Place::Memory(bytes)) => (place.clone(), bytes.len() as u64),
            // Python 2's string, where it happens to be UTF-8.
            Value::Text(text) => (Place::Memory(text.as_bytes().into()), text.len() as u64),
            _ => return Ok(Value::Opaque("an array without bytes".into())),
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
        self.checked(View { storage: number, element, offset: 0, shape, strides, swap, quantiser: None })
    }

    /// A scalar of NumPy: a number.
    fn scalar(&mut self, args: &[Id]) -> Result<Value> {
        let opaque = || Ok(Value::Opaque("a scalar of NumPy".into()));
        let &[dtype, data] = args else { return opaque() };
        let &Value::NumpyType { element: Some(element), swap } = self.value(dtype) else { return opaque() };
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
                read.map_err(|error| crate::input::failed("it cannot be read", error))?;
                Ok(bytes)
            }
            _ => Err(Error::new(ErrorKind::Malformed, "a scalar that is too long")),
        }
    }
}

fn numpy_type(name: &str) -> Value {
    let swap = name.starts_with('>');
    let bare = name.strip_prefix(['<', '>', '=', '|']).unwrap_or(name);
    Value::NumpyType { element: element::of_numpy(bare), swap }
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
