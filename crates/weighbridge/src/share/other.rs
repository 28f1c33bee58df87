//! Elsewhere than on Linux there is no memory that can be sealed.

use std::path::{Path, PathBuf};

use super::Shared;
use crate::error::{Error, ErrorKind, Result};
use crate::source::MemorySource;

#[derive(Debug)]
pub(super) enum Owner {}

impl Owner {
    pub(super) fn new(
        _: &str,
        _: u64,
        _: Option<PathBuf>,
        _: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        Err(unsupported())
    }
}

pub(super) fn open(_: &str) -> Result<(MemorySource<Vec<u8>>, Option<PathBuf>)> {
    Err(unsupported())
}

pub(super) fn list() -> Result<Vec<Shared>> {
    Err(unsupported())
}

fn unsupported() -> Error {
    Error::new(ErrorKind::Unsupported, "weights are shared on Linux only: elsewhere no memory can be sealed")
}
