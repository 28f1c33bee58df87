//! A checkpoint some of whose tensors are derived from those of another one.

mod source;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::catalog::{Catalog, Duplicates};
use super::{Checkpoint, Inner, Shard, TensorRef};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::header::Decode;
use crate::plan::{Derived, Entry};
use crate::write::{Order, Save};
use source::DerivedSource;

/// A tensor that no file stores.
pub(crate) struct DerivedTensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) derived: Derived,
}

impl Shard {
    /// A file that is nowhere, of tensors in this order.
    pub(crate) fn of_derived(label: Option<&Path>, tensors: Vec<DerivedTensor>) -> Result<Self> {
        let described = tensors.iter().map(|tensor| (&*tensor.name, tensor.dtype, tensor.shape.clone()));
        let layout = Save::new().order(Order::Given).layout(described)?;
        let header = layout.header().to_vec();
        let derived: Vec<_> = tensors.into_iter().map(|tensor| Arc::new(tensor.derived)).collect();
        let source = DerivedSource::new(header, &layout, &derived)?;
        let header = Decode::new().read(&source)?;
        Ok(Self::derived_from(label, header, source, derived))
    }
}

impl Checkpoint {
    /// The same checkpoint with what `entries` make in the place of the tensors of their names; those of other names are
    /// added.
    ///
    /// Nothing is made until it is read, and then tile by tile. So it can be [planned](crate::Plan), cast, sliced, renamed and
    /// saved as any other tensor. What is computed in `F32` is rounded once, to whatever dtype is asked for.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use weighbridge::plan::{Input, Join};
    /// use weighbridge::{Checkpoint, Entry};
    ///
    /// # fn main() -> weighbridge::Result<()> {
    /// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder");
    /// let ckpt = Checkpoint::open(dir)?;
    /// let mlp = |name| ckpt.tensor(&format!("model.layers.0.mlp.{name}.weight")).unwrap();
    /// let inputs = vec![Input::of(&mlp("gate_proj")), Input::of(&mlp("up_proj"))];
    /// let fused = Entry::new("model.layers.0.mlp.gate_up_proj.weight", inputs, Arc::new(Join::along(0)))?;
    /// let rows = fused.shape()[0];
    /// let ckpt = ckpt.with_entries([fused])?;
    /// assert_eq!(ckpt.tensor("model.layers.0.mlp.gate_up_proj.weight").unwrap().shape()[0], rows);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Fails when two entries have one name.
    pub fn with_entries(&self, entries: impl IntoIterator<Item = Entry>) -> Result<Self> {
        self.with_entries_without(entries.into_iter().collect(), &[])
    }

    /// The same without the tensors in `without`, which no entry stands for.
    pub(crate) fn with_entries_without(
        &self,
        entries: Vec<Entry>,
        without: &[TensorRef<'_>],
    ) -> Result<Self> {
        let mut hidden: Vec<_> = entries.iter().filter_map(|entry| self.tensor(entry.name())).collect();
        hidden.extend_from_slice(without);
        // One for each file that holds what they replace, in the order of the files; what is new is in the last.
        let mut by_shard = BTreeMap::<usize, Vec<&Entry>>::new();
        for entry in &entries {
            let shard = self.tensor(entry.name()).map_or(usize::MAX, |tensor| tensor.shard_number());
            by_shard.entry(shard).or_default().push(entry);
        }
        let shards = by_shard.into_iter().map(|(number, entries)| {
            let stored = self.shards().get(number);
            let first = || entries.first()?.inputs().first().map(|input| &**input.shard());
            let label = stored.map(|shard| &**shard).or_else(first).and_then(Shard::label);
            let tensors = entries.iter().map(|entry| DerivedTensor {
                name: entry.name().to_owned(),
                dtype: entry.dtype(),
                shape: entry.shape().to_vec(),
                derived: Derived::of(entry),
            });
            Shard::of_derived(label, tensors.collect())
        });
        let Inner { refusals, alone, catalog, .. } = &*self.0;
        let alone: Vec<_> = alone.iter().filter_map(|&tensor| catalog.at(tensor)).collect();
        let remedy = "there are two entries of this name";
        self.replaced(shards.collect::<Result<_>>()?, &hidden, &alone, refusals.clone(), remedy)
    }

    /// The same checkpoint without the tensors in `hidden`, and with those of `shards` instead. `refusals` say why weights
    /// of these names are not among them, and tensors in `alone` hold codes.
    pub(crate) fn with_derived(
        &self,
        shards: Vec<Shard>,
        hidden: &[TensorRef<'_>],
        alone: &[TensorRef<'_>],
        refusals: HashMap<String, Error>,
    ) -> Result<Self> {
        let remedy = "a quantised module stands for it; load the codes as they are";
        self.replaced(shards, hidden, alone, refusals, remedy)
    }

    fn replaced(
        &self,
        shards: Vec<Shard>,
        hidden: &[TensorRef<'_>],
        alone: &[TensorRef<'_>],
        refusals: HashMap<String, Error>,
        remedy: &'static str,
    ) -> Result<Self> {
        let Inner { catalog, home, warnings, lines, .. } = &*self.0;
        let mut all = catalog.shards().to_vec();
        let names = (0..all.len()).map(|shard| catalog.names_of(shard).cloned()).collect();
        all.extend(shards.into_iter().map(Arc::new));
        let mut unused = catalog.unused().to_vec();
        unused.extend(hidden.iter().map(TensorRef::index));
        unused.sort_unstable();
        unused.dedup();
        let catalog = Catalog::new(all, names, unused, &Duplicates::Refuse(remedy))?;
        Ok(Self(Arc::new(Inner {
            catalog,
            home: home.clone(),
            warnings: warnings.clone(),
            lines: lines.clone(),
            quantized: OnceLock::new(),
            refusals,
            alone: alone.iter().map(TensorRef::index).collect(),
        })))
    }
}
