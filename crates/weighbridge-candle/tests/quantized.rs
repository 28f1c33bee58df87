//! Quantised modules are the weights that they stand for; or they are refused, or their codes are asked for raw.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use safetensors::Dtype as St;
use weighbridge::{Checkpoint, Dtype, ErrorKind, Names, Plan, QuantMethod, Quantized};
use weighbridge_candle::Loader;
use weighbridge_candle::candle_core::{DType, Device, Shape, Tensor, Var};
use weighbridge_candle::candle_nn::VarMap;
use weighbridge_candle::candle_nn::var_builder::Shard;
use weighbridge_tests::{Stored, file, sharded};

/// 1.0 as FP8, twelve times.
fn ones() -> Stored {
    Stored::new(St::F8_E4M3, &[3, 4], vec![0x38; 12])
}

fn scale() -> Stored {
    Stored::new(St::F32, &[1, 1], 0.5_f32.to_le_bytes().to_vec())
}

fn norm() -> Stored {
    Stored::new(St::BF16, &[4], [0x80, 0x3f].repeat(4))
}

fn gptq() -> [(&'static str, Stored); 3] {
    [
        ("up.qweight", Stored::new(St::I32, &[8, 16], [1, 0, 0, 0].repeat(8 * 16))),
        ("up.qzeros", Stored::new(St::I32, &[1, 2], [2, 0, 0, 0].repeat(2))),
        ("up.scales", Stored::new(St::F16, &[1, 16], [0x00, 0x3c].repeat(16))),
    ]
}

/// One dense tensor, one module of FP8 whose scale is in another shard, one of GPTQ.
fn mixed(directory: &std::path::Path) -> Checkpoint {
    let [qweight, qzeros, scales] = gptq();
    let first = [("fc.weight", ones()), ("norm.weight", norm()), qzeros];
    let second = [("fc.weight_scale_inv", scale()), qweight, scales];
    let shards: [(&str, &[(&str, Stored)]); 2] = [("a.safetensors", &first), ("b.safetensors", &second)];
    Checkpoint::open(sharded(directory, &shards)).unwrap()
}

/// A loader that refuses quantised modules.
fn refusing(ckpt: &Checkpoint) -> Loader {
    Loader::new(ckpt).quantized(Quantized::Refuse)
}

#[track_caller]
fn names(text: &str, parts: &[&str]) {
    assert!(!text.lines().next().unwrap().is_empty());
    assert_eq!(text.lines().filter(|line| line.contains("quantised as")).count(), 1, "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

#[test]
fn a_var_builder_refuses_codes() {
    let dir = tempfile::tempdir().unwrap();
    let ckpt = mixed(dir.path());
    let methods: Vec<_> = ckpt.quantized().map(|module| module.method()).collect();
    assert_eq!(methods, [QuantMethod::Fp8Blocks, QuantMethod::Gptq]);
    for dtype in [DType::BF16, DType::F8E4M3, DType::I32] {
        let vb = refusing(&ckpt).dtype(dtype).var_builder().unwrap();
        assert_eq!(vb.get(4, "norm.weight").unwrap().dtype(), dtype);
        let error = vb.get((3, 4), "fc.weight").unwrap_err().to_string();
        names(
            &error,
            &[
                "a.safetensors",
                "tensor \"fc.weight\"",
                "\"fc\"",
                "FP8 (block scales)",
                "quantized(Quantized::Raw)",
            ],
        );
        names(&vb.get_unchecked("fc.weight").unwrap_err().to_string(), &["FP8"]);
        names(&vb.pp("up").get_unchecked("qweight").unwrap_err().to_string(), &["\"up\"", "GPTQ"]);
        names(&vb.pp("up").get_unchecked("qzeros").unwrap_err().to_string(), &["GPTQ"]);
        // What a model of Candle asks for, and what is not there at all.
        names(&vb.get((16, 64), "up.weight").unwrap_err().to_string(), &["tensor \"up.weight\"", "GPTQ"]);
        assert!(!vb.get(1, "down.weight").unwrap_err().to_string().contains("quantised"));
        // Scales are numbers.
        assert_eq!(vb.get_unchecked("up.scales").unwrap().dims(), [1, 16]);
    }
    let vb = refusing(&ckpt).dtype(DType::F32).sharded_var_builder().unwrap();
    let half = Shard { dim: 1, rank: 1, world_size: 2 };
    names(&vb.get_with_hints((), "fc.weight", half).unwrap_err().to_string(), &["FP8"]);
    names(&vb.get_with_hints((), "up.weight", half).unwrap_err().to_string(), &["GPTQ"]);
    names(&vb.get((), "fc.weight").unwrap_err().to_string(), &["FP8"]);
    let norm = vb.get_with_hints((), "norm.weight", Shard { dim: 0, rank: 1, world_size: 2 }).unwrap();
    assert_eq!(norm.to_vec1::<f32>().unwrap(), [1.0; 2]);
}

#[test]
fn a_load_refuses_codes_before_it_reads() {
    let dir = tempfile::tempdir().unwrap();
    let ckpt = mixed(dir.path());
    let error = refusing(&ckpt).load().unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Dtype, Some("fc.weight")));
    names(&error.to_string(), &["FP8", "so is one more module"]);
    // What is not loaded is not refused.
    let loaded = refusing(&ckpt)
        .dtype(DType::F32)
        .only(Names::glob("{norm,fc}.*").unwrap().except(Names::exact("fc.weight")));
    assert_eq!(loaded.load().unwrap().tensors.len(), 2);
    let error = refusing(&ckpt).only(Names::exact("up.qweight")).load().unwrap_err().to_string();
    names(&error, &["\"up\"", "GPTQ"]);
    assert!(!error.contains("more module"), "{error}");
    let vb = refusing(&ckpt).only(Names::glob("norm.*").unwrap()).var_builder().unwrap();
    for name in ["fc.weight", "up.weight"] {
        assert!(!vb.get((3, 4), name).unwrap_err().to_string().contains("quantised"));
    }
}

#[test]
fn raw_codes_come_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let ckpt = mixed(dir.path());
    let loaded = Loader::new(&ckpt).quantized(Quantized::Raw).load().unwrap();
    assert_eq!(loaded.tensors["up.qweight"].dtype(), DType::I32);
    assert_eq!(loaded.tensors["fc.weight"].dtype(), DType::F8E4M3);
    let vb = Loader::new(&ckpt).quantized(Quantized::Raw).dtype(DType::F32).var_builder().unwrap();
    assert_eq!(vb.get((3, 4), "fc.weight").unwrap().to_vec2::<f32>().unwrap(), [[1.0; 4]; 3]);
    assert!(vb.get((16, 64), "up.weight").is_err());
}

