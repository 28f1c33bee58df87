//! What checkpoints say about themselves in `__metadata__`.

use std::collections::BTreeMap;

use weighbridge::Checkpoint;
use weighbridge::parallel::{MODEL_KEY, RANK_KEY};
use weighbridge::write::Save;

use crate::show::safe;
use crate::term::Term;

pub(crate) type Metadata<'c> = BTreeMap<&'c str, &'c str>;

/// What is true of one file only: what a rank has, and where a part begins.
const OF_ONE_FILE: [&str; 3] = [RANK_KEY, MODEL_KEY, "DCP_SHARDING_INFO"];

/// What all shards say of the model; of two values of one key the first counts.
pub(crate) fn union<'c>(checkpoints: &[&'c Checkpoint], term: &Term) -> Metadata<'c> {
    let mut metadata = Metadata::new();
    for shard in checkpoints.iter().flat_map(|checkpoint| checkpoint.shards()) {
        for (key, value) in shard.header().metadata().into_iter().flatten() {
            if OF_ONE_FILE.contains(&key) {
                continue;
            }
            let first = *metadata.entry(key).or_insert(value);
            if first != value {
                let (file, key, value, first) = (shard.name(), safe(key), safe(value), safe(first));
                term.warn(format_args!(
                    "{file}: metadata {key:?} says {value:?}, another shard {first:?}, which counts"
                ));
            }
        }
    }
    metadata
}

/// The entry in which ComfyUI says which tensors hold codes.
const CODES: &str = "_quantization_metadata";

/// Removes what is said about codes from the metadata of checkpoints that have none, or none any more.
pub(crate) fn without_codes<'c>(mut metadata: Metadata<'c>, checkpoints: &[&Checkpoint]) -> Metadata<'c> {
    if checkpoints.iter().all(|checkpoint| checkpoint.quantized().len() == 0) {
        metadata.remove(CODES);
    }
    metadata
}

/// Has them written.
pub(crate) fn with(save: Save, metadata: Metadata<'_>) -> Save {
    metadata.into_iter().fold(save, |save, (key, value)| save.metadata(key, value))
}
