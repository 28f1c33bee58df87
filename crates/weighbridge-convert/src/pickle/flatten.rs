//! Nested dicts, lists and objects as names: the rules by which values get them.

use std::collections::{BTreeMap, HashMap, HashSet};

use weighbridge::{Error, ErrorKind, Result};

use super::aside::Aside;
use super::keys::{self, Key, spelled};
use super::reach::holds_tensors;
use super::value::{Id, Pickle, Value};
use crate::note::{Note, NoteKind};

/// Containers within containers.
const DEEPEST: usize = 200;
/// The bytes of all names, and what a place takes besides.
const LONGEST_NAMES: usize = 32 << 20;
const PLACE: usize = 64;
/// Entries of a container: more than there may be tensors.
const MOST_ENTRIES: usize = 250_000;
/// The bytes of all metadata.
const LONGEST_METADATA: usize = 8 << 20;
const MOST_NOTES: usize = 10_000;

/// What a pickle holds, by name.
#[derive(Default)]
pub(super) struct Flat {
    /// Those that cannot be converted, too.
    pub(super) tensors: Vec<Found>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) notes: Vec<Note>,
    pub(super) lost: Vec<Lost>,
    pub(super) clashes: Vec<Clash>,
    pub(super) sightings: Vec<Sighting>,
}

/// A tensor in its place.
pub(super) struct Found {
    pub(super) name: String,
    pub(super) id: Id,
    /// The unknown class of the innermost object that holds it.
    pub(super) under: Option<u32>,
}

/// A place below which tensors have no names.
pub(super) struct Lost {
    pub(super) name: String,
    pub(super) kind: ErrorKind,
    pub(super) why: String,
}

/// Two keys of a dict that are different to Python and have one text.
pub(super) struct Clash {
    pub(super) name: String,
    pub(super) keys: [String; 2],
}

/// A place where an unknown global is.
pub(super) struct Sighting {
    pub(super) name: String,
    pub(super) global: u32,
    /// Whether it only tells something about a tensor that cannot be converted.
    pub(super) of_refused: bool,
}

/// Names everything in a pickle.
pub(super) fn flatten(pickle: &Pickle) -> Result<Flat> {
    let mut walk = Walk::new(pickle, None);
    walk.run()?;
    walk.see_aside();
    Ok(walk.flat)
}

/// How Python reaches the tensors of a name, such as `["a"]["b"]`.
pub(super) fn paths(pickle: &Pickle, name: &str) -> Vec<String> {
    let mut walk = Walk::new(pickle, Some(name));
    let _ = walk.run();
    walk.spelled
}

pub(super) struct Walk<'p> {
    pub(super) pickle: &'p Pickle,
    pub(super) flat: Flat,
    holds: Vec<bool>,
    /// What has no name of its own and is looked through at the end.
    pub(super) asides: Vec<Aside>,
    /// How the current value is reached.
    trail: Vec<Via>,
    /// The name whose paths are wanted, and those found.
    target: Option<&'p str>,
    spelled: Vec<String>,
    /// Bytes of metadata so far.
    texts: usize,
}

/// A value that is to be looked at.
pub(super) struct Place {
    /// `None` at the top.
    pub(super) name: Option<String>,
    pub(super) id: Id,
    pub(super) via: Via,
    pub(super) under: Option<u32>,
}

/// How a value is reached from what holds it.
#[derive(Clone, Copy)]
pub(super) enum Via {
    Top,
    Key(Id),
    Index(usize),
    Attribute(Id),
}

enum Step {
    Enter(Place),
    Leave(Id),
}

/// How many values may still be visited: one value may be used in several places, but not so often that the file is a bomb.
struct Budget {
    visits: usize,
    names: usize,
}

impl Budget {
    fn take(&mut self, places: &[Place]) -> bool {
        let bytes = |place: &Place| PLACE + place.name.as_ref().map_or(0, String::len);
        let bytes: usize = places.iter().map(bytes).sum();
        match (self.visits.checked_sub(places.len()), self.names.checked_sub(bytes)) {
            (Some(visits), Some(names)) => {
                (self.visits, self.names) = (visits, names);
                true
            }
            _ => false,
        }
    }
}

impl<'p> Walk<'p> {
    fn new(pickle: &'p Pickle, target: Option<&'p str>) -> Self {
        Self {
            pickle,
            flat: Flat::default(),
            holds: holds_tensors(pickle),
            asides: Vec::new(),
            trail: Vec::new(),
            target,
            spelled: Vec::new(),
            texts: 0,
        }
    }

