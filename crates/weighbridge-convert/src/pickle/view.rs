//! The bytes of a view of a storage.

use std::sync::Arc;

use weighbridge::source::{Source, Window};
use weighbridge::{Error, ErrorKind, Result};

use super::value::View;
use crate::strided::Strided;

/// The bytes of the storage that a view needs from its start, or `None` where they do not fit 64 bits.
pub(crate) fn reach(view: &View) -> Option<u64> {
    if view.shape.contains(&0) {
        return Some(0);
    }
    let width = view.element.bytes() as u64;
    // The size must fit, too, which strides of zero could make larger than the reach.
    elements(view)?.checked_mul(width)?;
    let last =
        view.shape.iter().zip(&view.strides).try_fold(view.offset, |sum, (&dim, &stride)| {
            sum.checked_add((dim as u64 - 1).checked_mul(stride)?)
        });
    last?.checked_add(1)?.checked_mul(width)
}

/// The number of elements.
pub(crate) fn elements(view: &View) -> Option<u64> {
    view.shape.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim as u64))
}

/// The bytes, row by row and little-endian. `swap` says that the storage is big-endian; it is as large as the pickle says.
pub(crate) fn bytes(view: &View, storage: Arc<dyn Source>, swap: bool) -> Result<Arc<dyn Source>> {
    let width = view.element.bytes();
    let word = if swap != view.swap { view.element.word() } else { 1 };
    if word == 1 && is_contiguous(view) {
        let len = elements(view).unwrap_or(0).saturating_mul(width as u64);
        let start = if len == 0 { 0 } else { view.offset.saturating_mul(width as u64) };
        let window = Window::new(storage, start..start.saturating_add(len));
        let too_long = || Error::new(ErrorKind::Internal, "it ends beyond its storage");
        return Ok(Arc::new(window.ok_or_else(too_long)?));
    }
    Ok(Arc::new(Strided::new(storage, (width, word), view.offset, &view.shape, &view.strides)))
}

fn is_contiguous(view: &View) -> bool {
    if view.shape.contains(&0) {
        return true;
    }
    let mut expected = 1_u64;
    view.shape.iter().zip(&view.strides).rev().all(|(&dim, &stride)| {
        let follows = dim == 1 || stride == expected;
        expected = expected.saturating_mul(dim as u64);
        follows
    })
}
