//! Takes values out of a pickle whose layout is known: attributes of records, entries of dicts, numbers.

use weighbridge::{Error, ErrorKind, Result};

use super::value::{Id, Pickle, Value};

/// More than PyTorch has.
const MOST_DIMS: usize = 64;

/// Reads values that must be what they are taken for.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'p> {
    pub(crate) pickle: &'p Pickle,
}

impl<'p> Reader<'p> {
    /// An attribute of an object, as its state says.
    pub(crate) fn attribute(&self, id: Id, name: &str) -> Option<Id> {
        let Value::Object(object) = self.pickle.at(id) else { return None };
        object.states.iter().rev().find_map(|&state| match self.pickle.at(state) {
            // Attributes in slots come behind the others, which there may be none of.
            Value::Sequence(items) if items.len() == 2 => {
                items.iter().rev().find_map(|&item| self.entry(item, name))
            }
            _ => self.entry(state, name),
        })
    }

    /// An attribute that must be there.
    pub(crate) fn field(&self, id: Id, name: &str) -> Result<Id> {
        self.attribute(id, name).ok_or_else(|| malformed(&format!("an object has no {name}")))
    }

    /// The module and the name of the class of an object.
    pub(crate) fn class(&self, id: Id) -> Option<(&'p str, &'p str)> {
        let Value::Object(object) = self.pickle.at(id) else { return None };
        let class = self.pickle.globals.get(object.class as usize)?;
        Some((&class.module, &class.name))
    }

    /// An entry of a dict; `None` where it is none, has no such key, or the value is `None`.
    pub(crate) fn entry(&self, dict: Id, key: &str) -> Option<Id> {
        let found = self.pickle.entry(self.pickle.at(dict), key)?;
        (!matches!(self.pickle.at(found), Value::None)).then_some(found)
    }

    pub(crate) fn pairs(&self, id: Id) -> Result<impl Iterator<Item = (Id, Id)> + use<'p>> {
        match self.pickle.at(id) {
            Value::Dict(pairs) => Ok(pairs.iter().copied()),
            _ => Err(malformed("a value that should be a dict")),
        }
    }

    #[cfg(feature = "fs")]
    pub(crate) fn items(&self, id: Id) -> Result<&'p [Id]> {
        match self.pickle.at(id) {
            Value::Sequence(items) => Ok(items),
            _ => Err(malformed("a value that should be a list")),
        }
    }

    pub(crate) fn text(&self, id: Id) -> Option<&'p str> {
        match self.pickle.at(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A text that must be one: the name of something.
    #[cfg(feature = "fs")]
    pub(crate) fn name(&self, id: Id) -> Result<&'p str> {
        self.text(id).ok_or_else(|| malformed("a name is not a text"))
    }

    pub(crate) fn number(&self, id: Id) -> Result<u64> {
        match *self.pickle.at(id) {
            Value::Int(number) => u64::try_from(number).map_err(|_| malformed("a number is negative")),
            _ => Err(malformed("a value that should be an integer")),
        }
    }

    /// A `torch.Size`, or a list of sizes.
    pub(crate) fn sizes(&self, id: Id) -> Result<Vec<usize>> {
        match self.pickle.at(id) {
            Value::Sequence(items) if items.len() <= MOST_DIMS => {
                let too_large = |_| malformed("a size that does not fit this machine");
                items.iter().map(|&item| usize::try_from(self.number(item)?).map_err(too_large)).collect()
            }
            _ => Err(malformed("a value that should be a torch.Size")),
        }
    }
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::Malformed, what)
}