    fn run(&mut self) -> Result<()> {
        let root = Place { name: None, id: self.pickle.root, via: Via::Top, under: None };
        let mut steps = vec![Step::Enter(root)];
        let mut path = HashSet::new();
        let visits = self.pickle.nodes.len().saturating_mul(8).saturating_add(10_000);
        let mut with_tensors = Budget { visits, names: LONGEST_NAMES };
        let mut without = Budget { visits, names: LONGEST_NAMES };
        while let Some(step) = steps.pop() {
            let place = match step {
                Step::Enter(place) => place,
                Step::Leave(id) => {
                    path.remove(&id);
                    self.trail.pop();
                    continue;
                }
            };
            let (id, via) = (place.id, place.via);
            if path.contains(&id) {
                self.drop(&place, "it holds itself");
                continue;
            }
            if path.len() == DEEPEST && self.is_container(id) {
                self.drop(&place, "it is nested too deeply");
                self.aside(&place, vec![id], Some(ErrorKind::Unsafe), "it is nested too deeply");
                continue;
            }
            self.trail.push(via);
            let budget = if self.holds(id) { &mut with_tensors } else { &mut without };
            // Counted before they get names: a list may be one value some millions of times.
            let fits = self.width(id) <= budget.visits.min(MOST_ENTRIES);
            let children = if fits { self.children(&place) } else { Some(Vec::new()) };
            match children {
                Some(children) if fits && budget.take(&children) => {
                    path.insert(id);
                    steps.push(Step::Leave(id));
                    steps.extend(children.into_iter().rev().map(Step::Enter));
                }
                Some(_) if self.holds(id) => {
                    let start: String = place.name.unwrap_or_default().chars().take(80).collect();
                    let message = format!("too many values, or the same in too many places, at {start:?}");
                    return Err(Error::new(ErrorKind::Unsafe, message));
                }
                Some(_) => {
                    self.trail.pop();
                    self.drop(&place, "too many values, or the same in too many places");
                    self.aside(&place, vec![id], None, "");
                }
                None => drop(self.trail.pop()),
            }
        }
        Ok(())
    }

    pub(super) fn holds(&self, id: Id) -> bool {
        self.holds.get(id as usize).copied().unwrap_or(false)
    }

    fn is_container(&self, id: Id) -> bool {
        matches!(self.pickle.at(id), Value::Dict(_) | Value::Sequence(_) | Value::Set(_) | Value::Object(_))
    }

    /// How many names a container gives.
    fn width(&self, id: Id) -> usize {
        match self.pickle.at(id) {
            Value::Dict(pairs) => pairs.len(),
            Value::Sequence(items) | Value::Set(items) if !items.iter().all(|&item| self.is_plain(item)) => {
                items.len()
            }
            Value::Object(object) => object.items.len().max(object.args.len()).max(object.entries.len()),
            _ => 0,
        }
    }

    /// The names and values in a container; everything else is put where it belongs.
    fn children(&mut self, place: &Place) -> Option<Vec<Place>> {
        let pickle = self.pickle;
        let id = place.id;
        match pickle.at(id) {
            Value::Tensor(_) | Value::Refused(_) => self.tensor(place),
            Value::Dict(pairs) => {
                self.see_attributes(place);
                if !pairs.is_empty() {
                    return Some(self.entries(place, pairs, Via::Key));
                }
                self.put(place);
            }
            Value::Object(object) => return self.object(place, object),
            Value::Sequence(items) | Value::Set(items) => {
                self.see_attributes(place);
                if !items.iter().all(|&item| self.is_plain(item)) {
                    return Some(self.indexed(place, items, 0));
                }
                self.put(place);
            }
            &Value::Global(number) => {
                self.see(place, number);
                self.put(place);
            }
            Value::Bytes(_) => self.drop(place, "bytes"),
            Value::Storage { .. } | Value::UnreadStorage(_) => self.drop(place, "a storage without a tensor"),
            Value::NumpyBlank | Value::NumpyType { .. } => self.drop(place, "a type of NumPy"),
            Value::Opaque(what) => {
                self.drop(place, what);
                self.see_attributes(place);
            }
            _ => self.put(place),
        }
        None
    }

    fn tensor(&mut self, place: &Place) {
        let name = place.name.as_deref().unwrap_or("tensor");
        if self.target == Some(name) {
            let mut path = String::new();
            for via in &self.trail {
                path += &match *via {
                    Via::Top => String::new(),
                    Via::Key(key) => format!("[{}]", spelled(self.pickle, key)),
                    Via::Index(number) => format!("[{number}]"),
                    Via::Attribute(key) => format!(".{}", keys::text(self.pickle, key).unwrap_or_default()),
                };
            }
            self.spelled.push(path);
        }
        if self.pickle.unregistered.contains(&place.id) {
            self.note(NoteKind::Kept, name, "an attribute of a module, which its state_dict does not have");
        }
        self.flat.tensors.push(Found { name: name.to_owned(), id: place.id, under: place.under });
        self.see_attributes(place);
    }

