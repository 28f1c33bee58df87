//! The pickle `.metadata`: objects of dataclasses, read as records.

use std::collections::{HashMap, HashSet};

use weighbridge::{Error, ErrorKind, Result};

use crate::pickle::{Element, Id, Pickle, Reader, Value, element_of_torch};

/// What a checkpoint has.
pub(super) struct Metadata {
    pub(super) tensors: Vec<Described>,
    /// The names of values that are no tensors.
    pub(super) values: Vec<String>,
}

/// A tensor and its chunks.
pub(super) struct Described {
    pub(super) name: String,
    pub(super) element: Element,
    pub(super) size: Vec<usize>,
    pub(super) chunks: Vec<Stored>,
}

/// A chunk, and where it is stored.
pub(super) struct Stored {
    pub(super) offsets: Vec<usize>,
    pub(super) sizes: Vec<usize>,
    /// In the directory.
    pub(super) file: String,
    pub(super) start: u64,
    pub(super) len: u64,
    /// What was done to its bytes when they were written.
    pub(super) transforms: Vec<String>,
}

pub(super) fn of(pickle: &Pickle) -> Result<Metadata> {
    let records = Records { reader: Reader { pickle } };
    let reader = records.reader;
    let root = pickle.root;
    if records.class(root) != Some("Metadata") {
        return Err(malformed("it is not what torch.distributed.checkpoint writes: no Metadata"));
    }
    let state = reader.field(root, "state_dict_metadata")?;
    let places = records.places(root)?;
    let paths = records.paths(root);
    let mut metadata = Metadata { tensors: Vec::new(), values: Vec::new() };
    for (key, value) in reader.pairs(state)? {
        let key = reader.text(key).ok_or_else(|| malformed("a name is not a text"))?;
        let name = paths.get(key).cloned().unwrap_or_else(|| key.to_owned());
        match records.class(value) {
            Some("BytesStorageMetadata") => metadata.values.push(name),
            Some("TensorStorageMetadata") => {
                let described = records.tensor(key, value, &places);
                let (element, size, chunks) = described.map_err(|error| error.in_tensor(&name))?;
                metadata.tensors.push(Described { name, element, size, chunks });
            }
            _ => return Err(malformed("it is neither a tensor nor bytes").in_tensor(&name)),
        }
    }
    Ok(metadata)
}

/// Where each chunk is stored, by the name of its tensor and its offsets.
type Places<'p> = HashMap<(&'p str, Vec<usize>), Id>;

struct Records<'p> {
    reader: Reader<'p>,
}

impl<'p> Records<'p> {
    fn tensor(
        &self,
        key: &'p str,
        id: Id,
        places: &Places<'p>,
    ) -> Result<(Element, Vec<usize>, Vec<Stored>)> {
        let element = self.element(self.reader.field(id, "properties")?)?;
        let size = self.reader.sizes(self.reader.field(id, "size")?)?;
        let Value::Sequence(chunks) = self.reader.pickle.at(self.reader.field(id, "chunks")?) else {
            return Err(malformed("its chunks are not a list"));
        };
        // Replicas are stored once, at the same place.
        let mut seen = HashSet::new();
        let mut stored = Vec::with_capacity(chunks.len());
        for &chunk in chunks {
            let offsets = self.reader.sizes(self.reader.field(chunk, "offsets")?)?;
            let sizes = self.reader.sizes(self.reader.field(chunk, "sizes")?)?;
            if sizes.contains(&0) || !seen.insert((offsets.clone(), sizes.clone())) {
                continue;
            }
            let place = places.get(&(key, offsets.clone())).ok_or_else(|| {
                malformed(&format!("its chunk at {offsets:?} is stored nowhere: a rank did not write it"))
            })?;
            stored.push(self.stored(*place, offsets, sizes)?);
        }
        Ok((element, size, stored))
    }

    fn stored(&self, id: Id, offsets: Vec<usize>, sizes: Vec<usize>) -> Result<Stored> {
        let file = self.reader.text(self.reader.field(id, "relative_path")?);
        let file = file.ok_or_else(|| malformed("the name of its file is not a text"))?.to_owned();
        let transforms =
            match self.reader.attribute(id, "transform_descriptors").map(|id| self.reader.pickle.at(id)) {
                Some(Value::Sequence(items)) => {
                    items.iter().map(|&item| self.reader.text(item).unwrap_or("?").to_owned()).collect()
                }
                _ => Vec::new(),
            };
        let (start, len) = (
            self.reader.number(self.reader.field(id, "offset")?)?,
            self.reader.number(self.reader.field(id, "length")?)?,
        );
        Ok(Stored { offsets, sizes, file, start, len, transforms })
    }

    /// The dtype of `TensorProperties`, whose state is a tuple that begins with it.
    fn element(&self, properties: Id) -> Result<Element> {
        let states = match self.reader.pickle.at(properties) {
            Value::Object(object) => &*object.states,
            _ => &[],
        };
        let dtype = match states.last().map(|&state| self.reader.pickle.at(state)) {
            Some(Value::Sequence(items)) => items.first().copied(),
            _ => self.reader.attribute(properties, "dtype"),
        };
        let global = match dtype.map(|id| self.reader.pickle.at(id)) {
            Some(&Value::Global(number)) => self.reader.pickle.globals.get(number as usize),
            _ => None,
        };
        let global = global.filter(|global| *global.module == *"torch");
        let global = global.ok_or_else(|| malformed("its properties have no dtype"))?;
        let element = element_of_torch(&global.name).filter(|element| !element.quantised);
        element.ok_or_else(|| {
            let message = format!("it is of the dtype torch.{}, which is not read", global.name);
            Error::new(ErrorKind::Unsupported, message)
        })
    }

    fn places(&self, root: Id) -> Result<Places<'p>> {
        let data = self.reader.field(root, "storage_data")?;
        let mut places = HashMap::new();
        for (index, place) in self.reader.pairs(data)? {
            // Values that are no tensors have no offset.
            let Some(offset) = self.reader.attribute(index, "offset") else { continue };
            if let Value::None = self.reader.pickle.at(offset) {
                continue;
            }
            let name = self.reader.text(self.reader.field(index, "fqn")?);
            let name = name.ok_or_else(|| malformed("a name is not a text"))?;
            places.insert((name, self.reader.sizes(offset)?), place);
        }
        Ok(places)
    }

    /// Names as paths in the nested state dict give them: keys and indices, with dots between.
    fn paths(&self, root: Id) -> HashMap<&'p str, String> {
        let planned = self.reader.attribute(root, "planner_data").map(|id| self.reader.pickle.at(id));
        let Some(Value::Dict(pairs)) = planned else { return HashMap::new() };
        let path = |id: Id| {
            let Value::Sequence(items) = self.reader.pickle.at(id) else { return None };
            let parts = items.iter().map(|&item| match self.reader.pickle.at(item) {
                Value::Text(text) => Some(text.to_string()),
                Value::Int(index) => Some(index.to_string()),
                _ => None,
            });
            Some(parts.collect::<Option<Vec<_>>>()?.join("."))
        };
        let named = pairs.iter().filter_map(|&(key, value)| Some((self.reader.text(key)?, path(value)?)));
        named.filter(|(_, path)| !path.is_empty()).collect()
    }

    /// The name of the class of an object, if it is one that says what is where.
    fn class(&self, id: Id) -> Option<&'p str> {
        let (module, name) = self.reader.class(id)?;
        super::is_class(module, name).then_some(name)
    }
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::Malformed, what)
}
