//! What dtypes and shapes show: which of several methods it is, or that it is none.

use super::QuantMethod;
use crate::checkpoint::TensorRef;
use crate::dtype::Dtype::{
    self, F4, F6_E2M3, F6_E3M2, F8_E4M3, F8_E5M2, F8_E8M0, I8, I16, I32, I64, U8, U16, U32, U64,
};

/// What was found for a row.
pub(super) struct Seen<'c> {
    /// The weight's codes.
    pub(super) codes: TensorRef<'c>,
    /// The first of those beside it.
    pub(super) beside: Option<TensorRef<'c>>,
}

/// GPTQ packs along the inputs, AWQ along the outputs, 8 to a word.
pub(super) fn gptq_or_awq(seen: &Seen<'_>) -> Option<QuantMethod> {
    let columns = |tensor: &TensorRef<'_>| tensor.shape().get(1).copied();
    let scales = seen.beside.filter(|scales| !is_integer(scales.dtype()));
    Some(match (columns(&seen.codes), scales.as_ref().and_then(columns)) {
        _ if seen.codes.dtype() == I16 => QuantMethod::Awq,
        (Some(codes), Some(scales)) if codes == scales => QuantMethod::Gptq,
        (Some(codes), Some(scales)) if codes.checked_mul(8) == Some(scales) => QuantMethod::Awq,
        _ => QuantMethod::GptqOrAwq,
    })
}

/// Packed integers, or 4-bit floats, which are told apart by their scales.
pub(super) fn packed(seen: &Seen<'_>) -> Option<QuantMethod> {
    let scale = seen.beside.map(|scale| scale.dtype());
    Some(match (seen.codes.dtype(), scale) {
        (U8 | F4, Some(F8_E4M3)) => QuantMethod::Nvfp4,
        (U8 | F4, Some(U8 | F8_E8M0)) => QuantMethod::Mxfp4,
        _ => QuantMethod::CompressedTensors,
    })
}

/// Rows and, of experts, what is before them are those of the codes.
pub(super) fn mlx(seen: &Seen<'_>) -> Option<QuantMethod> {
    let scales = seen.beside?;
    let rows = |tensor: &TensorRef<'_>| Some(tensor.shape().split_last()?.1.to_vec());
    let fits =
        rows(&seen.codes)? == rows(&scales)? && seen.codes.shape().len() >= 2 && is_scale(scales.dtype());
    let method = if scales.dtype() == U8 { QuantMethod::MlxFloat } else { QuantMethod::MlxAffine };
    fits.then_some(method)
}

/// Blocks have one dimension more than their scales.
pub(super) fn mxfp4_blocks(seen: &Seen<'_>) -> Option<QuantMethod> {
    let scales = seen.beside.filter(|scales| matches!(scales.dtype(), U8 | F8_E8M0))?;
    (seen.codes.shape().len() > scales.shape().len()).then_some(QuantMethod::Mxfp4)
}

/// `B` and `s` are short names: `[inputs / 16, 2 * outputs]` and `[groups, outputs]`.
pub(super) fn marlin(seen: &Seen<'_>) -> Option<QuantMethod> {
    let ([_, words], [_, outputs]) = (seen.codes.shape(), seen.beside?.shape()) else { return None };
    let fits = outputs.checked_mul(2) == Some(*words) && is_scale(seen.beside?.dtype());
    fits.then_some(QuantMethod::Marlin)
}

/// An index for each codebook and group, into books of groups.
pub(super) fn aqlm(seen: &Seen<'_>) -> Option<QuantMethod> {
    let fits = seen.codes.shape().len() == 3 && seen.beside?.shape().len() == 4;
    fits.then_some(QuantMethod::Aqlm)
}

pub(super) fn comfy(seen: &Seen<'_>) -> Option<QuantMethod> {
    match seen.codes.dtype() {
        F8_E4M3 | F8_E5M2 => Some(QuantMethod::Fp8),
        dtype if dtype.bits() < 16 || is_integer(dtype) => Some(QuantMethod::ComfyUi),
        _ => None,
    }
}

/// Codes with a scale, by the dtypes of both.
pub(super) fn scaled(seen: &Seen<'_>) -> Option<QuantMethod> {
    let (codes, scale) = (&seen.codes, seen.beside?);
    // Matrices are quantised; a vector of bytes with a scale is nobody's weight.
    if !is_scale(scale.dtype()) || is_integer(codes.dtype()) && codes.shape().len() < 2 {
        return None;
    }
    let is_power = matches!(scale.dtype(), F8_E8M0 | U8);
    Some(match codes.dtype() {
        F4 if scale.dtype() == F8_E4M3 => QuantMethod::Nvfp4,
        F4 => QuantMethod::Mxfp4,
        F6_E2M3 | F6_E3M2 => QuantMethod::Mxfp6,
        U8 if scale.dtype() == F8_E4M3 => QuantMethod::Nvfp4,
        U8 | I8 if is_power => QuantMethod::Mxfp4,
        U8 if scale.elements() == 1 => QuantMethod::BitNet,
        I8 => QuantMethod::Int8,
        dtype if is_integer(dtype) => QuantMethod::PackedIntegers,
        _ if is_power && is_for_32(codes, &scale) => QuantMethod::Mxfp8,
        _ if has_blocks(&scale) => QuantMethod::Fp8Blocks,
        _ => QuantMethod::Fp8,
    })
}

/// The same where the scale's name may be that of a parameter: it has to be a scalar, one for each row or column, or a
/// grid over the matrix.
pub(super) fn fitting(seen: &Seen<'_>) -> Option<QuantMethod> {
    let (codes, scale) = (seen.codes.shape(), seen.beside?);
    let mut dims = codes.iter();
    let fits = match scale.shape() {
        [] | [1] => true,
        [each] => codes.contains(each),
        grid => grid.iter().filter(|&&dim| dim > 1).all(|dim| dims.any(|size| dim <= size)),
    };
    if codes.len() < 2 || !fits { None } else { scaled(seen) }
}

/// Whether there is a scale for each 32 values of a row.
fn is_for_32(codes: &TensorRef<'_>, scale: &TensorRef<'_>) -> bool {
    let last = |tensor: &TensorRef<'_>| tensor.shape().last().copied().unwrap_or(1);
    last(codes).div_ceil(32) == last(scale) && scale.elements() > codes.elements() / 64
}

/// Whether scales are a grid over rows and columns.
fn has_blocks(scale: &TensorRef<'_>) -> bool {
    match scale.shape() {
        [.., rows, columns] if *rows > 1 && *columns > 1 => true,
        [_, 1, _, 1] => true,
        [_, _, ..] => scale.name().ends_with("_inv"),
        _ => false,
    }
}

/// What scales are stored as: numbers, or bytes that hold small floats.
fn is_scale(dtype: Dtype) -> bool {
    dtype.is_float() && dtype.bits() >= 8 || dtype == U8
}

/// Whether tensors of that dtype may hold codes, or have companions that show it: in ordinary checkpoints none does.
pub(crate) fn may_be_codes(dtype: Dtype) -> bool {
    is_integer(dtype) || dtype.is_float() && dtype.bits() < 16
}

pub(super) fn is_integer(dtype: Dtype) -> bool {
    matches!(dtype, I8 | U8 | I16 | U16 | I32 | U32 | I64 | U64)
}
