//! The stack, and what is known of the values on it.

use std::sync::Arc;

use super::super::{Global, joblib};
use super::{Broken, Id, NO_TEXT, State, Value};

/// Longer texts are no names.
const LONGEST_NAME: usize = 4 << 10;
/// Entries of a dict that are kept in mind.
const MOST_ENTRIES: usize = 64;
/// Elements of a tuple that are kept in mind.
const LONGEST_TUPLE: usize = 64;

/// Why an array of joblib's may not be seen as one.
const ODD_ARRAY: &str = "an array of joblib's is made in another way than joblib makes it";
impl State {
    pub(in crate::scan) fn value(&self, id: Id) -> &Value {
        self.values.get(id as usize).unwrap_or(&Value::Other)
    }

    pub(in crate::scan) fn text(&self, id: Id) -> Option<Arc<str>> {
        match self.value(id) {
            Value::Text(text) => Some(Arc::clone(text)),
            _ => None,
        }
    }

    pub(in crate::scan) fn global(&self, number: u32) -> Option<&Global> {
        self.globals.get(number as usize)
    }

    /// The name of a value that is a global.
    pub(super) fn class(&self, id: Id) -> Option<String> {
        match self.value(id) {
            &Value::Global(number) => self.global(number).map(|global| global.name.clone()),
            _ => None,
        }
    }

    pub(super) fn push(&mut self, value: Value) {
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
    }

    pub(super) fn push_text(&mut self, text: &str) {
        if text.len() > LONGEST_NAME {
            return self.push(Value::OddText);
        }
        self.used += text.len() + 32;
        self.push(Value::Text(text.into()));
    }

    /// Pushes what was made before.
    pub(super) fn again(&mut self, id: Id) {
        if self.arrays && joblib::describes(self, id) {
            self.doubt.get_or_insert(ODD_ARRAY);
        }
        // What holds it may change it from now on.
        if let Some(value @ Value::Dict(_)) = self.values.get_mut(id as usize) {
            *value = Value::NoText;
        }
        self.stack.push(id);
    }

    /// Puts items into something, from where they may come back.
    pub(super) fn hold(&mut self, items: &[Id]) {
        if self.arrays && items.iter().any(|&id| joblib::is_out_of_place(self, id)) {
            self.doubt.get_or_insert(ODD_ARRAY);
        }
    }

    pub(super) fn push_tuple(&mut self, items: Vec<Id>) {
        self.hold(&items);
        if items.len() > LONGEST_TUPLE {
            return self.stack.push(NO_TEXT);
        }
        self.used += size_of_val(&*items) + 16;
        self.push(Value::Tuple(items.into()));
    }

    pub(super) fn floor(&self) -> usize {
        self.marks.last().map_or(0, |&mark| mark as usize)
    }

    pub(super) fn top(&self) -> Result<Id, Broken> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => Err("nothing is on the stack".to_owned()),
        }
    }

    pub(super) fn pop(&mut self) -> Result<Id, Broken> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    pub(super) fn pop_many(&mut self, count: usize) -> Result<Vec<Id>, Broken> {
        let start = self.stack.len().checked_sub(count).filter(|&start| start >= self.floor());
        let start = start.ok_or("too little is on the stack")?;
        Ok(self.stack.split_off(start))
    }

    pub(super) fn pop_mark(&mut self) -> Result<Vec<Id>, Broken> {
        let mark = self.marks.pop().ok_or("no mark is on the stack")?;
        Ok(self.stack.split_off(mark as usize))
    }

    /// Adds items to what is on top.
    pub(super) fn append(&mut self, items: &[Id]) -> Result<(), Broken> {
        self.hold(items);
        let list = self.top()?;
        match self.values.get_mut(list as usize) {
            Some(Value::List(into)) => {
                into.extend_from_slice(items);
                self.used += size_of_val(items) * 2;
            }
            Some(&mut Value::Global(global)) => self.changes(global),
            _ => {}
        }
        Ok(())
    }

    /// Sets keys and values of what is on top.
    pub(super) fn set(&mut self, items: &[Id]) -> Result<(), Broken> {
        let (pairs, []) = items.as_chunks::<2>() else { return Err("a key without a value".to_owned()) };
        self.hold(items);
        let dict = self.top()?;
        match self.values.get_mut(dict as usize) {
            Some(Value::Dict(into)) => {
                let room = MOST_ENTRIES.saturating_sub(into.len());
                into.extend(pairs.iter().take(room).map(|&[key, value]| (key, value)));
                self.used += 16 * room.min(pairs.len());
            }
            Some(&mut Value::Global(global)) => self.changes(global),
            _ => {}
        }
        Ok(())
    }
}
