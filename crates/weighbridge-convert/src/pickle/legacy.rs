//! Files of PyTorch before 1.6: three pickles about the file, the object, the keys of its storages, and these one behind
//! another. Storages are little-endian whatever machine wrote them.

use std::collections::HashMap;
use std::sync::Arc;

use weighbridge::{Error, ErrorKind, Result, Source};

use super::allow::check;
use super::machine::load;
use super::plain::inline;
use super::tensors::{Storages, contents};
use super::value::{Place, Value};
use crate::contents::Contents;
use crate::input::{FilePart, Input};
use crate::options::Options;

/// The version of the format that there ever was.
const VERSION: i64 = 1001;

/// The magic number, as pickles have it.
const MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

/// The pickle of it in protocols 0 and 1.
const MAGIC_AS_TEXT: &[u8] = b"L119547037146038801333356L\n.";

/// Whether these are the first bytes of such a file: a pickle of its magic number.
pub(crate) fn is_legacy(head: &[u8]) -> bool {
    // Behind the opcode of the protocol, and of a frame.
    head.starts_with(MAGIC_AS_TEXT)
        || [2, 11].iter().any(|&start| head.get(start..).is_some_and(|rest| rest.starts_with(MAGIC)))
}

pub(super) fn read(input: &Input, options: &Options) -> Result<Contents> {
    let source: Arc<dyn Source> = Arc::clone(input.file());
    let mut at = 0;
    let mut next = |options: &Options| {
        let pickle = load(Arc::clone(&source), at, options)?;
        at = pickle.end;
        Ok::<_, Error>(pickle)
    };
    // Only the object has values that may be chosen.
    let plain = Options::default();
    let (magic, version, system) = (next(&plain)?, next(&plain)?, next(&plain)?);
    for about in [&magic, &version, &system] {
        check(&about.globals, |_| true)?;
    }
    if !matches!(version.at(version.root), Value::Int(VERSION)) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("it is not of version {VERSION} of its format"),
        ));
    }
    let object = next(options)?;
    let keys = next(&plain)?;
    check(&keys.globals, |_| true)?;
    let Value::Sequence(names) = keys.at(keys.root) else {
        return Err(Error::new(ErrorKind::Malformed, "the keys of its storages are no list"));
    };
    let units: HashMap<&str, u64> = object
        .storages
        .iter()
        .filter_map(|storage| match &storage.place {
            Place::Key(key) => Some((&**key, storage.unit)),
            _ => None,
        })
        .collect();
    let mut parts: HashMap<Box<str>, FilePart> = HashMap::new();
    // Where the file is too short; what lies before that can be read.
    let mut cut: Option<Error> = None;
    for &name in names {
        let key: Box<str> = match keys.at(name) {
            Value::Text(key) => key.clone(),
            Value::Int(number) => number.to_string().into(),
            _ => return Err(Error::new(ErrorKind::Malformed, "the key of a storage is not text")),
        };
        let broken = || {
            Error::new(ErrorKind::Malformed, format!("the storage {key:?} ends behind the end of the file"))
        };
        let unit = *units.get(&*key).ok_or_else(|| {
            Error::new(ErrorKind::Malformed, format!("the storage {key:?} belongs to no tensor"))
        })?;
        let Some(part) = part_at(input, at, unit)? else {
            cut = Some(broken());
            break;
        };
        at = at.saturating_add(8).saturating_add(part.size());
        if parts.insert(key.clone(), part).is_some() {
            return Err(Error::new(ErrorKind::Malformed, format!("two storages are called {key:?}")));
        }
    }
    let open = |storage: &super::value::Storage| -> Result<Arc<dyn Source>> {
        let Place::Key(key) = &storage.place else { return inline(storage, &source) };
        let missing = || {
            let message = cut.as_ref().map_or_else(|| "it is not listed".to_owned(), ToString::to_string);
            Error::new(ErrorKind::Malformed, format!("the storage {key:?} is not in the file: {message}"))
        };
        let part = parts.get(key).ok_or_else(missing)?;
        super::of_size(Arc::new(part.clone()), storage)
    };
    contents(&object, Storages { open, swap: false, file_len: input.size() }, options)
}

/// A storage: the number of its elements, then its bytes. `None` where the file ends before it does.
fn part_at(input: &Input, at: u64, unit: u64) -> Result<Option<FilePart>> {
    let Ok(count) = <[u8; 8]>::try_from(input.head(at, 8)?) else { return Ok(None) };
    let len = u64::try_from(i64::from_le_bytes(count)).ok().and_then(|count| count.checked_mul(unit));
    let range = len.and_then(|len| Some(at.checked_add(8)?..at.checked_add(8)?.checked_add(len)?));
    Ok(range.and_then(|range| input.part(range)))
}
