//! A pickle by itself: its tensors are arrays of NumPy, whose bytes are within it.

use std::sync::Arc;

use weighbridge::source::{MemorySource, Source, Window};
use weighbridge::{Error, ErrorKind, Result};

use super::machine::load;
use super::tensors::{Storages, contents};
use super::value::{Place, Storage};
use crate::contents::Contents;
use crate::input::Input;
use crate::options::Options;

pub(super) fn read(input: &Input, options: &Options) -> Result<Contents> {
    let source: Arc<dyn Source> = Arc::clone(input.file());
    let pickle = load(Arc::clone(&source), 0, options)?;
    let open = |storage: &Storage| inline(storage, &source);
    contents(&pickle, Storages { open, swap: false, file_len: input.size() }, options)
}

/// A storage in the pickle that `source` holds.
pub(super) fn inline(storage: &Storage, source: &Arc<dyn Source>) -> Result<Arc<dyn Source>> {
    match &storage.place {
        Place::Range(range) => match Window::new(Arc::clone(source), range.clone()) {
            Some(window) => Ok(Arc::new(window)),
            None => Err(Error::new(ErrorKind::Malformed, "an array in it ends beyond the end of the file")),
        },
        Place::Memory(bytes) => Ok(Arc::new(MemorySource(Arc::clone(bytes)))),
        Place::Key(key) => {
            let message = format!("the storage {key:?} is not in the file: a pickle out of an archive?");
            Err(Error::new(ErrorKind::Malformed, message))
        }
    }
}
