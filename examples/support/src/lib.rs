//! What the example programs share.

pub mod attention;
#[cfg(feature = "chat")]
pub mod chat;
mod config;
#[cfg(feature = "candle")]
pub mod device;
mod inventory;
#[cfg(feature = "lm")]
pub mod lm;
pub mod numbers;
mod report;
pub mod rope;
pub mod sums;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "candle")]
pub mod weights;

pub use config::{Fields, mismatch};
pub use inventory::Inventory;
pub use report::{note, one_line};
