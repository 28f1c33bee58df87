//! Values that have no place among the names: looked through at the end, so that no tensor is lost without a word.

use std::collections::HashSet;

use weighbridge::ErrorKind;

use super::flatten::{Lost, Place, Sighting, Walk};
use super::value::{Id, Value};
use crate::note::NoteKind;

/// Values that are not named.
pub(super) struct Aside {
    name: String,
    ids: Vec<Id>,
    /// The error if tensors are in them; `None` if a note is enough.
    refuse: Option<ErrorKind>,
    /// What they are; empty where that is told already.
    why: &'static str,
    of_refused: bool,
}

impl Walk<'_> {
    pub(super) fn aside(
        &mut self,
        place: &Place,
        ids: Vec<Id>,
        refuse: Option<ErrorKind>,
        why: &'static str,
    ) {
        if !ids.is_empty() {
            let name = place.name.clone().unwrap_or_default();
            self.asides.push(Aside { name, ids, refuse, why, of_refused: false });
        }
    }

    pub(super) fn aside_of_refused(&mut self, place: &Place, ids: Vec<Id>) {
        let name = place.name.clone().unwrap_or_default();
        self.asides.push(Aside { name, ids, refuse: None, why: "", of_refused: true });
    }

    /// Looks through all that was put aside, each value once: for tensors that are nowhere else, and for unknown globals.
    pub(super) fn see_aside(&mut self) {
        let pickle = self.pickle;
        let kept: HashSet<Id> = self.flat.tensors.iter().map(|tensor| tensor.id).collect();
        let mut seen = HashSet::new();
        // What is told strictly comes first.
        let mut asides = std::mem::take(&mut self.asides);
        asides.sort_by_key(|aside| (aside.refuse.is_none(), aside.of_refused));
        for aside in asides {
            let (mut open, mut tensors) = (aside.ids, 0_usize);
            while let Some(id) = open.pop() {
                if !seen.insert(id) {
                    continue;
                }
                let global = match pickle.at(id) {
                    Value::Tensor(_) | Value::Refused(_) => {
                        tensors += usize::from(!kept.contains(&id));
                        None
                    }
                    &Value::Global(number) => Some(number),
                    Value::Object(object) => Some(object.class),
                    _ => None,
                };
                if let Some(global) = global.filter(|&number| pickle.unknown(number).is_some()) {
                    let (name, of_refused) = (aside.name.clone(), aside.of_refused);
                    self.flat.sightings.push(Sighting { name, global, of_refused });
                }
                pickle.for_children(id, |child| open.push(child));
            }
            if tensors == 0 || aside.why.is_empty() {
                continue;
            }
            let why = format!("{}: {tensors} {}", aside.why, if tensors == 1 { "tensor" } else { "tensors" });
            match aside.refuse {
                Some(kind) => self.flat.lost.push(Lost { name: aside.name, kind, why }),
                None => self.note(NoteKind::Dropped, &aside.name, &why),
            }
        }
    }
}
