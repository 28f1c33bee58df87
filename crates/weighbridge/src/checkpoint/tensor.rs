//! One tensor of a checkpoint.

use std::sync::Arc;

use super::Shard;
use super::catalog::{Catalog, TensorIndex};
use crate::dtype::Dtype;
use crate::header::TensorInfo;
use crate::view::TensorView;

/// One tensor of a checkpoint.
#[derive(Clone, Copy)]
pub struct TensorRef<'a> {
    catalog: &'a Catalog,
    info: TensorInfo<'a>,
    index: TensorIndex,
}

impl<'a> TensorRef<'a> {
    pub(super) fn new(catalog: &'a Catalog, info: TensorInfo<'a>, index: TensorIndex) -> Self {
        Self { catalog, info, index }
    }

    /// The name in this checkpoint: that of the header, behind the prefix of a
    /// [union](crate::Checkpoint::union).
    pub fn name(&self) -> &'a str {
        self.catalog.prefixed(self.index).unwrap_or_else(|| self.info.name())
    }

    /// The type of the elements, as stored.
    pub fn dtype(&self) -> Dtype {
        self.info.dtype()
    }

    /// The size of each dimension, in elements; empty for a scalar.
    pub fn shape(&self) -> &'a [usize] {
        self.info.shape()
    }

    /// The number of elements.
    pub fn elements(&self) -> u64 {
        self.info.elements()
    }

    /// The number of bytes, as stored.
    pub fn byte_len(&self) -> u64 {
        self.info.byte_len()
    }

    /// The header's entry, whose name has no prefix.
    pub fn info(&self) -> TensorInfo<'a> {
        self.info
    }

    /// Its bytes in memory, if the checkpoint is in memory:
    /// [`Checkpoint::from_bytes`](crate::Checkpoint::from_bytes),
    /// [`OpenOptions::map`](crate::OpenOptions::map).
    pub fn view(&self) -> Option<TensorView<'a>> {
        TensorView::of(&self.info, self.shard().source().as_bytes()?)
    }

    /// The file that holds it.
    pub fn shard(&self) -> &'a Arc<Shard> {
        self.catalog.shard(self.index)
    }

    /// The index of that file in [`Checkpoint::shards`](crate::Checkpoint::shards).
    pub fn shard_number(&self) -> usize {
        self.index.shard as usize
    }

    /// Where the catalog has it.
    pub(super) fn index(&self) -> TensorIndex {
        self.index
    }
}

impl std::fmt::Debug for TensorRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TensorRef")
            .field("name", &self.name())
            .field("info", &self.info)
            .field("shard", &self.shard().name())
            .finish()
    }
}
