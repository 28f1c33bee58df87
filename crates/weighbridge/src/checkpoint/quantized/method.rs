//! The methods that are told apart.

use std::fmt;

/// How a module is quantised, as far as names, dtypes and shapes show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QuantMethod {
    /// 8-bit floats with a scale for the tensor, or one a row.
    Fp8,
    /// 8-bit floats with a scale for each block, as DeepSeek-V3 has them.
    Fp8Blocks,
    /// 8-bit floats with a power of two for each 32.
    Mxfp8,
    /// 6-bit floats with a power of two for each 32.
    Mxfp6,
    /// 4-bit floats with a power of two for each 32.
    Mxfp4,
    /// 4-bit floats with an 8-bit float for each 16.
    Nvfp4,
    /// 8-bit integers with scales.
    Int8,
    /// Integers of fewer than 8 bits, several to a word, with scales.
    PackedIntegers,
    /// GPTQ.
    Gptq,
    /// AWQ.
    Awq,
    /// Either, where the shapes do not tell.
    GptqOrAwq,
    /// compressed-tensors' packed integers.
    CompressedTensors,
    /// compressed-tensors' values without zeros, and a mask.
    SparseBitmask,
    /// bitsandbytes' NF4 or FP4.
    BitsAndBytes4,
    /// bitsandbytes' LLM.int8().
    BitsAndBytes8,
    /// MLX's integers with scales and biases.
    MlxAffine,
    /// MLX's small floats: `mxfp4`, `mxfp8`, `nvfp4`.
    MlxFloat,
    /// HQQ.
    Hqq,
    /// optimum-quanto.
    Quanto,
    /// torchao.
    TorchAo,
    /// BitNet's ternary weights.
    BitNet,
    /// AQLM.
    Aqlm,
    /// ExLlamaV2.
    Exl2,
    /// ExLlamaV3.
    Exl3,
    /// VPTQ.
    Vptq,
    /// SpQR.
    Spqr,
    /// HIGGS.
    Higgs,
    /// SVDQuant, as Nunchaku stores it.
    SvdQuant,
    /// Words in the order of the Marlin kernel.
    Marlin,
    /// ComfyUI, in a format of its own.
    ComfyUi,
    /// A quantised tensor of PyTorch, which `weighbridge-convert` found in a pickle.
    PyTorch,
    /// An initialiser of a quantised ONNX model.
    Onnx,
    /// A quantised tensor of Burn, which `weighbridge-burn` saved.
    Burn,
    /// A method that is not known: the configuration says that weights are quantised, and these have a dtype of codes.
    Unknown,
}

impl QuantMethod {
    /// The name for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp8 => "FP8 (scaled)",
            Self::Fp8Blocks => "FP8 (block scales)",
            Self::Mxfp8 => "MXFP8",
            Self::Mxfp6 => "MXFP6",
            Self::Mxfp4 => "MXFP4",
            Self::Nvfp4 => "NVFP4",
            Self::Int8 => "int8 (scaled)",
            Self::PackedIntegers => "packed integers (scaled)",
            Self::Gptq => "GPTQ",
            Self::Awq => "AWQ",
            Self::GptqOrAwq => "GPTQ or AWQ",
            Self::CompressedTensors => "compressed-tensors (packed)",
            Self::SparseBitmask => "compressed-tensors (sparse bitmask)",
            Self::BitsAndBytes4 => "bitsandbytes 4-bit",
            Self::BitsAndBytes8 => "bitsandbytes 8-bit",
            Self::MlxAffine => "MLX affine",
            Self::MlxFloat => "MLX (mxfp4, mxfp8 or nvfp4)",
            Self::Hqq => "HQQ",
            Self::Quanto => "quanto",
            Self::TorchAo => "torchao",
            Self::BitNet => "BitNet",
            Self::Aqlm => "AQLM",
            Self::Exl2 => "EXL2",
            Self::Exl3 => "EXL3",
            Self::Vptq => "VPTQ",
            Self::Spqr => "SpQR",
            Self::Higgs => "HIGGS",
            Self::SvdQuant => "SVDQuant",
            Self::Marlin => "Marlin",
            Self::ComfyUi => "ComfyUI",
            Self::PyTorch => "a PyTorch quantised tensor",
            Self::Onnx => "ONNX (quantised initialiser)",
            Self::Burn => "a Burn quantised tensor",
            Self::Unknown => "codes of an unknown method",
        }
    }
}

impl fmt::Display for QuantMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
