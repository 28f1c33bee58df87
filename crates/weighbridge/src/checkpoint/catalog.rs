//! The tensors of a checkpoint by name: shards, and which tensor of which shard has a name.

use std::hash::{BuildHasher, RandomState};
use std::mem;
use std::sync::Arc;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::prefixed::PrefixedNames;
use super::shard::Shard;
use crate::blocks::BlockType;
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::header::TensorInfo;
use crate::index::Index;
use crate::view::TensorView;

/// A tensor: the index of its shard, and its own in the order of that shard's data.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TensorIndex {
    pub(super) shard: u32,
    pub(super) tensor: u32,
}

pub(super) struct Catalog {
    shards: Vec<Arc<Shard>>,
    /// One for each shard: its tensors' names, where these are not the header's. Empty where all are the
    /// header's.
    names: Vec<Option<Arc<PrefixedNames>>>,
    /// Empty for one shard with the names of its header, which finds them itself.
    by_name: HashTable<TensorIndex>,
    hasher: RandomState,
    /// Duplicates that an index passes over; sorted.
    unused: Vec<TensorIndex>,
}

/// What becomes of a second tensor of a name.
pub(super) enum Duplicates<'i> {
    /// It is an error, whose message ends with what to do about it.
    Refuse(&'static str),
    /// The index decides which of them is used. If it does not list them, they are an error.
    AsListed(&'i Index),
}

impl Catalog {
    /// All tensors of shards, under the names of their headers.
    pub(super) fn of(shards: Vec<Shard>, duplicates: &Duplicates<'_>) -> Result<Self> {
        Self::new(shards.into_iter().map(Arc::new).collect(), Vec::new(), Vec::new(), duplicates)
    }

    /// The tensors of shards, `unused` ones excepted, under `names`.
    pub(super) fn new(
        shards: Vec<Arc<Shard>>,
        names: Vec<Option<Arc<PrefixedNames>>>,
        unused: Vec<TensorIndex>,
        duplicates: &Duplicates<'_>,
    ) -> Result<Self> {
        let (by_name, hasher) = (HashTable::new(), RandomState::new());
        // Where no shard has names of its own, nothing is to be looked up.
        let names = if names.iter().all(Option::is_none) { Vec::new() } else { names };
        let mut catalog = Self { shards, names, by_name, hasher, unused };
        if catalog.shards.len() > 1 || !catalog.names.is_empty() {
            catalog.index_names(duplicates)?;
        }
        Ok(catalog)
    }

    fn index_names(&mut self, duplicates: &Duplicates<'_>) -> Result<()> {
        let mut by_name = HashTable::with_capacity(self.len());
        let mut unused = Vec::new();
        let name_of = |index: &TensorIndex| self.at(*index).map_or("", |tensor| tensor.name());
        for tensor in self.tensors() {
            let (name, index) = (tensor.name(), tensor.index());
            let slot = by_name.entry(
                self.hasher.hash_one(name),
                |other| name_of(other) == name,
                |other| self.hasher.hash_one(name_of(other)),
            );
            match slot {
                Entry::Vacant(slot) => drop(slot.insert(index)),
                Entry::Occupied(mut slot) => match duplicates.shard_of(name) {
                    Some(listed) if listed == tensor.shard_number() => {
                        unused.push(mem::replace(slot.get_mut(), index));
                    }
                    Some(_) => unused.push(index),
                    None => {
                        let first = self.shard(*slot.get()).name_beside(tensor.shard());
                        let remedy = duplicates.remedy();
                        let message = format!("{first:?} holds a tensor of this name, too; {remedy}");
                        let error = Error::new(ErrorKind::DuplicateTensor, message);
                        return Err(tensor.shard().blame(error.in_tensor(name)));
                    }
                },
            }
        }
        self.by_name = by_name;
        self.unused.append(&mut unused);
        self.unused.sort_unstable();
        Ok(())
    }

    pub(super) fn shards(&self) -> &[Arc<Shard>] {
        &self.shards
    }

    /// The shard of a tensor of this catalog.
    pub(super) fn shard(&self, index: TensorIndex) -> &Arc<Shard> {
        &self.shards[index.shard as usize]
    }

    /// What the names of a shard's tensors begin with that is not in its header.
    pub(super) fn prefix(&self, shard: usize) -> &str {
        self.names_of(shard).map_or("", |names| names.prefix())
    }

    /// The names of a shard's tensors, where they are not the header's.
    pub(super) fn names_of(&self, shard: usize) -> Option<&Arc<PrefixedNames>> {
        self.names.get(shard)?.as_ref()
    }

    /// The name of a tensor, where it is not the header's.
    pub(super) fn prefixed(&self, index: TensorIndex) -> Option<&str> {
        self.names_of(index.shard as usize)?.name(index.tensor as usize)
    }

    /// The duplicates that are not used.
    pub(super) fn unused(&self) -> &[TensorIndex] {
        &self.unused
    }

    /// The tensor at an index, used or not.
    pub(super) fn at(&self, index: TensorIndex) -> Option<TensorRef<'_>> {
        let info = self.shards.get(index.shard as usize)?.header().at(index.tensor as usize)?;
        Some(TensorRef::new(self, info, index))
    }

    pub(super) fn find(&self, name: &str) -> Option<TensorIndex> {
        match &*self.shards {
            [shard] if self.names.is_empty() => {
                let tensor = shard.header().place(name)?;
                let index = TensorIndex { shard: 0, tensor: tensor as u32 };
                self.unused.binary_search(&index).is_err().then_some(index)
            }
            _ => {
                let is_named =
                    |index: &TensorIndex| self.at(*index).is_some_and(|tensor| tensor.name() == name);
                self.by_name.find(self.hasher.hash_one(name), is_named).copied()
            }
        }
    }

    /// The tensors that are used, shard by shard, in the order of their data.
    pub(super) fn tensors(&self) -> impl Iterator<Item = TensorRef<'_>> {
        let all = self.shards.iter().zip(0..).flat_map(move |(held, shard)| {
            let tensors = held.header().tensors().zip(0..);
            tensors.map(move |(info, tensor)| TensorRef::new(self, info, TensorIndex { shard, tensor }))
        });
        all.filter(|tensor| self.unused.binary_search(&tensor.index()).is_err())
    }

    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.header().len()).sum::<usize>() - self.unused.len()
    }

    pub(super) fn byte_len(&self) -> u64 {
        let all = self.shards.iter().fold(0_u64, |sum, shard| sum.saturating_add(shard.header().data_len()));
        let unused = self.unused.iter().filter_map(|&index| self.at(index));
        unused.fold(all, |rest, tensor| rest.saturating_sub(tensor.byte_len()))
    }
}

impl Duplicates<'_> {
    /// The shard that the index names for a tensor.
    fn shard_of(&self, tensor: &str) -> Option<usize> {
        match self {
            Self::Refuse(_) => None,
            Self::AsListed(index) => index.shard_of(tensor),
        }
    }

    fn remedy(&self) -> &str {
        match self {
            Self::Refuse(remedy) => remedy,
            Self::AsListed(_) => "the index, which would decide, does not list it",
        }
    }
}

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

    /// The type of the blocks that its file stores it in, as GGUF does; [`dtype`](Self::dtype) is that of the weights which are
    /// made of them then.
    pub fn block_type(&self) -> Option<BlockType> {
        self.shard().blocks(self.number()).map(|(block_type, _)| *block_type)
    }

    /// The number of bytes in its file: of its blocks, where it has a [block type](Self::block_type).
    pub fn stored_len(&self) -> u64 {
        let blocks = self.shard().blocks(self.number());
        blocks.map_or_else(
            || self.byte_len(),
            |(_, input)| {
                let range = input.range();
                range.end - range.start
            },
        )
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

    /// Its number in the order of that file's data.
    pub(crate) fn number(&self) -> usize {
        self.index.tensor as usize
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
