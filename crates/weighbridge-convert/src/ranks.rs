//! Tensors that ranks wrote in chunks, put together.

pub(crate) mod cover;
pub(crate) mod mosaic;

#[cfg(feature = "fs")]
pub use crate::dcp::is_of_rank;
