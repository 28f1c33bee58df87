//! Nested dicts and lists as names: the rules by which values get them.

use std::collections::{BTreeMap, HashMap, HashSet};

use weighbridge::{Error, ErrorKind, Result};

use super::value::{Id, Pickle, Value};
use crate::note::{Note, NoteKind};

/// Containers within containers.
const DEEPEST: usize = 200;
/// The bytes of all names.
const LONGEST_NAMES: usize = 64 << 20;
/// The bytes of all metadata, and of one entry.
const LONGEST_METADATA: usize = 8 << 20;
const LONGEST_ENTRY: usize = 64 << 10;
const MOST_NOTES: usize = 10_000;

/// Keys under which training programs put the model, the more telling first.
const WRAPPERS: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];
/// Prefixes that `DataParallel` and `torch.compile` put before all names.
const SHELLS: [&str; 2] = ["module.", "_orig_mod."];
/// Where a module of PyTorch has its tensors and its parts.
const OF_MODULE: [&str; 3] = ["_parameters", "_buffers", "_modules"];

/// What a pickle holds, by name.
#[derive(Default)]
pub(super) struct Flat {
    pub(super) tensors: Vec<(String, Id)>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) notes: Vec<Note>,
}

/// Names everything in a pickle.
pub(super) fn flatten(pickle: &Pickle, raw_names: bool, skip_unsupported: bool) -> Result<Flat> {
    let mut walk = Walk { pickle, skip_unsupported, flat: Flat::default(), names: 0, texts: 0 };
    walk.run()?;
    let mut flat = walk.flat;
    if !raw_names {
        unwrap(pickle, &mut flat);
    }
    Ok(flat)
}

struct Walk<'p> {
    pickle: &'p Pickle,
    skip_unsupported: bool,
    flat: Flat,
    /// Bytes of names and of metadata so far.
    names: usize,
    texts: usize,
}

enum Step {
    Enter(String, Id),
    Leave(Id),
}

impl Walk<'_> {
    fn run(&mut self) -> Result<()> {
        let mut steps = vec![Step::Enter(String::new(), self.pickle.root)];
        let mut path = HashSet::new();
        // A value may stand in several places, but not in so many that the file would be a bomb.
        let mut visits = self.pickle.nodes.len().saturating_mul(8).saturating_add(10_000);
        while let Some(step) = steps.pop() {
            let (name, id) = match step {
                Step::Enter(name, id) => (name, id),
                Step::Leave(id) => {
                    path.remove(&id);
                    continue;
                }
            };
            let Some(children) = self.children(&name, id)? else { continue };
            if !path.insert(id) {
                return Err(unsafe_("it holds itself", &name));
            }
            if path.len() > DEEPEST {
                return Err(unsafe_("it is nested too deeply", &name));
            }
            self.names += children.iter().map(|child| child.0.len()).sum::<usize>();
            if children.len() > visits || self.names > LONGEST_NAMES {
                return Err(unsafe_("the same values stand in too many places", &name));
            }
            visits -= children.len();
            steps.push(Step::Leave(id));
            steps.extend(children.into_iter().rev().map(|(name, id)| Step::Enter(name, id)));
        }
        Ok(())
    }

    /// The names and values in a container; everything else is put where it belongs.
    fn children(&mut self, name: &str, id: Id) -> Result<Option<Vec<(String, Id)>>> {
        let pickle = self.pickle;
        match pickle.at(id) {
            Value::Tensor(_) => {
                let name = if name.is_empty() { "tensor" } else { name };
                self.flat.tensors.push((name.to_owned(), id));
            }
            Value::Dict(pairs) if !pairs.is_empty() => return Ok(Some(self.entries(name, pairs))),
            Value::Record(Some(state)) => match pickle.at(*state) {
                attributes @ Value::Dict(pairs) => {
                    let module = OF_MODULE.map(|key| pickle.entry(attributes, key));
                    if module.iter().any(Option::is_some) {
                        let is_full =
                            |part: &Id| !matches!(pickle.at(*part), Value::Dict(of) if of.is_empty());
                        let parts = module.into_iter().flatten().filter(is_full);
                        return Ok(Some(parts.map(|part| (name.to_owned(), part)).collect()));
                    }
                    return Ok(Some(self.entries(name, pairs)));
                }
                _ => self.drop(name, "an object"),
            },
            Value::Sequence(items) if !items.iter().all(|&item| self.is_plain(item)) => {
                let items = items.iter().enumerate();
                return Ok(Some(items.map(|(number, &id)| (join(name, &number.to_string()), id)).collect()));
            }
            Value::Refused(what) if self.skip_unsupported => self.drop(name, what),
            Value::Refused(what) => {
                let message = format!("it is {what}, which safetensors does not have");
                return Err(Error::new(ErrorKind::Unsupported, message).in_tensor(name));
            }
            Value::Record(None) => self.drop(name, "an object"),
            Value::Bytes(_) => self.drop(name, "bytes"),
            Value::Storage { .. } => self.drop(name, "a storage without a tensor"),
            Value::NumpyBlank | Value::NumpyType { .. } => self.drop(name, "a type of NumPy"),
            Value::Opaque(what) => self.drop(name, what),
            _ => match self.json(id) {
                Some(text) => self.put(name, text),
                None => self.drop(name, "a value that has no text"),
            },
        }
        Ok(None)
    }

    /// The entries of a dict, each key once: the last value counts, in the place of the first, as in Python.
    fn entries(&mut self, name: &str, pairs: &[(Id, Id)]) -> Vec<(String, Id)> {
        let mut places = HashMap::with_capacity(pairs.len());
        let mut entries: Vec<(String, Id)> = Vec::with_capacity(pairs.len());
        for &(key, value) in pairs {
            let key = match self.pickle.at(key) {
                Value::Text(text) => text.to_string(),
                Value::Int(number) => number.to_string(),
                Value::Sequence(_) | Value::Bool(_) | Value::None | Value::Float(_) | Value::Global(_) => {
                    match self.json(key) {
                        Some(text) => text,
                        None => {
                            self.drop(name, "an entry whose key is no text");
                            continue;
                        }
                    }
                }
                _ => {
                    self.drop(name, "an entry whose key is no text");
                    continue;
                }
            };
            match places.insert(key.clone(), entries.len()) {
                Some(first) => {
                    places.insert(key, first);
                    entries[first].1 = value;
                }
                None => entries.push((join(name, &key), value)),
            }
        }
        entries
    }

    fn is_plain(&self, id: Id) -> bool {
        matches!(
            self.pickle.at(id),
            Value::None
                | Value::Bool(_)
                | Value::Int(_)
                | Value::Float(_)
                | Value::Text(_)
                | Value::Global(_)
        )
    }

    /// A value as JSON, but a text as it is. Sequences are of plain values.
    fn json(&self, id: Id) -> Option<String> {
        Some(match self.pickle.at(id) {
            Value::Text(text) => text.to_string(),
            Value::Dict(_) => "{}".to_owned(),
            Value::Sequence(items) => {
                let mut text = "[".to_owned();
                for (number, &item) in items.iter().enumerate() {
                    if text.len() > LONGEST_ENTRY {
                        break;
                    }
                    text += if number > 0 { "," } else { "" };
                    text += &match self.pickle.at(item) {
                        Value::Text(item) => serde_json::to_string(item).ok()?,
                        Value::Sequence(_) | Value::Dict(_) => return None,
                        _ => self.json(item)?,
                    };
                }
                text + "]"
            }
            Value::None => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => format!("{value:?}"),
            &Value::Global(number) => {
                let (module, name) = self.pickle.globals.get(number as usize)?;
                format!("{module}.{name}")
            }
            _ => return None,
        })
    }

    fn put(&mut self, name: &str, text: String) {
        self.texts += name.len() + text.len();
        if text.len() > LONGEST_ENTRY || self.texts > LONGEST_METADATA {
            return self.drop(name, "a text that is too long for the metadata");
        }
        let key = if name.is_empty() { "value" } else { name };
        self.note(NoteKind::Metadata, key, "no tensor");
        self.flat.metadata.insert(key.to_owned(), text);
    }

    fn drop(&mut self, name: &str, what: &str) {
        self.note(NoteKind::Dropped, name, what);
    }

    fn note(&mut self, kind: NoteKind, name: &str, why: &str) {
        let notes = &mut self.flat.notes;
        match notes.len() {
            0..MOST_NOTES => notes.push(Note::new(kind, name, why)),
            MOST_NOTES => notes.push(Note::new(kind, name, format!("{why}; and more like this"))),
            _ => {}
        }
    }
}

