//! The state of a training run: weights, optimizer, schedule and numbers, saved as one and resumed.

#[cfg(feature = "fs")]
mod checkpoints;
#[cfg(feature = "fs")]
mod ids;
mod layout;
#[cfg(feature = "fs")]
mod record;
#[cfg(feature = "fs")]
mod schedule;
mod weights;

#[cfg(feature = "fs")]
pub use checkpoints::{CheckpointSaver, Checkpoints, Resumed, load_training, save_training};
pub use layout::BurnLayout;
#[cfg(feature = "fs")]
pub use schedule::{Cosine, Linear, Schedule};
pub(crate) use weights::{named, weights_for};

/// The ids of parameters, by their names; Burn's optimizers know parameters by them.
const IDS: &str = "weighbridge.burn.ids";
/// Numbers of a record by their names.
const SCALARS: &str = "weighbridge.burn.scalars";
/// How the tensors of a record are named.
const RECORD: &str = "weighbridge.burn.record";
/// By the ids of parameters inside of Burn.
const BY_ID: &str = "by id";
const NAMED: &str = "named";
