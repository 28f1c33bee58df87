//! Adapters of burn-store in its drop-in, beside burn-store itself.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use burn::module::{Module, Param, ParamId};
use burn::nn::{BatchNorm, BatchNormConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Bool, DType, Device, Distribution, Int, Tensor, TensorData};
use burn_pack::Tensor as PackTensor;
use weighbridge_burn::burn_store::{
    BurnToPyTorchAdapter, FloatCastAdapter, HalfPrecisionAdapter, IdentityAdapter, ModuleAdapter,
    ModuleContext, ModuleSnapshot, ModuleStore, PyTorchToBurnAdapter, bridge,
};
use weighbridge_burn::weighbridge::{Checkpoint, Dtype, ErrorKind};
use weighbridge_burn::{SafetensorsStore, burn_store, save};

#[derive(Module, Debug)]
struct Model {
    linear: Linear,
    norm: LayerNorm,
    batch: BatchNorm,
    scale: Param<Tensor<1>>,
    steps: Param<Tensor<1, Int>>,
    mask: Param<Tensor<1, Bool>>,
}

fn model() -> Model {
    let device = Device::flex();
    Model {
        linear: LinearConfig::new(2, 3).init(&device),
        norm: LayerNormConfig::new(3).init(&device),
        batch: BatchNormConfig::new(3).init(&device),
        scale: Param::from_tensor(Tensor::random([3], Distribution::Default, &device)),
        steps: Param::initialized(ParamId::new(), Tensor::from_data([1, 2], &device)),
        mask: Param::initialized(ParamId::new(), Tensor::from_data([true, false], &device)),
    }
}

fn bytes(model: &Model) -> Vec<u8> {
    save(model).bytes().unwrap()
}

