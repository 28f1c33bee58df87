//! The bytes of a view of a storage.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use weighbridge::Source;

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

/// The bytes, row by row and little-endian. `swap` says that the storage is big-endian.
pub(crate) fn bytes(view: &View, storage: Arc<dyn Source>, swap: bool) -> Arc<dyn Source> {
    let width = view.element.bytes();
    let word = if swap != view.swap { view.element.word() } else { 1 };
    if word == 1 && is_contiguous(view) {
        let len = elements(view).unwrap_or(0).saturating_mul(width as u64);
        let start = if len == 0 { 0 } else { view.offset.saturating_mul(width as u64) };
        return Arc::new(Part::new(storage, start..start + len));
    }
    Arc::new(Strided::new(storage, (width, word), view.offset, &view.shape, &view.strides))
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

/// A run of bytes of another source.
pub(super) struct Part {
    whole: Arc<dyn Source>,
    range: Range<u64>,
}

impl Part {
    pub(super) fn new(whole: Arc<dyn Source>, range: Range<u64>) -> Self {
        Self { whole, range }
    }
}

impl Source for Part {
    fn size(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.whole.read_at(self.range.start + offset, buf)
    }

    fn in_file(&self, range: Range<u64>) -> Option<(&File, u64)> {
        self.whole.in_file(self.range.start + range.start..self.range.start + range.end)
    }
}
