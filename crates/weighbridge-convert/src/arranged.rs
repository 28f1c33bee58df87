//! Whole arrays whose elements, or their bytes, are in another order than safetensors wants.

use std::sync::Arc;

use weighbridge::{Dtype, Source};

use crate::input::FilePart;
use crate::strided::Strided;

/// How the elements of a whole array are laid out in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// Whether their bytes stand the other way round.
    pub(crate) big: bool,
    /// Whether the first dimension runs fastest.
    pub(crate) fortran: bool,
}

/// The elements of an array as safetensors wants them. The part has as many bytes as they need.
pub(crate) fn arranged(part: FilePart, dtype: Dtype, shape: &[usize], order: Order) -> Arc<dyn Source> {
    let width = dtype.bits() as usize / 8;
    // The two parts of a complex number are byte-swapped each by itself.
    let word = if dtype == Dtype::C64 { width / 2 } else { width };
    let swap = if order.big { word } else { 1 };
    let fortran = order.fortran && shape.iter().filter(|&&dim| dim > 1).count() > 1;
    if part.size() == 0 || swap == 1 && !fortran {
        return Arc::new(part);
    }
    let mut strides = vec![1; shape.len()];
    let mut step = 1;
    for place in 0..shape.len() {
        let place = if fortran { place } else { shape.len() - 1 - place };
        strides[place] = step;
        step *= shape[place] as u64;
    }
    Arc::new(Strided::new(Arc::new(part), (width, swap), 0, shape, &strides))
}
