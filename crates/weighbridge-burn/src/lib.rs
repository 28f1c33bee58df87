//! Weights for [Burn](burn): loads any Hugging Face checkpoint into a module, with a report, and saves
//! modules and training state in files that Python reads.
//!
//! ```
//! use weighbridge_burn::weighbridge::Checkpoint;
//! # use weighbridge_burn::burn::nn::EmbeddingConfig;
//! # use weighbridge_burn::burn::tensor::Device;
//! # use weighbridge_burn::weighbridge::Renames;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder");
//! # let device = Device::flex();
//! # let vocabulary = Checkpoint::open(dir)?.tensor("model.embed_tokens.weight").unwrap().shape().to_vec();
//! # let mut model = EmbeddingConfig::new(vocabulary[0], vocabulary[1]).init(&device);
//! let ckpt = Checkpoint::open(dir)?; // a file, a directory, an index, or "org/name" in the local cache
//! # let renames = Renames::new().prefix("model.embed_tokens.", "");
//! let report = weighbridge_burn::load(&ckpt).pytorch().rename(renames).into(&mut model)?;
//! println!("{report}"); // 1 loaded (0 cast), 0 missing, 38 unused
//! # assert_eq!(report.loaded, ["weight"]);
//! weighbridge_burn::save(&model).pytorch().directory(tempfile::tempdir()?, "model")?;
//! # Ok(())
//! # }
//! ```
//!
//! [`load`] finds a tensor for every parameter before it reads any, and changes the module only when all have
//! been read. [`Mapping`] says where files differ from the module in names and layouts, and [`save`] goes the
//! other way. [`dtype`] says what each stored dtype becomes. [`open`] opens checkpoints of any format.
//!
//! [`Live`] is for modules in use: others compute while all weights, or those of an adapter, are swapped. Each gets the
//! module of one version, never half of a swap, and a swap that fails leaves the old one.
//!
//! # Training
//!
//! `Checkpoints` keeps the state of a run in a directory: model, optimizer, scheduler, and numbers of the caller's, at
//! the end of an epoch or every so many steps. Whenever it is stopped, the newest checkpoint is a whole one, and the run
//! goes on from there as if nothing had happened, also in the middle of an epoch. `Checkpoints::every` does so for
//! the `Learner` of burn-train. `Ema` is an average of the weights, a checkpoint by itself. `docs/book/src/training-layout.md` in the
//! repository says what is in the files, which PyTorch and Candle go on with.
//!
//! # Features
//!
//! - `convert`: [`open`] reads PyTorch's `.bin`, `.pt`, `.pth` and `.ckpt`, GGUF, ONNX, NumPy, HDF5 and Flax.
//! - `training`: `Checkpoints`, `Ema`, `save_training` and `load_training` for loops written by hand, and `pack`,
//!   which converts Burn's own `.bpk` files.
//! - `train`: `Checkpoints::every` and `Checkpoints::split`, for the `Learner` of burn-train.
//! - `store`: `SafetensorsStore`, and with `convert` `PytorchStore`, for code that was written for
//!   burn-store.
//! - `cuda`, `vulkan`, `metal`: Burn's own backends for GPUs, with loads through a few staging buffers, page-locked on CUDA.
//!   Others are features of `burn` itself; there each tensor is in memory of the host first.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "training")]
mod checkpoints;
mod codes;
mod convention;
pub mod dtype;
#[cfg(feature = "training")]
mod ema;
mod kept;
#[cfg(feature = "train")]
mod learner;
mod live;
mod loader;
mod mapping;
mod metadata;
mod naming;
mod open;
#[cfg(feature = "training")]
pub mod pack;
#[cfg(feature = "training")]
mod packed;
mod panics;
mod problems;
#[cfg(all(feature = "convert", feature = "store"))]
mod pytorch_store;
mod report;
mod saver;
#[cfg(feature = "store")]
mod store;
mod tensor_data;
#[cfg(feature = "training")]
mod training;
mod upload;
mod walk;

pub use burn;
#[cfg(feature = "store")]
pub use burn_store;
pub use weighbridge;

#[cfg(feature = "training")]
pub use checkpoints::{CheckpointSaver, Checkpoints, Resumed};
pub use convention::Convention;
#[cfg(feature = "training")]
pub use ema::Ema;
#[cfg(feature = "train")]
pub use learner::PartCheckpointer;
pub use live::{Live, Serving};
pub use loader::{Loader, load};
pub use mapping::Mapping;
pub use open::open;
#[cfg(all(feature = "convert", feature = "store"))]
pub use pytorch_store::PytorchStore;
pub use report::{Conversion, Dequantized, LoadReport, Missing};
pub use saver::{Saver, save};
#[cfg(feature = "store")]
pub use store::SafetensorsStore;
#[cfg(feature = "training")]
pub use training::{load_training, save_training};

/// The example of the crate's README, compiled and not run.
#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
