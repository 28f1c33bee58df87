//! What objects of classes hold: modules of PyTorch by its own rules, everything else by attribute, key and number.

use std::collections::HashSet;

use super::flatten::{Place, Via, Walk, join};
use super::value::{Id, Object, Pickle, Value};

/// Where a module of PyTorch has its tensors and its parts.
const OF_MODULE: [&str; 3] = ["_parameters", "_buffers", "_modules"];
/// Attributes of modules in TorchScript that say nothing about the weights.
const OF_SCRIPT: [&str; 2] = ["training", "_is_full_backward_hook"];

impl Walk<'_> {
    /// What is in an object; without anything it is left out with a note.
    pub(super) fn object(&mut self, place: &Place, object: &Object) -> Option<Vec<Place>> {
        let global = self.pickle.globals.get(object.class as usize);
        let (class, is_script) =
            global.map_or((String::new(), false), |it| (it.path(), it.module.starts_with("__torch__")));
        self.see(place, object.class);
        self.see_attributes(place);
        let unknown = self.pickle.unknown(object.class).map(|_| object.class);
        if unknown.is_some() {
            self.drop(place, &format!("an object of {class}, which is not known"));
        }
        let inner =
            Place { name: place.name.clone(), id: place.id, via: place.via, under: unknown.or(place.under) };
        let (attributes, others) = self.states(&object.states);
        if let Some(parts) = self.module(&inner, &attributes) {
            return Some(parts);
        }
        let mut places = Vec::new();
        // Arguments are no content unless tensors are among them.
        let by_number: Vec<Id> = object.args.iter().chain(&object.items).copied().collect();
        for child in self.indexed(&inner, &by_number, 0).into_iter().enumerate() {
            match child {
                (number, child) if number >= object.args.len() || self.holds(child.id) => places.push(child),
                (_, child) if self.is_plain(child.id) => {}
                (_, child) => self.aside(&child, vec![child.id], None, ""),
            }
        }
        places.extend(self.entries(&inner, &object.entries, Via::Key));
        let attributes: Vec<_> = attributes
            .into_iter()
            .filter(|&(key, _)| !is_script || !self.is_one_of(key, &OF_SCRIPT))
            .collect();
        places.extend(self.entries(&inner, &attributes, Via::Attribute));
        for state in others {
            let name = if by_number.is_empty() { inner.name.clone() } else { Some(join(&inner, "state")) };
            match self.pickle.at(state) {
                Value::Sequence(_) | Value::Set(_) => {
                    places.push(Place { name, id: state, via: Via::Attribute(state), under: inner.under });
                }
                _ => {
                    let name = Some(join(&inner, "state"));
                    places.push(Place { name, id: state, via: Via::Attribute(state), under: inner.under });
                }
            }
        }
        if places.is_empty() && unknown.is_none() && !is_script {
            self.drop(place, &format!("an object of {class}"));
        }
        Some(places)
    }

    /// The attributes in states, each a dict, or a pair of one or `None` and another for slots; and all other states.
    fn states(&self, states: &[Id]) -> (Vec<(Id, Id)>, Vec<Id>) {
        let (mut attributes, mut others) = (Vec::new(), Vec::new());
        for &state in states {
            match self.pickle.at(state) {
                Value::Dict(pairs) => attributes.extend(pairs),
                Value::Sequence(items) => match items[..] {
                    [first, second] => match (self.pickle.at(first), self.pickle.at(second)) {
                        (Value::Dict(first), Value::Dict(slots)) => {
                            attributes.extend(first.iter().chain(slots));
                        }
                        (Value::None, Value::Dict(slots)) => attributes.extend(slots),
                        (Value::Dict(first), Value::None) => attributes.extend(first),
                        _ => others.push(state),
                    },
                    _ => others.push(state),
                },
                Value::None => {}
                _ => others.push(state),
            }
        }
        (attributes, others)
    }

    /// The parameters, buffers and parts of a module, as its `state_dict` has them; `None` for what is not a module.
    fn module(&mut self, place: &Place, attributes: &[(Id, Id)]) -> Option<Vec<Place>> {
        let last = |name: &str| {
            let found = attributes.iter().rev().find(|(key, _)| self.is_one_of(*key, &[name]));
            found.map(|&(_, value)| value)
        };
        let parts = OF_MODULE.map(last);
        if parts.iter().all(Option::is_none) {
            return None;
        }
        let pickle = self.pickle;
        let temporary: HashSet<&str> = match last("_non_persistent_buffers_set").map(|id| pickle.at(id)) {
            Some(Value::Set(names) | Value::Sequence(names)) => {
                names.iter().filter_map(|&name| text(pickle, name)).collect()
            }
            _ => HashSet::new(),
        };
        let mut places = Vec::new();
        for (number, part) in parts.into_iter().enumerate() {
            let Some(part) = part else { continue };
            let Value::Dict(pairs) = self.pickle.at(part) else {
                // A container of another kind, such as ParameterList's of old.
                places.push(Place {
                    name: place.name.clone(),
                    id: part,
                    via: Via::Attribute(part),
                    under: place.under,
                });
                continue;
            };
            for child in self.entries(place, pairs, Via::Attribute) {
                let Via::Attribute(key) = child.via else { continue };
                let is_temporary =
                    number == 1 && text(self.pickle, key).is_some_and(|name| temporary.contains(name));
                match self.pickle.at(child.id) {
                    Value::None => {}
                    _ if is_temporary => {
                        self.drop(&child, "a buffer that is not persistent");
                        self.aside(&child, vec![child.id], None, "");
                    }
                    _ => places.push(child),
                }
            }
        }
        for &(key, value) in attributes {
            if !self.is_one_of(key, &OF_MODULE) && !self.is_plain(value) {
                let name = Some(join(place, text(self.pickle, key).unwrap_or("?")));
                let attribute = Place { name, id: value, via: Via::Attribute(key), under: place.under };
                self.aside(
                    &attribute,
                    vec![value],
                    None,
                    "an attribute of a module, which its state_dict does not have",
                );
            }
        }
        Some(places)
    }

    /// Looks later at what a value has beside its content. `_metadata` is what `state_dict` makes for itself.
    pub(super) fn see_attributes(&mut self, place: &Place) {
        let Some(beside) = self.pickle.beside.get(&place.id) else { return };
        if let Value::Refused(_) = self.pickle.at(place.id) {
            return self.aside_of_refused(place, beside.clone());
        }
        let is_own = |id: &Id| match self.pickle.at(*id) {
            Value::Dict(pairs) => pairs.iter().all(|&(key, _)| text(self.pickle, key) == Some("_metadata")),
            _ => false,
        };
        let beside: Vec<Id> = beside.iter().copied().filter(|id| !is_own(id)).collect();
        self.aside(place, beside, None, "attributes or arguments that it has beside its content");
    }

    fn is_one_of(&self, key: Id, names: &[&str]) -> bool {
        text(self.pickle, key).is_some_and(|key| names.contains(&key))
    }
}

fn text(pickle: &Pickle, id: Id) -> Option<&str> {
    match pickle.at(id) {
        Value::Text(text) => Some(text),
        _ => None,
    }
}
