//! Code for burn-store's `SafetensorsStore`, with its `use` line changed; and beside the original.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::nn::attention::{MultiHeadAttention, MultiHeadAttentionConfig};
use burn::nn::{InstanceNorm, InstanceNormConfig, Linear, LinearConfig, Lstm, LstmConfig};
use burn::tensor::Device;
use burn_store::{BurnToPyTorchAdapter, ModuleSnapshot, ModuleStore, PyTorchToBurnAdapter};
use weighbridge_burn::weighbridge::{Checkpoint, ErrorKind};
use weighbridge_burn::{SafetensorsStore, burn_store, save};

#[derive(Module, Debug)]
struct Model {
    first: Linear,
    norm: InstanceNorm,
    second: Linear,
}

fn model() -> Model {
    let device = Device::flex();
    Model {
        first: LinearConfig::new(2, 3).init(&device),
        norm: InstanceNormConfig::new(3).init(&device),
        second: LinearConfig::new(3, 2).init(&device),
    }
}

fn bytes(model: &Model) -> Vec<u8> {
    save(model).bytes().unwrap()
}

#[test]
fn what_is_saved_is_loaded() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("model.safetensors");
    let (first, mut second) = (model(), model());
    let mut store = SafetensorsStore::from_file(&file)
        .metadata("version", "1.0")
        .with_to_adapter(BurnToPyTorchAdapter)
        .with_from_adapter(PyTorchToBurnAdapter);
    first.save_into(&mut store).unwrap();
    assert_eq!(store.keys().unwrap().len(), 6);
    assert!(store.keys().unwrap().contains(&"norm.weight".to_owned()));
    let weight = store.get_tensor("first.weight").unwrap().unwrap();
    assert_eq!(weight.shape.to_vec(), [3, 2]);
    assert_eq!(weight.to_bytes().unwrap().len(), 24);
    let result = second.load_from(&mut store).unwrap();
    assert_eq!(result.applied.len(), 6);
    assert!(result.is_success());
    assert_eq!(bytes(&first), bytes(&second));
    // A file that is there is not replaced unasked.
    assert!(first.save_into(&mut store).unwrap_err().to_string().contains("overwrite(true)"));
    first.save_into(&mut store.overwrite(true)).unwrap();
    // And neither is a checkpoint in a directory.
    let directory = tempfile::tempdir().unwrap();
    let mut store = SafetensorsStore::from_file(directory.path());
    first.save_into(&mut store).unwrap();
    let file = directory.path().join("model.safetensors");
    let before = std::fs::read(&file).unwrap();
    assert!(model().save_into(&mut store).unwrap_err().to_string().contains("overwrite(true)"));
    assert!(std::fs::read(&file).unwrap() == before);
    model().save_into(&mut store.overwrite(true)).unwrap();
    assert!(std::fs::read(&file).unwrap() != before);
}

#[derive(Module, Debug)]
enum Layer {
    Plain(Linear),
}

#[derive(Module, Debug)]
struct Layers {
    attention: MultiHeadAttention,
    lstm: Lstm,
    layer: Layer,
}

fn layers() -> Layers {
    let device = Device::flex();
    Layers {
        attention: MultiHeadAttentionConfig::new(4, 2).init(&device),
        lstm: LstmConfig::new(2, 3, true).init(&device),
        layer: Layer::Plain(LinearConfig::new(2, 2).init(&device)),
    }
}

#[test]
fn adapters_give_the_names_that_burn_store_gives() {
    let directory = tempfile::tempdir().unwrap();
    for skip in [false, true] {
        let (ours, theirs) = (directory.path().join("ours"), directory.path().join("theirs"));
        let mut store = SafetensorsStore::from_file(&ours)
            .with_to_adapter(BurnToPyTorchAdapter)
            .with_from_adapter(PyTorchToBurnAdapter)
            .skip_enum_variants(skip)
            .overwrite(true);
        let mut other = burn_store::SafetensorsStore::from_file(&theirs)
            .with_to_adapter(BurnToPyTorchAdapter)
            .skip_enum_variants(skip)
            .overwrite(true);
        let first = layers();
        first.save_into(&mut store).unwrap();
        first.save_into(&mut other).unwrap();
        assert_eq!(store.keys().unwrap(), other.keys().unwrap());
        let mut second = layers();
        second.load_from(&mut store).unwrap();
        assert!(save(&second).bytes().unwrap() == save(&first).bytes().unwrap());
    }
}

