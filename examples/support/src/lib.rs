//! What the example programs share.

mod config;
mod inventory;
mod report;
#[cfg(feature = "testing")]
pub mod testing;

pub use config::{Fields, mismatch};
pub use inventory::Inventory;
pub use report::{note, one_line};