/// Names, dtypes, shapes and values of a file.
fn tensors(bytes: &[u8]) -> Vec<(String, Dtype, Vec<usize>, Vec<u8>)> {
    let ckpt = Checkpoint::from_bytes(bytes.to_vec()).unwrap();
    let mut all: Vec<_> = ckpt
        .tensors()
        .map(|tensor| {
            let view = tensor.view().unwrap();
            (tensor.name().to_owned(), tensor.dtype(), tensor.shape().to_vec(), view.bytes().to_vec())
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn saved(model: &Model, adapter: impl ModuleAdapter + 'static) -> Vec<u8> {
    let mut store = SafetensorsStore::from_bytes(None).with_to_adapter(adapter);
    model.save_into(&mut store).unwrap();
    store.get_bytes().unwrap()
}

fn loaded(bytes: &[u8], adapter: impl ModuleAdapter + 'static) -> Model {
    let mut model = model();
    let mut store = SafetensorsStore::from_bytes(Some(bytes.to_vec())).with_from_adapter(adapter);
    let result = model.load_from(&mut store).unwrap();
    assert!(result.is_success() && result.unused.is_empty(), "{result:?}");
    model
}

/// Files and modules are those that burn-store makes with the same adapters.
fn same_as_burn_store(to: impl ModuleAdapter + Clone + 'static, from: impl ModuleAdapter + Clone + 'static) {
    let first = model();
    let ours = saved(&first, to.clone());
    let mut store = burn_store::SafetensorsStore::from_bytes(None).with_to_adapter(to);
    first.save_into(&mut store).unwrap();
    let theirs = store.get_bytes().unwrap();
    assert!(tensors(&ours) == tensors(&theirs));

    let second = loaded(&ours, from.clone());
    let mut third = model();
    let mut store = burn_store::SafetensorsStore::from_bytes(Some(theirs)).with_from_adapter(from);
    third.load_from(&mut store).unwrap();
    assert!(bytes(&second) == bytes(&third));
    assert_eq!(second.linear.weight.val().dtype(), DType::F32);
}

#[test]
fn half_precision_is_what_burn_store_makes_of_it() {
    let half = HalfPrecisionAdapter::new;
    same_as_burn_store(half(), half());
    let other = || half().with_module("Model").without_module("LayerNorm");
    same_as_burn_store(other(), other());

    let saved = saved(&model(), half());
    for (name, dtype, ..) in tensors(&saved) {
        let is_half = ["linear.weight", "linear.bias", "norm.gamma", "norm.beta"].contains(&&*name);
        assert_eq!(dtype == Dtype::F16, is_half, "{name} is {dtype}");
    }
    // Without the adapter the stored dtype is kept.
    assert_eq!(loaded(&saved, IdentityAdapter).linear.weight.val().dtype(), DType::F16);
}

#[test]
fn casts_and_chains_are_what_burn_store_makes_of_them() {
    same_as_burn_store(FloatCastAdapter::to(DType::BF16), FloatCastAdapter::to(DType::F32));
    let half = HalfPrecisionAdapter::new;
    same_as_burn_store(BurnToPyTorchAdapter.chain(half()), PyTorchToBurnAdapter.chain(half()));
}

/// An adapter that is a function of tensors.
#[derive(Clone)]
struct Each(fn(PackTensor) -> PackTensor);

impl ModuleAdapter for Each {
    fn adapt(&self, tensor: PackTensor, _: ModuleContext<'_>) -> PackTensor {
        (self.0)(tensor)
    }

    fn clone_box(&self) -> Box<dyn ModuleAdapter> {
        Box::new(self.clone())
    }
}

/// The tensor with other values, made when they are asked for.
fn with(tensor: PackTensor, dtype: DType, shape: &[usize], values: fn() -> TensorData) -> PackTensor {
    bridge::deferred(tensor.name, dtype, shape.to_vec().into(), None, move || Ok(values()))
}

#[test]
fn whatever_an_adapter_does_wrong_the_module_is_as_it_was() {
    type Case = (ErrorKind, &'static str, fn(PackTensor) -> PackTensor);
    let cases: [Case; 6] = [
        (ErrorKind::Shape, "the adapter gives [2]", |tensor| match &*tensor.name {
            "scale" => with(tensor, DType::F32, &[2], || TensorData::from([1.0_f32, 2.0])),
            _ => tensor,
        }),
        (ErrorKind::Dtype, "I64 cannot be loaded into a parameter of floats", |tensor| match &*tensor.name {
            "scale" => with(tensor, DType::I64, &[3], || TensorData::from([1_i64, 2, 3])),
            _ => tensor,
        }),
        (ErrorKind::Dtype, "F32 cannot be loaded into a parameter of booleans", |tensor| {
            match &*tensor.name {
                "mask" => with(tensor, DType::F32, &[2], || TensorData::from([1.0_f32, 2.0])),
                _ => tensor,
            }
        }),
        (ErrorKind::Value, "the boolean at index 1 is 7", |tensor| match &*tensor.name {
            "mask" => with(tensor, DType::U8, &[2], || TensorData::from([1_u8, 7])),
            _ => tensor,
        }),
        (ErrorKind::Value, "no such luck", |tensor| match &*tensor.name {
            "scale" => with(tensor, DType::F32, &[3], || panic!("no such luck")),
            _ => tensor,
        }),
        (ErrorKind::Device, "not this one", |tensor| match &*tensor.name {
            "scale" => panic!("not this one"),
            _ => tensor,
        }),
    ];
    let good = bytes(&model());
    for (kind, message, adapt) in cases {
        let mut module = model();
        let before = bytes(&module);
        let mut store = SafetensorsStore::from_bytes(Some(good.clone())).with_from_adapter(Each(adapt));
        let error = module.load_from(&mut store).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(message), "{error}");
        assert!(matches!(error.tensor(), Some("scale" | "mask")), "{error}");
        assert!(bytes(&module) == before, "{message}");
    }
    // If nothing is validated, what does not fit is listed and the rest is loaded.
    let (mut module, adapt) = (model(), cases[0].2);
    let store = SafetensorsStore::from_bytes(Some(good)).with_from_adapter(Each(adapt));
    let result = module.load_from(&mut store.validate(false)).unwrap();
    assert_eq!((result.applied.len(), result.errors.len()), (10, 1));
}

#[test]
fn filters_names_and_missing_tensors_are_as_without_an_adapter() {
    let saved = bytes(&model());
    let store = || SafetensorsStore::from_bytes(Some(saved.clone())).with_from_adapter(Each(|tensor| tensor));
    let mut module = model();
    let result = module.load_from(&mut store().with_regex("^linear")).unwrap();
    assert_eq!((result.applied.len(), result.skipped.len(), result.unused.len()), (2, 9, 0));
    let renamed = || store().with_key_remapping("^linear", "dense");
    assert_eq!(module.load_from(&mut renamed()).unwrap_err().kind(), ErrorKind::MissingTensor);
    let result = module.load_from(&mut renamed().allow_partial(true)).unwrap();
    assert_eq!(result.missing.len(), 2);
    assert_eq!(result.missing[0].1, "Struct:Model.Struct:Linear");
    assert_eq!(result.unused, ["dense.bias", "dense.weight"]);

    // When saving, too.
    let mut store = SafetensorsStore::from_bytes(None)
        .with_to_adapter(HalfPrecisionAdapter::new())
        .with_regex("^norm")
        .with_key_remapping("gamma", "weight");
    model().save_into(&mut store).unwrap();
    assert_eq!(store.keys().unwrap(), ["norm.beta", "norm.weight"]);
}

#[test]
fn a_save_that_fails_leaves_what_was_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let store = || SafetensorsStore::from_file(&path);
    let failing = || Each(|tensor| with(tensor, DType::F32, &[3], || panic!("the device is gone")));
    let files = || std::fs::read_dir(directory.path()).unwrap().count();

    let error = model().save_into(&mut store().with_to_adapter(failing())).unwrap_err();
    assert!(error.to_string().contains("the device is gone"), "{error}");
    assert_eq!((error.file(), files()), (Some(&*path), 0));
    model().save_into(&mut store()).unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = model().save_into(&mut store().with_to_adapter(failing()).overwrite(true)).unwrap_err();
    assert_eq!((error.file(), files()), (Some(&*path), 1));
    assert!(std::fs::read(&path).unwrap() == before);
}

/// Writes a file in the destination of a save while it runs.
#[derive(Clone)]
struct Planting(std::path::PathBuf);

impl ModuleAdapter for Planting {
    fn adapt(&self, tensor: PackTensor, _: ModuleContext<'_>) -> PackTensor {
        let (path, own) = (self.0.clone(), tensor.clone());
        bridge::deferred(tensor.name, tensor.dtype, tensor.shape, None, move || {
            std::fs::write(&path, "theirs").unwrap();
            bridge::to_data(&own)
        })
    }

    fn clone_box(&self) -> Box<dyn ModuleAdapter> {
        Box::new(self.clone())
    }
}

#[test]
fn a_file_that_appears_during_a_save_is_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let mut store = SafetensorsStore::from_file(&path).with_to_adapter(Planting(path.clone()));
    let error = model().save_into(&mut store).unwrap_err();
    assert!(error.to_string().contains("already exists"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "theirs");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}
