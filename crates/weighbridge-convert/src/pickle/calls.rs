//! What the harmless globals do when they are called, done without them.

use std::sync::Arc;

use weighbridge::{ErrorKind, Result};

use super::arrays::numpy_type;
use super::element::{self, Element};
use super::globals::Callable;
use super::machine::Machine;
use super::value::{Id, Object, Place, Quantiser, Refusal, Value, View};

/// More dimensions than PyTorch and NumPy have.
const MOST_DIMS: usize = 64;

impl Machine {
    /// Calls a global.
    pub(super) fn call(&mut self, global: u32, args: Vec<Id>) -> Result<Value> {
        let Some((called, callable)) = self.callable(global) else {
            return Err(self.malformed("an unknown global"));
        };
        let called = called.path();
        match callable {
            Callable::Dict => self.dict(args.first().copied()),
            Callable::DefaultDict => self.dict(args.get(1).copied()),
            Callable::Sequence => self.items(&args).map(Value::Sequence),
            Callable::Set => self.items(&args).map(Value::Set),
            Callable::Encode => self.encode(&args),
            Callable::Bytes => match args.first().map(|&id| self.value(id).clone()) {
                Some(Value::Bytes(place)) => Ok(Value::Bytes(place)),
                None => Ok(Value::Bytes(Place::Memory(Arc::from([])))),
                Some(_) => self.encode(&args),
            },
            Callable::RebuildTensor => self.tensor(&args, None, None),
            Callable::RebuildTensorV2 => {
                let refusal = self.changed(args.get(6));
                self.tensor(&args, None, refusal)
            }
            Callable::RebuildTensorV3 => {
                let (mut refusal, mut dtype) = (self.changed(args.get(7)), None);
                match args.get(6).map(|&id| self.torch_dtype(id)).transpose()? {
                    Some(Ok(read)) => dtype = Some(read),
                    Some(Err(unread)) => refusal = Some(unread),
                    None => {}
                }
                self.tensor(&args, dtype, refusal)
            }
            Callable::RebuildQuantised => self.quantised(&args),
            // Handled where they are met, unless they are called in another's name.
            Callable::RebuildParameter => match args.first().map(|&id| self.value(id)) {
                Some(value @ (Value::Tensor(_) | Value::Refused(_))) => Ok(value.clone()),
                _ => Err(self.malformed("a parameter without data")),
            },
            Callable::Same | Callable::NewObject => {
                Err(self.malformed("a call in another's name that is not read"))
            }
            Callable::Reconstructor => self.reconstructed(&args),
            Callable::RebuildFromType => {
                let (&[function, _, inner, ..], false) = (&*args, args.len() > 4) else {
                    return Err(self.malformed("a tensor with arguments that are not its own"));
                };
                let inner = self.sequence(inner)?.to_vec();
                self.charge(size_of_val(&*inner))?;
                match *self.value(function) {
                    Value::Global(number)
                        if self.callable(number).is_some_and(|it| it.1 != Callable::RebuildFromType) =>
                    {
                        self.call(number, inner)
                    }
                    _ => Err(self.malformed("a tensor that is made by what is not a global")),
                }
            }
            Callable::Refused(what) => Ok(unsupported(what)),
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
                let Some(&name) = args.first() else { return Err(self.malformed("a dtype without a name")) };
                Ok(match *self.value(name) {
                    Value::Global(number) => match self.callable(number) {
                        Some((global, Callable::MlDtype)) => Value::NumpyType {
                            element: element::of_numpy(&global.name),
                            kind: b'V',
                            swap: false,
                        },
                        _ => numpy_type(""),
                    },
                    _ => numpy_type(self.text(name).unwrap_or_default()),
                })
            }
            Callable::Record => {
                Ok(Value::Object(Box::new(Object { class: global, args, ..Object::default() })))
            }
            Callable::Opaque | Callable::Marker | Callable::Storage | Callable::Dtype | Callable::MlDtype => {
                Ok(Value::Opaque(called.into()))
            }
        }
    }

    /// What of the arguments has no place in what a call returns.
    pub(super) fn beside_of<'a>(&self, global: u32, args: &'a [Id]) -> &'a [Id] {
        let range = match self.callable(global).map(|it| it.1) {
            Some(
                Callable::Opaque
                | Callable::Marker
                | Callable::Storage
                | Callable::Dtype
                | Callable::MlDtype
                | Callable::Refused(_),
            ) => 0..args.len(),
            Some(Callable::DefaultDict | Callable::NumpyReconstruct) => 0..1,
            Some(Callable::RebuildTensorV2 | Callable::RebuildTensorV3 | Callable::RebuildQuantised) => {
                5..args.len()
            }
            // The second is the class, the fourth its state; the third, its arguments, is read.
            Some(Callable::RebuildFromType) => 1..args.len(),
            _ => 0..0,
        };
        args.get(range).unwrap_or_default()
    }

    /// Gives an object its state.
    pub(super) fn build(&mut self, object: Id, state: Id) -> Result<()> {
        self.charge(64)?;
        if let Some(Value::Object(object)) = self.nodes.get_mut(object as usize) {
            object.states.push(state);
            return Ok(());
        }
        let built = match self.value(object) {
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
            &Value::NumpyType { element, kind, .. } => {
                let items = self.sequence(state)?;
                let order = items.get(1).and_then(|&id| self.text(id));
                // Fields, or a shape of its own: a structured type.
                let plain = items.iter().skip(2).take(3).all(|&id| matches!(self.value(id), Value::None));
                let kind = if plain { kind } else { b'V' };
                Value::NumpyType { element: element.filter(|_| plain), kind, swap: order == Some(">") }
            }
            Value::Tensor(_)
            | Value::Dict(_)
            | Value::Sequence(_)
            | Value::Set(_)
            | Value::Opaque(_)
            | Value::Refused(_) => return self.keep_beside(object, &[state]),
            Value::Global(_) => return Err(self.malformed("a state for a global itself")),
            _ => return Err(self.malformed("a state for a value that does not take one")),
        };
        if let Some(node) = self.nodes.get_mut(object as usize) {
            *node = built;
        }
        Ok(())
    }

    /// An object as protocols 0 and 1 have it: a class, the type that it was derived from, and the value of that.
    fn reconstructed(&mut self, args: &[Id]) -> Result<Value> {
        let &[class, base, state] = args else {
            return Err(self.malformed("an object with arguments that are not its own"));
        };
        let (class, base) = (self.class(class)?, self.class(base)?);
        let callable = self.callable(class).map(|it| it.1);
        let mut object = Object { class, ..Object::default() };
        match (callable, self.callable(base).map(|it| it.1)) {
            (Some(Callable::Record), Some(Callable::Dict)) => match self.dict(Some(state))? {
                Value::Dict(pairs) => object.entries = pairs,
                _ => return Err(self.malformed("an object of another base than it says")),
            },
            (Some(Callable::Record), Some(Callable::Sequence | Callable::Set)) => {
                object.items = self.items(&[state])?;
            }
            (Some(Callable::Record), _) if matches!(self.value(state), Value::None) => {}
            (Some(Callable::Record), _) => object.args = vec![state],
            // What is known by itself makes of a value what it makes of an argument.
            (Some(Callable::Reconstructor), _) => return Err(self.malformed("a call of itself")),
            _ if matches!(self.value(state), Value::None) => return self.call(class, Vec::new()),
            _ => return self.call(class, vec![state]),
        }
        Ok(Value::Object(Box::new(object)))
    }

    /// The items of the first argument; none without one.
    fn items(&mut self, args: &[Id]) -> Result<Vec<Id>> {
        let items = match args.first().map(|&id| self.value(id)) {
            None => Vec::new(),
            Some(Value::Sequence(items) | Value::Set(items)) => items.clone(),
            Some(_) => return Err(self.malformed("a list of what has no items")),
        };
        self.charge(size_of_val(&*items))?;
        Ok(items)
    }

    fn dict(&mut self, pairs: Option<Id>) -> Result<Value> {
        let pairs = match pairs.map(|id| self.value(id)) {
            None | Some(Value::None) => Vec::new(),
            Some(Value::Dict(pairs)) => pairs.clone(),
            Some(Value::Sequence(items) | Value::Set(items)) => {
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

    /// Metadata of a tensor that would change its values.
    fn changed(&self, metadata: Option<&Id>) -> Option<Refusal> {
        let Some(Value::Dict(pairs)) = metadata.map(|&id| self.value(id)) else { return None };
        pairs.iter().find_map(|&(key, value)| match (self.text(key), self.value(value)) {
            (Some(key @ ("conj" | "neg")), Value::Bool(true)) => {
                let what = format!(
                    "a tensor with its {key} bit set (call resolve_{key}() on it before it is saved)"
                );
                Some(Refusal { kind: ErrorKind::Unsupported, what })
            }
            _ => None,
        })
    }

    fn torch_dtype(&self, id: Id) -> Result<std::result::Result<Element, Refusal>> {
        let global = match *self.value(id) {
            Value::Global(number) => self.callable(number).filter(|it| it.1 == Callable::Dtype),
            _ => None,
        };
        let (global, _) = global.ok_or_else(|| self.malformed("a tensor without a dtype"))?;
        Ok(element::of_torch(&global.name).ok_or_else(|| unread(&global.name)))
    }

    /// Storage, offset, shape and strides.
    fn tensor(&mut self, args: &[Id], dtype: Option<Element>, refusal: Option<Refusal>) -> Result<Value> {
        let &[storage, offset, shape, strides, ..] = args else {
            return Err(self.malformed("a tensor with too few arguments"));
        };
        if let Some(refusal) = refusal {
            return Ok(Value::Refused(Box::new(refusal)));
        }
        let (number, element, first) = match self.value(storage) {
            &Value::Storage { number, element, first } => (number, element, first),
            Value::UnreadStorage(dtype) => return Ok(Value::Refused(Box::new(unread(dtype)))),
            _ => return Err(self.malformed("a tensor without a storage")),
        };
        let Some(element) = dtype.or(element) else {
            return Err(self.malformed("a tensor of a storage without a dtype"));
        };
        let offset = self.unsigned(offset)?.checked_add(first);
        let offset = offset.ok_or_else(|| self.malformed("an offset that does not fit 64 bits"))?;
        let shape = self.shape(shape)?;
        let strides = self.dims(strides)?;
        let view = View { storage: number, element, offset, shape, strides, swap: false, quantiser: None };
        Ok(self.checked(view))
    }

    fn dims(&self, id: Id) -> Result<Vec<u64>> {
        let items = self.sequence(id)?;
        if items.len() > MOST_DIMS {
            return Err(self.malformed("a tensor with too many dimensions"));
        }
        items.iter().map(|&item| self.unsigned(item)).collect()
    }

    pub(super) fn shape(&self, id: Id) -> Result<Vec<usize>> {
        let too_large = |_| self.malformed("a dimension that does not fit this machine");
        self.dims(id)?.into_iter().map(|dim| usize::try_from(dim).map_err(too_large)).collect()
    }

    /// A tensor whose elements are all within its storage.
    pub(super) fn checked(&self, view: View) -> Value {
        let len = self.storages.get(view.storage as usize).map_or(0, |storage| storage.len);
        let what = match super::view::reach(&view) {
            _ if view.shape.len() != view.strides.len() => {
                "a tensor with more dimensions than strides".to_owned()
            }
            None => "a shape that does not fit 64 bits".to_owned(),
            Some(reach) if reach > len => {
                format!("a tensor that reaches to byte {reach} of a storage of {len} bytes")
            }
            Some(_) if view.element.shape(&view.shape).is_none() => {
                return unsupported("a scalar of two values of 4 bits");
            }
            Some(_) => return Value::Tensor(Box::new(view)),
        };
        let what = format!("the pickle is broken at byte {}: {what}", self.at);
        Value::Refused(Box::new(Refusal { kind: ErrorKind::Malformed, what }))
    }

    fn quantised(&mut self, args: &[Id]) -> Result<Value> {
        let mut value = self.tensor(args, None, None)?;
        if !matches!(value, Value::Tensor(_)) {
            return Ok(value);
        }
        let parameters =
            args.get(4).copied().ok_or_else(|| self.malformed("a quantised tensor without a scale"))?;
        let quantiser = match *self.sequence(parameters)? {
            [_, scale, zero_point] => {
                let (&Value::Float(scale), &Value::Int(zero_point)) =
                    (self.value(scale), self.value(zero_point))
                else {
                    return Err(self.malformed("a scale that is not a number"));
                };
                Quantiser::Tensor { scale, zero_point }
            }
            [_, scales, zero_points, axis] => {
                let (Value::Tensor(_), Value::Tensor(_), &Value::Int(axis)) =
                    (self.value(scales), self.value(zero_points), self.value(axis))
                else {
                    return Err(self.unsupported("scales that are not tensors"));
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
}

pub(super) fn unsupported(what: &str) -> Value {
    Value::Refused(Box::new(Refusal { kind: ErrorKind::Unsupported, what: what.to_owned() }))
}

fn unread(dtype: &str) -> Refusal {
    Refusal { kind: ErrorKind::Unsupported, what: format!("a tensor of the dtype torch.{dtype}") }
}