#[test]
fn variables_are_not_filled_with_codes() {
    let dir = tempfile::tempdir().unwrap();
    let ckpt = mixed(dir.path());
    for (name, shape) in [("fc.weight", (3, 4)), ("up.weight", (16, 64))] {
        let map = VarMap::new();
        let zeros = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        map.data().lock().unwrap().insert(name.to_owned(), Var::from_tensor(&zeros).unwrap());
        names(&refusing(&ckpt).fill(&map).unwrap_err().to_string(), &[name, "quantized(Quantized::Raw)"]);
        names(&refusing(&ckpt).fill_in_place(&map).unwrap_err().to_string(), &[name]);
        let sum = map.data().lock().unwrap()[name].abs().unwrap().sum_all().unwrap();
        assert_eq!(sum.to_scalar::<f32>().unwrap(), 0.0);
        assert_eq!(Loader::new(&ckpt).quantized(Quantized::Raw).fill(&map).is_ok(), name == "fc.weight");
    }
}

/// A file of these tensors cannot be loaded, and the error has the text.
#[track_caller]
fn refused(method: &str, weight: &str, tensors: &[(&str, St, &[usize])]) {
    let stored: Vec<_> =
        tensors.iter().map(|(name, dtype, shape)| (*name, Stored::filled(*dtype, shape, 0))).collect();
    let ckpt = Checkpoint::from_bytes(file(&stored)).unwrap();
    names(&refusing(&ckpt).load().unwrap_err().to_string(), &[method, "\"m\""]);
    let vb = refusing(&ckpt).dtype(DType::BF16).var_builder().unwrap();
    names(&vb.get_unchecked(weight).unwrap_err().to_string(), &[method, "\"m\""]);
    Loader::new(&ckpt).quantized(Quantized::Raw).load().unwrap();
}

