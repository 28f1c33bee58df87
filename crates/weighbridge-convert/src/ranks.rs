//! Files of several ranks as one checkpoint: what tensor parallelism cut is joined again.

pub(crate) mod cover;
mod join;
pub(crate) mod mosaic;
mod rules;

pub use crate::dcp::is_of_rank;
pub use join::join;
pub use rules::{Along, Rules};
