//! Checkpoints on a network: what `hf://`, `https://`, `s3://`, `gs://` and `az://` are read and written with.
//!
//! ```no_run
//! use weighbridge::Checkpoint;
//! use weighbridge::remote::Remote;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Tokens, caches, proxies and credentials are those of the environment.
//! let ckpt = Checkpoint::open("hf://meta-llama/Llama-3.2-1B")?;
//!
//! // Or they are said.
//! let remote = Remote::of_environment()?.token("hf_...").bandwidth(50_000_000).build()?;
//! let ckpt = Checkpoint::options().remote(remote).open("hf://org/name@v2")?;
//! # Ok(())
//! # }
//! ```
//!
//! | Address | What it names |
//! |---|---|
//! | `hf://[datasets/]org/name[@revision][/path]` | a repository of the Hugging Face hub, a folder or a file in it |
//! | `https://host/path/model.safetensors`, `…index.json` | a file, or an index and its shards beside it |
//! | `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix` | a prefix, or one object |
//!
//! A load is many requests of up to 8 MiB, up to 16 at a time. What breaks is gone on with from where it stands;
//! what was changed meanwhile is an error. What is loaded from the hub goes into its cache, as its Python client lays it out,
//! and is not asked for again. Errors are of the kinds [`NotFound`](crate::ErrorKind::NotFound),
//! [`Denied`](crate::ErrorKind::Denied), [`Offline`](crate::ErrorKind::Offline), [`Changed`](crate::ErrorKind::Changed),
//! [`Checksum`](crate::ErrorKind::Checksum), and [`Io`](crate::ErrorKind::Io) for all that may be gone tomorrow.

use std::path::{Path, PathBuf};

use weighbridge_remote::{Address, ErrorKind as RemoteErrorKind, Place};
pub use weighbridge_remote::{CacheMode, Remote, RemoteBuilder};

use crate::error::{Error, ErrorKind, Result};

/// The address that a location is, if it is one.
pub(crate) fn address(location: &Path) -> Option<Result<Address>> {
    let address = Address::parse(location.to_str()?)?;
    Some(address.map_err(|error| {
        // A password in it is not repeated.
        let shown = error.address().map_or_else(|| location.to_owned(), PathBuf::from);
        told(error).in_file(&shown)
    }))
}

/// What an address means now.
pub(crate) fn place(address: &Address, remote: Option<&Remote>) -> Result<Place> {
    let place = match remote {
        Some(remote) => remote.locate(address),
        None => Remote::shared().and_then(|remote| remote.locate(address)),
    };
    place.map_err(|error| told(error).in_file(&PathBuf::from(address.to_string())))
}

/// The same of something that is to be written: an object store.
pub(crate) fn place_to_write(address: &Address, remote: Option<&Remote>) -> Result<Place> {
    let message = match address {
        Address::Store(_) => return place(address, remote),
        Address::Hub(_) => {
            "the hub is only read from here; save to a directory, then run: hf upload REPO DIRECTORY"
        }
        _ => "web servers are only read; save to a directory, or to s3://, gs:// or az://",
    };
    Err(Error::new(ErrorKind::Unsupported, message).in_file(&PathBuf::from(address.to_string())))
}

/// What errors call a file of a place.
pub(crate) fn label(place: &Place, name: &str) -> PathBuf {
    PathBuf::from(place.address_of(name))
}

/// An error of the network as one of ours. The file is named by who knows it.
pub(crate) fn told(error: weighbridge_remote::Error) -> Error {
    let kind = match error.kind() {
        RemoteErrorKind::NotFound => ErrorKind::NotFound,
        RemoteErrorKind::Denied => ErrorKind::Denied,
        RemoteErrorKind::Offline => ErrorKind::Offline,
        RemoteErrorKind::Changed => ErrorKind::Changed,
        RemoteErrorKind::Checksum => ErrorKind::Checksum,
        RemoteErrorKind::Busy => ErrorKind::Busy,
        RemoteErrorKind::Unsupported => ErrorKind::Unsupported,
        RemoteErrorKind::Malformed | RemoteErrorKind::Address => ErrorKind::Malformed,
        RemoteErrorKind::Cancelled => ErrorKind::Cancelled,
        _ => ErrorKind::Io,
    };
    Error::new(kind, error.message()).with_source(error)
}

/// The same of a write whose precondition may not hold.
pub(crate) fn switched(error: weighbridge_remote::Error) -> Error {
    match error.kind() {
        RemoteErrorKind::Changed => {
            let message = "another program has written a checkpoint there meanwhile, which stays";
            Error::new(ErrorKind::Busy, message).with_source(error)
        }
        _ => told(error),
    }
}

/// A number for a name that nothing before has had, as far as chance allows.
pub(crate) fn random() -> u32 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() as u32
}
