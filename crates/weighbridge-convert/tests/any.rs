//! Safetensors and other formats through one call.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::path::{Path, PathBuf};

use weighbridge::write::Save;
use weighbridge::{Checkpoint, Dtype, ErrorKind, TensorView};
use weighbridge_convert::{Format, Opened, Options, open_any, open_any_with};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

/// Copies fixtures into a directory.
fn copy(into: &Path, fixtures: &[(&str, &str)]) {
    for (from, to) in fixtures {
        std::fs::copy(fixture(from), into.join(to)).unwrap();
    }
}

fn save(path: &Path) {
    let view = TensorView::new(Dtype::U8, &[2], &[1, 2]).unwrap();
    Save::new().file(path, [("stored", view)]).unwrap();
}

fn names(checkpoint: &Checkpoint) -> Vec<&str> {
    let mut names: Vec<_> = checkpoint.tensors().map(|tensor| tensor.name()).collect();
    names.sort_unstable();
    names
}

#[test]
fn the_content_says_which_format_a_file_is() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name| directory.path().join(name);
    // Names that say nothing, or something wrong.
    let files = [
        ("pickle/training.pth", "a", Format::TorchZip),
        ("pickle/legacy2.pt", "b.gguf", Format::TorchLegacy),
        ("pickle/lightning.ckpt", "c.bin", Format::TorchZip),
        ("foreign/little.gguf", "d.bin", Format::Gguf),
        ("foreign/inline.onnx", "e.pt", Format::Onnx),
        ("foreign/stored.npz", "f.h5", Format::Npz),
        ("foreign/late.h5", "g.npz", Format::Hdf5),
        ("foreign/tree.msgpack", "h", Format::Flax),
    ];
    for (from, to, format) in files {
        copy(directory.path(), &[(from, to)]);
        let opened = open_any_with(at(to), &Options::new()).unwrap();
        let Opened::Foreign(foreign) = &opened else { panic!("{from}") };
        assert_eq!(foreign.format(), format, "{from}");
        assert!(!opened.checkpoint().is_empty(), "{from}");
        let opened = open_any(at(to)).unwrap();
        assert_eq!(opened.directory(), Some(directory.path()), "{from}");
    }
    save(&at("i.bin"));
    assert_eq!(names(&open_any(at("i.bin")).unwrap()), ["stored"]);
}

#[test]
fn each_name_of_a_tied_tensor_is_there() {
    let checkpoint = open_any(fixture("pickle/tied.bin")).unwrap();
    let found = names(&checkpoint);
    assert!(found.contains(&"lm_head.weight") && found.contains(&"model.embed.weight"), "{found:?}");
}

#[test]
fn a_directory_is_safetensors_before_it_is_anything_else() {
    let directory = tempfile::tempdir().unwrap();
    let sharded = [
        ("pickle/sharded/pytorch_model.bin.index.json", "pytorch_model.bin.index.json"),
        ("pickle/sharded/pytorch_model-00001-of-00002.bin", "pytorch_model-00001-of-00002.bin"),
        ("pickle/sharded/pytorch_model-00002-of-00002.bin", "pytorch_model-00002-of-00002.bin"),
    ];
    assert_eq!(open_any(directory.path()).unwrap_err().kind(), ErrorKind::NotFound);
    copy(directory.path(), &sharded);
    let from_shards = open_any(directory.path()).unwrap();
    assert_eq!(names(&from_shards), names(&Checkpoint::open(fixture("pickle/sharded.safetensors")).unwrap()));
    assert_eq!(from_shards.directory(), Some(directory.path()));
    copy(directory.path(), &[("pickle/tied.bin", "pytorch_model.bin")]);
    assert!(names(&open_any(directory.path()).unwrap()).contains(&"lm_head.weight"));
    let path = directory.path().join("model.safetensors");
    save(&path);
    assert_eq!(names(&open_any(directory.path()).unwrap()), ["stored"]);
    // A broken one hides behind nothing.
    std::fs::write(&path, b"broken").unwrap();
    let error = open_any(directory.path()).unwrap_err();
    assert_eq!((error.kind(), error.file()), (ErrorKind::HeaderTooSmall, Some(&*path)));
    assert_eq!(open_any(&path).unwrap_err().kind(), ErrorKind::HeaderTooSmall);
}

#[test]
fn what_is_broken_is_told_by_the_reader_of_its_format() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.gguf");
    let bytes = std::fs::read(fixture("foreign/little.gguf")).unwrap();
    std::fs::write(&path, &bytes[..40]).unwrap();
    assert_eq!(open_any(&path).unwrap_err().kind(), ErrorKind::Malformed);
    // Of no format that is known: what safetensors says.
    std::fs::write(&path, b"<html></html>").unwrap();
    assert_eq!(open_any(&path).unwrap_err().kind(), ErrorKind::HeaderTooLarge);
    assert_eq!(open_any(directory.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
}
