//! The pickle `.metadata`: objects of dataclasses, read as records.

use std::collections::{HashMap, HashSet};

use weighbridge::{Error, ErrorKind, Result};

use crate::pickle::{Element, Id, Pickle, Value, element_of_torch};

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
    let reader = Reader { pickle };
    let root = pickle.root;
    if reader.class(root) != Some("Metadata") {
        return Err(malformed("it is not what torch.distributed.checkpoint writes: no Metadata"));
    }
    let state = reader.field(root, "state_dict_metadata")?;
    let places = reader.places(root)?;
    let paths = reader.paths(root);
    let mut metadata = Metadata { tensors: Vec::new(), values: Vec::new() };
    for (key, value) in reader.pairs(state)? {
        let key = reader.text(key).ok_or_else(|| malformed("a name is not a text"))?;
        let name = paths.get(key).cloned().unwrap_or_else(|| key.to_owned());
        match reader.class(value) {
            Some("BytesStorageMetadata") => metadata.values.push(name),
            Some("TensorStorageMetadata") => {
                let described = reader.tensor(key, value, &places);
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

struct Reader<'p> {
    pickle: &'p Pickle,
}

impl<'p> Reader<'p> {
    fn tensor(
        &self,
        key: &'p str,
        id: Id,
        places: &Places<'p>,
    ) -> Result<(Element, Vec<usize>, Vec<Stored>)> {
        let element = self.element(self.field(id, "properties")?)?;
        let size = self.sizes(self.field(id, "size")?)?;
        let Value::Sequence(chunks) = self.pickle.at(self.field(id, "chunks")?) else {
            return Err(malformed("its chunks are not a list"));
        };
        // Replicas are stored once, at the same place.
        let mut seen = HashSet::new();
        let mut stored = Vec::with_capacity(chunks.len());
        for &chunk in chunks {
            let offsets = self.sizes(self.field(chunk, "offsets")?)?;
            let sizes = self.sizes(self.field(chunk, "sizes")?)?;
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
        let file = self.text(self.field(id, "relative_path")?);
        let file = file.ok_or_else(|| malformed("the name of its file is not a text"))?.to_owned();
        let transforms = match self.attribute(id, "transform_descriptors").map(|id| self.pickle.at(id)) {
            Some(Value::Sequence(items)) => {
                items.iter().map(|&item| self.text(item).unwrap_or("?").to_owned()).collect()
            }
            _ => Vec::new(),
        };
        let (start, len) = (self.number(self.field(id, "offset")?)?, self.number(self.field(id, "length")?)?);
        Ok(Stored { offsets, sizes, file, start, len, transforms })
    }

    /// The dtype of `TensorProperties`, whose state is a tuple that begins with it.
    fn element(&self, properties: Id) -> Result<Element> {
        let states = match self.pickle.at(properties) {
            Value::Object(object) => &*object.states,
            _ => &[],
        };
        let dtype = match states.last().map(|&state| self.pickle.at(state)) {
            Some(Value::Sequence(items)) => items.first().copied(),
            _ => self.attribute(properties, "dtype"),
        };
        let global = match dtype.map(|id| self.pickle.at(id)) {
            Some(&Value::Global(number)) => self.pickle.globals.get(number as usize),
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
        let data = self.field(root, "storage_data")?;
        let mut places = HashMap::new();
        for (index, place) in self.pairs(data)? {
            // Values that are no tensors have no offset.
            let Some(offset) = self.attribute(index, "offset") else { continue };
            if let Value::None = self.pickle.at(offset) {
                continue;
            }
            let name = self.text(self.field(index, "fqn")?);
            let name = name.ok_or_else(|| malformed("a name is not a text"))?;
            places.insert((name, self.sizes(offset)?), place);
        }
        Ok(places)
    }

    /// Names as paths in the nested state dict give them: keys and indices, with dots between.
    fn paths(&self, root: Id) -> HashMap<&'p str, String> {
        let planned = self.attribute(root, "planner_data").map(|id| self.pickle.at(id));
        let Some(Value::Dict(pairs)) = planned else { return HashMap::new() };
        let path = |id: Id| {
            let Value::Sequence(items) = self.pickle.at(id) else { return None };
            let parts = items.iter().map(|&item| match self.pickle.at(item) {
                Value::Text(text) => Some(text.to_string()),
                Value::Int(index) => Some(index.to_string()),
                _ => None,
            });
            Some(parts.collect::<Option<Vec<_>>>()?.join("."))
        };
        let named = pairs.iter().filter_map(|&(key, value)| Some((self.text(key)?, path(value)?)));
        named.filter(|(_, path)| !path.is_empty()).collect()
    }

    /// The name of the class of an object.
    fn class(&self, id: Id) -> Option<&'p str> {
        let Value::Object(object) = self.pickle.at(id) else { return None };
        let class = self.pickle.globals.get(object.class as usize)?;
        super::is_class(&class.module, &class.name).then_some(&*class.name)
    }

    /// An attribute of an object, as its state says.
    fn attribute(&self, id: Id, name: &str) -> Option<Id> {
        let Value::Object(object) = self.pickle.at(id) else { return None };
        object.states.iter().rev().find_map(|&state| self.pickle.entry(self.pickle.at(state), name))
    }

    fn field(&self, id: Id, name: &str) -> Result<Id> {
        self.attribute(id, name).ok_or_else(|| malformed(&format!("an object has no {name}")))
    }

    fn pairs(&self, id: Id) -> Result<impl Iterator<Item = (Id, Id)> + use<'p>> {
        match self.pickle.at(id) {
            Value::Dict(pairs) => Ok(pairs.iter().copied()),
            _ => Err(malformed("a value that should be a dict")),
        }
    }

    fn text(&self, id: Id) -> Option<&'p str> {
        match self.pickle.at(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn number(&self, id: Id) -> Result<u64> {
        match *self.pickle.at(id) {
            Value::Int(number) => u64::try_from(number).map_err(|_| malformed("a number is negative")),
            _ => Err(malformed("a value that should be an integer")),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>> {
        /// More than PyTorch has.
        const MOST_DIMS: usize = 64;
        match self.pickle.at(id) {
            Value::Sequence(items) if items.len() <= MOST_DIMS => {
                let too_large = |_| malformed("a size that does not fit this machine");
                items.iter().map(|&item| usize::try_from(self.number(item)?).map_err(too_large)).collect()
            }
            _ => Err(malformed("a value that should be a torch.Size")),
        }
    }
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::Malformed, what)
}
