//! Weights for [Burn](burn): any Hugging Face checkpoint into a module, with a report, and modules and training state
//! into files that Python reads.
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
//! [`load`] finds a tensor for every parameter before it reads one, and changes the module only when all are there;
//! [`Mapping`] says what is called and laid out otherwise in the files; [`save`] is the way back. [`dtype`] says what each
//! stored dtype becomes.
//!
//! # Features
//!
//! - `training`: [`save_training`] and [`load_training`] for loops written by hand, and `pack`, which converts Burn's
//!   own `.bpk` files.
//! - `train`: `Checkpoints`, for the `Learner` of burn-train.
//! - `store`: `SafetensorsStore`, for code that was written for burn-store.
//! - `cuda`, `vulkan`, `metal`: Burn's own backends for GPUs; others are features of `burn` itself.

#[cfg(feature = "train")]
mod checkpoints;
mod codes;
mod convention;
pub mod dtype;
#[cfg(feature = "training")]
mod epochs;
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
mod report;
mod saver;
#[cfg(feature = "store")]
mod store;
mod tensor_data;
#[cfg(feature = "training")]
mod training;
mod walk;

pub use burn;
#[cfg(feature = "store")]
pub use burn_store;
pub use weighbridge;

#[cfg(feature = "train")]
pub use checkpoints::{Checkpoints, PartCheckpointer};
pub use convention::Convention;
pub use loader::{Loader, load};
pub use mapping::Mapping;
pub use open::open;
pub use report::{Conversion, LoadReport, Missing};
pub use saver::{Saver, save};
#[cfg(feature = "store")]
pub use store::SafetensorsStore;
#[cfg(feature = "training")]
pub use training::{load_training, save_training};
