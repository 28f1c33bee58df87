//! Weights for [Candle](candle_core): any Hugging Face checkpoint on any device, read by several threads
//! straight into the memory that becomes the tensors.
//!
//! ```
//! use weighbridge::Checkpoint;
//! use weighbridge_candle::Loader;
//! use weighbridge_candle::candle_core::{DType, Device};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder");
//! # let device = Device::Cpu;
//! let ckpt = Checkpoint::open(dir)?; // a file, a directory, an index, or "org/name" in the local cache
//! let vb = Loader::new(&ckpt).dtype(DType::F32).device(&device).var_builder()?;
//! let embeddings = vb.pp("model.embed_tokens").get_unchecked("weight")?;
//! # assert_eq!(embeddings.dtype(), DType::F32);
//! # Ok(())
//! # }
//! ```
//!
//! [`Loader::var_builder`] gives the `VarBuilder<'static>` that Candle's models are built from,
//! [`Loader::load`] all tensors by name. [`dtype`] says what each stored dtype becomes.
//!
//! [`Saver`] writes tensors and `VarMap`s, [`Loader::fill`] loads into a `VarMap` that is there, and
//! [`Loader::sharded_var_builder`] gives each rank of a tensor-parallel model its parts.
//!
//! # Features
//!
//! - `cuda`, `metal`: Candle's own backends for these devices.

mod backend;
mod capability;
#[cfg(feature = "cuda")]
mod cuda;
pub mod dtype;
mod loader;
#[cfg(feature = "metal")]
mod metal;
mod quantized;
mod save;
mod session;
mod sharded;
mod staging;
mod tensor;
mod var_map;

pub use candle_core;
pub use candle_nn;
pub use weighbridge;

pub use backend::Backend;
pub use loader::{Conversion, Loaded, Loader, Skipped};
pub use save::{Aliases, Saver, vars};
pub use sharded::{ShardedBackend, ShardedVarBuilder};
pub use staging::Staging;
pub use var_map::Filled;

/// The README's example, compiled and not run.
#[doc = include_str!("../../../README.md")]
#[cfg(doctest)]
struct Readme;