fn join(name: &str, key: &str) -> String {
    if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") }
}

fn unsafe_(what: &str, name: &str) -> Error {
    let start: String = name.chars().take(80).collect();
    Error::new(ErrorKind::Unsafe, format!("{what}, at {start:?}"))
}

/// Leaves out of the names what says nothing about the model.
fn unwrap(pickle: &Pickle, flat: &mut Flat) {
    let root = pickle.at(pickle.root);
    let wrapper = WRAPPERS.iter().filter(|key| pickle.entry(root, key).is_some()).find_map(|key| {
        let prefix = format!("{key}.");
        let model = places(flat, |name| name.starts_with(&prefix));
        (!model.is_empty()).then_some((prefix, model))
    });
    let model = match wrapper {
        None => places(flat, |_| true),
        Some((prefix, model)) if strip(flat, &model, &prefix) => model,
        Some(_) => return,
    };
    let in_all =
        |flat: &Flat, shell: &str| model.iter().all(|&place| flat.tensors[place].0.starts_with(shell));
    while let Some(shell) = SHELLS.iter().find(|shell| !model.is_empty() && in_all(flat, shell)) {
        if !strip(flat, &model, shell) {
            return;
        }
    }
}

fn places(flat: &Flat, is_one: impl Fn(&str) -> bool) -> Vec<usize> {
    (0..flat.tensors.len()).filter(|&place| is_one(&flat.tensors[place].0)).collect()
}

/// Takes a prefix off the names in these places; `false` where two names would become one.
fn strip(flat: &mut Flat, model: &[usize], prefix: &str) -> bool {
    let mut names: Vec<&str> = flat.tensors.iter().map(|tensor| &*tensor.0).collect();
    for &place in model {
        names[place] = names[place].strip_prefix(prefix).unwrap_or(names[place]);
    }
    let mut seen = HashSet::new();
    if !names.into_iter().all(|name| seen.insert(name)) {
        return false;
    }
    for &place in model {
        flat.tensors[place].0.drain(..prefix.len());
    }
    let why = format!("left out of the names of {} tensors", model.len());
    flat.notes.push(Note::new(NoteKind::Renamed, format!("{prefix}*"), why));
    true
}