#[test]
fn every_common_method_is_refused_by_name() {
    let weight = "m.weight";
    refused("FP8", weight, &[("m.weight", St::F8_E4M3, &[4, 8]), ("m.weight_scale", St::F32, &[])]);
    refused(
        "FP8",
        weight,
        &[
            ("m.weight", St::F8_E4M3, &[4, 8]),
            ("m.scale_weight", St::F32, &[1]),
            ("scaled_fp8", St::F8_E4M3, &[2]),
        ],
    );
    refused(
        "AWQ",
        weight,
        &[("m.qweight", St::I32, &[64, 2]), ("m.qzeros", St::I32, &[1, 2]), ("m.scales", St::F16, &[1, 16])],
    );
    refused(
        "compressed-tensors",
        weight,
        &[
            ("m.weight_packed", St::I32, &[4, 1]),
            ("m.weight_scale", St::BF16, &[4, 1]),
            ("m.weight_shape", St::I64, &[2]),
        ],
    );
    refused("bitsandbytes 8-bit", weight, &[("m.weight", St::I8, &[4, 8]), ("m.SCB", St::F32, &[4])]);
    let state = "m.weight.quant_state.bitsandbytes__nf4";
    refused(
        "bitsandbytes 4-bit",
        weight,
        &[
            ("m.weight", St::U8, &[16, 1]),
            ("m.weight.absmax", St::F32, &[1]),
            ("m.weight.quant_map", St::F32, &[16]),
            (state, St::U8, &[80]),
        ],
    );
    refused(
        "bitsandbytes 4-bit",
        weight,
        &[("m.weight", St::BF16, &[8, 1]), ("m.weight.absmax", St::F32, &[1]), (state, St::U8, &[80])],
    );
    refused("MXFP4", "m", &[("m_blocks", St::U8, &[2, 4, 1, 16]), ("m_scales", St::U8, &[2, 4, 1])]);
    refused(
        "NVFP4",
        weight,
        &[
            ("m.weight", St::U8, &[4, 8]),
            ("m.weight_scale", St::F8_E4M3, &[4, 1]),
            ("m.weight_scale_2", St::F32, &[]),
        ],
    );
    refused(
        "MLX",
        weight,
        &[("m.weight", St::U32, &[4, 8]), ("m.scales", St::F16, &[4, 1]), ("m.biases", St::F16, &[4, 1])],
    );
    refused(
        "HQQ",
        weight,
        &[("m.W_q", St::U8, &[4, 8]), ("m.scale", St::F16, &[8, 1]), ("m.zero", St::F16, &[8, 1])],
    );
    refused("quanto", weight, &[("m.weight._data", St::I8, &[4, 8]), ("m.weight._scale", St::F16, &[4, 1])]);
    refused(
        "torchao",
        weight,
        &[("m._weight_qdata", St::I8, &[4, 8]), ("m._weight_scale", St::F32, &[4, 1])],
    );
}

#[test]
fn ordinary_checkpoints_load_as_before() {
    // 8-bit floats without scales, and parameters that only have such names.
    let plain = [
        ("fc.weight", ones()),
        ("fc.input_scale", scale()),
        ("logit_scale", Stored::filled(St::F32, &[], 1)),
        ("norm.weight", norm()),
        ("norm.weight_scale", Stored::filled(St::F32, &[4], 1)),
        ("norm.scales", Stored::filled(St::F32, &[4], 1)),
        ("norm.biases", Stored::filled(St::F32, &[4], 1)),
        ("head.weight", Stored::filled(St::F32, &[4, 4], 1)),
        ("head.SCB", Stored::filled(St::F32, &[4], 1)),
    ];
    let ckpt = Checkpoint::from_bytes(file(&plain)).unwrap();
    assert_eq!(Loader::new(&ckpt).dtype(DType::BF16).load().unwrap().tensors.len(), plain.len());
    let vb = Loader::new(&ckpt).dtype(DType::F32).var_builder().unwrap();
    assert_eq!(vb.get(Shape::from((3, 4)), "fc.weight").unwrap().to_vec2::<f32>().unwrap(), [[1.0; 4]; 3]);
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
}

