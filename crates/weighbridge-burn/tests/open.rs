//! Checkpoints of other formats, opened by the same call.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::path::{Path, PathBuf};

use burn::module::{Module, Param};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use weighbridge_burn::burn_store::{ModuleSnapshot, ModuleStore};
use weighbridge_burn::weighbridge::{Checkpoint, ErrorKind, Renames};
use weighbridge_burn::{PytorchStore, SafetensorsStore, load, open, save};

/// What `nn.Sequential(Linear(3, 4), BatchNorm1d(4))` holds.
#[derive(Module, Debug)]
struct Model {
    linear: Linear,
    norm: BatchNorm,
}

fn model() -> Model {
    let device = Device::flex();
    Model { linear: LinearConfig::new(3, 4).init(&device), norm: BatchNormConfig::new(4).init(&device) }
}

fn renames() -> Renames {
    Renames::new().prefix("0.", "linear.").prefix("1.", "norm.")
}

fn bytes(model: &Model) -> Vec<u8> {
    save(model).bytes().unwrap()
}

/// A file that the tests of weighbridge-convert have.
fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../weighbridge-convert/tests/pickle", name].iter().collect()
}

/// The model as safetensors of the same values give it.
fn expected() -> Vec<u8> {
    let mut expected = model();
    let ckpt = Checkpoint::open(fixture("lightning.safetensors")).unwrap();
    load(&ckpt).pytorch().rename(renames()).into(&mut expected).unwrap();
    bytes(&expected)
}

#[test]
fn a_pickle_of_pytorch_opens_as_safetensors_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::copy(fixture("lightning.ckpt"), path("model.pth")).unwrap();
    std::fs::create_dir(path("repository")).unwrap();
    std::fs::copy(fixture("lightning.ckpt"), path("repository/pytorch_model.bin")).unwrap();
    let safetensors = fixture("lightning.safetensors");
    for location in [fixture("lightning.ckpt"), path("model.pth"), path("repository"), safetensors] {
        let mut loaded = model();
        let report = load(&open(&location).unwrap()).pytorch().rename(renames()).into(&mut loaded).unwrap();
        assert_eq!(report.unused, ["1.num_batches_tracked"], "{location:?}");
        assert!(bytes(&loaded) == expected(), "{location:?}");
    }
    let error = open(path("none.pth")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

/// A GGUF file with one matrix of two rows of three values.
fn write_gguf(path: &Path) {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend([1_u64, 0].map(u64::to_le_bytes).concat()); // tensors, entries of metadata
    bytes.extend(6_u64.to_le_bytes());
    bytes.extend(b"matrix");
    bytes.extend(2_u32.to_le_bytes());
    bytes.extend([3_u64, 2].map(u64::to_le_bytes).concat()); // the innermost dimension first
    bytes.extend(0_u32.to_le_bytes()); // F32
    bytes.extend(0_u64.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend([1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0].map(f32::to_le_bytes).concat());
    std::fs::write(path, bytes).unwrap();
}

#[derive(Module, Debug)]
struct Projection {
    matrix: Param<Tensor<2>>,
}

#[test]
fn a_gguf_file_opens_as_safetensors_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    write_gguf(&path);
    let device = Device::flex();
    let mut module = Projection { matrix: Param::from_tensor(Tensor::zeros([2, 3], &device)) };
    load(&open(&path).unwrap()).all_used().into(&mut module).unwrap();
    let values = module.matrix.val().into_data().try_to_vec::<f32>().unwrap();
    assert_eq!(values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    // burn-store's seam opens it, too.
    module.matrix = Param::from_tensor(Tensor::zeros([2, 3], &device));
    module.load_from(&mut SafetensorsStore::from_file(&path)).unwrap();
    assert_eq!(module.matrix.val().into_data().try_to_vec::<f32>().unwrap(), values);
}

fn pytorch_store(path: PathBuf) -> PytorchStore {
    PytorchStore::from_file(path)
        .with_key_remapping("^0\\.", "linear.")
        .with_key_remapping("^1\\.", "norm.")
        .map_indices_contiguous(false)
}

#[test]
fn code_for_burn_stores_pytorch_store_runs() {
    let mut loaded = model();
    let result = loaded.load_from(&mut pytorch_store(fixture("lightning.ckpt"))).unwrap();
    assert_eq!((result.applied.len(), result.unused), (6, vec!["norm.num_batches_tracked".to_owned()]));
    assert!(bytes(&loaded) == expected());

    // The tensors under a key, whatever is beside them.
    let mut loaded = model();
    let mut store = pytorch_store(fixture("lightning.ckpt")).with_top_level_key("state_dict");
    loaded.load_from(&mut store).unwrap();
    assert!(bytes(&loaded) == expected());
    assert!(store.keys().unwrap().contains(&"linear.weight".to_owned()));
    let mut store = pytorch_store(fixture("lightning.ckpt")).with_top_level_key("optimizer");
    let error = loaded.load_from(&mut store).unwrap_err();
    assert!(error.to_string().contains("no tensors under the key \"optimizer\""), "{error}");
    let error = loaded.save_into(&mut store).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
