//! The dtypes and shapes that tensors have, each pair once: of 229,200 tensors there are a dozen.

use std::collections::HashMap;

use serde::Serialize;
use weighbridge::TensorRef;

use crate::shown::Shown;

#[derive(Debug, Serialize)]
pub(crate) struct Form<'s> {
    dtype: &'static str,
    shape: &'s [usize],
    elements: u64,
    bytes: u64,
}

#[derive(Default)]
pub(crate) struct Forms<'s> {
    pub(crate) all: Vec<Form<'s>>,
    places: HashMap<(&'static str, &'s [usize]), usize>,
}

impl<'s> Forms<'s> {
    /// Which of all that of a tensor is.
    pub(crate) fn place(&mut self, tensor: &TensorRef<'s>, shown: Shown) -> usize {
        let (dtype, shape) = (shown.dtype(tensor), tensor.shape());
        *self.places.entry((dtype, shape)).or_insert_with(|| {
            let (elements, bytes) = (tensor.elements(), shown.bytes(tensor));
            self.all.push(Form { dtype, shape, elements, bytes });
            self.all.len() - 1
        })
    }
}