#[test]
fn what_is_missing_is_told_with_the_types_on_the_way() {
    let mut store = SafetensorsStore::from_bytes(None);
    model().save_into(&mut store).unwrap();
    let result = layers().load_from(&mut store.allow_partial(true)).unwrap();
    let path = "layer.Plain.weight".to_owned();
    let owners = "Struct:Layers.Enum:Layer.Struct:Linear".to_owned();
    assert!(result.missing.contains(&(path, owners)), "{:?}", result.missing);
}

#[test]
fn files_go_both_ways_between_the_two() {
    let directory = tempfile::tempdir().unwrap();
    let (first, mut second, mut third) = (model(), model(), model());
    let theirs = directory.path().join("theirs.safetensors");
    first.save_into(&mut burn_store::SafetensorsStore::from_file(&theirs)).unwrap();
    second.load_from(&mut SafetensorsStore::from_file(&theirs)).unwrap();
    assert_eq!(bytes(&first), bytes(&second));
    let ours = directory.path().join("ours.safetensors");
    first.save_into(&mut SafetensorsStore::from_file(&ours)).unwrap();
    third.load_from(&mut burn_store::SafetensorsStore::from_file(&ours)).unwrap();
    assert_eq!(bytes(&first), bytes(&third));
}

#[test]
fn filters_names_and_partial_loads() {
    let mut store = SafetensorsStore::from_bytes(None);
    assert_eq!(store.get_bytes().unwrap_err().kind(), ErrorKind::NotFound);
    let (first, mut second) = (model(), model());
    first.save_into(&mut store).unwrap();
    let saved = store.get_bytes().unwrap();

    // What is filtered out is not missing.
    let filtered = || SafetensorsStore::from_bytes(Some(saved.clone())).with_regex(r"^first\.");
    let result = second.load_from(&mut filtered()).unwrap();
    assert_eq!((result.applied.len(), result.skipped.len(), result.missing.len()), (2, 4, 0));
    let mut by_type = SafetensorsStore::from_bytes(Some(saved.clone()))
        .with_predicate(|_, types| types.ends_with("Struct:InstanceNorm"));
    assert_eq!(second.load_from(&mut by_type).unwrap().applied, ["norm.gamma", "norm.beta"]);

    let renamed = || SafetensorsStore::from_bytes(Some(saved.clone())).with_key_remapping("^second", "third");
    let before = bytes(&second);
    assert_eq!(second.load_from(&mut renamed()).unwrap_err().kind(), ErrorKind::MissingTensor);
    assert_eq!(bytes(&second), before);
    let result = second.load_from(&mut renamed().allow_partial(true)).unwrap();
    assert_eq!((result.applied.len(), result.missing.len(), result.unused.len()), (4, 2, 2));
    let mut one = SafetensorsStore::from_bytes(Some(saved.clone())).with_key_remapping("first|second", "x");
    assert_eq!(second.load_from(&mut one).unwrap_err().kind(), ErrorKind::DuplicateTensor);
    let mut bad = SafetensorsStore::from_bytes(Some(saved)).with_key_remapping("(", "x");
    assert_eq!(second.load_from(&mut bad).unwrap_err().kind(), ErrorKind::Pattern);
}

#[test]
fn tensors_that_do_not_fit_are_listed_when_nothing_is_validated() {
    #[derive(Module, Debug)]
    struct Other {
        first: Linear,
    }
    let mut store = SafetensorsStore::from_bytes(None);
    model().save_into(&mut store).unwrap();
    let mut other = Other { first: LinearConfig::new(2, 5).init(&Device::flex()) };
    assert_eq!(other.load_from(&mut store).unwrap_err().kind(), ErrorKind::Shape);
    let result = other.load_from(&mut store.validate(false)).unwrap();
    assert_eq!((result.applied.len(), result.errors.len()), (0, 2));
}

