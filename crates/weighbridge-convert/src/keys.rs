//! Names of trees: the keys on the way to a tensor, with dots between them.

use std::collections::HashMap;
use std::fmt::Write;

use weighbridge::{Error, ErrorKind, Result};

use crate::cursor::malformed;

/// Of all names together.
const MOST_TEXT: usize = 64 << 20;
/// Of one.
const LONGEST: usize = 4 << 10;

/// The way from the top of a tree to a value, and the names that were given.
#[derive(Default)]
pub(crate) struct Keys {
    /// The keys with dots between them; the name of what is below them.
    name: String,
    /// Where in `name` each key begins, and whether it is a text.
    keys: Vec<(usize, bool)>,
    /// Tensors, and how they are reached where the name does not tell.
    given: HashMap<String, Option<String>>,
    text: usize,
}

/// A key, or a place in a list.
#[derive(Clone, Copy)]
pub(crate) enum Key<'k> {
    Text(&'k str),
    /// A number, as it is written.
    Number(&'k str),
}

impl Keys {
    /// The name of what is here.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether this is the top.
    pub(crate) fn is_top(&self) -> bool {
        self.keys.is_empty()
    }

    pub(crate) fn depth(&self) -> usize {
        self.keys.len()
    }

    /// Goes one key deeper.
    pub(crate) fn enter(&mut self, key: Key<'_>) -> Result<()> {
        let (text, is_text) = match key {
            Key::Text(text) => (text, true),
            Key::Number(text) => (text, false),
        };
        if !self.is_top() {
            self.name.push('.');
        }
        self.keys.push((self.name.len(), is_text));
        self.name.push_str(text);
        self.text += self.name.len();
        if self.name.len() > LONGEST || self.text > MOST_TEXT {
            let message = format!("a name in it has more than {LONGEST} bytes, or all have {MOST_TEXT}");
            return Err(malformed(message));
        }
        Ok(())
    }

    /// Goes back.
    pub(crate) fn leave(&mut self) {
        let start = self.keys.pop().map_or(0, |key| key.0);
        self.name.truncate(start);
        if !self.is_top() {
            self.name.pop();
        }
    }

    /// Takes the name here for a tensor.
    ///
    /// # Errors
    ///
    /// Fails where the name is taken, and says which keys lead to the two.
    pub(crate) fn give(&mut self) -> Result<()> {
        let way = self.way();
        let is_plain = self.keys.iter().all(|key| key.1) && self.name.split('.').count() == self.keys.len();
        match self.given.insert(self.name.clone(), (!is_plain).then(|| way.clone())) {
            None => Ok(()),
            Some(other) => {
                let plain = || self.name.split('.').fold(String::new(), |way, key| format!("{way}[{key:?}]"));
                let other = other.unwrap_or_else(plain);
                let message = format!("two tensors have this name: {other} and {way}");
                Err(Error::new(ErrorKind::DuplicateTensor, message).in_tensor(&self.name))
            }
        }
    }

    /// The keys as Python writes them: `["a"][1]["b.c"]`.
    fn way(&self) -> String {
        let mut way = String::new();
        for (place, &(start, is_text)) in self.keys.iter().enumerate() {
            let end = self.keys.get(place + 1).map_or(self.name.len(), |next| next.0 - 1);
            let key = &self.name[start..end];
            let _ = if is_text { write!(way, "[{key:?}]") } else { write!(way, "[{key}]") };
        }
        way
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_keys_with_dots() {
        let mut keys = Keys::default();
        for (path, name) in [(&["a", "b"][..], "a.b"), (&["a", ""], "a."), (&["", "a"], ".a"), (&[""], "")] {
            for key in path {
                keys.enter(Key::Text(key)).unwrap();
            }
            assert_eq!((keys.name(), keys.is_top()), (name, false));
            keys.give().unwrap();
            for left in (0..path.len()).rev() {
                keys.leave();
                assert_eq!(keys.depth(), left);
            }
            assert_eq!((keys.name(), keys.is_top()), ("", true));
        }
    }

    #[test]
    fn two_of_a_name_are_told_apart() {
        let mut keys = Keys::default();
        keys.enter(Key::Text("a")).unwrap();
        keys.enter(Key::Text("1")).unwrap();
        keys.give().unwrap();
        keys.leave();
        keys.enter(Key::Number("1")).unwrap();
        let error = keys.give().unwrap_err().to_string();
        assert!(error.contains(r#"two tensors have this name: ["a"]["1"] and ["a"][1]"#), "{error}");
        keys.leave();
        keys.leave();
        keys.enter(Key::Text("a.1")).unwrap();
        let error = keys.give().unwrap_err().to_string();
        assert!(error.contains(r#"["a"][1] and ["a.1"]"#), "{error}");
    }
}
