//! What the example programs share.

#[cfg(feature = "chat")]
pub mod chat;
mod config;
mod inventory;
pub mod numbers;
mod report;
pub mod sums;
#[cfg(feature = "testing")]
pub mod testing;

pub use config::{Fields, mismatch};
pub use inventory::Inventory;
pub use report::{note, one_line};
