//! Opening a checkpoint of any format.

use std::path::Path;

use weighbridge::{Checkpoint, Result};

/// Opens what [`Checkpoint::open`] opens and, with feature `convert`, files of other formats by the same
/// call: PyTorch's `.bin`, `.pt`, `.pth` and `.ckpt`, `.gguf`, `.onnx`, `.npz`, `.h5`, Flax's `.msgpack` and
/// the others that `weighbridge-convert` reads. Nothing in a pickle is executed.
///
/// A directory may hold either; its safetensors files come first.
///
/// ```no_run
/// # use weighbridge_burn::burn::nn::Linear;
/// # fn load(model: &mut Linear) -> weighbridge_burn::weighbridge::Result<()> {
/// let ckpt = weighbridge_burn::open("resnet18.pth")?;
/// weighbridge_burn::load(&ckpt).pytorch().map_indices_contiguous().into(model)?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// As [`Checkpoint::open`]. A file of another format is an error that names the feature if it is off, and
/// otherwise if it breaks the rules of its format or holds what safetensors cannot. A pickle that asks for
/// anything to be called that is not known to be harmless is refused with
/// [`ErrorKind::Unsafe`](weighbridge::ErrorKind::Unsafe).
pub fn open(location: impl AsRef<Path>) -> Result<Checkpoint> {
    #[cfg(feature = "convert")]
    return weighbridge_convert::open_any(location);
    #[cfg(not(feature = "convert"))]
    without_convert::open(location.as_ref())
}

#[cfg(any(test, not(feature = "convert")))]
mod without_convert {
    use std::path::Path;

    use weighbridge::{Checkpoint, Error, ErrorKind, Result};

    /// Endings of files that `weighbridge-convert` reads.
    const FOREIGN: [&str; 13] =
        ["bin", "pt", "pth", "ckpt", "pkl", "gguf", "onnx", "npy", "npz", "h5", "hdf5", "keras", "msgpack"];

    /// Opens safetensors; an error about a file of another format says which feature opens it.
    pub(super) fn open(location: &Path) -> Result<Checkpoint> {
        Checkpoint::open(location).map_err(|error| match foreign(location) {
            true => {
                let message =
                    format!("{}; feature `convert` of weighbridge-burn opens other formats", error.message());
                let file = error.file().unwrap_or(location).to_owned();
                Error::new(ErrorKind::Unsupported, message).in_file(&file).with_source(error)
            }
            false => error,
        })
    }

    /// Whether there is a file of another format.
    fn foreign(location: &Path) -> bool {
        if location.is_dir() {
            let files = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
            return files.iter().any(|file| location.join(file).is_file());
        }
        let ending = location.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        location.is_file()
            && (ending.is_some_and(|ending| FOREIGN.contains(&&*ending))
                || location.ends_with("pytorch_model.bin.index.json"))
    }

    #[cfg(test)]
    mod tests {
        use super::open;
        use weighbridge::ErrorKind;
        use weighbridge::write::{Save, Values};

        #[test]
        fn an_error_about_another_format_names_the_feature() {
            let directory = tempfile::tempdir().unwrap();
            let path = |name: &str| directory.path().join(name);
            for name in ["model.gguf", "pytorch_model.bin", "WEIGHTS.PTH"] {
                std::fs::write(path(name), b"GGUF and more than eight bytes").unwrap();
                let error = open(&path(name)).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
                assert!(error.to_string().contains("feature `convert` of weighbridge-burn"), "{error}");
                assert_eq!(error.file(), Some(&*path(name)));
            }
            let error = open(directory.path()).unwrap_err();
            assert!(error.to_string().contains("feature `convert`"), "{error}");
            // What is not there, and what is safetensors, has no use for it.
            let error = open(&path("none.gguf")).unwrap_err();
            assert!(!error.to_string().contains("feature"), "{error}");
            std::fs::write(path("model.safetensors"), b"GGUF and more than eight bytes").unwrap();
            let error = open(&path("model.safetensors")).unwrap_err();
            assert!(!error.to_string().contains("feature"), "{error}");
            let values = Values::new(&[1], &[1.0_f32]).unwrap();
            Save::new().file(path("good.bin"), [("x", values)]).unwrap();
            assert_eq!(open(&path("good.bin")).unwrap().len(), 1);
        }
    }
}
