//! One call for checkpoints of every format.

#![cfg(feature = "convert")]
#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::path::{Path, PathBuf};

use candle_core::DType;
use safetensors::Dtype as St;
use weighbridge::{ErrorKind, Names, Renames};
use weighbridge_candle::{Loader, open};
use weighbridge_tests::{Stored, sharded};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../weighbridge-convert/tests").join(name)
}

#[test]
fn a_pth_a_gguf_and_a_directory_load_through_the_same_call() {
    let directory = tempfile::tempdir().unwrap();
    let shards: [(&str, &[(&str, Stored)]); 2] = [
        ("model-1.safetensors", &[("a.weight", Stored::filled(St::BF16, &[3, 5], 1))]),
        ("model-2.safetensors", &[("b.weight", Stored::filled(St::F32, &[2], 2))]),
    ];
    sharded(directory.path(), &shards);
    let locations =
        [directory.path().to_owned(), fixture("pickle/training.pth"), fixture("foreign/little.gguf")];
    for location in locations {
        let ckpt = open(&location).unwrap();
        assert!(!ckpt.is_empty(), "{}", location.display());
        let loaded = Loader::new(&ckpt).dtype(DType::F32).load().unwrap();
        let vb = Loader::new(&ckpt).dtype(DType::F32).var_builder().unwrap();
        for tensor in ckpt.tensors().filter(|tensor| tensor.dtype().is_float()) {
            assert_eq!(loaded.tensors[tensor.name()].dims(), tensor.shape());
            let asked = vb.get(tensor.shape(), tensor.name()).unwrap();
            assert_eq!(asked.dtype(), DType::F32, "{}", tensor.name());
        }
    }
}

#[test]
fn a_pth_is_what_candle_reads() {
    let path = fixture("pickle/tied.bin");
    let theirs = candle_core::pickle::read_all(&path).unwrap();
    assert!(!theirs.is_empty());
    let loaded = Loader::new(&open(&path).unwrap()).load().unwrap().tensors;
    let text = |tensor: &candle_core::Tensor| {
        let flat = tensor.contiguous().unwrap().flatten_all().unwrap().to_dtype(DType::F64).unwrap();
        format!("{:?} {:?}", tensor.dims(), flat.to_vec1::<f64>().unwrap())
    };
    for (name, theirs) in theirs {
        assert_eq!(text(&loaded[&name]), text(&theirs), "{name}");
    }
}

#[test]
fn tied_names_are_all_there_and_everything_a_loader_does_works() {
    let ckpt = open(fixture("pickle/tied.bin")).unwrap();
    let loader = Loader::new(&ckpt).rename(Renames::new().prefix("model.", "")).dtype(DType::F64);
    let loaded = loader.dtype_for(Names::exact("lm_head.weight"), DType::F32).load().unwrap().tensors;
    assert_eq!(loaded["lm_head.weight"].dtype(), DType::F32);
    assert_eq!(loaded["embed.weight"].dtype(), DType::F64);
    assert_eq!(loaded["lm_head.weight"].dims(), loaded["embed.weight"].dims());
}

#[test]
fn errors_are_of_one_type() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(open(directory.path()).unwrap_err().kind(), ErrorKind::NotFound);
    let path = directory.path().join("a.gguf");
    std::fs::write(&path, b"GGUF\x03\0\0\0").unwrap();
    let error = open(&path).unwrap_err();
    assert_eq!((error.kind(), error.file()), (ErrorKind::Malformed, Some(&*path)));
}
