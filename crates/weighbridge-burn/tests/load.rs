//! Loading: what fits, what does not, and what is left of a module when something fails.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use burn::module::{Module, Param, ParamId};
use burn::nn::{BatchNorm, BatchNormConfig, Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::quantization::{Calibration, QuantScheme, QuantValue};
use burn::tensor::{Bool, BoolStore, DType, Device, Distribution, FloatDType, Int, IntDType, Tensor};
use weighbridge_burn::weighbridge::parallel::DeviceMap;
use weighbridge_burn::weighbridge::write::{Save, Values};
use weighbridge_burn::weighbridge::{Checkpoint, Dtype, ErrorKind, Names, Renames, TensorView};
use weighbridge_burn::{Mapping, load, save};

#[derive(Module, Debug)]
struct Model {
    embed: Embedding,
    layers: Vec<Linear>,
    norm: BatchNorm,
    steps: Param<Tensor<1, Int>>,
    mask: Param<Tensor<1, Bool>>,
    head: Option<Linear>,
}

fn model(device: &Device) -> Model {
    Model {
        embed: EmbeddingConfig::new(4, 3).init(device),
        layers: (0..2).map(|_| LinearConfig::new(3, 3).init(device)).collect(),
        norm: BatchNormConfig::new(3).init(device),
        steps: Param::initialized(ParamId::new(), Tensor::from_data([1, 2], device)),
        mask: Param::initialized(ParamId::new(), Tensor::from_data([true, false, true], device)),
        head: Some(LinearConfig::new(3, 4).with_bias(false).init(device)),
    }
}

fn device() -> Device {
    Device::flex()
}

fn saved(model: &Model) -> Checkpoint {
    Checkpoint::from_bytes(save(model).bytes().unwrap()).unwrap()
}

/// Every parameter's bytes, the lazy ones initialised.
fn bytes(model: &Model) -> Vec<u8> {
    save(model).bytes().unwrap()
}

/// Where the bytes of a parameter are that nothing else has.
fn memory<const D: usize>(param: Param<Tensor<D>>) -> *const u8 {
    param.into_value().into_data().as_bytes().as_ptr()
}

/// Dtype, shape and bytes.
type Raw<'a> = (Dtype, &'a [usize], &'a [u8]);

/// The checkpoint with some tensors replaced or, without one, left out.
fn changed(ckpt: &Checkpoint, changes: &[(&str, Option<Raw<'_>>)]) -> Checkpoint {
    let mut tensors: Vec<(String, TensorView<'_>)> = Vec::new();
    for tensor in ckpt.tensors() {
        match changes.iter().find(|change| change.0 == tensor.name()) {
            Some((_, None)) => {}
            Some((name, Some((dtype, shape, bytes)))) => {
                tensors.push(((*name).to_owned(), TensorView::new(*dtype, shape, bytes).unwrap()));
            }
            None => tensors.push((tensor.name().to_owned(), tensor.view().unwrap())),
        }
    }
    for (name, tensor) in changes {
        if let (None, Some((dtype, shape, bytes))) = (ckpt.tensor(name), tensor) {
            tensors.push(((*name).to_owned(), TensorView::new(*dtype, shape, bytes).unwrap()));
        }
    }
    Checkpoint::from_bytes(Save::new().bytes(tensors).unwrap()).unwrap()
}

#[test]
fn a_module_comes_back_as_it_was() {
    let (first, mut second) = (model(&device()), model(&device()));
    let ckpt = saved(&first);
    assert_eq!(ckpt.tensor("mask").unwrap().dtype(), Dtype::Bool);
    assert_eq!(ckpt.tensor("layers.1.weight").unwrap().shape(), [3, 3]);
    assert!(ckpt.shards()[0].header().metadata_value("weighbridge.burn.ids").is_none());
    assert_ne!(bytes(&first), bytes(&second));
    let report = load(&ckpt).into(&mut second).unwrap();
    assert_eq!(report.loaded.len(), ckpt.len());
    assert_eq!(report.bytes, ckpt.byte_len());
    assert_eq!(bytes(&first), bytes(&second));
    // And it computes: also with what came from memory without a copy.
    let input = Tensor::<2>::ones([2, 3], &device());
    let made = |model: &Model| model.layers[0].forward(input.clone()).into_data();
    assert_eq!(made(&first), made(&second));
}

#[test]
fn whatever_fails_the_module_is_as_it_was() {
    let good = saved(&model(&device()));
    static FLOATS: [u8; 12] = [0; 12];
    type Case = (&'static str, Option<Raw<'static>>, ErrorKind, &'static str);
    let cases: [Case; 7] = [
        ("embed.weight", None, ErrorKind::MissingTensor, "tensor \"embed.weight\": it is missing"),
        ("layers.0.bias", Some((Dtype::F32, &[1, 3], &FLOATS)), ErrorKind::Shape, "[3]"),
        ("norm.gamma", Some((Dtype::I32, &[3], &FLOATS)), ErrorKind::Dtype, "parameter of floats"),
        ("norm.gamma", Some((Dtype::F8_E4M3, &[3], &[0; 3])), ErrorKind::Dtype, "dtype(DType::F32)"),
        ("steps", Some((Dtype::F32, &[2], &[0; 8])), ErrorKind::Dtype, "parameter of integers"),
        ("mask", Some((Dtype::F16, &[3], &[0; 6])), ErrorKind::Dtype, "parameter of booleans"),
        ("mask", Some((Dtype::Bool, &[3], &[0, 1, 2])), ErrorKind::Value, "index 2 is 2"),
    ];
    for (name, tensor, kind, message) in cases {
        let ckpt = changed(&good, &[(name, tensor)]);
        let mut module = model(&device());
        let before = bytes(&module);
        let error = load(&ckpt).into(&mut module).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(message) && error.to_string().contains(name), "{error}");
        assert!(bytes(&module) == before, "{name}");
    }
}

#[test]
fn several_problems_are_counted_and_listed() {
    let ckpt = saved(&model(&device()));
    let ckpt = changed(
        &ckpt,
        &[
            ("layers.0.weight", None),
            ("layers.1.weight", None),
            ("layer.0.weight", Some((Dtype::U8, &[1], &[0]))),
            ("norm.beta", Some((Dtype::F32, &[1], &[0; 4]))),
        ],
    );
    let mut module = model(&device());
    let report = load(&ckpt).check(&module).unwrap();
    assert_eq!(report.missing.len(), 2);
    assert_eq!(report.missing[0].nearest.as_deref(), Some("layer.0.weight"));
    assert_eq!(report.unused, ["layer.0.weight"]);
    assert_eq!(report.problems.len(), 1);
    assert_eq!(report.to_string(), "9 loaded (0 cast), 2 missing, 1 unused, 1 that do not fit");
    let error = load(&ckpt).into(&mut module).unwrap_err();
    assert!(error.to_string().ends_with("; and 2 more problems"), "{error}");
    let ckpt = changed(&ckpt, &[("norm.beta", Some((Dtype::F32, &[3], &[0; 12])))]);
    let report = load(&ckpt).partial().into(&mut module).unwrap();
    assert_eq!((report.loaded.len(), report.missing.len()), (10, 2));
    let error = load(&ckpt).partial().all_used().into(&mut module).unwrap_err();
    assert!(error.to_string().contains("tensor \"layer.0.weight\": no parameter takes it"), "{error}");
}

#[test]
fn only_some_parameters() {
    let (first, mut second) = (model(&device()), model(&device()));
    let before = Checkpoint::from_bytes(bytes(&second)).unwrap();
    let ckpt = changed(&saved(&first), &[("embed.weight", None)]);
    let report = load(&ckpt).only(Names::glob("layers.*").unwrap()).into(&mut second).unwrap();
    assert_eq!(report.loaded.len(), 4);
    assert_eq!(report.skipped.len(), 8);
    assert!(report.missing.is_empty());
    let after = Checkpoint::from_bytes(bytes(&second)).unwrap();
    for tensor in after.tensors() {
        let from = if tensor.name().starts_with("layers.") { &ckpt } else { &before };
        let expected = from.tensor(tensor.name()).unwrap();
        assert!(tensor.view().unwrap().bytes() == expected.view().unwrap().bytes(), "{}", tensor.name());
    }
    let some = save(&first).only(Names::prefix("norm.")).bytes().unwrap();
    assert_eq!(Checkpoint::from_bytes(some).unwrap().len(), 4);
    // A set that has none was not meant so.
    let none = || Names::prefix("layer.");
    let error = load(&ckpt).only(none()).into(&mut second).unwrap_err().to_string();
    assert!(error.contains("`only` selects no parameter") && error.contains("\"embed.weight\""), "{error}");
    let error = save(&first).only(none()).bytes().unwrap_err().to_string();
    assert!(error.contains("`only` selects no parameter"), "{error}");
}

#[test]
fn names_are_changed_and_may_not_collide() {
    let (first, mut second) = (model(&device()), model(&device()));
    let other = save(&first).rename(Renames::new().prefix("layers.", "encoder.blocks.")).bytes().unwrap();
    let other = Checkpoint::from_bytes(other).unwrap();
    assert!(other.tensor("encoder.blocks.1.weight").is_some());
    let back = Renames::new().glob("encoder.blocks.*", "layers.*").unwrap();
    load(&other).rename(back).all_used().into(&mut second).unwrap();
    assert_eq!(bytes(&first), bytes(&second));
    let all_one = Renames::new().regex(r"layers\.\d+", "layers.0").unwrap();
    let error = load(&saved(&first)).rename(all_one.clone()).check(&second).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DuplicateTensor);
    let error = save(&first).rename(all_one).bytes().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DuplicateTensor);
}

#[test]
fn dtypes_are_those_of_the_file_or_those_asked_for() {
    let first = model(&device());
    let ckpt = saved(&first);
    let half = [0_u8, 60, 0, 64, 0, 66];
    let ckpt = changed(
        &ckpt,
        &[
            ("norm.gamma", Some((Dtype::F16, &[3], &half))),
            ("norm.beta", Some((Dtype::F8_E4M3, &[3], &[0x38, 0x40, 0x44]))),
            ("steps", Some((Dtype::U16, &[2], &[1, 0, 255, 255]))),
            ("mask", Some((Dtype::U8, &[3], &[1, 0, 0]))),
        ],
    );
    let mut module = model(&device());
    assert!(load(&ckpt).into(&mut module).is_err());
    let report = load(&ckpt).dtype(FloatDType::BF16).dtype(IntDType::I64).into(&mut module).unwrap();
    assert_eq!(module.embed.weight.val().dtype(), DType::BF16);
    assert_eq!(
        module.norm.beta.val().into_data().convert::<f32>().try_to_vec::<f32>().unwrap(),
        [1.0, 2.0, 3.0]
    );
    assert_eq!(
        module.norm.gamma.val().into_data().convert::<f32>().try_to_vec::<f32>().unwrap(),
        [1.0, 2.0, 3.0]
    );
    assert_eq!(module.steps.val().into_data().try_to_vec::<i64>().unwrap(), [1, 65535]);
    assert_eq!(module.mask.val().into_data().try_to_vec::<bool>().unwrap(), [true, false, false]);
    assert_eq!(report.cast.len(), report.loaded.len() - 1);
    let error = load(&ckpt).dtype(FloatDType::F32).dtype(IntDType::I8).into(&mut module).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Value, "{error}");
    let ckpt = changed(&ckpt, &[("norm.beta", Some((Dtype::F32, &[3], &[0; 12])))]);
    load(&ckpt).into(&mut module).unwrap();
    assert_eq!(module.norm.gamma.val().dtype(), DType::F16);
    assert_eq!(module.steps.val().dtype(), DType::U16);
    assert_eq!(Checkpoint::from_bytes(bytes(&module)).unwrap().tensor("steps").unwrap().dtype(), Dtype::U16);
}

#[test]
fn complex_numbers_come_as_pairs() {
    #[derive(Module, Debug)]
    struct Wave {
        values: Param<Tensor<2>>,
    }
    let mut wave = Wave { values: Param::initialized(ParamId::new(), Tensor::zeros([2, 2], &device())) };
    let values = Values::new(&[2], &[[1.0_f32, 2.0], [3.0, 4.0]]).unwrap();
    let ckpt = Checkpoint::from_bytes(Save::new().bytes([("values", values)]).unwrap()).unwrap();
    assert_eq!(load(&ckpt).into(&mut wave).unwrap_err().kind(), ErrorKind::Dtype);
    load(&ckpt).complex_pairs().into(&mut wave).unwrap();
    assert_eq!(wave.values.val().into_data().try_to_vec::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0]);
}

