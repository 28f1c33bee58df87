//! What a reader finds in a foreign file.

use std::collections::BTreeMap;
use std::sync::Arc;

use weighbridge::{Dtype, Source};

use crate::note::Note;

/// Everything in a file.
#[derive(Default)]
pub(crate) struct Contents {
    /// In the order in which they are to be written.
    pub(crate) tensors: Vec<Tensor>,
    /// For `__metadata__`.
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) notes: Vec<Note>,
}

/// A tensor and where its bytes are.
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// Exactly the bytes that safetensors wants: little-endian, row by row.
    pub(crate) data: Arc<dyn Source>,
}
