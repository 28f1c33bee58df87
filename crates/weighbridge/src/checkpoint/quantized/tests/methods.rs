//! Each method's layout.

use super::{Tensor, finds};
use crate::checkpoint::quantized::{QuantMethod, QuantMethod as M};

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
