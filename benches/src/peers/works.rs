//! The list of works.

use crate::work::Work;
use crate::{cold, loads, modules, opens, ranks, saves, training};

/// All works, in the order in which they are measured and shown.
pub(crate) const ALL: [&Work; 14] = [
    &loads::LOAD,
    &loads::CAST,
    &loads::SHARDS,
    &loads::SMALL,
    &loads::SMALL_CAST,
    &ranks::ROWS,
    &ranks::COLUMNS,
    &opens::HEADERS,
    &opens::FIRST,
    &cold::COLD,
    &saves::SAVE,
    &modules::LOADED,
    &modules::SAVED,
    &training::TRAINED,
];
