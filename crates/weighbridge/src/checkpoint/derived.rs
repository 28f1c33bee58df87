//! A checkpoint some of whose tensors are derived from those of another one.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use super::catalog::{Catalog, Duplicates};
use super::{Checkpoint, Inner, Shard, TensorRef};
use crate::error::{Error, Result};

impl Checkpoint {
    /// The same checkpoint without the tensors in `hidden`, and with those of `shards` instead. `refusals` say why weights
    /// of these names are not among them, and tensors in `alone` hold codes.
    pub(crate) fn with_derived(
        &self,
        shards: Vec<Shard>,
        hidden: &[TensorRef<'_>],
        alone: &[TensorRef<'_>],
        refusals: HashMap<String, Error>,
    ) -> Result<Self> {
        let Inner { catalog, directory, warnings, lines, .. } = &*self.0;
        let mut all = catalog.shards().to_vec();
        let names = (0..all.len()).map(|shard| catalog.names_of(shard).cloned()).collect();
        all.extend(shards.into_iter().map(Arc::new));
        let mut unused = catalog.unused().to_vec();
        unused.extend(hidden.iter().map(TensorRef::index));
        unused.sort_unstable();
        unused.dedup();
        let remedy = "a quantised module stands for it; load the codes as they are";
        let catalog = Catalog::new(all, names, unused, &Duplicates::Refuse(remedy))?;
        Ok(Self(Arc::new(Inner {
            catalog,
            directory: directory.clone(),
            warnings: warnings.clone(),
            lines: lines.clone(),
            quantized: OnceLock::new(),
            refusals,
            alone: alone.iter().map(TensorRef::index).collect(),
        })))
    }
}