/// The metadata of what a store saves.
fn metadata(store: SafetensorsStore) -> Vec<(String, String)> {
    let mut store = store;
    model().save_into(&mut store).unwrap();
    let ckpt = Checkpoint::from_bytes(store.get_bytes().unwrap()).unwrap();
    let entries = ckpt.shards()[0].header().metadata().into_iter().flatten();
    let mut entries: Vec<_> = entries.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    entries.sort();
    entries
}

#[test]
fn files_have_burn_stores_metadata() {
    let store = || SafetensorsStore::from_bytes(None);
    let mut default: Vec<_> = SafetensorsStore::default_metadata().into_iter().collect();
    default.sort();
    let theirs = burn_store::SafetensorsStore::default_metadata();
    assert_eq!(default, theirs.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect::<Vec<_>>());
    assert_eq!(metadata(store()), default);
    assert_eq!(metadata(SafetensorsStore::default()), default);
    let one = |key: &str, value: &str| vec![(key.to_owned(), value.to_owned())];
    assert_eq!(metadata(store().metadata("a", "b")), [one("a", "b"), default.clone()].concat());
    assert_eq!(metadata(store().metadata("a", "b").clear_metadata()), []);
    assert_eq!(metadata(store().clear_metadata().metadata("a", "b")), one("a", "b"));
    // transformers asks for the format.
    let format = |store: SafetensorsStore| metadata(store).into_iter().find(|(key, _)| key == "format");
    let pytorch = || store().with_to_adapter(BurnToPyTorchAdapter);
    assert_eq!(format(pytorch()), one("format", "pt").pop());
    assert_eq!(format(pytorch().metadata("format", "mine")), one("format", "mine").pop());
    assert_eq!(metadata(pytorch().clear_metadata()), []);
}

#[derive(Module, Debug)]
struct Lists {
    flows: Vec<Option<Linear>>,
    fc: Vec<Option<Linear>>,
}

#[test]
fn indices_are_made_contiguous_as_in_burn_store() {
    let device = Device::flex();
    let linear = || Some(LinearConfig::new(1, 1).with_bias(false).init(&device));
    let gaps = || Lists { flows: vec![linear(), None, linear()], fc: vec![None, linear(), None, linear()] };
    let file = tempfile::NamedTempFile::new().unwrap();
    gaps().save_into(&mut SafetensorsStore::from_file(file.path()).overwrite(true)).unwrap();

    let ours = || SafetensorsStore::from_file(file.path());
    let theirs = || burn_store::SafetensorsStore::from_file(file.path());
    let closed = ["fc.0.weight", "fc.1.weight", "flows.0.weight", "flows.1.weight"];
    assert_eq!(ours().map_indices_contiguous(true).keys().unwrap(), closed);
    assert_eq!(theirs().map_indices_contiguous(true).keys().unwrap(), closed);
    let kept = ["fc.0.weight", "fc.1.weight", "flows.0.weight", "flows.2.weight"];
    let except = "^flows$";
    let mut store = ours().map_indices_contiguous(true).map_indices_contiguous_except(except);
    assert_eq!(store.keys().unwrap(), kept);
    let mut other = theirs().map_indices_contiguous(true).map_indices_contiguous_except(except);
    assert_eq!(other.keys().unwrap(), kept);
    // Without the option, exceptions mean nothing.
    let mut store = store.map_indices_contiguous(false);
    assert_eq!(store.keys().unwrap(), ["fc.1.weight", "fc.3.weight", "flows.0.weight", "flows.2.weight"]);

    let mut dense = Lists { flows: vec![linear(), linear()], fc: vec![linear(), linear()] };
    assert_eq!(dense.load_from(&mut ours()).unwrap_err().kind(), ErrorKind::MissingTensor);
    let result = dense.load_from(&mut ours().map_indices_contiguous(true)).unwrap();
    assert_eq!((result.applied.len(), result.unused.len()), (4, 0));
    let mut bad = ours().map_indices_contiguous_except("(");
    assert_eq!(dense.load_from(&mut bad).unwrap_err().kind(), ErrorKind::Pattern);
}
