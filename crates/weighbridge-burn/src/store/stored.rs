//! The tensors of a checkpoint, as burn-store lists them.

use std::collections::BTreeMap;

use burn_pack::Tensor;
use weighbridge::{Checkpoint, Error, Quantized, Result};

use crate::codes::refusal;
use crate::metadata::Known;
use crate::naming::Naming;
use crate::pack::deferred;

/// The tensors of a checkpoint by the names that they get. They are read when their bytes are asked for.
#[derive(Default)]
pub(super) struct Stored {
    tensors: BTreeMap<String, Tensor>,
    /// Tensors that hold the codes of quantised modules.
    refused: BTreeMap<String, Error>,
    /// Tensors of dtypes that Burn does not have. burn-store could not open the file; here they are left out.
    unsupported: BTreeMap<String, Error>,
    names: Vec<String>,
    /// The ids of parameters by their paths.
    pub(super) ids: BTreeMap<String, u64>,
}

impl Stored {
    pub(super) fn of(ckpt: &Checkpoint, naming: &Naming, quantized: Quantized) -> Result<Self> {
        let dense = (quantized == Quantized::Dequantize).then(|| ckpt.dequantized()).transpose()?;
        let ckpt = dense.as_ref().unwrap_or(ckpt);
        let known = Known::of(ckpt)?;
        let mut stored = Self::default();
        for (name, tensor) in naming.of(ckpt).tensors(ckpt)? {
            stored.names.push(name.clone());
            let is_own = known.quantised.contains_key(tensor.name());
            if quantized != Quantized::Raw
                && !is_own
                && let Some(module) = ckpt.quantized_codes(tensor.name())
            {
                stored.refused.insert(name.clone(), refusal(&module, &name));
                continue;
            }
            match deferred(ckpt, &tensor, name.clone()) {
                Ok(tensor) => drop(stored.tensors.insert(name, tensor)),
                Err(error) => drop(stored.unsupported.insert(name, error)),
            }
        }
        stored.names.sort();
        stored.ids = known.ids;
        Ok(stored)
    }

    /// All names, sorted.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    pub(super) fn tensor(&self, name: &str) -> Result<Option<&Tensor>> {
        match self.refused.get(name) {
            Some(error) => Err(error.clone()),
            None => Ok(self.tensors.get(name)),
        }
    }

    pub(super) fn all(&self) -> Result<&BTreeMap<String, Tensor>> {
        match self.refused.values().next() {
            Some(error) => Err(error.clone()),
            None => Ok(&self.tensors),
        }
    }

    /// The tensor for a parameter, or why it cannot be loaded; `None` if it is not stored.
    pub(super) fn find(&self, name: &str) -> Option<Result<&Tensor>> {
        let wrong = self.refused.get(name).or_else(|| self.unsupported.get(name));
        match wrong {
            Some(error) => Some(Err(error.clone())),
            None => self.tensors.get(name).map(Ok),
        }
    }
}
