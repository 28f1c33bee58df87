//! How each method lays out a module: the table behind the detection.
//!
//! A row says which tensor to look at (`anchor`, of one of `dtypes`), and which other ones have to be beside it. All names
//! in a row are endings, put behind what is left of the anchor's name without its own. Rows stand in the order in
//! which they are tried.

use super::QuantMethod;
use super::evidence::{self, Seen};
use crate::dtype::Dtype::{
    self, F4, F6_E2M3, F6_E3M2, F8_E4M3, F8_E4M3FNUZ, F8_E5M2, F8_E5M2FNUZ, I8, I16, I32, I64, U8, U16, U32,
    U64,
};

/// A row of the table.
pub(super) struct Layout {
    pub(super) anchor: &'static str,
    pub(super) dtypes: &'static [Dtype],
    /// One of them has to be beside it,
    pub(super) beside: &'static [&'static str],
    /// unless its name alone says it all.
    pub(super) alone: bool,
    /// The weight's codes, then tensors that hold codes where they are stored as integers.
    pub(super) codes: &'static [&'static str],
    /// Companions that are numbers.
    pub(super) numbers: &'static [&'static str],
    /// What the weight would be called.
    pub(super) dense: &'static str,
    /// The method, unless dtypes and shapes contradict it.
    pub(super) method: fn(&Seen<'_>) -> Option<QuantMethod>,
}

const FLOATS: &[Dtype] = &[F8_E4M3, F8_E5M2, F8_E4M3FNUZ, F8_E5M2FNUZ, F4, F6_E2M3, F6_E3M2];
const FLOATS_AND_BYTES: &[Dtype] =
    &[F8_E4M3, F8_E5M2, F8_E4M3FNUZ, F8_E5M2FNUZ, F4, F6_E2M3, F6_E3M2, I8, U8];
const INTEGERS: &[Dtype] = &[I8, U8, I16, U16, I32, U32];
const INDICES: &[Dtype] = &[I8, U8, I16, U16, I32, U32, I64, U64];
const WORDS: &[Dtype] = &[I16, U16, I32, U32, I64, U64];

