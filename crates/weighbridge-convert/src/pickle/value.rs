//! What a pickle is made into: nodes of an arena that name each other by number, so that neither depth nor cycles cost
//! stack.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use weighbridge::ErrorKind;

use super::element::Element;
use super::globals::Callable;

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
    Set(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(u32),
    Storage {
        number: u32,
        element: Option<Element>,
        first: u64,
    },
    /// A storage of a dtype that is not read.
    UnreadStorage(Box<str>),
    Tensor(Box<View>),
    /// An object of a class, and what it was made of.
    Object(Box<Object>),
    /// A type of NumPy; `None` if its elements cannot be held.
    NumpyType {
        element: Option<Element>,
        /// The letter that NumPy has for its kind.
        kind: u8,
        swap: bool,
    },
    /// An array of NumPy that gets its values later.
    NumpyBlank,
    /// A tensor that cannot be converted.
    Refused(Box<Refusal>),
    /// A value that a checkpoint has no place for, and what it is.
    Opaque(Box<str>),
}

/// What an object was made of, whatever its class does with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Object {
    /// The number of its class.
    pub(crate) class: u32,
    pub(crate) args: Vec<Id>,
    /// What `BUILD` gave it, in order.
    pub(crate) states: Vec<Id>,
    /// What was appended to it, as to a list.
    pub(crate) items: Vec<Id>,
    /// What was set in it, as in a dict.
    pub(crate) entries: Vec<(Id, Id)>,
}

/// Why a tensor cannot be converted. It is an error only where the tensor is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// `Unsupported` for what can be left out, `Malformed` for what is broken.
    pub(crate) kind: ErrorKind,
    /// A noun for `Unsupported`, a sentence for everything else.
    pub(crate) what: String,
}

/// Something that a pickle imports.
#[derive(Clone, Debug)]
pub(crate) struct Global {
    pub(crate) module: Box<str>,
    pub(crate) name: Box<str>,
    /// What is done for it; `None` for a class of which objects are records.
    pub(crate) callable: Option<Callable>,
    pub(crate) standing: Standing,
}

/// Why a global is taken or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Harmless,
    /// By the caller.
    Allowed,
    Unknown,
    Dangerous,
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
    pub(crate) globals: Vec<Global>,
    /// What values were made of, or given, beside their content: arguments and attributes that have no place in them.
    pub(crate) beside: HashMap<Id, Vec<Id>>,
    /// Tensors that are attributes of modules in TorchScript, and neither parameters nor buffers.
    pub(crate) unregistered: HashSet<Id>,
    pub(crate) root: Id,
    /// Where it ends in its file.
    pub(crate) end: u64,
}

impl Global {
    /// `module.name`.
    pub(crate) fn path(&self) -> String {
        format!("{}.{}", self.module, self.name)
    }
}

impl Pickle {
    /// A global, if it is one that the caller would have to allow.
    pub(crate) fn unknown(&self, number: u32) -> Option<&Global> {
        self.globals.get(number as usize).filter(|global| global.standing == Standing::Unknown)
    }

    /// The nodes that a node holds, beside it, too.
    pub(crate) fn for_children(&self, id: Id, mut each: impl FnMut(Id)) {
        match self.at(id) {
            Value::Sequence(items) | Value::Set(items) => items.iter().copied().for_each(&mut each),
            Value::Dict(pairs) => pairs.iter().for_each(|&(key, value)| {
                each(key);
                each(value);
            }),
            Value::Object(object) => {
                let Object { args, states, items, entries, .. } = &**object;
                args.iter().chain(states).chain(items).copied().for_each(&mut each);
                entries.iter().for_each(|&(key, value)| {
                    each(key);
                    each(value);
                });
            }
            _ => {}
        }
        self.beside.get(&id).into_iter().flatten().copied().for_each(each);
    }

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
