//! What the example programs share.

mod config;
mod inventory;
mod report;
pub mod sums;
#[cfg(feature = "testing")]
pub mod testing;

pub use config::{Fields, mismatch};
pub use inventory::Inventory;
pub use report::{note, one_line};