pub(super) const LAYOUTS: &[Layout] = &[
    // bitsandbytes, 4 bits: the state says it; the codes may be stored as floats that are none.
    Layout { anchor: ".quant_state.bitsandbytes__nf4", dtypes: &[U8], alone: true, ..BNB_4 },
    Layout { anchor: ".quant_state.bitsandbytes__fp4", dtypes: &[U8], alone: true, ..BNB_4 },
    BNB_4,
    // bitsandbytes, 8 bits.
    Layout {
        anchor: "weight",
        dtypes: &[I8],
        beside: &["SCB", "weight_scb", "weight.SCB"],
        alone: false,
        codes: &["weight"],
        numbers: &["SCB", "weight_scb", "weight.SCB", "weight_format"],
        dense: "weight",
        method: |_| Some(QuantMethod::BitsAndBytes8),
    },
    // GPTQ and AWQ, and what else calls its words so.
    Layout {
        anchor: "qweight",
        dtypes: INDICES,
        beside: &["wscales"],
        alone: false,
        codes: &["qweight"],
        numbers: &["wscales", "wzeros", "smooth_factor", "smooth_factor_orig", "proj_down", "proj_up"],
        dense: "weight",
        method: |_| Some(QuantMethod::SvdQuant),
    },
    Layout {
        anchor: "qweight",
        dtypes: INDICES,
        beside: &["scales", "qweight_scale", "qzeros", "g_idx"],
        alone: true,
        codes: &["qweight", "qzeros"],
        numbers: &["scales", "qweight_scale", "g_idx"],
        dense: "weight",
        method: evidence::gptq_or_awq,
    },
    // compressed-tensors.
    Layout {
        anchor: "weight_packed",
        dtypes: &[I8, U8, I16, U16, I32, U32, I64, U64, F4],
        beside: &["weight_scale", "weight_shape"],
        alone: true,
        codes: &["weight_packed", "weight_zero_point", "weight_scale"],
        numbers: &[
            "weight_shape",
            "weight_global_scale",
            "weight_g_idx",
            "scale_packed",
            "meta",
            "input_scale",
            "input_global_scale",
        ],
        dense: "weight",
        method: evidence::packed,
    },
    Layout {
        anchor: "_packed",
        dtypes: &[I8, U8, I32, U32, F4],
        beside: &["_scale", "_shape"],
        alone: false,
        codes: &["_packed", "_zero_point", "_scale"],
        numbers: &["_shape", "_global_scale", "_g_idx"],
        dense: "",
        method: evidence::packed,
    },
    Layout {
        anchor: "bitmask",
        dtypes: &[U8],
        beside: &["compressed"],
        alone: false,
        codes: &["compressed", "bitmask"],
        numbers: &["shape", "row_offsets"],
        dense: "weight",
        method: |_| Some(QuantMethod::SparseBitmask),
    },
    // MLX; of its embeddings, too.
    Layout {
        anchor: "weight",
        dtypes: &[U32],
        beside: &["scales"],
        alone: false,
        codes: &["weight", "scales"],
        numbers: &["biases", "qbiases"],
        dense: "weight",
        method: evidence::mlx,
    },
    // gpt-oss, and OpenAI's own files.
    Layout {
        anchor: "_blocks",
        dtypes: &[U8],
        beside: &["_scales"],
        alone: false,
        codes: &["_blocks", "_scales"],
        numbers: &[],
        dense: "",
        method: evidence::mxfp4_blocks,
    },
    Layout {
        anchor: ".blocks",
        dtypes: &[U8],
        beside: &[".scales"],
        alone: false,
        codes: &[".blocks", ".scales"],
        numbers: &[],
        dense: "",
        method: evidence::mxfp4_blocks,
    },
    // HQQ; its words may be stored as floats that are none, then what belongs to them says it.
    Layout { anchor: "W_q", dtypes: INDICES, ..HQQ },
    Layout { anchor: "packing", dtypes: &[U8], ..HQQ },
    Layout { anchor: "nbits", dtypes: INDICES, ..HQQ },
    // optimum-quanto.
    Layout {
        anchor: "._data",
        dtypes: FLOATS_AND_BYTES,
        beside: &["._scale"],
        alone: false,
        codes: &["._data"],
        numbers: &["._scale", "._shift"],
        dense: "",
        method: |_| Some(QuantMethod::Quanto),
    },
    Layout {
        anchor: "._data._data",
        dtypes: INTEGERS,
        beside: &["._scale", "._shift"],
        alone: false,
        codes: &["._data._data", "._shift"],
        numbers: &["._scale"],
        dense: "",
        method: |_| Some(QuantMethod::Quanto),
    },
    // torchao, and gpt-fast.
    Layout { anchor: "_weight_qdata", codes: &["_weight_qdata"], dense: "weight", ..TORCHAO_WEIGHT },
    Layout {
        anchor: "_qdata",
        dtypes: FLOATS_AND_WORDS,
        beside: &["_scale", "_scale_and_zero", "_zero_point"],
        alone: false,
        codes: &["_qdata"],
        numbers: &["_scale", "_scale_and_zero", "_zero_point"],
        dense: "",
        method: |_| Some(QuantMethod::TorchAo),
    },
    Layout { beside: &["scales_and_zeros"], numbers: &["scales_and_zeros"], ..TORCHAO_WEIGHT },
    // Formats that only their own kernels read.
    Layout {
        anchor: "codes",
        dtypes: INDICES,
        beside: &["codebooks"],
        alone: false,
        codes: &["codes"],
        numbers: &["codebooks", "scales"],
        dense: "weight",
        method: evidence::aqlm,
    },
    Layout {
        anchor: "q_weight",
        dtypes: WORDS,
        beside: &["q_scale", "q_perm", "q_invperm", "q_groups", "q_group_map"],
        alone: false,
        codes: &["q_weight", "q_scale"],
        numbers: &["q_scale_max", "q_perm", "q_invperm", "q_groups", "q_group_map"],
        dense: "weight",
        method: |_| Some(QuantMethod::Exl2),
    },
    Layout {
        anchor: "trellis",
        dtypes: WORDS,
        beside: &["suh", "svh", "su", "sv"],
        alone: false,
        codes: &["trellis", "su", "sv"],
        numbers: &["suh", "svh", "mcg", "mul1"],
        dense: "weight",
        method: |_| Some(QuantMethod::Exl3),
    },
    Layout {
        anchor: "indices",
        dtypes: INDICES,
        beside: &["centroids.weight"],
        alone: false,
        codes: &["indices", "res_indices", "outlier_indices"],
        numbers: &["centroids.weight", "res_centroids.weight", "outlier_centroids.weight", "perm"],
        dense: "weight",
        method: |_| Some(QuantMethod::Vptq),
    },
    Layout {
        anchor: "dense_weights",
        dtypes: INDICES,
        beside: &["row_offsets", "in_perm", "col_vals"],
        alone: false,
        codes: &["dense_weights", "col_vals"],
        numbers: &["row_offsets", "in_perm"],
        dense: "weight",
        method: |_| Some(QuantMethod::Spqr),
    },
    Layout {
        anchor: "weight",
        dtypes: INTEGERS,
        beside: &["tables", "tables2"],
        alone: false,
        codes: &["weight"],
        numbers: &["scales", "tables", "tables2"],
        dense: "weight",
        method: |_| Some(QuantMethod::Higgs),
    },
    Layout {
        anchor: "B",
        dtypes: &[I32, U32],
        beside: &["s", "s_channel", "s_group"],
        alone: false,
        codes: &["B"],
        numbers: &["s", "s_channel", "s_group"],
        dense: "weight",
        method: evidence::marlin,
    },
    // ComfyUI's marker; most of its formats are among those below.
    Layout {
        anchor: "comfy_quant",
        dtypes: &[U8],
        beside: &[],
        alone: true,
        codes: &["weight", "weight_scale"],
        numbers: &["weight_scale_2", "pre_quant_scale", "input_scale", "comfy_quant"],
        dense: "weight",
        method: evidence::comfy,
    },
    // A tensor, and its scale beside it under a name that says no other thing.
    SCALED,
    Layout {
        anchor: "weight",
        beside: &[
            "scale_weight",
            "qscale_weight",
            "weight_scales",
            "weight_scaling_factor",
            "weights_scaling_factor",
            "per_channel_scale",
        ],
        codes: &["weight"],
        numbers: &[
            "scale_weight",
            "qscale_weight",
            "weight_scales",
            "weight_scaling_factor",
            "weights_scaling_factor",
            "per_channel_scale",
            "scale_input",
            "qscale_act",
        ],
        dense: "weight",
        ..SCALED
    },
    // Words that several codes are packed into.
    Layout {
        anchor: "weight",
        dtypes: WORDS,
        beside: &["weight_scale", "weight_scale_inv"],
        codes: &["weight", "weight_zero_point"],
        numbers: &["weight_scale", "weight_scale_inv"],
        dense: "weight",
        ..SCALED
    },
    // The same under names that other things have, too: it has to fit.
    Layout {
        anchor: "weight",
        dtypes: FLOATS_AND_BYTES,
        beside: &["scale", "scales"],
        codes: &["weight", "scale", "scales"],
        numbers: &[],
        dense: "weight",
        method: evidence::fitting,
        ..SCALED
    },
    Layout {
        dtypes: FLOATS,
        beside: &[".scale"],
        codes: &["", ".scale"],
        numbers: &[],
        method: evidence::fitting,
        ..SCALED
    },
    Layout {
        dtypes: INTEGERS,
        beside: &[".zero_points"],
        codes: &[""],
        numbers: &[".scales", ".zero_points"],
        method: |_| Some(QuantMethod::PyTorch),
        ..SCALED
    },
    Layout {
        anchor: "_quantized",
        dtypes: &[I8, U8, I16, U16, I32, F8_E4M3, F8_E5M2],
        beside: &["_scale"],
        codes: &["_quantized"],
        numbers: &["_scale", "_zero_point"],
        method: |_| Some(QuantMethod::Onnx),
        ..SCALED
    },
];