#[test]
fn ids_come_along_when_they_are_asked_for() {
    let first = model(&device());
    let ckpt = Checkpoint::from_bytes(save(&first).pytorch().ids().bytes().unwrap()).unwrap();
    let mut second = model(&device());
    load(&ckpt).pytorch().into(&mut second).unwrap();
    assert_eq!(first.layers[1].weight.id, second.layers[1].weight.id);
    let mut third = model(&device());
    let own = third.layers[1].weight.id;
    load(&saved(&first)).into(&mut third).unwrap();
    assert_eq!(third.layers[1].weight.id, own);
    assert_eq!(saved(&first).byte_len(), saved(&third).byte_len());
    assert_eq!(bytes(&first), bytes(&third));
}

#[test]
fn tied_weights_are_written_once() {
    #[derive(Module, Debug)]
    struct Tied {
        embed: Embedding,
        head: Linear,
    }
    let fresh = || Tied {
        embed: EmbeddingConfig::new(4, 3).init(&device()),
        head: LinearConfig::new(3, 4).with_bias(false).init(&device()),
    };
    let mapping = Mapping::pytorch().tied("head.weight", "embed.weight");
    let mut first = fresh();
    let error = save(&first).mapping(mapping.clone()).bytes().unwrap_err();
    assert!(error.to_string().contains("tied to \"embed.weight\""), "{error}");
    let embedding = save(&first).pytorch().only(Names::prefix("embed")).bytes().unwrap();
    let embedding = Checkpoint::from_bytes(embedding).unwrap();
    assert_eq!(load(&embedding).pytorch().into(&mut first).unwrap_err().kind(), ErrorKind::MissingTensor);
    load(&embedding).mapping(mapping.clone()).into(&mut first).unwrap();
    let (embed, head) = (first.embed.weight.val(), first.head.weight.val());
    assert_eq!(embed.into_data(), head.transpose().into_data());
    let once = Checkpoint::from_bytes(save(&first).mapping(mapping.clone()).bytes().unwrap()).unwrap();
    assert_eq!(once.len(), 1);

    // Where nothing in the file would stand for it, it is written.
    let names = |ckpt: &Checkpoint| ckpt.tensors().map(|t| t.name().to_owned()).collect::<Vec<_>>();
    let both = ["embed.weight", "head.weight"];
    let cases = [
        (Mapping::pytorch().tied("head.weight", "embd.weight"), Names::all(), &both[..]),
        (Mapping::pytorch().tied("head.weight", "embed.weight"), Names::prefix("head"), &both[1..]),
        (mapping.clone().tied("embed.weight", "head.weight"), Names::all(), &both[..]),
        (mapping.clone().tied("embed.weight", "x"), Names::all(), &both[..]),
    ];
    for (mapping, only, expected) in cases {
        let saved = save(&first).mapping(mapping.clone()).only(only).bytes().unwrap();
        let saved = Checkpoint::from_bytes(saved).unwrap();
        let mut found = names(&saved);
        found.sort();
        assert_eq!(found, expected, "{mapping:?}");
    }
}

