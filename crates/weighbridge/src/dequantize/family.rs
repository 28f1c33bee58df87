//! The methods: how the tensors of a module say what its weights are.

mod awq;
mod bits_and_bytes;
mod comfy;
mod compressed;
mod gptq;
mod mlx;
mod scaled;
mod small_floats;

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
            let codes = module.quantized.codes().next();
            let has_blocks = codes.is_some_and(|codes| codes.name().ends_with("blocks"));
            if has_blocks { small_floats::blocks(module) } else { small_floats::mxfp4(module) }
        }
        QuantMethod::Nvfp4 => small_floats::nvfp4(module),
        QuantMethod::Gptq | QuantMethod::Awq | QuantMethod::GptqOrAwq => awq::or_gptq(module),
        QuantMethod::CompressedTensors => compressed::dense(module),
        QuantMethod::BitsAndBytes4 => bits_and_bytes::dense(module),
        QuantMethod::BitsAndBytes8 => scaled::bitsandbytes(module),
        QuantMethod::MlxAffine | QuantMethod::MlxFloat => mlx::dense(module),
        other => Err(module.unsupported(why_not(other))),
    }
}

/// Whether the configuration is that of NVIDIA's library.
fn is_modelopt(module: &Module<'_>) -> bool {
    let section = module.config.quantization();
    module.config.method().is_some_and(|method| method.starts_with("modelopt"))
        || section.text("quant_algo").is_some()
}

/// Methods that the tensors do not show.
fn refuse_by_configuration(module: &Module<'_>) -> Result<()> {
    let why = match module.config.method() {
        Some("eetq") => {
            "EETQ permutes its codes for a CUTLASS kernel; load the unquantised model, or quantise it anew as int8"
        }
        Some("vptq" | "spqr" | "higgs" | "fp_quant" | "quip" | "qqq" | "sinq" | "fouroversix" | "paroquant") => {
            "the method that config.json names needs its own kernels; load the unquantised model"
        }
        Some("gemma") => "this packing of Gemma's is not read yet; load the unquantised model",
        _ => return Ok(()),
    };
    Err(module.unsupported(why))
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
