//! What a pickle is made into: nodes of an arena that name each other by number, so that neither depth nor cycles cost
//! stack.

use std::ops::Range;
use std::sync::Arc;

use super::element::Element;

/// The number of a node.
pub(crate) type Id = u32;

#[derive(Clone, Debug)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Box<str>),
    Bytes(Place),
    Sequence(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(u32),
    Storage {
        number: u32,
        element: Option<Element>,
        first: u64,
    },
    Tensor(Box<View>),
    /// An object and its attributes, if they are known by now.
    Record(Option<Id>),
    /// A type of NumPy; `None` if its elements cannot be held.
    NumpyType {
        element: Option<Element>,
        swap: bool,
    },
    /// An array of NumPy that gets its values later.
    NumpyBlank,
    /// A tensor that safetensors cannot hold, and what it is.
    Refused(&'static str),
    /// A value that a checkpoint has no place for, and what it is.
    Opaque(Box<str>),
}

/// Where bytes are.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// In the pickle itself.
    Range(Range<u64>),
    Memory(Arc<[u8]>),
    /// In the storage of that key, beside the pickle.
    Key(Box<str>),
}

/// Memory that tensors are views of.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    pub(crate) place: Place,
    /// Bytes.
    pub(crate) len: u64,
    /// Bytes of the elements by which old files count.
    pub(crate) unit: u64,
}

/// A tensor: which elements of a storage, in elements.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) storage: u32,
    pub(crate) element: Element,
    pub(crate) offset: u64,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<u64>,
    /// Whether its words are big-endian by its own type.
    pub(crate) swap: bool,
    pub(crate) quantiser: Option<Quantiser>,
}

/// What quantised values mean.
#[derive(Clone, Debug)]
pub(crate) enum Quantiser {
    Tensor { scale: f64, zero_point: i64 },
    Channel { scales: Id, zero_points: Id, axis: i64 },
}

/// A pickle that was read.
pub(crate) struct Pickle {
    pub(crate) nodes: Vec<Value>,
    pub(crate) storages: Vec<Storage>,
    /// Modules and names.
    pub(crate) globals: Vec<(Box<str>, Box<str>)>,
    pub(crate) root: Id,
    /// Where it ends in its file.
    pub(crate) end: u64,
}

impl Pickle {
    pub(crate) fn at(&self, id: Id) -> &Value {
        self.nodes.get(id as usize).unwrap_or(&Value::None)
    }

    /// The value of a text key of a dict; of several the last counts, as in Python.
    pub(crate) fn entry(&self, dict: &Value, key: &str) -> Option<Id> {
        let Value::Dict(pairs) = dict else { return None };
        let same = |id: Id| matches!(self.at(id), Value::Text(text) if **text == *key);
        pairs.iter().rev().find(|pair| same(pair.0)).map(|pair| pair.1)
    }
}
