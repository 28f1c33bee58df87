//! Reading an index from a file.

use std::io::Read;
use std::path::Path;

use super::Index;
use crate::error::{Error, Result};
use crate::source::open_regular;

impl Index {
    /// Reads an index file.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse), and when the file cannot be read; the error names it.
    pub fn read(path: &Path) -> Result<Self> {
        let mut text = String::new();
        open_regular(path)
            .and_then(|file| file.take(Self::LIMIT + 1).read_to_string(&mut text))
            .map_err(|error| Error::io("the index cannot be read", error))
            .and_then(|_| Self::parse(&text))
            .map_err(|error| error.in_file(path))
    }
}
