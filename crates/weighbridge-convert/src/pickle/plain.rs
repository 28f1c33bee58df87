//! A pickle by itself: its tensors are arrays of NumPy, whose bytes are within it.

use std::sync::Arc;

use weighbridge::{Error, ErrorKind, Result, Source};

use super::machine::load;
use super::tensors::{Storages, contents};
use super::value::{Place, Storage};
use super::view::Part;
use crate::contents::Contents;
use crate::input::{Input, Memory};
use crate::options::Options;

pub(super) fn read(input: &Input, options: &Options) -> Result<Contents> {
    let source: Arc<dyn Source> = Arc::new(input.clone());
    let pickle = load(Arc::clone(&source), 0, options)?;
    let open = |storage: &Storage| inline(storage, &source);
    contents(&pickle, Storages { open, swap: false, file_len: input.size() }, options)
}

/// A storage in the pickle that `source` holds.
pub(super) fn inline(storage: &Storage, source: &Arc<dyn Source>) -> Result<Arc<dyn Source>> {
    match &storage.place {
        Place::Range(range) => Ok(Arc::new(Part::new(Arc::clone(source), range.clone()))),
        Place::Memory(bytes) => Ok(Arc::new(Memory(Arc::clone(bytes)))),
        Place::Key(key) => {
            let message = format!("the storage {key:?} is not in the file: a pickle out of an archive?");
            Err(Error::new(ErrorKind::Malformed, message))
        }
    }
}
