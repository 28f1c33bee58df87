//! Files that lie beside a checkpoint.

use std::fs::File;
use std::io::{ErrorKind as IoErrorKind, Read};
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};

/// Reads a file of JSON that has `most` bytes at the most; `None` if it is not there.
pub(crate) fn read_json(path: &Path, most: u64) -> Result<Option<Value>> {
    let malformed = |message: String| Error::new(ErrorKind::Malformed, message).in_file(path);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == IoErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("it cannot be opened", error).in_file(path)),
    };
    let mut text = Vec::new();
    file.take(most.saturating_add(1))
        .read_to_end(&mut text)
        .map_err(|error| Error::io("it cannot be read", error).in_file(path))?;
    if text.len() as u64 > most {
        return Err(malformed(format!("it is larger than {most} bytes")));
    }
    let value = serde_json::from_slice(&text);
    value.map(Some).map_err(|error| malformed(format!("it is not valid JSON: {error}")))
}
