//! The methods: how the tensors of a module say what its weights are.

mod awq;
mod bitnet;
mod bits_and_bytes;
mod comfy;
mod compressed;
mod gptq;
mod hqq;
mod mlx;
mod quanto;
mod scaled;
mod small_floats;
mod torchao;

use super::module::{Dense, Module};
use crate::checkpoint::QuantMethod;
use crate::error::Result;

/// The weight that a module stands for.
///
/// # Errors
///
/// Fails when the method is not read, and says what to do; and when the tensors of the module contradict each other, or the
/// configuration.
pub(super) fn dense<'c>(module: &Module<'c>) -> Result<Dense<'c>> {
    refuse_by_configuration(module)?;
    if let Some(codes) = module.quantized.codes().next().filter(|codes| codes.elements() == 0) {
        return Err(module.misshapen(&codes, "and holds nothing"));
    }
    match module.quantized.method() {
        QuantMethod::Fp8 | QuantMethod::Fp8Blocks | QuantMethod::Int8 | QuantMethod::Mxfp8
            if module.own("comfy_quant").is_some() =>
        {
            comfy::dense(module)
        }
        QuantMethod::ComfyUi => comfy::dense(module),
        QuantMethod::Fp8 | QuantMethod::Fp8Blocks | QuantMethod::Int8 | QuantMethod::Mxfp8 => {
            scaled::dense(module)
        }
        QuantMethod::PackedIntegers if is_modelopt(module) => scaled::rows_in_pairs(module),
        QuantMethod::Mxfp4 => {
            let has_blocks = module.codes()?.name().ends_with("blocks");
            if has_blocks { small_floats::blocks(module) } else { small_floats::mxfp4(module) }
        }
        QuantMethod::Nvfp4 => small_floats::nvfp4(module),
        QuantMethod::Gptq | QuantMethod::Awq | QuantMethod::GptqOrAwq => awq::or_gptq(module),
        QuantMethod::CompressedTensors => compressed::dense(module),
        QuantMethod::BitsAndBytes4 => bits_and_bytes::dense(module),
        QuantMethod::BitsAndBytes8 => scaled::bitsandbytes(module),
        QuantMethod::MlxAffine | QuantMethod::MlxFloat => mlx::dense(module),
        QuantMethod::Hqq => hqq::dense(module),
        QuantMethod::Quanto => quanto::dense(module),
        QuantMethod::TorchAo => torchao::dense(module),
        QuantMethod::BitNet => bitnet::dense(module),
        other => Err(module.unsupported(why_not(other))),
    }
}

/// Whether the configuration is that of NVIDIA's library.
fn is_modelopt(module: &Module<'_>) -> bool {
    let section = module.config.quantization();
    module.config.method().is_some_and(|method| method.starts_with("modelopt"))
        || section.text("quant_algo").is_some()
}

/// Methods whose kernels read what nobody else does, as `quant_method` names them.
const KERNELS: &[&str] = &[
    "aqlm",
    "bitblas",
    "eetq",
    "exl2",
    "exl3",
    "fouroversix",
    "fp_quant",
    "gemma",
    "higgs",
    "marlin",
    "paroquant",
    "qqq",
    "quip",
    "sinq",
    "spqr",
    "svdquant",
    "vptq",
];

/// Formats of compressed-tensors that are not read.
const FORMATS: &[&str] = &["marlin-24", "mxfp6-pack-quantized", "sparse-24-bitmask", "sparse-bitmask"];

/// What the tensors do not show, or what goes with them.
fn refuse_by_configuration(module: &Module<'_>) -> Result<()> {
    let section = module.config.quantization();
    if let Some(method) = module.config.method().filter(|method| KERNELS.contains(method)) {
        let why = format!(
            "{} is {method:?}, which only its own kernels read; load the unquantised model, or one in another format",
            section.field("quant_method")
        );
        return Err(module.unsupported(&why));
    }
    let groups = section.section("config_groups").sections();
    let mut formats = std::iter::once(&section).chain(&groups).filter_map(|part| part.text("format"));
    let is_own = module.quantized.method() == QuantMethod::CompressedTensors
        || module.quantized.method() == QuantMethod::SparseBitmask;
    if let Some(format) = formats.find(|format| FORMATS.contains(format)).filter(|_| is_own) {
        let why = format!(
            "{} is {format:?}, which is not read; decompress the model with compressed-tensors, or load the unquantised one",
            section.field("format")
        );
        return Err(module.unsupported(&why));
    }
    if !section.section("transform_config").section("config_groups").sections().is_empty() {
        let why = format!(
            "{} says that it is rotated, and so is what the layer is given; load the unquantised model",
            section.field("transform_config")
        );
        return Err(module.unsupported(&why));
    }
    for name in ["svdquant_lora_a", "svdquant_lora_b", "proj_down", "proj_up"] {
        if let Some(low_rank) = module.own(name) {
            let why = format!(
                "{:?} is a low-rank part of the layer beside its weight, which is not read; load the unquantised model",
                low_rank.name()
            );
            return Err(module.unsupported(&why));
        }
    }
    Ok(())
}

/// Why a method is not read, and what to do instead.
fn why_not(method: QuantMethod) -> &'static str {
    match method {
        QuantMethod::Marlin => {
            "Marlin permutes its words for a CUDA kernel; re-export it as gptq, or load the unquantised model"
        }
        QuantMethod::Exl2 => {
            "EXL2 has rows of several widths, in an order of their own; load the unquantised model, or a GGUF"
        }
        QuantMethod::Exl3 => {
            "EXL3 stores a trellis under a Hadamard rotation; load the unquantised model, or a GGUF"
        }
        QuantMethod::Vptq => "VPTQ has codebooks of vectors; load the unquantised model",
        QuantMethod::Spqr => "SpQR has sparse outliers in tiles of a kernel; load the unquantised model",
        QuantMethod::Higgs => "HIGGS rotates weights (Hadamard); load the unquantised model",
        QuantMethod::Aqlm => "AQLM has sums of codebooks, which are not read yet; load the unquantised model",
        QuantMethod::SvdQuant => {
            "SVDQuant has a low-rank part beside its codes, in the order of a kernel; load the unquantised model"
        }
        QuantMethod::SparseBitmask => {
            "sparse bitmasks are not read; decompress the model with compressed-tensors, or load the unquantised one"
        }
        QuantMethod::Mxfp6 => "values of 6 bits have no agreed packing; load the unquantised model",
        QuantMethod::PackedIntegers => {
            "how its integers are packed is not known; load the unquantised model, or re-export it with \
             compressed-tensors"
        }
        QuantMethod::PyTorch | QuantMethod::Onnx => "its integers are weights of integer arithmetic",
        QuantMethod::Burn => "weighbridge-burn loads it as the quantised tensor that it was",
        _ => "it is not read yet; load the unquantised model",
    }
}
