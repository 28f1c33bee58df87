//! The dtypes and shapes that tensors have, each pair once: of 229,200 tensors there are a dozen.

use std::collections::HashMap;

use serde::Serialize;
use weighbridge::{Dtype, TensorRef};

use crate::survey::by_name;

#[derive(Debug, Serialize)]
pub(crate) struct Form<'s> {
    #[serde(serialize_with = "by_name")]
    dtype: Dtype,
    shape: &'s [usize],
    elements: u64,
    bytes: u64,
}

#[derive(Default)]
pub(crate) struct Forms<'s> {
    pub(crate) all: Vec<Form<'s>>,
    places: HashMap<(Dtype, &'s [usize]), usize>,
}

impl<'s> Forms<'s> {
    /// Which of all that of a tensor is.
    pub(crate) fn place(&mut self, tensor: &TensorRef<'s>) -> usize {
        let (dtype, shape) = (tensor.dtype(), tensor.shape());
        *self.places.entry((dtype, shape)).or_insert_with(|| {
            let (elements, bytes) = (tensor.elements(), tensor.byte_len());
            self.all.push(Form { dtype, shape, elements, bytes });
            self.all.len() - 1
        })
    }
}
