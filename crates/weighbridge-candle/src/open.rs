//! Opening checkpoints of any format.

use std::path::Path;

use weighbridge::{Checkpoint, Result};
#[cfg(any(test, not(feature = "convert")))]
use weighbridge::{Error, ErrorKind};

/// Opens a checkpoint: what [`Checkpoint::open`] opens, which is a safetensors file, a directory, an index,
/// or a repository in the local Hugging Face cache, and, with the feature `convert`, files of other formats:
/// `.bin`, `.pt`, `.pth`, `.ckpt`, `.gguf`, `.onnx`, `.npz`, `.h5`, `.msgpack` and others. The content says
/// which it is, not the name.
///
/// Of a directory or a repository the safetensors checkpoint is taken; if there is none, `pytorch_model.bin`,
/// else the shards of its index. Nothing in a file is executed. What becomes of each format, the
/// documentation of `weighbridge-convert` says.
///
/// ```
/// use weighbridge_candle::{Loader, open};
///
/// # fn main() -> weighbridge_candle::weighbridge::Result<()> {
/// # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../weighbridge-convert/tests/pickle/tied.bin");
/// let loaded = Loader::new(&open(model)?).load()?;
/// # assert!(loaded.tensors.contains_key("lm_head.weight"));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// As [`Checkpoint::open`], and for a file of another format as `weighbridge_convert::open`. Without the
/// feature, the error says that it would open such a file.
pub fn open(location: impl AsRef<Path>) -> Result<Checkpoint> {
    open_path(location.as_ref())
}

#[cfg(feature = "convert")]
fn open_path(location: &Path) -> Result<Checkpoint> {
    weighbridge_convert::open_any(location)
}

#[cfg(not(feature = "convert"))]
fn open_path(location: &Path) -> Result<Checkpoint> {
    Checkpoint::open(location).map_err(|error| advise(location, error))
}

/// Names the feature in an error that it may spare.
#[cfg(any(test, not(feature = "convert")))]
fn advise(location: &Path, error: Error) -> Error {
    const FEATURE: &str = "the feature `convert` of weighbridge-candle opens";
    let advice = if location.is_file() {
        let name = location.to_string_lossy().to_lowercase();
        if name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json") {
            return error;
        }
        format!("{FEATURE} files of other formats")
    } else {
        let names = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
        let is_there = |name: &&str| error.file().is_some_and(|directory| directory.join(name).exists());
        match names.into_iter().find(is_there) {
            Some(name) if error.kind() == ErrorKind::NotFound => format!("{FEATURE} {name}"),
            _ => return error,
        }
    };
    let advised = Error::new(error.kind(), format!("{}; {advice}", error.message()));
    match error.file() {
        Some(file) => advised.in_file(file),
        None => advised,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advised(location: &Path) -> String {
        advise(location, Checkpoint::open(location).unwrap_err()).to_string()
    }

    #[test]
    fn an_error_names_the_feature_where_it_would_help() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        assert!(!advised(directory.path()).contains("convert"));
        std::fs::write(at("pytorch_model.bin"), b"PK\x03\x04....").unwrap();
        let text = advised(directory.path());
        assert!(text.starts_with(&directory.path().display().to_string()), "{text}");
        assert!(
            text.ends_with("the feature `convert` of weighbridge-candle opens pytorch_model.bin"),
            "{text}"
        );
        let text = advised(&at("pytorch_model.bin"));
        assert!(text.contains("zip archive") && text.contains("the feature `convert`"), "{text}");
        std::fs::write(at("a.safetensors"), b"PK\x03\x04....").unwrap();
        assert!(!advised(&at("a.safetensors")).contains("convert"));
        // Now there is a safetensors checkpoint, if a broken one.
        assert!(!advised(directory.path()).contains("convert"));
        assert!(!advised(&at("none.bin")).contains("convert"));
    }
}