#[test]
fn what_a_module_learnt_before_does_not_go_over_what_is_loaded() {
    let device = device().autodiff();
    let train =
        |norm: &BatchNorm| norm.forward(Tensor::<3>::random([4, 3, 5], Distribution::Default, &device));
    let fresh = || BatchNormConfig::new(3).init(&device);
    let first: BatchNorm = fresh();
    train(&first);
    train(&first);
    let ckpt = Checkpoint::from_bytes(save(&first).bytes().unwrap()).unwrap();
    let mean = |norm: &BatchNorm| norm.running_mean.value_sync().into_data();
    let mut second = fresh();
    train(&second);
    load(&ckpt).into(&mut second).unwrap();
    assert_eq!(mean(&second), mean(&first));
    let mut again = second.clone();
    train(&second);
    assert!(save(&again).bytes().unwrap() == save(&second).bytes().unwrap(), "clones share what they learn");
    load(&ckpt).into(&mut again).unwrap();
    assert!(save(&again.valid()).bytes().unwrap() == save(&again).bytes().unwrap());
    let saved = Checkpoint::from_bytes(save(&again).bytes().unwrap()).unwrap();
    for tensor in saved.tensors() {
        let expected = ckpt.tensor(tensor.name()).unwrap();
        assert!(tensor.view().unwrap().bytes() == expected.view().unwrap().bytes(), "{}", tensor.name());
    }
}

