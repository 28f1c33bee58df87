//! Quantised modules are the weights that they stand for; or they are refused, or their codes are asked for raw.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use burn::module::{Module, Param, ParamId};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{Device, FloatDType, Int, Tensor};
use burn_store::{ModuleSnapshot, ModuleStore, PyTorchToBurnAdapter};
use weighbridge_burn::weighbridge::write::Save;
use weighbridge_burn::weighbridge::{
    Checkpoint, Dtype, Error, ErrorKind, Names, Quantized, Renames, TensorView,
};
use weighbridge_burn::{Mapping, SafetensorsStore, burn_store, load, save};

#[derive(Module, Debug)]
struct Model {
    embed: Embedding,
    up: Linear,
}

fn model() -> Model {
    let device = Device::flex();
    Model {
        embed: EmbeddingConfig::new(4, 3).init(&device),
        up: LinearConfig::new(3, 2).with_bias(false).init(&device),
    }
}

/// Name, dtype and shape; every byte is 0x38, which is 1.0 in FP8.
type Stored<'a> = (&'a str, Dtype, &'a [usize]);

fn bytes(tensors: &[Stored<'_>]) -> Vec<u8> {
    let data = vec![0x38; 4096];
    let mut views = Vec::new();
    for (name, dtype, shape) in tensors {
        let len = dtype.size_of(shape).unwrap() as usize;
        views.push(((*name).to_owned(), TensorView::new(*dtype, shape, &data[..len]).unwrap()));
    }
    Save::new().bytes(views).unwrap()
}

const UP: Stored<'_> = ("up.weight", Dtype::F32, &[2, 3]);
const EMBED: Stored<'_> = ("embed.weight", Dtype::F32, &[4, 3]);

#[track_caller]
fn refused(tensors: &[Stored<'_>], parts: &[&str]) {
    let ckpt = Checkpoint::from_bytes(bytes(tensors)).unwrap();
    let mut module = model();
    let before = save(&module).bytes().unwrap();
    let has = |error: &Error| {
        assert_eq!(error.kind(), ErrorKind::Dtype, "{error}");
        let text = error.to_string();
        for part in parts.iter().chain(&["quantised as", "`quantized(Quantized::Raw)`"]) {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert_eq!(text.lines().count(), 1);
    };
    has(&load(&ckpt)
        .pytorch()
        .quantized(Quantized::Refuse)
        .dtype(FloatDType::F32)
        .into(&mut module)
        .unwrap_err());
    // What may be missing is no weight that is there as codes.
    has(&load(&ckpt)
        .pytorch()
        .quantized(Quantized::Refuse)
        .dtype(FloatDType::F32)
        .partial()
        .into(&mut module)
        .unwrap_err());
    assert_eq!(
        load(&ckpt)
            .pytorch()
            .quantized(Quantized::Refuse)
            .dtype(FloatDType::F32)
            .check(&module)
            .unwrap()
            .problems
            .len(),
        1
    );
    let mut store = SafetensorsStore::from_bytes(Some(bytes(tensors)))
        .with_from_adapter(PyTorchToBurnAdapter)
        .quantized(Quantized::Refuse);
    has(&module.load_from(&mut store).unwrap_err());
    has(&store.get_all_tensors().map(drop).unwrap_err());
    assert!(store.keys().unwrap().len() == tensors.len());
    assert!(save(&module).bytes().unwrap() == before);
}

#[test]
fn each_method_is_refused_by_name() {
    use Dtype::{BF16, F8_E4M3, F8_E5M2, F16, F32, I8, I32, U8, U32};
    for scale in ["embed.weight_scale_inv", "embed.weight_scale", "embed.scale_weight", "embed.qscale_weight"]
    {
        for dtype in [F8_E4M3, F8_E5M2] {
            refused(
                &[UP, ("embed.weight", dtype, &[4, 3]), (scale, F32, &[1])],
                &["tensor \"embed.weight\"", "\"embed\"", "FP8", scale],
            );
        }
    }
    refused(&[EMBED, ("up.qweight", I32, &[8, 2]), ("up.scales", F16, &[1, 2])], &["\"up\"", "GPTQ"]);
    refused(
        &[EMBED, ("up.weight_packed", I32, &[2, 1]), ("up.weight_scale", BF16, &[2, 1])],
        &["compressed-tensors"],
    );
    refused(&[EMBED, ("up.weight", I8, &[2, 3]), ("up.SCB", F32, &[2])], &["bitsandbytes 8-bit"]);
    refused(
        &[
            EMBED,
            ("up.weight", U8, &[3, 1]),
            ("up.weight.absmax", F32, &[1]),
            ("up.weight.quant_map", F32, &[16]),
        ],
        &["bitsandbytes 4-bit"],
    );
    // The codes' bytes as floats: even their shape might fit.
    refused(
        &[EMBED, ("up.weight", BF16, &[2, 3]), ("up.weight.quant_state.bitsandbytes__nf4", U8, &[9])],
        &["bitsandbytes 4-bit"],
    );
    refused(&[EMBED, ("up.weight", U8, &[2, 2]), ("up.weight_scale", F8_E4M3, &[2, 1])], &["NVFP4"]);
    refused(
        &[EMBED, ("up.weight", U32, &[2, 1]), ("up.scales", BF16, &[2, 1]), ("up.biases", BF16, &[2, 1])],
        &["MLX"],
    );
}

#[test]
fn what_is_left_out_is_not_refused() {
    let tensors =
        [("embed.weight", Dtype::F8_E4M3, &[4, 3][..]), ("embed.weight_scale", Dtype::F32, &[]), UP];
    let ckpt = Checkpoint::from_bytes(bytes(&tensors)).unwrap();
    let report = load(&ckpt)
        .pytorch()
        .quantized(Quantized::Refuse)
        .only(Names::glob("up.*").unwrap())
        .into(&mut model())
        .unwrap();
    assert_eq!(
        (report.loaded, report.skipped),
        (vec!["up.weight".to_owned()], vec!["embed.weight".to_owned()])
    );
    let mut store = SafetensorsStore::from_bytes(Some(bytes(&tensors)))
        .with_from_adapter(PyTorchToBurnAdapter)
        .quantized(Quantized::Refuse)
        .with_full_path("up.weight");
    assert_eq!(model().load_from(&mut store).unwrap().applied, ["up.weight"]);
    assert!(store.get_tensor("up.weight").unwrap().is_some());
    assert!(store.get_tensor("embed.weight").unwrap_err().to_string().contains("FP8"));
}

#[test]
fn raw_codes_come_as_they_are() {
    let tensors =
        [("embed.weight", Dtype::F8_E4M3, &[4, 3][..]), ("embed.weight_scale", Dtype::F32, &[]), UP];
    let ckpt = Checkpoint::from_bytes(bytes(&tensors)).unwrap();
    let ones = |module: &Model| {
        assert_eq!(module.embed.weight.val().into_data().try_to_vec::<f32>().unwrap(), [1.0; 12]);
    };
    let mut module = model();
    load(&ckpt).pytorch().dtype(FloatDType::F32).quantized(Quantized::Raw).into(&mut module).unwrap();
    ones(&module);
    module = model();
    load(&ckpt).pytorch().dtype(FloatDType::F32).unscaled().into(&mut module).unwrap();
    ones(&module);
    let mut store = SafetensorsStore::from_bytes(Some(bytes(&tensors))).quantized(Quantized::Raw);
    assert!(store.get_all_tensors().unwrap().contains_key("up.weight"));
    // 8-bit floats without a scale are numbers, as before.
    let plain = [("embed.weight", Dtype::F8_E4M3, &[4, 3][..]), ("embed.input_scale", Dtype::F32, &[]), UP];
    module = model();
    let ckpt = Checkpoint::from_bytes(bytes(&plain)).unwrap();
    load(&ckpt).pytorch().dtype(FloatDType::F32).into(&mut module).unwrap();
    ones(&module);
}

#[derive(Module, Debug)]
struct Packed {
    qweight: Param<Tensor<2, Int>>,
}

#[test]
fn a_module_of_codes_asks_for_them() {
    let tensors = [("up.qweight", Dtype::I32, &[2, 2][..]), ("up.scales", Dtype::F16, &[1, 2])];
    let ckpt = Checkpoint::from_bytes(bytes(&tensors)).unwrap();
    let packed = || Packed {
        qweight: Param::initialized(ParamId::new(), Tensor::from_data([[0, 0], [0, 0]], &Device::flex())),
    };
    let renames = || Renames::new().prefix("up.", "");
    let error = load(&ckpt).rename(renames()).quantized(Quantized::Refuse).into(&mut packed()).unwrap_err();
    assert!(error.to_string().contains("GPTQ"), "{error}");
    let report = load(&ckpt).rename(renames()).quantized(Quantized::Raw).into(&mut packed()).unwrap();
    assert_eq!(report.loaded, ["qweight"]);
}

#[test]
fn names_are_looked_for_where_a_mapping_says() {
    // A quantised output layer is not taken from the embeddings that it could be tied to.
    let tensors = [EMBED, ("up.qweight", Dtype::I32, &[8, 4]), ("up.scales", Dtype::F16, &[1, 4])];
    let ckpt = Checkpoint::from_bytes(bytes(&tensors)).unwrap();
    let device = Device::flex();
    let mut tied = Model { up: LinearConfig::new(3, 4).with_bias(false).init(&device), ..model() };
    let mapping = || Mapping::pytorch().tied("up.weight", "embed.weight");
    let error = load(&ckpt).mapping(mapping()).quantized(Quantized::Refuse).into(&mut tied).unwrap_err();
    assert!(error.to_string().contains("\"up\" is quantised as GPTQ"), "{error}");
    let ckpt = Checkpoint::from_bytes(bytes(&[EMBED])).unwrap();
    load(&ckpt).mapping(mapping()).into(&mut tied).unwrap();
    // Names after renaming, and a fused layer.
    let tensors = [EMBED, ("m.ab.qweight", Dtype::I32, &[8, 2]), ("m.ab.scales", Dtype::F16, &[1, 2])];
    let ckpt = Checkpoint::from_bytes(bytes(&tensors)).unwrap();
    let mapping = Mapping::pytorch().fused("ab", ["up"]);
    let load =
        load(&ckpt).mapping(mapping).quantized(Quantized::Refuse).rename(Renames::new().prefix("m.", ""));
    let error = load.into(&mut model()).unwrap_err();
    assert!(error.to_string().contains("\"m.ab\" is quantised as GPTQ"), "{error}");
}

#[test]
fn quantised_modules_are_weights() {
    // FP8: 1.0, with a scale of 2.0.
    let ones = vec![0x38; 6];
    let scale = [2.0_f32, 4.0].map(f32::to_le_bytes).concat();
    let embed = [1.0_f32; 12].map(f32::to_le_bytes).concat();
    let views = [
        ("up.weight", TensorView::new(Dtype::F8_E4M3, &[2, 3], &ones).unwrap()),
        ("up.weight_scale", TensorView::new(Dtype::F32, &[2, 1], &scale).unwrap()),
        ("embed.weight", TensorView::new(Dtype::F32, &[4, 3], &embed).unwrap()),
    ];
    let file = Save::new().bytes(views).unwrap();
    let ckpt = Checkpoint::from_bytes(file.clone()).unwrap();
    // Burn has the weights of a linear layer as [inputs, outputs].
    let weights = |module: &Model| module.up.weight.val().into_data().try_to_vec::<f32>().unwrap();
    let mut module = model();
    let report = load(&ckpt).pytorch().dtype(FloatDType::F32).into(&mut module).unwrap();
    assert_eq!((report.loaded.len(), report.unused.len()), (2, 0));
    assert_eq!(weights(&module), [2.0, 4.0, 2.0, 4.0, 2.0, 4.0]);
    let mut store = SafetensorsStore::from_bytes(Some(file)).with_from_adapter(PyTorchToBurnAdapter);
    assert_eq!(store.keys().unwrap(), ["embed.weight", "up.weight"]);
    // Tensors that burn-store gives are as they are stored: the model's dtype, here.
    assert!(store.get_tensor("up.weight").unwrap().is_some());
}
