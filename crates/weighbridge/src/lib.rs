//! The weights layer: reads safetensors checkpoints exactly, safely, and at the speed of the machine.
//!
//! This crate knows the format and moves the bytes; it knows no machine learning framework. For
//! [Candle](https://docs.rs/candle-core) use `weighbridge-candle`, which is built on it.
//!
//! ```
//! use weighbridge::{Checkpoint, Plan};
//!
//! # fn main() -> weighbridge::Result<()> {
//! # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder");
//! let ckpt = Checkpoint::open(dir)?; // headers only: every shard's is read and proven
//! println!("{} tensors in {} shards, {} bytes", ckpt.len(), ckpt.shards().len(), ckpt.byte_len());
//!
//! let session = Plan::of(&ckpt).build()?.session().start()?; // every core begins to read
//! let (entry, values) = session.take("model.norm.weight", None)?;
//! println!("{} {:?}: {} bytes", entry.dtype(), entry.shape(), values.as_bytes().len());
//! # Ok(())
//! # }
//! ```
//!
//! Writing is as short: [`write::Save`] streams tensors into a file or a sharded directory, the same bytes every
//! time, and nothing is visible until it is whole. [`epochs`] keeps the state of a training run the same way.
//!
//! The module [`format`](mod@format) explains every byte and every rule of the format, with its source.
//!
//! # How data flows
//!
//! In a straight line, each step once:
//!
//! 1. a [`Source`] is where bytes are: a file, memory, anything that can be read at an offset; [`source`] has some;
//! 2. a [`Checkpoint`] is one file or the shards of an index, every [`Header`] decoded and proven;
//! 3. a [`Plan`] says what to load, under which name, as which dtype; what can be wrong is found there;
//! 4. a [`Session`] carries the plan out: several threads read tile by tile, straight into the memory of the
//!    tensors, and convert while a tile is in the cache;
//! 5. a [`HostBuffer`] is the result: the `Vec` of the element type, which a framework takes over as it is.
//!
//! # Safety
//!
//! Files are read, not mapped, so nobody who changes them can make memory change under a tensor, unless a caller
//! promises that nobody does: [`Mapping`]. `unsafe` is in three modules: one hands out uninitialised memory in disjoint
//! chunks and proves that it was filled, one maps files, one has the loops that are compiled for the processor at
//! hand. No input makes this crate panic, and the memory that a header takes is bounded by a multiple of its length.
//!
//! # Features
//!
//! - `fs`, on by default: files, the hub's cache, mapping, shares and training checkpoints. Without it checkpoints come from memory and
//!   from [`Source`]s, and a session works on the thread that asks: as in a browser (wasm32-unknown-unknown).
//! - `remote`: checkpoints on the Hugging Face hub, on web servers and in object stores.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[doc = include_str!("../docs/format.md")]
pub mod format {}

#[doc = include_str!("../docs/quantised.md")]
pub mod quantised {}

mod adapter;
mod blocks;
mod buffer;
mod cast;
mod checkpoint;
mod dequantize;
mod dtype;
pub mod engine;
#[cfg(feature = "fs")]
pub mod epochs;
mod error;
#[cfg(feature = "fs")]
mod file_names;
pub mod header;
pub mod index;
#[cfg(feature = "fs")]
mod journal;
mod linear;
mod names;
mod newer_std;
mod panics;
pub mod parallel;
mod pattern;
pub mod plan;
mod progress;
#[cfg(feature = "remote")]
pub mod remote;
mod renames;
mod rule;
mod scaled;
#[cfg(feature = "fs")]
pub mod share;
mod side_file;
pub mod slice;
pub mod source;
mod text;
mod view;
pub mod write;

pub use adapter::{
    Adapter, AdapterFormat, AdapterModule, LowRankProduct, NewAdapter, Truncation, norm_of_change,
};
pub use blocks::{BlockType, Blocks};
pub use buffer::HostBuffer;
pub use checkpoint::{Checkpoint, OpenOptions, QuantMethod, Quantized, QuantizedModule, Shard, TensorRef};
#[cfg(feature = "fs")]
pub use checkpoint::{CheckpointFiles, hub_snapshot};
pub use dtype::{Dtype, UnknownDtype};
pub use engine::{HostBytes, Lent, LoadOptions, Progress, Report, Session};
pub use error::{Error, ErrorKind, Result};
pub use header::{Header, Profile};
pub use names::{NearestNames, natural_order, nearest_name};
#[doc(hidden)]
pub use panics::caught_as;
pub use pattern::Names;
pub use plan::{Entry, Plan};
pub use renames::Renames;
pub use scaled::{CodeType, ScaledCodes};
pub use slice::Slice;
#[cfg(feature = "fs")]
pub use source::{Access, Mapping, Populate};
pub use source::{Hints, Source};
pub use view::{Element, SafeTensors, SliceView, TensorView};
