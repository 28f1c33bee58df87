//! Files on the Hugging Face hub, on web servers and in object stores.
//!
//! This is what `weighbridge` opens `hf://`, `https://`, `s3://`, `gs://` and `az://` with; it knows nothing of what is in the
//! files.

pub mod cache;
pub mod download;
mod error;

pub use error::{Error, ErrorKind, Result};