    /// The entries of a dict, each key once: the last value counts, under the first key, as in Python.
    pub(super) fn entries(&mut self, place: &Place, pairs: &[(Id, Id)], via: fn(Id) -> Via) -> Vec<Place> {
        let mut places = HashMap::with_capacity(pairs.len());
        let mut entries: Vec<Place> = Vec::with_capacity(pairs.len());
        for &(key, value) in pairs {
            match places.get(&Key::of(self.pickle, key)) {
                None => {
                    places.insert(Key::of(self.pickle, key), entries.len());
                    entries.push(Place { name: None, id: value, via: via(key), under: place.under });
                }
                Some(&first) => {
                    if let Some(entry) = entries.get_mut(first) {
                        entry.id = value;
                    }
                }
            }
        }
        let mut texts: HashMap<String, Id> = HashMap::with_capacity(entries.len());
        let mut named = Vec::with_capacity(entries.len());
        for mut entry in entries {
            let (Via::Key(key) | Via::Attribute(key)) = entry.via else { continue };
            let text = match self.pickle.at(key) {
                Value::Set(_) | Value::Dict(_) => None,
                _ => keys::text(self.pickle, key),
            };
            let Some(text) = text else {
                entry.name = Some(join(place, &spelled(self.pickle, key)));
                self.drop(&entry, "an entry whose key is not a name");
                let why = "a dict has a key that cannot be a name";
                self.aside(&entry, vec![key, entry.id], Some(ErrorKind::Unsupported), why);
                continue;
            };
            if let &Value::Global(number) = self.pickle.at(key) {
                self.see(place, number);
            }
            let name = join(place, &text);
            if let Some(&first) = texts.get(&text) {
                let keys = [spelled(self.pickle, first), spelled(self.pickle, key)];
                self.flat.clashes.push(Clash { name: name.clone(), keys });
            }
            texts.insert(text, key);
            entry.name = Some(name);
            named.push(entry);
        }
        named
    }

    /// The items of a list, counted from a number.
    pub(super) fn indexed(&self, place: &Place, items: &[Id], from: usize) -> Vec<Place> {
        let item = |(number, &id): (usize, &Id)| {
            let number = from + number;
            let name = Some(join(place, &number.to_string()));
            Place { name, id, via: Via::Index(number), under: place.under }
        };
        items.iter().enumerate().map(item).collect()
    }

    pub(super) fn is_plain(&self, id: Id) -> bool {
        match *self.pickle.at(id) {
            Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Text(_) => true,
            Value::Global(number) => self.pickle.unknown(number).is_none(),
            _ => false,
        }
    }

    /// Notes where an unknown global is.
    pub(super) fn see(&mut self, place: &Place, global: u32) {
        if self.pickle.unknown(global).is_some() {
            let name = place.name.clone().unwrap_or_default();
            self.flat.sightings.push(Sighting { name, global, of_refused: false });
        }
    }

    /// A value for the metadata.
    pub(super) fn put(&mut self, place: &Place) {
        let Some(text) = keys::text(self.pickle, place.id) else {
            return self.drop(place, "a value that has no text");
        };
        if place.under.is_some() {
            return;
        }
        let key = place.name.as_deref().unwrap_or("value");
        self.texts += key.len() + text.len();
        if text.len() > keys::LONGEST || self.texts > LONGEST_METADATA {
            return self.drop(place, "a text that is too long for the metadata");
        }
        if self.flat.metadata.contains_key(key) {
            return self.drop(place, "another value has this name");
        }
        self.note(NoteKind::Metadata, key, "no tensor");
        self.flat.metadata.insert(key.to_owned(), text);
    }

    /// Of an object whose class is not known only the object is told.
    pub(super) fn drop(&mut self, place: &Place, what: &str) {
        if place.under.is_none() {
            self.note(NoteKind::Dropped, place.name.as_deref().unwrap_or_default(), what);
        }
    }

    pub(super) fn note(&mut self, kind: NoteKind, name: &str, why: &str) {
        let notes = &mut self.flat.notes;
        match notes.len() {
            0..MOST_NOTES => notes.push(Note::new(kind, name, why)),
            MOST_NOTES => notes.push(Note::new(kind, name, format!("{why}; and more like this"))),
            _ => {}
        }
    }
}

/// A name within another.
pub(super) fn join(place: &Place, key: &str) -> String {
    match &place.name {
        None => key.to_owned(),
        Some(name) => format!("{name}.{key}"),
    }
}
