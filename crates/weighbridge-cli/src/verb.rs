//! The verbs, one file each.

pub(crate) mod blend;
pub(crate) mod cast;
pub(crate) mod cat;
pub(crate) mod consolidate;
pub(crate) mod convert;
pub(crate) mod dequantize;
pub(crate) mod diff;
pub(crate) mod filter;
pub(crate) mod generate;
pub(crate) mod hash;
pub(crate) mod inspect;
pub(crate) mod lora;
pub(crate) mod merge;
pub(crate) mod meta;
pub(crate) mod plan;
pub(crate) mod quantize;
pub(crate) mod rename;
pub(crate) mod repair;
pub(crate) mod scan;
pub(crate) mod shard;
pub(crate) mod share;
pub(crate) mod split;
pub(crate) mod stat;
pub(crate) mod verify;
