//! What is chosen of a pickle, and what of it cannot be read: nothing about other names is an error.

use std::collections::HashSet;

use weighbridge::{Error, ErrorKind, Result};

use super::allow::check;
use super::flatten::{Flat, Found, paths};
use super::value::{Id, Pickle, Value};
use crate::note::{Note, NoteKind};
use crate::options::Options;

/// Tensors by name.
pub(super) type Named = Vec<(String, Id)>;

/// The tensors that are wanted, and how many others there are. `raw` has the names as they were before prefixes were left out.
pub(super) fn choose(
    pickle: &Pickle,
    flat: &mut Flat,
    raw: &[String],
    options: &Options,
) -> Result<(Named, usize)> {
    let tensors = std::mem::take(&mut flat.tensors);
    let is_wanted: Vec<bool> = tensors.iter().map(|tensor| options.wants(&tensor.name)).collect();
    let wanted =
        || tensors.iter().zip(raw).zip(&is_wanted).filter(|(_, wanted)| **wanted).map(|(both, _)| both);
    check_globals(pickle, flat, wanted().map(|it| it.0), options)?;
    // Below a name that is told once there may be any.
    let below = |name: &str| {
        let prefix = format!("{name}.");
        options.names.is_none()
            || wanted().any(|(tensor, _)| tensor.name == name || tensor.name.starts_with(&prefix))
    };
    for clash in &flat.clashes {
        let [first, second] = &clash.keys;
        if below(&clash.name) {
            let message = format!("two keys have this name: {first} and {second}");
            return Err(Error::new(ErrorKind::DuplicateTensor, message).in_tensor(&clash.name));
        }
        flat.notes.push(Note::new(
            NoteKind::Changed,
            &*clash.name,
            format!("both {first} and {second} have this name"),
        ));
    }
    let mut seen = HashSet::new();
    if let Some((tensor, raw)) = wanted().find(|(tensor, _)| !seen.insert(&*tensor.name)) {
        let paths = paths(pickle, raw);
        let message = format!("two tensors have this name: {}", paths.join(" and "));
        return Err(Error::new(ErrorKind::DuplicateTensor, message).in_tensor(&tensor.name));
    }
    for lost in std::mem::take(&mut flat.lost) {
        if options.skip_unsupported && lost.kind == ErrorKind::Unsupported {
            flat.notes.push(Note::new(NoteKind::Dropped, lost.name, lost.why));
        } else if may_want(options, &lost.name) {
            return Err(Error::new(lost.kind, lost.why).in_tensor(&lost.name));
        }
    }
    let (mut chosen, mut others) = (Vec::new(), 0);
    for (Found { name, id, .. }, is_wanted) in tensors.into_iter().zip(is_wanted) {
        match pickle.at(id) {
            Value::Refused(_) if !is_wanted => {}
            Value::Refused(refusal) => match refusal.kind {
                ErrorKind::Unsupported if options.skip_unsupported => {
                    flat.notes.push(Note::new(NoteKind::Dropped, name, &*refusal.what));
                }
                ErrorKind::Unsupported => {
                    let message = format!("it is {}, which safetensors does not have", refusal.what);
                    return Err(Error::new(refusal.kind, message).in_tensor(&name));
                }
                kind => return Err(Error::new(kind, &*refusal.what).in_tensor(&name)),
            },
            _ if is_wanted => chosen.push((name, id)),
            _ => others += 1,
        }
    }
    Ok((chosen, others))
}

/// Whether something of a name, or below it, may be wanted.
fn may_want(options: &Options, name: &str) -> bool {
    options.wants(name) && options.wants(&format!("{name}.\0"))
}

/// Fails for unknown globals, unless they stand only where nothing is wanted or where a tensor is left out.
fn check_globals<'f>(
    pickle: &Pickle,
    flat: &Flat,
    wanted: impl Iterator<Item = &'f Found>,
    options: &Options,
) -> Result<()> {
    let mut is_spared = vec![None; pickle.globals.len()];
    let mut spare = |global: u32, spared: bool| {
        if let Some(known) = is_spared.get_mut(global as usize) {
            *known = Some(known.unwrap_or(true) && spared);
        }
    };
    for sighting in &flat.sightings {
        // What belongs to a tensor that cannot be converted is refused with it, or left out.
        spare(sighting.global, sighting.of_refused || !may_want(options, &sighting.name));
    }
    for tensor in wanted {
        if let Some(global) = tensor.under {
            spare(global, false);
        }
    }
    // One that is nowhere was called for what it does.
    check(&pickle.globals, |number| is_spared.get(number).copied().flatten() != Some(true))
}
