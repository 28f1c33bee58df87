//! Weights for [Candle](candle_core): any Hugging Face checkpoint on any device, read by several threads
//! straight into the memory that becomes the tensors.
//!
//! ```
//! use weighbridge_candle::Loader;
//! use weighbridge_candle::candle_core::{DType, Device};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder");
//! # let device = Device::Cpu;
//! let ckpt = weighbridge_candle::open(dir)?; // a file, a directory, an index, or "org/name" in the local cache
//! let vb = Loader::new(&ckpt).dtype(DType::F32).device(&device).var_builder()?;
//! let embeddings = vb.pp("model.embed_tokens").get_unchecked("weight")?;
//! # assert_eq!(embeddings.dtype(), DType::F32);
//! # Ok(())
//! # }
//! ```
//!
//! [`Loader::var_builder`] gives the `VarBuilder<'static>` that Candle's models are built from,
//! [`Loader::load`] all tensors by name. [`dtype`] says what each stored dtype becomes;
//! [`Loader::dtype_for`], [`Loader::stored_dtypes`], [`Loader::rename`] and [`Loader::part_for`] say
//! otherwise.
//!
//! [`Saver`] writes tensors and `VarMap`s, [`Loader::fill`] loads into a `VarMap` that is there, and
//! [`Loader::sharded_var_builder`] gives each rank of a tensor-parallel model its parts.
//!
//! # Training, and models in use
//!
//! [`AdamW`] and [`Sgd`] take the place of Candle's optimizers: they compute as PyTorch's do, and [`Checkpoints`] saves
//! and resumes them together with weights, learning rate ([`Schedule`]), an average of the weights ([`Ema`]) and
//! numbers of the caller's. The files of a run are those of `weighbridge-burn`; [`BurnLayout`] says what is called and
//! laid out otherwise there. [`Live`] swaps the weights of a model in use, or an adapter, all or nothing.
//!
//! # Quantised weights
//!
//! Checkpoints of FP8, GPTQ, AWQ, compressed-tensors, bitsandbytes, MLX and others load as the numbers that they stand
//! for: [`Loader::quantized`]. [`Loader::load_quantized`] leaves them as they are where Candle's own kernels
//! compute with exactly that, and does the same for GGUF. Candle's models of GGUF files take what reads and seeks, which
//! [`SourceReader`](weighbridge::source::SourceReader) is of any source, with several threads:
//!
//! ```
//! use std::path::Path;
//!
//! use weighbridge_candle::candle_core::Device;
//! use weighbridge_candle::candle_core::quantized::gguf_file::Content;
//! use weighbridge_candle::weighbridge::source::{FileSource, SourceReader};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gguf/types.gguf");
//! let mut reader = SourceReader::new(FileSource::open(Path::new(path))?);
//! let content = Content::read(&mut reader)?;
//! // let model = quantized_llama::ModelWeights::from_gguf(content, &mut reader, &Device::Cpu)?;
//! # let norm = content.tensor(&mut reader, "output_norm.weight", &Device::Cpu)?;
//! # assert_eq!(norm.shape().dims(), [512]);
//! # Ok(())
//! # }
//! ```
//!
//! # Errors
//!
//! Everything here fails with [`weighbridge::Error`], but what is Candle's: builders and their backends. In a
//! function that returns Candle's `Result`, wrap them:
//!
//! ```
//! use weighbridge_candle::candle_core::{Error, Result};
//! use weighbridge_candle::candle_nn::{Embedding, VarBuilder, embedding};
//! use weighbridge_candle::{Loader, open};
//!
//! fn load(dir: &str) -> Result<Embedding> {
//!     let ckpt = open(dir).map_err(Error::wrap)?;
//!     let vb: VarBuilder<'_> = Loader::new(&ckpt).var_builder().map_err(Error::wrap)?;
//!     embedding(13, 64, vb.pp("model.embed_tokens"))
//! }
//! # assert!(load("no such model").unwrap_err().to_string().contains("no such model"));
//! ```
//!
//! # Features
//!
//! - `fs`, on by default: opening by path, saving into files, and checkpoints of training runs. In a browser it is switched off.
//! - `convert`: [`open`] takes PyTorch pickles, GGUF, ONNX, NumPy, HDF5 and other formats, too.
//! - `cuda`, `metal`: Candle's own backends for these devices.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod capability;
mod catalog;
#[cfg(feature = "cuda")]
mod cuda;
mod devices;
pub mod dtype;
mod ema;
mod live;
mod load;
mod loader;
#[cfg(feature = "metal")]
mod metal;
#[cfg(feature = "fs")]
mod open;
mod optim;
mod qtensor;
mod quantized;
mod quantized_var_builder;
mod save;
mod session;
mod sharded;
mod staging;
mod swap;
mod tensor;
mod training;
mod var_map;

pub use candle_core;
pub use candle_nn;
pub use weighbridge;

pub use backend::Backend;
pub use ema::{Applied, Ema};
pub use live::{Live, Pass, Swapped};
pub use load::{Conversion, Loaded, Skipped};
pub use loader::Loader;
#[cfg(feature = "fs")]
pub use open::open;
pub use optim::{AdamW, ParamsSgd, Sgd, Stateful};
pub use quantized::{Dequantized, LoadedQuantized, Weight};
pub use quantized_var_builder::QuantizedVarBuilder;
pub use save::{Saver, vars};
pub use sharded::{ShardedBackend, ShardedVarBuilder};
pub use staging::Staging;
pub use training::BurnLayout;
#[cfg(feature = "fs")]
pub use training::{
    CheckpointSaver, Checkpoints, Cosine, Linear, Resumed, Schedule, load_training, save_training,
};
pub use var_map::Filled;
pub use weighbridge::write::Aliases;

/// The examples of this crate's README and of the project's, compiled and not run.
#[doc = include_str!("../README.md")]
#[doc = include_str!("../../../README.md")]
#[cfg(doctest)]
struct Readme;
