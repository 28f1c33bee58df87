//! Archives of TorchScript: objects with attributes, their code, and the constants of the code.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use weighbridge::write::Aliases;
use weighbridge::{Result, Source};

use super::machine::load;
use super::reach::holds_tensors;
use super::tensors::{Storages, contents};
use super::value::{Id, Pickle, Storage, Value};
use crate::archive::Archive;
use crate::contents::Contents;
use crate::input::Input;
use crate::note::{Note, NoteKind};
use crate::options::Options;

/// The longest file of code that is looked into.
const LONGEST: u64 = 16 << 20;

/// Marks tensors that are attributes and neither parameters nor buffers, as far as the code says which these are. Attributes
/// that only list parameters, such as `_flat_weights`, are taken away: these have their own names.
pub(super) fn mark(pickle: &mut Pickle, archive: &Archive, directory: &str) {
    let mut classes = HashMap::new();
    let (mut registered, mut attributes) = (HashSet::new(), Vec::new());
    let holds = holds_tensors(pickle);
    // What many attributes share is not looked at without end.
    let mut visits = pickle.nodes.len().saturating_mul(8).saturating_add(10_000);
    for node in &pickle.nodes {
        let Value::Object(object) = node else { continue };
        let Some(class) = pickle.globals.get(object.class as usize) else { continue };
        if !class.module.starts_with("__torch__") {
            continue;
        }
        let of_module = classes.entry(&*class.module).or_insert_with(|| {
            code(archive, directory, &class.module).map_or(HashMap::new(), |code| names_in(&code))
        });
        let Some(names) = of_module.get(&*class.name) else { continue };
        for &state in &object.states {
            let Value::Dict(pairs) = pickle.at(state) else { continue };
            for (place, &(key, value)) in pairs.iter().enumerate() {
                let Some(found) = tensors_in(pickle, value, &holds, &mut visits) else { return };
                if matches!(pickle.at(key), Value::Text(name) if names.contains(&**name)) {
                    registered.extend(found);
                } else if !found.is_empty() {
                    attributes.push((state, place, found));
                }
            }
        }
    }
    let mut listing: HashMap<Id, HashSet<usize>> = HashMap::new();
    for (state, place, found) in attributes {
        if found.is_subset(&registered) {
            listing.entry(state).or_default().insert(place);
        } else {
            pickle.unregistered.extend(found.difference(&registered));
        }
    }
    for (state, places) in listing {
        if let Some(Value::Dict(pairs)) = pickle.nodes.get_mut(state as usize) {
            let mut place = 0..;
            pairs.retain(|_| place.next().is_none_or(|place| !places.contains(&place)));
        }
    }
}

/// Whether the module was frozen: it has no `training` any more, and constants in the place of parameters.
pub(super) fn is_frozen(pickle: &Pickle) -> bool {
    let Value::Object(object) = pickle.at(pickle.root) else { return false };
    let class = pickle.globals.get(object.class as usize);
    let has_training = |&state: &Id| pickle.entry(pickle.at(state), "training").is_some();
    class.is_some_and(|class| class.module.starts_with("__torch__"))
        && !object.states.iter().any(has_training)
}

/// Tensors in lists and dicts, but not in objects, which are modules; `None` where there are no visits left.
fn tensors_in(pickle: &Pickle, id: Id, holds: &[bool], visits: &mut usize) -> Option<HashSet<Id>> {
    let mut open = vec![id];
    let (mut seen, mut found) = (HashSet::new(), HashSet::new());
    while let Some(id) = open.pop() {
        if holds.get(id as usize) != Some(&true) {
            continue;
        }
        *visits = visits.checked_sub(1)?;
        match pickle.at(id) {
            Value::Tensor(_) => drop(found.insert(id)),
            Value::Sequence(_) | Value::Dict(_) if seen.insert(id) => {
                pickle.for_children(id, |child| open.push(child));
            }
            _ => {}
        }
    }
    Some(found)
}

/// The code of a module of Python's, as the archive has it.
fn code(archive: &Archive, directory: &str, module: &str) -> Option<String> {
    let path = format!("{directory}code/{}.py", module.replace('.', "/"));
    let source = archive.bytes(archive.member(&path)?).ok()?;
    let mut bytes = vec![0; usize::try_from(source.size()).ok().filter(|_| source.size() <= LONGEST)?];
    source.read_at(0, &mut bytes).ok()?;
    String::from_utf8(bytes).ok()
}

/// The names of parameters and buffers of each class: `__parameters__ = ["weight", "bias", ]`.
fn names_in(code: &str) -> HashMap<String, HashSet<String>> {
    let mut classes = HashMap::new();
    let mut names: Option<&mut HashSet<String>> = None;
    for line in code.lines() {
        if let Some((class, _)) = line.strip_prefix("class ").and_then(|line| line.split_once('(')) {
            names = Some(classes.entry(class.to_owned()).or_default());
        }
        let line = line.trim_start();
        let list = line.strip_prefix("__parameters__ = ").or_else(|| line.strip_prefix("__buffers__ = "));
        if let (Some(names), Some(list)) = (&mut names, list) {
            names.extend(list.split('"').skip(1).step_by(2).map(str::to_owned));
        }
    }
    classes
}

/// Adds the constants of the code. A frozen module has its weights in them; of others they are no weights, and told of.
pub(super) fn constants(
    all: &mut Contents,
    is_frozen: bool,
    archive: &Archive,
    directory: &str,
    (input, swap): (&Input, bool),
    options: &Options,
) -> Result<()> {
    let Some(member) = archive.member(&format!("{directory}constants.pkl")) else { return Ok(()) };
    let source: Arc<dyn Source> = Arc::new(archive.bytes(member)?);
    let mut pickle = load(Arc::clone(&source), 0, options)?;
    let count =
        pickle.nodes.iter().filter(|node| matches!(node, Value::Tensor(_) | Value::Refused(_))).count();
    if count == 0 {
        return Ok(());
    }
    if !all.tensors.is_empty() && !is_frozen {
        let tensors = if count == 1 { "tensor" } else { "tensors" };
        let why =
            format!("{count} {tensors} among the constants of the code, which its state_dict does not have");
        all.notes.push(Note::new(NoteKind::Dropped, "constants.pkl", why));
        return Ok(());
    }
    // `CONSTANTS.c0`, as the code calls them.
    name_constants(&mut pickle);
    let directory = format!("{directory}constants/");
    let open = |storage: &Storage| super::zipped::storage(archive, &directory, storage, &source);
    let raw = Options { raw_names: true, aliases: Some(Aliases::Each), ..options.clone() };
    let found = contents(&pickle, Storages { open, swap, file_len: input.size() }, &raw)?;
    all.notes.push(Note::new(
        NoteKind::Kept,
        "constants.pkl",
        "a frozen module: its weights are constants of the code and have no other names",
    ));
    all.tensors.extend(found.tensors);
    found.metadata.into_iter().for_each(|(key, value)| all.put(key, value));
    all.notes.extend(found.notes);
    Ok(())
}

/// Puts the constants into a dict.
fn name_constants(pickle: &mut Pickle) {
    let Value::Sequence(items) = pickle.at(pickle.root).clone() else { return };
    let mut add = |value| {
        let id = Id::try_from(pickle.nodes.len()).unwrap_or_default();
        pickle.nodes.push(value);
        id
    };
    let pairs = items.iter().enumerate();
    let pairs =
        pairs.map(|(number, &id)| (add(Value::Text(format!("CONSTANTS.c{number}").into())), id)).collect();
    pickle.root = add(Value::Dict(pairs));
}
