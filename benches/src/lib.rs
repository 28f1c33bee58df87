//! What the programs and benches of this package share.

pub mod checkpoint;
pub mod loaders;
pub mod page;
