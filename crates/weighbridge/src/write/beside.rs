//! Small files that are written beside a checkpoint.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::file_names;

/// A small file, whole. Clones share its bytes.
#[derive(Clone)]
pub(super) struct SideFile {
    pub(super) name: String,
    pub(super) bytes: Arc<[u8]>,
}

impl SideFile {
    pub(super) fn new(name: String, bytes: Vec<u8>) -> Self {
        Self { name, bytes: bytes.into() }
    }

    /// Whether a small file may have this name: none that leads elsewhere, and none of a checkpoint's files.
    pub(super) fn check(name: &str) -> Result<()> {
        let why = match name {
            name if !file_names::is_plain(name) => "is not a plain file name",
            name if file_names::stem(name).is_some() => {
                "is the name of a checkpoint file; write it with `Save`"
            }
            _ => return Ok(()),
        };
        Err(Error::new(ErrorKind::Value, format!("{name:?} {why}")))
    }
}

impl fmt::Debug for SideFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {} bytes", self.name, self.bytes.len())
    }
}
