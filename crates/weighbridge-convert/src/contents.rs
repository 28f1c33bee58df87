//! What a reader finds in a foreign file.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use weighbridge::{BlockType, Dtype, Error, ErrorKind, Result, Source};

use crate::note::{Note, NoteKind};
use crate::options::Options;

/// Everything in a file.
#[derive(Default)]
pub(crate) struct Contents {
    /// In the order in which they are to be written.
    pub(crate) tensors: Vec<Tensor>,
    /// For `__metadata__`.
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) notes: Vec<Note>,
    /// How many tensors were not looked at, because they were not chosen.
    pub(crate) unchosen: usize,
    /// Of tensors that are dequantised, by name: the blocks that the file has.
    pub(crate) blocks: HashMap<String, (BlockType, Arc<dyn Source>)>,
}

/// A tensor and where its bytes are.
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// Exactly the bytes that safetensors wants: little-endian, row by row.
    pub(crate) data: Arc<dyn Source>,
}

/// The start of a value that a note shows.
const SHOWN: usize = 60;

impl Contents {
    /// Sets metadata. A value that has the key already gives way, with a note.
    pub(crate) fn put(&mut self, key: impl Into<String>, value: impl Into<String>) {
        let (key, value) = (key.into(), value.into());
        let old = self.metadata.get(&key).filter(|old| **old != value);
        if let Some(old) = old {
            let start = |text: &str| text.chars().take(SHOWN).collect::<String>();
            let why = format!("the value {:?}, replaced by {:?}", start(old), start(&value));
            self.notes.push(Note::new(NoteKind::Dropped, &*key, why));
        }
        self.metadata.insert(key, value);
    }

    /// A tensor that safetensors cannot hold, and what it is: not chosen, left out with a note, or an error.
    pub(crate) fn leave_out(&mut self, options: &Options, name: &str, what: &str) -> Result<()> {
        if options.skip_unsupported && options.wants(name) {
            self.notes.push(Note::new(NoteKind::Dropped, name, what));
        } else if options.wants(name) {
            let message = format!("it is {what}, which safetensors does not have");
            return Err(Error::new(ErrorKind::Unsupported, message).in_tensor(name));
        }
        Ok(())
    }
}
