//! Files on the Hugging Face hub, on web servers and in object stores.
//!
//! This is what `weighbridge` opens `hf://`, `https://`, `s3://`, `gs://` and `az://` with; it knows nothing
//! of what is in the files.
//!
//! Tokens go to the hub alone, and neither they nor signed URLs are in errors or in what is logged down to
//! `debug`. The HTTP client's own `trace` shows all that is sent and received.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod address;
pub mod cache;
mod client;
pub mod download;
mod encode;
mod error;
mod http;
mod hub;
mod retry;
#[cfg(feature = "stores")]
mod store;
mod web;

pub use crate::http::read::Counts;
pub use address::{Address, HubAddress, RepoKind, StoreAddress, StoreKind, WebAddress};
pub use client::{CacheMode, Named, Place, Remote, RemoteBuilder, RemoteFile};
pub use error::{Error, ErrorKind, Result};
#[cfg(feature = "stores")]
pub use store::{Listed, Tag, Upload, When};
