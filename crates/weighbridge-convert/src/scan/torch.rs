//! What PyTorch puts behind pickles: the storages of files before 1.6, and those of the tar archives before these.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use weighbridge::Source;

use super::follow::{Followed, Root, Storage};
use super::search::{Place, Search, count, global};
use super::{Global, Pickle, known};
use crate::input::{FilePart, Head};
use crate::pickle::{self, Verdict};

/// A file before 1.6: pickles of a magic number, a version, the system, the object and the keys, then the storages.
pub(super) struct Legacy<'p> {
    part: &'p FilePart,
    is_one: bool,
    pickles: usize,
    storages: HashMap<Arc<str>, Storage>,
    keys: Vec<Arc<str>>,
}

impl<'p> Legacy<'p> {
    pub(super) fn new(part: &'p FilePart, start: u64) -> Self {
        let is_one = start == 0 && part.head(0, 64).is_ok_and(|head| pickle::is_legacy(&head));
        Self { part, is_one, pickles: 0, storages: HashMap::new(), keys: Vec::new() }
    }

    /// Takes what the next pickle says.
    pub(super) fn takes(&mut self, followed: &Followed) {
        self.pickles += 1;
        match (self.pickles, &followed.root) {
            (4, _) => self.storages = followed.storages.clone(),
            (5, Root::Texts(keys)) => self.keys = keys.clone(),
            _ => {}
        }
    }

    /// The end of the storages, if they begin here.
    pub(super) fn storages(&self, at: u64) -> Option<Result<u64, String>> {
        if !self.is_one || self.pickles != 5 {
            return None;
        }
        let mut at = at;
        for key in &self.keys {
            let width = self.storages.get(key).and_then(|storage| width(&storage.class));
            let Some(width) = width else {
                return Some(Err(format!("the storage {key:?}, of which the pickle says nothing")));
            };
            match storage(self.part, at, width) {
                Some(end) => at = end,
                None => return Some(Err(format!("the storage {key:?} is cut off"))),
            }
        }
        Some(Ok(at))
    }
}

/// The end of a storage, which says how many elements it has.
fn storage(part: &FilePart, at: u64, width: u64) -> Option<u64> {
    let count: [u8; 8] = part.head(at, 8).ok()?.try_into().ok()?;
    let len = u64::try_from(i64::from_le_bytes(count)).ok()?.checked_mul(width)?;
    at.checked_add(8)?.checked_add(len).filter(|&end| end <= part.size())
}

/// Bytes of an element of a class of storages.
pub(super) fn width(class: &str) -> Option<u64> {
    match class {
        "UntypedStorage" | "_UntypedStorage" => Some(1),
        class => pickle::storage_width(class),
    }
}

/// The members `storages` and `tensors` of a tar archive: a count, and as many pickles, each with what it describes behind it.
/// Returns whether it was one of these.
pub(super) fn member(search: &mut Search, part: &FilePart, place: Place<'_>, name: &str) -> bool {
    let is_storages = match name {
        "storages" => true,
        "tensors" => false,
        _ => return false,
    };
    let first = search.follow(part, 0);
    let Some(number) = count(&first.root) else { return false };
    let mut at = first.end;
    search.found(place, 0, first.globals, first.problem);
    for _ in 0..number {
        let followed = search.follow(part, at);
        let end = match (&followed.root, followed.stopped) {
            (Root::Class(class), true) if is_storages => {
                width(class).and_then(|width| storage(part, followed.end, width))
            }
            (_, true) if !is_storages => {
                // Dimensions, four bytes of nothing, shape, strides and offset.
                let dims = part.head(followed.end, 4).ok().and_then(|dims| dims.try_into().ok());
                dims.map(|dims| followed.end + 16 + 16 * u64::from(u32::from_le_bytes(dims)))
            }
            _ => None,
        };
        search.found(place, at, followed.globals, followed.problem);
        match end.filter(|&end| end <= part.size()) {
            Some(end) => at = end,
            None => {
                search.problem(place, "what is behind a pickle is cut off, or nothing is known of it");
                return true;
            }
        }
    }
    if is_storages {
        // Which storages are parts of others.
        let followed = search.follow(part, at);
        at = followed.end;
        search.found(place, at, followed.globals, followed.problem);
    }
    if at < part.size() {
        search.behind(place, part.size() - at);
    }
    true
}

/// TorchScript: archives that carry the code of their own classes, which is not Python and runs in PyTorch's interpreter.
pub(super) struct Scripts<'a>(HashSet<&'a str>);

/// Functions of that code that reach files.
const REACHING: [&str; 5] =
    ["torch.save(", "torch.load(", "torch.from_file(", "ops.aten.from_file", "ops.aten.save"];

impl<'a> Scripts<'a> {
    /// The directories in an archive that have code.
    pub(super) fn of(members: impl Iterator<Item = &'a str>) -> Self {
        Self(members.filter_map(|name| name.split_once("/code/")).map(|(directory, _)| directory).collect())
    }

    /// Takes the classes that a pickle has beside it for data.
    pub(super) fn judge(&self, member: &str, pickles: &mut [Pickle]) {
        let directory = member.split_once('/').map_or("", |(directory, _)| directory);
        if !self.0.contains(directory) {
            return;
        }
        for global in pickles.iter_mut().flat_map(|pickle| &mut pickle.globals) {
            if global.verdict == Verdict::Unknown && global.module.split('.').next() == Some("__torch__") {
                global.verdict = Verdict::Harmless;
            }
        }
    }

    /// What a member with code calls that reaches files.
    pub(super) fn runs(&self, member: &str, part: &FilePart) -> Option<Global> {
        let (directory, _) = member.split_once("/code/")?;
        if !self.0.contains(directory) || !member.ends_with(".py") {
            return None;
        }
        let call = known::find_any(part, &REACHING).ok()??;
        Some(global("TorchScript", call.trim_end_matches('(')))
    }
}