#[test]
fn parameters_that_are_not_loaded_stay_lazy() {
    let ckpt = saved(&model(&device()));
    let mut second = model(&device());
    load(&ckpt).only(Names::prefix("norm.")).into(&mut second).unwrap();
    save(&second).only(Names::prefix("norm.")).bytes().unwrap();
    assert!(second.norm.gamma.is_initialized() && !second.embed.weight.is_initialized());
}

#[test]
fn errors_name_the_file_and_the_stored_tensor() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("model.safetensors");
    let ckpt = saved(&model(&device()));
    let back = || Renames::new().prefix("bert.", "");
    let fails = |changes: &[(&str, Option<Raw<'_>>)], words: &[&str]| {
        let ckpt = changed(&ckpt, changes);
        let tensors =
            ckpt.tensors().map(|tensor| (format!("bert.{}", tensor.name()), tensor.view().unwrap()));
        Save::new().file(&file, tensors).unwrap();
        let ckpt = Checkpoint::open(&file).unwrap();
        let report = load(&ckpt).rename(back()).check(&model(&device())).unwrap();
        assert!(report.problems.iter().all(|problem| problem.file() == Some(&*file)), "{report:?}");
        let error = load(&ckpt).rename(back()).all_used().into(&mut model(&device())).unwrap_err();
        assert_eq!(error.file(), Some(&*file), "{error}");
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    fails(
        &[("norm.beta", Some((Dtype::F32, &[1], &[0; 4])))],
        &["tensor \"norm.beta\"", "stored as \"bert.norm.beta\"", "[3]", "[1]"],
    );
    fails(&[("mask", Some((Dtype::Bool, &[3], &[0, 1, 2])))], &["tensor \"mask\"", "index 2 is 2"]);
    fails(&[("more", Some((Dtype::U8, &[1], &[0])))], &["tensor \"bert.more\"", "no parameter takes it"]);
    // Names are compared as they are looked for.
    fails(
        &[("norm.gamma", None), ("norm.gama", Some((Dtype::F32, &[3], &[0; 12])))],
        &["tensor \"norm.gamma\"", "nearest is \"bert.norm.gama\"", "renamed \"norm.gama\""],
    );
    let bytes = save(&model(&device())).with(Save::new().metadata("weighbridge.burn.ids", "[]"));
    bytes.file(&file).unwrap();
    let error = load(&Checkpoint::open(&file).unwrap()).into(&mut model(&device())).unwrap_err();
    assert_eq!(error.file(), Some(&*file), "{error}");
}

#[test]
fn a_check_finds_what_a_load_refuses() {
    let module = model(&device());
    let report = load(&saved(&module)).dtype(DType::Bool(BoolStore::Native)).check(&module).unwrap();
    assert_eq!(report.problems.len(), 1, "{report:?}");
    let report = load(&saved(&module)).only(Names::exact("x")).check(&module).unwrap();
    assert_eq!(report.problems.len(), 1, "{report:?}");
}

#[test]
fn a_module_that_is_trained_stays_so() {
    let device = device().autodiff();
    let first = model(&device);
    let mut second = model(&device);
    load(&saved(&first)).into(&mut second).unwrap();
    assert!(second.layers[0].weight.val().is_require_grad());
    assert!(second.embed.weight.val().device().is_autodiff());
    let output = second.layers[0].forward(Tensor::<2>::ones([1, 3], &device)).sum();
    let gradients = output.backward();
    assert!(second.layers[0].weight.val().grad(&gradients).is_some());
    assert!(!second.norm.running_mean.value().is_require_grad());
}

#[test]
fn quantised_tensors_keep_their_bytes_and_their_scheme() {
    use burn::module::Quantizer;
    let linear = || LinearConfig::new(64, 32).init(&device());
    let scheme = QuantScheme::default().with_value(QuantValue::Q8S);
    let mut quantizer = Quantizer::new(Calibration::MinMax, scheme);
    let first = linear().quantize_weights(&mut quantizer);
    assert!(matches!(first.weight.val().dtype(), DType::QFloat(_)));
    let saved = save(&first).bytes().unwrap();
    let ckpt = Checkpoint::from_bytes(saved.clone()).unwrap();
    assert_eq!(ckpt.tensor("weight").unwrap().dtype(), Dtype::U8);
    let mut second = linear();
    load(&ckpt).into(&mut second).unwrap();
    assert_eq!(second.weight.val().dtype(), first.weight.val().dtype());
    assert!(save(&second).bytes().unwrap() == saved);
    let values = |linear: &Linear| linear.weight.val().dequantize().into_data();
    assert_eq!(values(&first), values(&second));
    assert!(save(&first).pytorch().bytes().is_err());
}

#[test]
#[allow(unsafe_code)]
fn mapped_files_are_the_tensors_until_they_are_written_to() {
    use weighbridge_burn::weighbridge::Mapping as FileMapping;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("model.safetensors");
    let first = model(&device());
    save(&first).with(Save::new().align(64)).file(&file).unwrap();
    let before = std::fs::read(&file).unwrap();
    // SAFETY: nobody changes the file while this test runs.
    let mapping = unsafe { FileMapping::new() };
    let ckpt = Checkpoint::options().map(mapping).open(&file).unwrap();
    let mut second = model(&device());
    load(&ckpt).into(&mut second).unwrap();
    let place = ckpt.tensor("layers.0.weight").unwrap().view().unwrap().bytes().as_ptr();
    assert_eq!(memory(second.layers.remove(0).weight), place);
    drop(ckpt);
    // What changes a tensor in place must not write to the file.
    let weight = second.embed.weight.val() + 1.0;
    let more = second.embed.weight.into_value().add_scalar(1.0);
    assert_eq!(weight.into_data(), more.into_data());
    assert!(std::fs::read(&file).unwrap() == before);
    second.embed = EmbeddingConfig::new(4, 3).init(&device());
    drop(second);
}

#[test]
fn misaligned_bytes_are_copied() {
    // A tensor of one byte in front moves those behind it to odd places.
    let first = model(&device());
    let ckpt = saved(&first);
    let tensors: Vec<_> = std::iter::once(("a".to_owned(), TensorView::new(Dtype::U8, &[1], &[7]).unwrap()))
        .chain(ckpt.tensors().map(|tensor| (tensor.name().to_owned(), tensor.view().unwrap())))
        .collect();
    let order = weighbridge_burn::weighbridge::write::Order::Given;
    let odd = Checkpoint::from_bytes(Save::new().order(order).bytes(tensors).unwrap()).unwrap();
    let place = |name: &str| odd.tensor(name).unwrap().view().unwrap().bytes().as_ptr();
    assert_ne!(place("layers.1.weight").addr() % 4, 0);
    let mut second = model(&device());
    load(&odd).into(&mut second).unwrap();
    let copied = memory(second.layers.pop().unwrap().weight);
    assert!(copied != place("layers.1.weight") && copied.addr() % 4 == 0);
    let input = Tensor::<2>::ones([2, 3], &device());
    assert_eq!(
        first.layers[0].forward(input.clone()).into_data(),
        second.layers[0].forward(input).into_data()
    );
}

#[test]
fn damaged_metadata_is_an_error() {
    let first = model(&device());
    let mut second = model(&device());
    for (key, value) in [
        ("weighbridge.burn.ids", "[]"),
        ("weighbridge.burn.ids", r#"{"steps":5}"#),
        ("weighbridge.burn.quantised", r#"{"steps":{"shape":[2]}}"#),
        ("weighbridge.burn.quantised", "{"),
    ] {
        let bytes = save(&first).with(Save::new().metadata(key, value)).bytes().unwrap();
        let error = load(&Checkpoint::from_bytes(bytes).unwrap()).into(&mut second).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Value, "{error}");
    }
}

#[test]
fn a_cancelled_load_changes_nothing() {
    let mut module = model(&device());
    let before = bytes(&module);
    let ckpt = saved(&model(&device()));
    let error =
        load(&ckpt).dtype(FloatDType::F64).progress(|_| std::ops::ControlFlow::Break(())).into(&mut module);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(bytes(&module) == before);
}

#[test]
fn a_map_of_devices_says_what_does_not_fit() {
    let first = model(&device());
    let ckpt = saved(&first);
    let loads = |budgets: [u64; 2]| {
        let map = DeviceMap::by_memory(budgets.map(|bytes| (device(), bytes)));
        let mut second = model(&device().autodiff());
        let before = bytes(&second);
        let loaded = load(&ckpt).device_map(map).into(&mut second);
        assert!(bytes(&second) == if loaded.is_ok() { bytes(&first) } else { before });
        assert!(second.layers[0].weight.val().is_require_grad());
        loaded
    };
    // A layer has 48 bytes; the embedding and what else is in front of the layers come before.
    assert_eq!(loads([1000, 1000]).unwrap().loaded.len(), ckpt.len());
    let error = loads([120, 40]).unwrap_err();
    assert!(error.kind() == ErrorKind::Memory && error.to_string().contains("layer layers."), "{error}");
    assert_eq!(loads([0, 0]).unwrap_err().kind(), ErrorKind::Memory);
}
