//! Files that lie beside a checkpoint.

use std::fs::File;
use std::io::{ErrorKind as IoErrorKind, Read};
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};

/// Reads a file of JSON that has `most` bytes at the most; `None` if it is not there.
pub(crate) fn read_json(path: &Path, most: u64) -> Result<Option<Value>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == IoErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("it cannot be opened", error).in_file(path)),
    };
    let value = serde_json::from_slice(&read(path, file, most)?);
    value.map(Some).map_err(|error| malformed(path, format!("it is not valid JSON: {error}")))
}

/// Reads a text of `most` bytes at the most.
pub(crate) fn read_text(path: &Path, most: u64) -> Result<String> {
    let file = File::open(path).map_err(|error| Error::io("it cannot be opened", error).in_file(path))?;
    String::from_utf8(read(path, file, most)?).map_err(|_| malformed(path, "it is no text".to_owned()))
}

fn read(path: &Path, file: File, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| Error::io("it cannot be read", error).in_file(path))?;
    if bytes.len() as u64 > most {
        return Err(malformed(path, format!("it is larger than {most} bytes")));
    }
    Ok(bytes)
}

fn malformed(path: &Path, message: String) -> Error {
    Error::new(ErrorKind::Malformed, message).in_file(path)
}
