//! Prefixes that say nothing about the model and are left out of the names.

use std::collections::HashSet;

use super::flatten::Flat;
use super::value::Pickle;
use crate::note::{Note, NoteKind};

/// Keys under which training programs put the model, the more telling first.
const WRAPPERS: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];
/// Prefixes that `DataParallel` and `torch.compile` put before all names.
const SHELLS: [&str; 2] = ["module.", "_orig_mod."];

/// Leaves them out of the names of tensors, then out of the names where something else was found.
pub(super) fn unwrap(pickle: &Pickle, flat: &mut Flat) {
    let root = pickle.at(pickle.root);
    let wrapper = WRAPPERS.iter().filter(|key| pickle.entry(root, key).is_some()).find_map(|key| {
        let prefix = format!("{key}.");
        let model = places(flat, |name| name.starts_with(&prefix));
        (!model.is_empty()).then_some((prefix, model))
    });
    let mut stripped = Vec::new();
    let model = match wrapper {
        None => places(flat, |_| true),
        Some((prefix, model)) if strip(flat, &model, &prefix) => {
            stripped.push(prefix);
            model
        }
        Some(_) => return,
    };
    let in_all =
        |flat: &Flat, shell: &str| model.iter().all(|&place| flat.tensors[place].name.starts_with(shell));
    while let Some(shell) = SHELLS.iter().find(|shell| !model.is_empty() && in_all(flat, shell)) {
        if !strip(flat, &model, shell) {
            break;
        }
        stripped.push((*shell).to_owned());
    }
    let names = flat.lost.iter_mut().map(|lost| &mut lost.name);
    let names = names.chain(flat.clashes.iter_mut().map(|clash| &mut clash.name));
    for name in names.chain(flat.sightings.iter_mut().map(|sighting| &mut sighting.name)) {
        for prefix in &stripped {
            match name.strip_prefix(&**prefix) {
                Some(rest) => *name = rest.to_owned(),
                None => break,
            }
        }
    }
}

fn places(flat: &Flat, is_one: impl Fn(&str) -> bool) -> Vec<usize> {
    (0..flat.tensors.len()).filter(|&place| is_one(&flat.tensors[place].name)).collect()
}

/// Takes a prefix off the names in these places; `false` where two names would become one.
fn strip(flat: &mut Flat, model: &[usize], prefix: &str) -> bool {
    let mut names: Vec<&str> = flat.tensors.iter().map(|tensor| &*tensor.name).collect();
    let before: HashSet<&str> = names.iter().copied().collect();
    for &place in model {
        names[place] = names[place].strip_prefix(prefix).unwrap_or(names[place]);
    }
    // As many names as before: those that were one already are told of elsewhere.
    if names.into_iter().collect::<HashSet<_>>().len() != before.len() {
        return false;
    }
    for &place in model {
        flat.tensors[place].name.drain(..prefix.len());
    }
    let why = format!("left out of the names of {} tensors", model.len());
    flat.notes.push(Note::new(NoteKind::Renamed, format!("{prefix}*"), why));
    true
}