#[test]
fn quantised_modules_are_weights() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 64}}"#;
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let ckpt = mixed(dir.path());
    // What the core makes of them is held against the libraries that wrote such files elsewhere.
    let dense = ckpt.dequantized().unwrap();
    let session = Plan::of(&dense).dtype(|_| Some(Dtype::F32)).build().unwrap().session().start().unwrap();
    let up: Vec<f32> = floats(session.take("up.weight", None).unwrap().1.as_bytes());
    let loaded = Loader::new(&ckpt).load().unwrap();
    let mut found: Vec<_> = loaded.tensors.keys().map(String::as_str).collect();
    found.sort_unstable();
    assert_eq!(found, ["fc.weight", "norm.weight", "up.weight"]);
    assert_eq!(loaded.tensors["up.weight"].dtype(), DType::F16);
    for dtype in [DType::BF16, DType::F32, DType::F64] {
        let vb = Loader::new(&ckpt).dtype(dtype).var_builder().unwrap();
        let fc = vb.get((3, 4), "fc.weight").unwrap();
        assert_eq!(fc.dtype(), dtype);
        assert_eq!(fc.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap(), [[0.5; 4]; 3]);
        if dtype != DType::BF16 {
            let values =
                vb.get((16, 64), "up.weight").unwrap().to_dtype(DType::F32).unwrap().flatten_all().unwrap();
            assert_eq!(values.to_vec1::<f32>().unwrap(), up);
        }
        assert!(vb.get_unchecked("up.qweight").is_err());
    }
    // Parts of ranks, renamed, and variables.
    let vb = Loader::new(&ckpt).dtype(DType::F32).sharded_var_builder().unwrap();
    let whole = vb.get((16, 64), "up.weight").unwrap();
    for dim in [0, 1] {
        let half = vb.get_with_hints((), "up.weight", Shard { dim, rank: 1, world_size: 2 }).unwrap();
        let len = whole.dim(dim).unwrap() / 2;
        let expected = whole.narrow(dim, len, len).unwrap();
        assert_eq!(half.to_vec2::<f32>().unwrap(), expected.to_vec2::<f32>().unwrap());
    }
    let renames = weighbridge::Renames::new().prefix("up.", "model.up.");
    let vb = Loader::new(&ckpt).dtype(DType::F32).rename(renames).var_builder().unwrap();
    assert!(vb.contains_tensor("model.up.weight") && !vb.contains_tensor("up.weight"));
    let map = VarMap::new();
    let zeros = Tensor::zeros((3, 4), DType::F32, &Device::Cpu).unwrap();
    map.data().lock().unwrap().insert("fc.weight".to_owned(), Var::from_tensor(&zeros).unwrap());
    Loader::new(&ckpt).fill(&map).unwrap();
    let fc = map.data().lock().unwrap()["fc.weight"].to_vec2::<f32>().unwrap();
    assert_eq!(fc, [[0.5; 4]; 3]);
}

#[test]
fn what_is_not_read_is_refused_when_it_is_asked_for() {
    let tensors = [
        ("m.trellis", Stored::filled(St::I16, &[4, 4, 8], 1)),
        ("m.suh", Stored::filled(St::F16, &[64], 1)),
        ("m.svh", Stored::filled(St::F16, &[64], 1)),
        ("norm.weight", norm()),
    ];
    let ckpt = Checkpoint::from_bytes(file(&tensors)).unwrap();
    let error = Loader::new(&ckpt).load().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("EXL3") && error.to_string().contains("Quantized::Raw"), "{error}");
    let vb = Loader::new(&ckpt).dtype(DType::F32).var_builder().unwrap();
    assert_eq!(vb.get(4, "norm.weight").unwrap().to_vec1::<f32>().unwrap(), [1.0; 4]);
    assert!(vb.get((64, 64), "m.weight").unwrap_err().to_string().contains("EXL3"));
}
