//! Codes of quantised modules are no weights.

use std::collections::HashMap;

use weighbridge::{Checkpoint, Error, Quantized, QuantizedModule, Renames, TensorRef};

use crate::metadata::Known;

/// The error for a parameter whose values are quantised.
pub(crate) fn refusal(module: &QuantizedModule<'_>, path: &str) -> Error {
    module.refusal(path, "`quantized(Quantized::Raw)` loads the codes as they are")
}

/// The quantised modules that are refused.
pub(crate) struct Codes<'c> {
    checkpoint: &'c Checkpoint,
    known: &'c Known,
    /// By the names, after renaming, that their weights would have.
    weights: HashMap<String, QuantizedModule<'c>>,
}

impl<'c> Codes<'c> {
    pub(crate) fn of(
        checkpoint: &'c Checkpoint,
        renames: &Renames,
        quantized: Quantized,
        known: &'c Known,
    ) -> Self {
        let mut codes = Self { checkpoint, known, weights: HashMap::new() };
        if quantized != Quantized::Raw {
            let named = |module: QuantizedModule<'c>| (renames.apply(&module.weight()), module);
            codes.weights.extend(checkpoint.quantized().map(named));
        }
        codes
    }

    /// The module whose codes are in `stored`, or, where nothing is stored under a name, whose weight it would be.
    pub(crate) fn module(&self, name: &str, stored: Option<&TensorRef<'_>>) -> Option<QuantizedModule<'c>> {
        if self.weights.is_empty() {
            return None;
        }
        match stored {
            // Burn's own come as they were saved.
            Some(tensor) if self.known.quantised.contains_key(tensor.name()) => None,
            Some(tensor) => self.checkpoint.quantized_codes(tensor.name()),
            None => self.weights.get(name).copied(),
        }
    }
}
