//! Persistent ids, by which PyTorch names storages that lie outside of the pickle.

use weighbridge::Result;

use super::globals::Callable;
use super::machine::{Machine, NONE};
use super::value::{Id, Place, Storage, Value};

impl Machine {
    /// The class of a module, which old files have with the source that defined it.
    pub(super) fn module_class(&self, id: Id) -> Option<Id> {
        match *self.sequence(id).ok()? {
            [tag, class, _, _] if self.text(tag) == Some("module") => {
                self.class(class).is_ok().then_some(class)
            }
            _ => None,
        }
    }

    /// What a persistent id stands for: a storage of PyTorch.
    pub(super) fn persistent(&mut self, id: Id) -> Result<Value> {
        let items = self.sequence(id)?;
        let &[tag, class, key, _, len, ref rest @ ..] = items else {
            return Err(self.unsupported("a persistent id that is not PyTorch's"));
        };
        let view = rest.first().map_or(NONE, |&id| id);
        let (class, is_storage) = (self.value(class), self.text(tag) == Some("storage"));
        let class = match *class {
            Value::Global(number) => self.callable(number),
            _ => None,
        };
        let (element, unread) = match class {
            Some((global, Callable::Storage)) => match &*global.name {
                "UntypedStorage" | "_UntypedStorage" => (None, None),
                name => (super::element::of_storage(name), super::element::unread_storage(name)),
            },
            _ => return Err(self.unsupported("a storage of an unknown class")),
        };
        let (Some(key), true) = (self.key(key), is_storage) else {
            return Err(self.unsupported("a persistent id that is not a storage"));
        };
        let elements = self.unsigned(len)?;
        let unit = element.map_or(1, |element| element.bytes() as u64);
        let bytes = elements.checked_mul(unit);
        let len = bytes.ok_or_else(|| self.malformed("the size of a storage that does not fit 64 bits"))?;
        // Of old versions: a storage that is a part of another one, from an element on.
        let first = match self.value(view) {
            Value::None => 0,
            Value::Sequence(items) => match items[..] {
                [_, first, _] => self.unsigned(first)?,
                _ => return Err(self.malformed("a view of a storage that is not one")),
            },
            _ => return Err(self.malformed("a view of a storage that is not one")),
        };
        let number = match self.keys.get(&key) {
            Some(&number) => number,
            None => {
                self.charge(2 * key.len() + 128)?;
                let number = self.storages.len() as u32;
                self.storages.push(Storage { place: Place::Key(key.clone()), len, unit });
                self.keys.insert(key, number);
                number
            }
        };
        if self.storages.get(number as usize).is_none_or(|storage| storage.len != len) {
            return Err(self.malformed("a storage that has two sizes"));
        }
        Ok(match unread {
            Some(dtype) => Value::UnreadStorage(dtype.into()),
            None => Value::Storage { number, element, first },
        })
    }

    /// The key of a storage, which old versions wrote as a number.
    fn key(&self, id: Id) -> Option<Box<str>> {
        match self.value(id) {
            Value::Text(text) => Some(text.clone()),
            Value::Int(number) => Some(number.to_string().into()),
            _ => None,
        }
    }
}
