//! The codes of quantised modules, which are not weights.

use std::collections::HashMap;

use weighbridge::{Checkpoint, Error, Quantized, QuantizedModule, TensorRef};

use crate::metadata::Known;
use crate::naming::Named;

/// The error for a parameter whose values are quantised.
pub(crate) fn refusal(module: &QuantizedModule<'_>, path: &str) -> Error {
    module.refusal(path, "`quantized(Quantized::Raw)` loads the codes as they are")
}

/// The quantised modules that are refused.
pub(crate) struct Codes<'c> {
    checkpoint: &'c Checkpoint,
    known: &'c Known,
    /// By the names that their weights would have after renaming.
    weights: HashMap<String, QuantizedModule<'c>>,
}

impl<'c> Codes<'c> {
    pub(crate) fn of(
        checkpoint: &'c Checkpoint,
        named: &Named<'_>,
        quantized: Quantized,
        known: &'c Known,
    ) -> Self {
        let mut codes = Self { checkpoint, known, weights: HashMap::new() };
        if quantized != Quantized::Raw {
            let weight = |module: QuantizedModule<'c>| (named.apply(&module.weight()), module);
            codes.weights.extend(checkpoint.quantized().map(weight));
        }
        codes
    }

    /// The module whose codes `stored` holds or, if nothing is stored under `name`, whose weight would have
    /// that name.
    pub(crate) fn module(&self, name: &str, stored: Option<&TensorRef<'_>>) -> Option<QuantizedModule<'c>> {
        if self.weights.is_empty() {
            return None;
        }
        match stored {
            // What Burn quantised is loaded as it was saved.
            Some(tensor) if self.known.quantised.contains_key(tensor.name()) => None,
            Some(tensor) => self.checkpoint.quantized_codes(tensor.name()),
            None => self.weights.get(name).copied(),
        }
    }
}
