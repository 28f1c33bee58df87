//! Keys of dicts: when two are one to Python, and which texts they have.

use super::value::{Id, Pickle, Value};

/// Tuples within tuples that have a text.
const DEEPEST: usize = 8;
/// The bytes of a text.
pub(super) const LONGEST: usize = 64 << 10;

/// What Python compares of a key.
#[derive(PartialEq, Eq, Hash)]
pub(super) enum Key<'p> {
    None,
    /// `1`, `1.0` and `True` are one key.
    Int(i64),
    Float(u64),
    Text(&'p str),
    Tuple(Vec<Key<'p>>),
    Global(u32),
    /// What is equal to itself at most, as far as is known.
    Other(Id),
}

impl<'p> Key<'p> {
    pub(super) fn of(pickle: &'p Pickle, id: Id) -> Self {
        Self::within(pickle, id, 0)
    }

    fn within(pickle: &'p Pickle, id: Id, depth: usize) -> Self {
        match pickle.at(id) {
            Value::None => Self::None,
            &Value::Bool(value) => Self::Int(value.into()),
            &Value::Int(value) => Self::Int(value),
            // NaN is equal to nothing else.
            Value::Float(value) if value.is_nan() => Self::Other(id),
            &Value::Float(value) => match value as i64 {
                whole if whole as f64 == value && whole != i64::MAX => Self::Int(whole),
                _ => Self::Float(value.to_bits()),
            },
            Value::Text(text) => Self::Text(text),
            Value::Sequence(items) if depth < DEEPEST => {
                Self::Tuple(items.iter().map(|&item| Self::within(pickle, item, depth + 1)).collect())
            }
            &Value::Global(number) => Self::Global(number),
            _ => Self::Other(id),
        }
    }
}

/// A value as JSON, but a text as it is; `None` for what has no text.
pub(super) fn text(pickle: &Pickle, id: Id) -> Option<String> {
    match pickle.at(id) {
        Value::Text(text) => Some(text.to_string()),
        _ => json(pickle, id, 0),
    }
}

fn json(pickle: &Pickle, id: Id, depth: usize) -> Option<String> {
    Some(match pickle.at(id) {
        Value::Text(text) => serde_json::to_string(text).ok()?,
        Value::Dict(pairs) if pairs.is_empty() && depth == 0 => "{}".to_owned(),
        Value::Sequence(items) | Value::Set(items) if depth < DEEPEST => {
            let mut text = "[".to_owned();
            for (number, &item) in items.iter().enumerate() {
                if text.len() > LONGEST {
                    return None;
                }
                text += if number > 0 { "," } else { "" };
                text += &json(pickle, item, depth + 1)?;
            }
            text + "]"
        }
        Value::None => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) => format!("{value:?}"),
        &Value::Global(number) => pickle.globals.get(number as usize)?.path(),
        _ => return None,
    })
}

/// A key as Python writes it.
pub(super) fn spelled(pickle: &Pickle, id: Id) -> String {
    let mut text = String::new();
    spell(pickle, id, 0, &mut text);
    text
}

fn spell(pickle: &Pickle, id: Id, depth: usize, into: &mut String) {
    if into.len() > 200 {
        *into += "...";
        return;
    }
    match pickle.at(id) {
        Value::Text(text) if text.chars().count() > 80 => {
            let start: String = text.chars().take(80).collect();
            *into += &format!("{start:?}...");
        }
        Value::Text(text) => *into += &format!("{text:?}"),
        Value::None => *into += "None",
        Value::Bool(true) => *into += "True",
        Value::Bool(false) => *into += "False",
        Value::Int(value) => *into += &value.to_string(),
        Value::Float(value) => *into += &format!("{value:?}"),
        Value::Sequence(items) if depth < DEEPEST => {
            *into += "(";
            for (number, &item) in items.iter().enumerate() {
                *into += if number > 0 { ", " } else { "" };
                spell(pickle, item, depth + 1, into);
            }
            *into += if items.len() == 1 { ",)" } else { ")" };
        }
        &Value::Global(number) => {
            *into += &pickle.globals.get(number as usize).map_or("?".to_owned(), super::value::Global::path);
        }
        Value::Bytes(_) => *into += "bytes",
        Value::Opaque(what) => *into += what,
        Value::Tensor(_) | Value::Refused(_) => *into += "a tensor",
        _ => *into += "an object",
    }
}
