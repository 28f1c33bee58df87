//! Each method's layout, and what only looks like one.

use std::fmt::Write as _;

use super::{QuantMethod, QuantMethod as M};
use crate::checkpoint::Checkpoint;
use crate::dtype::Dtype;

type Tensor<'a> = (&'a str, &'a str, &'a [usize]);

/// A file with those tensors, whose bytes are 0, and that metadata.
fn file(tensors: &[Tensor<'_>], metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut header = format!(
        "{{\"__metadata__\":{}",
        serde_json::json!(metadata.iter().copied().collect::<std::collections::BTreeMap<_, _>>())
    );
    let mut end = 0;
    for (name, dtype, shape) in tensors {
        let start = end;
        end += dtype.parse::<Dtype>().unwrap().size_of(shape).unwrap();
        write!(
            header,
            ",{name:?}:{{\"dtype\":{dtype:?},\"shape\":{shape:?},\"data_offsets\":[{start},{end}]}}"
        )
        .unwrap();
    }
    header.push('}');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.resize(bytes.len() + end as usize, 0);
    bytes
}

fn checkpoint(tensors: &[Tensor<'_>]) -> Checkpoint {
    Checkpoint::from_bytes(file(tensors, &[])).unwrap()
}

/// What is found: method, module, weight, and the tensors with codes.
fn found(ckpt: &Checkpoint) -> Vec<(QuantMethod, String, String, Vec<String>)> {
    let modules = ckpt.quantized().map(|module| {
        let codes = module.codes().map(|tensor| tensor.name().to_owned()).collect();
        (module.method(), module.name().to_owned(), module.weight(), codes)
    });
    modules.collect()
}

/// One module of that method, with that weight, whose codes are the first tensors.
#[track_caller]
fn finds(method: QuantMethod, weight: &str, codes: usize, tensors: &[Tensor<'_>]) {
    let dense: [Tensor<'_>; 3] = [
        ("model.norm.weight", "BF16", &[8]),
        ("model.embed_tokens.weight", "BF16", &[8, 64]),
        ("model.steps", "I64", &[2]),
    ];
    let mut reversed = [&dense[..], tensors].concat();
    reversed.reverse();
    for tensors in [[&dense[..], tensors].concat(), reversed] {
        let ckpt = checkpoint(&tensors);
        let all = found(&ckpt);
        assert_eq!(all.len(), 1, "{all:?}");
        assert_eq!((all[0].0, &*all[0].2), (method, weight));
    }
    let all = found(&checkpoint(tensors));
    let expected: Vec<_> = tensors[..codes].iter().map(|tensor| tensor.0).collect();
    assert_eq!(all[0].3, expected);
    // All its tensors are known, each once.
    let ckpt = checkpoint(tensors);
    let module = ckpt.quantized().next().unwrap();
    let mut names: Vec<_> = module.tensors().map(|tensor| tensor.name()).collect();
    names.sort_unstable();
    let mut once = names.clone();
    once.dedup();
    assert_eq!(names, once);
    assert_eq!(ckpt.quantized_weight(weight).unwrap().method(), method);
    for (at, (name, ..)) in tensors.iter().enumerate() {
        assert_eq!(ckpt.quantized_codes(name).is_some(), at < codes, "{name}");
    }
}

#[track_caller]
fn finds_nothing(tensors: &[Tensor<'_>]) {
    assert_eq!(found(&checkpoint(tensors)), []);
}

#[test]
fn floats_of_8_bits() {
    let weight: Tensor<'_> = ("m.weight", "F8_E4M3", &[256, 384]);
    let cases: &[(QuantMethod, Tensor<'_>)] = &[
        (M::Fp8Blocks, ("m.weight_scale_inv", "F32", &[2, 3])),
        (M::Fp8Blocks, ("m.weight_scale_inv", "BF16", &[2, 3])),
        (M::Fp8Blocks, ("m.weight_scale_inv", "F8_E8M0", &[2, 3])),
        (M::Fp8Blocks, ("m.scale", "F8_E8M0", &[2, 3])),
        (M::Fp8Blocks, ("m.scale", "F32", &[2, 3])),
        (M::Fp8Blocks, ("m.weight_scale", "F32", &[2, 1, 3, 1])),
        (M::Fp8, ("m.weight_scale_inv", "F32", &[])),
        (M::Fp8, ("m.weight_scale", "F32", &[])),
        (M::Fp8, ("m.weight_scale", "F32", &[1])),
        (M::Fp8, ("m.weight_scale", "BF16", &[256, 1])),
        (M::Fp8, ("m.weight_scale", "F32", &[256])),
        (M::Fp8, ("m.weight_scale", "F32", &[4])),
        (M::Fp8, ("m.scale_weight", "F32", &[])),
        (M::Fp8, ("m.qscale_weight", "BF16", &[])),
        (M::Fp8, ("m.weight.scale", "F32", &[1])),
        (M::Mxfp8, ("m.weight_scale", "F8_E8M0", &[256, 12])),
    ];
    for (method, scale) in cases {
        finds(*method, "m.weight", 1, &[weight, *scale]);
        finds(
            *method,
            "m.weight",
            1,
            &[("m.weight", "F8_E5M2", &[256, 384]), *scale, ("m.input_scale", "F32", &[])],
        );
    }
    // Bytes that are exponents are codes, too.
    finds(M::Mxfp8, "m.weight", 2, &[weight, ("m.weight_scale", "U8", &[256, 12])]);
    for scale in ["m.weights_scaling_factor", "m.per_channel_scale", "m.weight_scales"] {
        finds(M::Fp8, "m.weight", 1, &[weight, (scale, "F32", &[256])]);
    }
    // Experts.
    finds(
        M::Fp8,
        "e.gate_up_proj",
        1,
        &[("e.gate_up_proj", "F8_E4M3", &[2, 8, 16]), ("e.gate_up_proj_scale", "F32", &[2, 1, 16])],
    );
    finds(
        M::Fp8Blocks,
        "e.down_proj",
        1,
        &[("e.down_proj", "F8_E4M3", &[2, 8, 16]), ("e.down_proj_scale_inv", "F32", &[2, 1, 1])],
    );
    // ComfyUI: a marker of the whole file, or one of each layer.
    finds(
        M::Fp8,
        "m.weight",
        1,
        &[
            weight,
            ("m.scale_weight", "F32", &[1]),
            ("m.scale_input", "F32", &[1]),
            ("scaled_fp8", "F8_E4M3", &[2]),
        ],
    );
    finds(M::Fp8, "m.weight", 1, &[weight, ("m.weight_scale", "F32", &[]), ("m.comfy_quant", "U8", &[9])]);
    finds(M::ComfyUi, "m.weight", 1, &[("m.weight", "U8", &[4, 4]), ("m.comfy_quant", "U8", &[9])]);
}

#[test]
fn floats_of_4_bits() {
    finds(
        M::Nvfp4,
        "m.weight",
        1,
        &[
            ("m.weight", "U8", &[4, 16]),
            ("m.weight_scale", "F8_E4M3", &[4, 2]),
            ("m.weight_scale_2", "F32", &[]),
            ("m.input_scale", "F32", &[]),
        ],
    );
    finds(
        M::Nvfp4,
        "m.weight",
        1,
        &[
            ("m.weight", "F4", &[4, 32]),
            ("m.weight_scale", "F8_E4M3", &[4, 2]),
            ("m.weight_scale_2", "F32", &[]),
        ],
    );
    finds(
        M::Nvfp4,
        "e.gate_up_proj",
        1,
        &[
            ("e.gate_up_proj", "U8", &[2, 4, 16]),
            ("e.gate_up_proj_weight_scale", "F8_E4M3", &[2, 4, 2]),
            ("e.gate_up_proj_weight_scale_2", "F32", &[2]),
        ],
    );
    finds(
        M::Nvfp4,
        "m.weight",
        1,
        &[
            ("m.weight_packed", "U8", &[4, 16]),
            ("m.weight_scale", "F8_E4M3", &[4, 2]),
            ("m.weight_global_scale", "F32", &[1]),
        ],
    );
    finds(M::Mxfp4, "m.weight", 2, &[("m.weight_packed", "U8", &[4, 16]), ("m.weight_scale", "U8", &[4, 1])]);
    finds(M::Mxfp4, "m.weight", 2, &[("m.weight", "U8", &[4, 16]), ("m.weight_scale", "U8", &[4, 1])]);
    finds(M::Mxfp4, "m.weight", 1, &[("m.weight", "I8", &[4, 16]), ("m.scale", "F8_E8M0", &[4, 1])]);
    finds(
        M::Mxfp4,
        "m.experts.down_proj",
        2,
        &[
            ("m.experts.down_proj_blocks", "U8", &[2, 4, 1, 16]),
            ("m.experts.down_proj_scales", "U8", &[2, 4, 1]),
            ("m.experts.down_proj_bias", "BF16", &[2, 4]),
        ],
    );
    finds(
        M::Mxfp4,
        "block.0.mlp.mlp1_weight",
        2,
        &[
            ("block.0.mlp.mlp1_weight.blocks", "U8", &[2, 4, 1, 16]),
            ("block.0.mlp.mlp1_weight.scales", "U8", &[2, 4, 1]),
        ],
    );
    finds(
        M::Mxfp6,
        "m.weight",
        1,
        &[("m.weight", "F6_E2M3", &[4, 32]), ("m.weight_scale", "F8_E8M0", &[4, 1])],
    );
}

#[test]
fn packed_integers() {
    finds(
        M::Gptq,
        "m.weight",
        2,
        &[
            ("m.qweight", "I32", &[8, 16]),
            ("m.qzeros", "I32", &[2, 2]),
            ("m.scales", "F16", &[2, 16]),
            ("m.g_idx", "I32", &[64]),
            ("m.bias", "F16", &[16]),
        ],
    );
    finds(M::Gptq, "m.weight", 1, &[("m.qweight", "I32", &[8, 16]), ("m.scales", "BF16", &[2, 16])]);
    finds(
        M::Awq,
        "m.weight",
        2,
        &[("m.qweight", "I32", &[64, 2]), ("m.qzeros", "I32", &[2, 2]), ("m.scales", "F16", &[2, 16])],
    );
    finds(
        M::Awq,
        "m.weight",
        1,
        &[("m.qweight", "I16", &[4, 64]), ("m.scales", "F16", &[8, 16]), ("m.qzeros", "F16", &[8, 16])],
    );
    finds(M::GptqOrAwq, "m.weight", 1, &[("m.qweight", "I32", &[4, 64])]);
    finds(M::GptqOrAwq, "m.weight", 2, &[("m.qweight", "I32", &[4, 64]), ("m.qzeros", "I32", &[4, 64])]);
    finds(M::SvdQuant, "m.weight", 1, &[("m.qweight", "I8", &[4, 64]), ("m.wscales", "BF16", &[4, 4])]);
    finds(
        M::CompressedTensors,
        "m.weight",
        2,
        &[
            ("m.weight_packed", "I32", &[8, 4]),
            ("m.weight_zero_point", "I32", &[1, 2]),
            ("m.weight_scale", "BF16", &[8, 2]),
            ("m.weight_shape", "I64", &[2]),
            ("m.weight_g_idx", "I32", &[32]),
        ],
    );
    finds(
        M::CompressedTensors,
        "e.down_proj",
        1,
        &[
            ("e.down_proj_packed", "I32", &[2, 8, 4]),
            ("e.down_proj_scale", "BF16", &[2, 8, 2]),
            ("e.down_proj_shape", "I64", &[3]),
        ],
    );
    finds(
        M::SparseBitmask,
        "m.weight",
        2,
        &[("m.compressed", "BF16", &[8]), ("m.bitmask", "U8", &[4, 1]), ("m.row_offsets", "I64", &[4])],
    );
    finds(
        M::MlxAffine,
        "m.weight",
        1,
        &[("m.weight", "U32", &[8, 8]), ("m.scales", "BF16", &[8, 1]), ("m.biases", "BF16", &[8, 1])],
    );
    finds(
        M::MlxAffine,
        "m.weight",
        1,
        &[("m.weight", "U32", &[2, 8, 8]), ("m.scales", "F32", &[2, 8, 1]), ("m.qbiases", "F32", &[2, 8, 1])],
    );
    finds(M::MlxFloat, "m.weight", 2, &[("m.weight", "U32", &[8, 8]), ("m.scales", "U8", &[8, 2])]);
    finds(
        M::PackedIntegers,
        "m.weight",
        1,
        &[
            ("m.weight", "U8", &[4, 8]),
            ("m.weight_scale", "F32", &[8, 2]),
            ("m.pre_quant_scale", "BF16", &[8]),
        ],
    );
    finds(M::BitNet, "m.weight", 1, &[("m.weight", "U8", &[4, 8]), ("m.weight_scale", "BF16", &[1])]);
    finds(
        M::TorchAo,
        "m.weight",
        1,
        &[("m.weight", "I32", &[1, 2, 32, 4]), ("m.scales_and_zeros", "BF16", &[2, 8, 2])],
    );
    finds(
        M::Hqq,
        "m.weight",
        1,
        &[
            ("m.W_q", "U8", &[4, 8]),
            ("m.scale", "F16", &[8, 1]),
            ("m.zero", "F16", &[8, 1]),
            ("m.nbits", "I32", &[1]),
            ("m.packing", "U8", &[7]),
            ("m.shape", "I64", &[2]),
        ],
    );
    finds(
        M::Hqq,
        "m.weight",
        1,
        &[
            ("m.W_q", "F16", &[4, 4]),
            ("m.scale", "F16", &[8, 1]),
            ("m.zero", "F16", &[8, 1]),
            ("m.packing", "U8", &[7]),
        ],
    );
    finds(
        M::Quanto,
        "m.weight",
        1,
        &[
            ("m.weight._data._data", "U8", &[4, 8]),
            ("m.weight._scale", "BF16", &[8, 1]),
            ("m.weight._shift", "BF16", &[8, 1]),
        ],
    );
    finds(
        M::Exl2,
        "m.weight",
        2,
        &[("m.q_weight", "I32", &[4, 8]), ("m.q_scale", "I32", &[1, 1]), ("m.q_invperm", "I16", &[32])],
    );
    finds(
        M::Exl3,
        "m.weight",
        1,
        &[("m.trellis", "I16", &[1, 1, 64]), ("m.suh", "F16", &[16]), ("m.svh", "F16", &[16])],
    );
    finds(M::Marlin, "m.weight", 1, &[("m.B", "I32", &[4, 32]), ("m.s", "F16", &[1, 16])]);
}

#[test]
fn bytes_and_tables() {
    finds(
        M::BitsAndBytes8,
        "m.weight",
        1,
        &[("m.weight", "I8", &[4, 8]), ("m.SCB", "F32", &[4]), ("m.weight_format", "U8", &[])],
    );
    finds(M::Int8, "m.weight", 1, &[("m.weight", "I8", &[4, 8]), ("m.weight_scale", "BF16", &[4, 1])]);
    finds(
        M::Int8,
        "m.weight",
        2,
        &[
            ("m.weight", "I8", &[4, 8]),
            ("m.weight_zero_point", "I8", &[4, 1]),
            ("m.weight_scale", "BF16", &[4, 1]),
        ],
    );
    finds(M::Int8, "m.weight", 1, &[("m.weight", "I8", &[4, 8]), ("m.scales", "BF16", &[4])]);
    finds(M::Int8, "m.weight", 1, &[("m.weight", "I8", &[4, 8]), ("m.weight_scales", "F16", &[4])]);
    let nf4: &[Tensor<'_>] = &[
        ("m.weight", "U8", &[16, 1]),
        ("m.weight.absmax", "U8", &[1]),
        ("m.weight.quant_map", "F32", &[16]),
        ("m.weight.nested_absmax", "F32", &[1]),
        ("m.weight.nested_quant_map", "F32", &[256]),
        ("m.weight.quant_state.bitsandbytes__nf4", "U8", &[80]),
    ];
    finds(M::BitsAndBytes4, "m.weight", 2, nf4);
    // The same bytes as floats.
    finds(
        M::BitsAndBytes4,
        "m.weight",
        1,
        &[
            ("m.weight", "BF16", &[8, 1]),
            ("m.weight.absmax", "F32", &[1]),
            ("m.weight.quant_map", "F32", &[16]),
            ("m.weight.quant_state.bitsandbytes__fp4", "U8", &[80]),
        ],
    );
    finds(
        M::BitsAndBytes4,
        "m.weight",
        1,
        &[
            ("m.weight", "U8", &[16, 1]),
            ("m.weight.absmax", "F32", &[1]),
            ("m.weight.quant_map", "F32", &[16]),
        ],
    );
    finds(
        M::Quanto,
        "m.weight",
        1,
        &[("m.weight._data", "I8", &[4, 8]), ("m.weight._scale", "BF16", &[4, 1])],
    );
    finds(
        M::TorchAo,
        "m.weight",
        1,
        &[
            ("m._weight_qdata", "I8", &[4, 8]),
            ("m._weight_scale", "F32", &[4, 1]),
            ("m._weight_zero_point", "I8", &[4, 1]),
        ],
    );
    finds(
        M::TorchAo,
        "m.weight",
        1,
        &[("m._weight_qdata", "F8_E4M3", &[4, 8]), ("m._weight_scale", "F32", &[4, 1])],
    );
    finds(
        M::Aqlm,
        "m.weight",
        1,
        &[
            ("m.codes", "I16", &[4, 1, 1]),
            ("m.codebooks", "F16", &[1, 16, 1, 8]),
            ("m.scales", "F16", &[4, 1, 1, 1]),
        ],
    );
    finds(
        M::Vptq,
        "m.weight",
        1,
        &[("m.indices", "I16", &[1, 4, 4]), ("m.centroids.weight", "F16", &[1, 64])],
    );
    finds(M::Spqr, "m.weight", 1, &[("m.dense_weights", "I64", &[8]), ("m.row_offsets", "I32", &[4])]);
    finds(
        M::Higgs,
        "m.weight",
        1,
        &[("m.weight", "I16", &[4, 4]), ("m.scales", "F16", &[4]), ("m.tables", "F16", &[4])],
    );
    finds(
        M::PyTorch,
        "m.weight",
        1,
        &[
            ("m.weight", "I8", &[4, 8]),
            ("m.weight.scales", "F64", &[4]),
            ("m.weight.zero_points", "I64", &[4]),
        ],
    );
    finds(
        M::Onnx,
        "m.weight",
        1,
        &[
            ("m.weight_quantized", "U8", &[4, 8]),
            ("m.weight_scale", "F32", &[]),
            ("m.weight_zero_point", "U8", &[]),
        ],
    );
}

#[test]
fn some_are_declared_in_the_metadata() {
    let tensors: &[Tensor<'_>] = &[
        ("a", "I32", &[4, 8]),
        ("b", "U8", &[9]),
        ("c.weight", "I8", &[4, 8]),
        ("d", "F32", &[2]),
        ("e.weight", "BF16", &[2]),
        ("f", "U8", &[4]),
    ];
    let metadata = [
        ("onnx.packed.f", "INT4 [7]"),
        ("a.quantization", r#"{"dtype":"qint32","scale":0.5,"zero_point":0}"#),
        ("d.quantization", "{}"),
        ("b.quantization", "none"),
        ("gone.quantization", "{}"),
        ("weighbridge.burn.quantised", r#"{"b":{"shape":[9],"scheme":{}},"d":0,"gone":0}"#),
        ("_quantization_metadata", r#"{"format_version":"1.0","layers":{"c":{"format":"int8"},"e":{}}}"#),
    ];
    let ckpt = Checkpoint::from_bytes(file(tensors, &metadata)).unwrap();
    let mut all: Vec<_> = found(&ckpt).into_iter().map(|found| (found.1, found.0)).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [("a", M::PyTorch), ("b", M::Burn), ("c", M::ComfyUi), ("f", M::Onnx)];
    assert_eq!(all, expected.map(|(name, method)| (name.to_owned(), method)));
    // Malformed metadata is ignored.
    for text in ["", "[", "{", r#"{"layers":7}"#, r#"{"layers":{"c"}}"#, r#"{"b"}"#] {
        let metadata = [("weighbridge.burn.quantised", text), ("_quantization_metadata", text)];
        assert_eq!(found(&Checkpoint::from_bytes(file(tensors, &metadata)).unwrap()), [], "{text}");
    }
}

#[test]
fn ordinary_tensors_are_left_alone() {
    finds_nothing(&[]);
    // 8-bit floats without a scale are numbers.
    finds_nothing(&[
        ("m.weight", "F8_E4M3", &[4, 8]),
        ("m.bias", "F8_E4M3", &[4]),
        ("m.input_scale", "F32", &[]),
    ]);
    finds_nothing(&[
        ("m.weight", "F8_E5M2", &[4, 8]),
        ("k.weight_scale", "F32", &[]),
        ("scaled_fp8", "F8_E4M3", &[0]),
    ]);
    // Dense weights beside scales of all kinds.
    for dtype in ["F16", "BF16", "F32", "F64"] {
        for scale in [
            "weight_scale",
            "weight_scale_inv",
            "scale",
            "scales",
            "SCB",
            "scale_weight",
            "biases",
            "absmax",
            "weight.scale",
        ] {
            finds_nothing(&[("m.weight", dtype, &[4, 8]), (&format!("m.{scale}"), "F32", &[4])]);
        }
        finds_nothing(&[("m.qweight", dtype, &[4, 8]), ("m.scales", "F16", &[4, 8])]);
        finds_nothing(&[("m.weight_packed", dtype, &[4, 8]), ("m.weight_scale", "F16", &[4, 8])]);
        finds_nothing(&[("m.x_blocks", dtype, &[4, 8]), ("m.x_scales", "U8", &[4])]);
        finds_nothing(&[("m.weight", dtype, &[4, 8]), ("m.comfy_quant", "U8", &[4])]);
        finds_nothing(&[("m.codes", dtype, &[4, 8, 1]), ("m.codebooks", "F16", &[4, 8, 1, 1])]);
    }
    // Parameters and buffers that are called so.
    finds_nothing(&[
        ("logit_scale", "F32", &[]),
        ("m.layer_scale", "F32", &[8]),
        ("m.weight_scale", "F32", &[8]),
        ("m.logit", "F32", &[]),
    ]);
    finds_nothing(&[("m.scales", "F32", &[8]), ("m.biases", "F32", &[8]), ("m.weight", "F32", &[8, 8])]);
    finds_nothing(&[("m.weight", "U32", &[4, 8]), ("m.scales", "F32", &[7])]);
    finds_nothing(&[("m.weight", "U32", &[4, 8]), ("m.scales", "I32", &[4, 1])]);
    finds_nothing(&[("m.weight", "U32", &[4, 8]), ("m.biases", "F32", &[4, 1])]);
    finds_nothing(&[("m.weight", "I32", &[4, 8]), ("m.scales", "F32", &[4, 1])]);
    finds_nothing(&[("m.text_blocks", "U8", &[4, 8]), ("m.image_scales", "U8", &[4])]);
    finds_nothing(&[("m.x_blocks", "U8", &[4]), ("m.x_scales", "U8", &[4])]);
    finds_nothing(&[("m.x_blocks", "U8", &[4, 8]), ("m.x_scales", "F32", &[4])]);
    finds_nothing(&[("m.weight", "U8", &[4, 8]), ("m.SCB", "F32", &[4])]);
    finds_nothing(&[("m.norm.weight", "F8_E4M3", &[8]), ("m.norm.scale", "F8_E4M3", &[8])]);
    finds_nothing(&[("m.weight", "F8_E4M3", &[4, 8]), ("m.scale", "F32", &[5])]);
    finds_nothing(&[("mask", "U8", &[8]), ("mask_scale", "F32", &[])]);
    finds_nothing(&[("edges", "I32", &[4, 2]), ("edges_scale", "F32", &[])]);
    finds_nothing(&[("ids", "I64", &[4, 8]), ("ids_scale", "F32", &[])]);
    finds_nothing(&[("m.mask", "BOOL", &[4, 8]), ("m.mask_scale", "F32", &[])]);
    finds_nothing(&[("m.B", "I32", &[4, 8]), ("m.s", "F32", &[4, 8])]);
    finds_nothing(&[
        ("packing", "U8", &[4]),
        ("nbits", "I32", &[1]),
        ("indices", "I64", &[4]),
        ("centroids", "F32", &[4, 2]),
    ]);
    finds_nothing(&[("m.position_ids", "I64", &[1, 8]), ("m.num_batches_tracked", "I64", &[])]);
}

#[test]
fn companions_lie_in_other_shards() {
    let dir = tempfile::tempdir().unwrap();
    let shard = |number: usize| dir.path().join(format!("model-0000{number}-of-00002.safetensors"));
    std::fs::write(shard(1), file(&[("m.weight_scale_inv", "F32", &[1, 1])], &[])).unwrap();
    std::fs::write(shard(2), file(&[("m.weight", "F8_E4M3", &[4, 8])], &[])).unwrap();
    let ckpt = Checkpoint::open(dir.path()).unwrap();
    let module = ckpt.quantized_codes("m.weight").unwrap();
    assert_eq!((module.name(), module.tensors().count()), ("m", 2));
    let error = module.refusal("m.weight", "do something else");
    let text = error.to_string();
    assert!(text.starts_with(&*shard(2).to_string_lossy()), "{text}");
    let expected = "tensor \"m.weight\": the module \"m\" is quantised as FP8 (block scales): \"m.weight\" holds codes, not weights, as \"m.weight_scale_inv\" shows; do something else";
    assert!(text.ends_with(expected), "{text}");
}

#[test]
fn modules_without_a_name() {
    let ckpt = checkpoint(&[("qweight", "I32", &[4, 8]), ("scales", "F16", &[1, 8])]);
    assert_eq!(
        found(&ckpt),
        [(M::Gptq, "qweight".to_owned(), "weight".to_owned(), vec!["qweight".to_owned()])]
    );
    assert!(ckpt.quantized_weight("weight").is_some() && ckpt.quantized_weight("é").is_none());
}