const FLOATS_AND_WORDS: &[Dtype] =
    &[F8_E4M3, F8_E5M2, F8_E4M3FNUZ, F8_E5M2FNUZ, F4, F6_E2M3, F6_E3M2, I8, U8, I16, I32, U32, I64];

const BNB_4: Layout = Layout {
    anchor: "",
    dtypes: &[U8],
    beside: &[".absmax", ".quant_map", "_absmax", "_quant_map", "_quant_state"],
    alone: false,
    codes: &["", ".absmax", "_absmax"],
    numbers: &[
        ".quant_map",
        ".nested_absmax",
        ".nested_quant_map",
        ".quant_state.bitsandbytes__nf4",
        ".quant_state.bitsandbytes__fp4",
        "_quant_map",
        "_quant_state",
    ],
    dense: "",
    method: |_| Some(QuantMethod::BitsAndBytes4),
};

const HQQ: Layout = Layout {
    anchor: "W_q",
    dtypes: INDICES,
    beside: &["W_q"],
    alone: false,
    codes: &["W_q", "scale_q", "zero_q"],
    numbers: &[
        "scale",
        "zero",
        "meta",
        "nbits",
        "group_size",
        "axis",
        "shape",
        "packing",
        "view_as_float",
        "compute_dtype",
        "quant_scale",
        "quant_zero",
        "unpack_view_dtype",
        "offload_meta",
        "channel_wise",
        "optimize",
        "round_zero",
        "encoded_state_dict",
        "stores_quant_config",
    ],
    dense: "weight",
    method: |_| Some(QuantMethod::Hqq),
};

const TORCHAO_WEIGHT: Layout = Layout {
    anchor: "weight",
    dtypes: FLOATS_AND_WORDS,
    beside: &["_weight_scale", "_weight_scale_and_zero", "_weight_zero_point"],
    alone: false,
    codes: &["weight"],
    numbers: &["_weight_scale", "_weight_scale_and_zero", "_weight_zero_point"],
    dense: "weight",
    method: |_| Some(QuantMethod::TorchAo),
};

const SCALED: Layout = Layout {
    anchor: "",
    dtypes: FLOATS_AND_BYTES,
    beside: &[
        "_scale_inv",
        "_scale",
        "_weight_scale_inv",
        "_weight_scale",
        "_scale_2",
        "_weight_scale_2",
        ".scale_inv",
    ],
    alone: false,
    codes: &["", "_scale", "_scale_inv", "_weight_scale", "_zero_point"],
    numbers: &["_weight_scale_inv", "_scale_2", "_weight_scale_2", "_global_scale", ".scale_inv"],
    dense: "",
    method: evidence::scaled,
};
