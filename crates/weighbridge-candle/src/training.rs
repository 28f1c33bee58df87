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
