//! The tensors of a pickle: which are one, and what becomes of element types that safetensors does not have.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::json;
use weighbridge::write::Aliases;
use weighbridge::{Error, ErrorKind, Result, Source};

use super::flatten::flatten;
use super::unwrap::unwrap;
use super::value::{Id, Pickle, Quantiser, Storage, Value, View};
use super::view;
use super::wanted::{Named, choose};
use crate::contents::{Contents, Tensor};
use crate::note::{Note, NoteKind};
use crate::options::Options;

/// Expanded tensors may be this many times as long as the file, and a gibibyte more.
const MOST_RATIO: u64 = 16;

/// Where the bytes of storages are.
pub(super) struct Storages<F> {
    /// Finds one.
    pub(super) open: F,
    /// Whether their words are big-endian.
    pub(super) swap: bool,
    /// The size of the file.
    pub(super) file_len: u64,
}

/// Everything in a pickle.
pub(super) fn contents<F>(pickle: &Pickle, mut storages: Storages<F>, options: &Options) -> Result<Contents>
where
    F: FnMut(&Storage) -> Result<Arc<dyn Source>>,
{
    let mut flat = flatten(pickle)?;
    let raw: Vec<String> = flat.tensors.iter().map(|tensor| tensor.name.clone()).collect();
    if !options.raw_names {
        unwrap(pickle, &mut flat);
    }
    let (mut tensors, others) = choose(pickle, &mut flat, &raw, options)?;
    let mut contents = Contents { metadata: flat.metadata, notes: flat.notes, ..Contents::default() };
    if options.aliases != Some(Aliases::Each) {
        keep_once(pickle, &mut tensors, &mut contents);
    }
    contents.unchosen += others;
    let mut opened: HashMap<u32, Arc<dyn Source>> = HashMap::new();
    let mut left = storages.file_len.saturating_mul(MOST_RATIO).saturating_add(1 << 30);
    for (name, id) in tensors.into_iter().flat_map(|(name, id)| with_scales(pickle, name, id)) {
        let Value::Tensor(view) = pickle.at(id) else { continue };
        let bytes = view::elements(view).unwrap_or(u64::MAX).saturating_mul(view.element.bytes() as u64);
        left = left.checked_sub(bytes).ok_or_else(|| {
            let message =
                "the tensors are so much larger than the file that it must be meant to fill the disk";
            Error::new(ErrorKind::Unsafe, message).in_tensor(&name)
        })?;
        let storage = match opened.get(&view.storage) {
            Some(storage) => Arc::clone(storage),
            None => {
                let storage = pickle.storages.get(view.storage as usize);
                let storage = storage.ok_or_else(|| Error::new(ErrorKind::Internal, "no such storage"))?;
                let source = (storages.open)(storage).map_err(|error| error.in_tensor(&name))?;
                opened.insert(view.storage, Arc::clone(&source));
                source
            }
        };
        let data = view::bytes(view, storage, storages.swap).map_err(|error| error.in_tensor(&name))?;
        describe(view, &name, &mut contents);
        let shape = view.element.shape(&view.shape);
        let shape =
            shape.ok_or_else(|| Error::new(ErrorKind::Internal, "it has no shape").in_tensor(&name))?;
        contents.tensors.push(Tensor { name, dtype: view.element.dtype, shape, data });
    }
    Ok(contents)
}

/// Of tensors that are the same elements of one storage, the first by name stays, as with `safetensors.torch.save_model`.
fn keep_once(pickle: &Pickle, tensors: &mut Named, contents: &mut Contents) {
    let mut groups: HashMap<_, BTreeSet<String>> = HashMap::new();
    for (name, id) in &*tensors {
        if let Some(key) = identity(pickle, *id) {
            groups.entry(key).or_default().insert(name.clone());
        }
    }
    tensors.retain(|(name, id)| {
        let first = identity(pickle, *id).and_then(|key| groups.get(&key)?.first());
        let Some(first) = first.filter(|first| *first != name) else { return true };
        let why = format!("the same tensor as {first:?}");
        contents.notes.push(Note::new(NoteKind::Aliased, name.clone(), why));
        contents.put(name.clone(), first.clone());
        false
    });
}

/// What two tensors have in common that are one.
#[derive(PartialEq, Eq, Hash)]
struct Identity<'v> {
    storage: u32,
    offset: u64,
    element: &'static str,
    shape: &'v [usize],
    strides: &'v [u64],
}

/// What a tensor has in common with others that are the same; nothing is the same as an empty one.
fn identity(pickle: &Pickle, id: Id) -> Option<Identity<'_>> {
    match pickle.at(id) {
        Value::Tensor(view) if !view.shape.contains(&0) && view.quantiser.is_none() => {
            let View { storage, offset, element, shape, strides, .. } = &**view;
            Some(Identity { storage: *storage, offset: *offset, element: element.name, shape, strides })
        }
        _ => None,
    }
}

/// A tensor, and those with the scales that its values have.
fn with_scales(pickle: &Pickle, name: String, id: Id) -> Vec<(String, Id)> {
    let quantiser = match pickle.at(id) {
        Value::Tensor(view) => view.quantiser.as_ref(),
        _ => None,
    };
    match quantiser {
        Some(&Quantiser::Channel { scales, zero_points, .. }) => {
            let (scales, zero_points) =
                ((format!("{name}.scales"), scales), (format!("{name}.zero_points"), zero_points));
            vec![(name, id), scales, zero_points]
        }
        _ => vec![(name, id)],
    }
}

/// Says of a tensor what its dtype does not.
fn describe(view: &View, name: &str, contents: &mut Contents) {
    let element = view.element;
    let mut put = |key: &str, value: String, why: String| {
        contents.put(format!("{name}.{key}"), value);
        contents.notes.push(Note::new(NoteKind::Changed, name, why));
    };
    if element.pair {
        let why = format!("complex numbers as pairs of {} in a last dimension of 2", element.dtype);
        put("dtype", element.name.to_owned(), why);
    }
    match &view.quantiser {
        Some(Quantiser::Tensor { scale, zero_point }) => {
            let meaning = json!({ "dtype": element.name, "scale": scale, "zero_point": zero_point });
            put(
                "quantization",
                meaning.to_string(),
                "quantised values as they are, scale in the metadata".to_owned(),
            );
        }
        Some(Quantiser::Channel { axis, .. }) => {
            let meaning = json!({ "dtype": element.name, "axis": axis });
            let why = "quantised values as they are, scales in tensors beside it".to_owned();
            put("quantization", meaning.to_string(), why);
        }
        None => {}
    }
}
