//! AWQ: codes of 4 bits in the order of a kernel, in three layouts.

use super::super::codes::{AWQ, Packing};
use super::super::companion::{Grid, Numbers};
use super::super::module::{Dense, Draft, Module, rows};
use super::super::recipe::Value;
use super::gptq;
use crate::checkpoint::TensorRef;
use crate::dtype::Dtype;
use crate::error::Result;

/// A layout of AutoAWQ.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    Gemm,
    Gemv,
    FastGemv,
}

/// What the layouts have in common.
struct Tensors<'c> {
    codes: TensorRef<'c>,
    scales: TensorRef<'c>,
    zeros: Option<TensorRef<'c>>,
}

/// A module with `qweight`: AWQ if its shapes or its configuration say so, else GPTQ.
pub(super) fn or_gptq<'c>(module: &Module<'c>) -> Result<Dense<'c>> {
    let (codes, scales) = (module.needed("qweight")?, module.needed("scales")?);
    let section = module.config.quantization();
    let packing = section.text("packing_format").or_else(|| section.text("backend")).unwrap_or_default();
    let is_awq = match module.config.method() {
        Some("awq") => true,
        Some("gptq" | "gptqmodel") => false,
        Some(method) if method.contains("auto-round") => packing.contains("awq"),
        _ => match (codes.shape(), scales.shape()) {
            (&[_, words], &[_, columns]) if words != columns => true,
            (&[height, _], &[of_scales, _]) if height == of_scales => true,
            _ => codes.dtype() == Dtype::I16,
        },
    };
    if is_awq { dense(module, codes, scales) } else { gptq::dense(module) }
}

fn dense<'c>(module: &Module<'c>, codes: TensorRef<'c>, scales: TensorRef<'c>) -> Result<Dense<'c>> {
    let section = module.config.quantization();
    let (&[of_codes, words], &[of_scales, columns]) = (codes.shape(), scales.shape()) else {
        return Err(module.misshapen(&codes, "where a matrix with a matrix of scales is expected"));
    };
    if !scales.dtype().is_float() {
        return Err(module.mistyped(&scales, "a float"));
    }
    for (key, default) in [("bits", 4), ("w_bit", 4)] {
        if section.number(key).is_some_and(|bits| bits != default) {
            let why = "AWQ's files have 4 bits a code";
            return Err(module.blame(section.contradicts(key, &format!("but {why}"))));
        }
    }
    if let Some(factor) = module.config.activation_scales() {
        let why = format!(
            "{factor:?} divides what a layer is given, which is no part of its weight; load the unquantised model"
        );
        return Err(module.unsupported(&why));
    }
    let is_gemm = words.checked_mul(8) == Some(columns) && codes.dtype() != Dtype::I16;
    let is_gemv = of_codes == of_scales && codes.dtype() != Dtype::I16;
    let version = match section.text("version").map(str::to_lowercase).as_deref() {
        Some("gemv") if is_gemv => Version::Gemv,
        _ if codes.dtype() == Dtype::I16 => Version::FastGemv,
        _ if is_gemm => Version::Gemm,
        _ if is_gemv => Version::Gemv,
        _ => {
            let why = "which is none of AWQ's layouts (gemm, gemv, gemv_fast) for its scales; Marlin's are not read: \
                       re-export it with version gemm";
            return Err(module.misshapen(&codes, why));
        }
    };
    let zeros = module.own("qzeros").filter(|zeros| zeros.elements() > 0);
    if version != Version::FastGemv && !matches!(codes.dtype(), Dtype::I32 | Dtype::U32) {
        return Err(module.mistyped(&codes, "I32"));
    }
    let tensors = Tensors { codes, scales, zeros };
    match version {
        Version::Gemm => gemm(module, tensors, [columns, of_codes], of_scales),
        Version::Gemv => gemv(module, tensors, of_codes, words, columns),
        Version::FastGemv => fast_gemv(module, tensors),
    }
}

/// `[inputs, outputs / 8]`, with scales `[groups, outputs]`.
fn gemm<'c>(
    module: &Module<'c>,
    Tensors { codes, scales, zeros }: Tensors<'c>,
    [height, width]: [usize; 2],
    groups: usize,
) -> Result<Dense<'c>> {
    let section = module.config.quantization();
    let said = section.number("group_size").or_else(|| section.number("q_group_size"));
    let group = gptq::group(module, &scales, &section, said, [width, groups])?;
    let packed = |rows_of: usize| rows(Packing::Nibbles(AWQ), 4, [rows_of, height], height / 2);
    let grid = Grid { down: 1, across: group, row: 1, column: height, matrix: 0 };
    let mut draft = Draft::new(codes, [1, height, width], packed(width), Value::Number(0));
    draft.recipe.across = true;
    match zeros {
        Some(zeros) => {
            if zeros.shape() != [groups, height / 8] {
                let why = format!("where [{groups}, {}] words of zero points are expected", height / 8);
                return Err(module.misshapen(&zeros, &why));
            }
            let numbers = Numbers::Packed { codes: packed(groups), across: true, add: 0 };
            draft.recipe.zero = Some(draft.companion(zeros, Some(numbers), grid));
        }
        None => {
            refuse_missing_zeros(module)?;
            draft.recipe.value = Value::Number(-8);
        }
    }
    let dtype = module.dtype(Some(scales.dtype()));
    draft.recipe.scale = Some(draft.companion(scales, None, grid));
    draft.leave_out(module.own("qzeros"));
    draft.dense(module, vec![height, width], dtype)
}

/// `[outputs, inputs / 8]`, with scales `[outputs, groups]`, padded.
fn gemv<'c>(
    module: &Module<'c>,
    Tensors { codes, scales, zeros }: Tensors<'c>,
    height: usize,
    words: usize,
    padded: usize,
) -> Result<Dense<'c>> {
    let Some(width) = words.checked_mul(8) else {
        return Err(module.misshapen(&codes, "which is too large"));
    };
    let group = padded_group(module, &scales, width, padded)?;
    let groups = width.div_ceil(group);
    let grid = Grid { down: 1, across: group, row: padded, column: 1, matrix: 0 };
    let layout = rows(Packing::Along, 4, [height, width], words * 4);
    let mut draft = Draft::new(codes, [1, height, width], layout, Value::Number(0));
    match zeros {
        Some(zeros) => {
            if zeros.shape() != [height, padded / 8] {
                let why = format!("where [{height}, {}] words of zero points are expected", padded / 8);
                return Err(module.misshapen(&zeros, &why));
            }
            let packed = rows(Packing::Along, 4, [height, groups], padded / 2);
            let numbers = Numbers::Packed { codes: packed, across: false, add: 0 };
            draft.recipe.zero = Some(draft.companion(zeros, Some(numbers), grid));
        }
        None => {
            refuse_missing_zeros(module)?;
            draft.recipe.value = Value::Number(-8);
        }
    }
    let dtype = module.dtype(Some(scales.dtype()));
    draft.recipe.scale = Some(draft.companion(scales, None, grid));
    draft.leave_out(module.own("qzeros"));
    draft.dense(module, vec![height, width], dtype)
}

/// `[outputs / 4, inputs]` of 16 bits, with scales and what is added `[groups, outputs]`, padded.
fn fast_gemv<'c>(module: &Module<'c>, Tensors { codes, scales, zeros }: Tensors<'c>) -> Result<Dense<'c>> {
    let (&[quarter, width], &[padded, height]) = (codes.shape(), scales.shape()) else {
        return Err(module.misshapen(&codes, "where a matrix is expected"));
    };
    let zeros = zeros.ok_or_else(|| module.missing(&format!("{}.qzeros", module.quantized.name())))?;
    if quarter.checked_mul(4) != Some(height) || width % 64 != 0 {
        return Err(module.misshapen(&codes, &format!("where a quarter of {height} rows of 64s is expected")));
    }
    if zeros.shape() != scales.shape() || !zeros.dtype().is_float() {
        return Err(module.misshapen(&zeros, "where floats in the shape of the scales are expected"));
    }
    let group = padded_group(module, &scales, width, padded)?;
    let mut layout = rows(Packing::FastGemv, 4, [height, width], width * 2);
    layout.word_rows = quarter;
    let grid = Grid { down: 1, across: group, row: 1, column: height, matrix: 0 };
    let dtype = module.dtype(Some(scales.dtype()));
    let mut draft = Draft::new(codes, [1, height, width], layout, Value::Number(0));
    draft.recipe.scale = Some(draft.companion(scales, None, grid));
    draft.recipe.bias = Some(draft.companion(zeros, None, grid));
    draft.dense(module, vec![height, width], dtype)
}

/// Weights in a group, where there is room for more groups than there are.
fn padded_group(module: &Module<'_>, scales: &TensorRef<'_>, width: usize, padded: usize) -> Result<usize> {
    let section = module.config.quantization();
    let room = |group: usize| {
        let times = match group {
            128.. => 1,
            64.. => 2,
            _ => 4,
        };
        width.div_ceil(group).div_ceil(8).next_multiple_of(times) * 8
    };
    let key = if section.number("group_size").is_some() { "group_size" } else { "q_group_size" };
    match section.number(key) {
        Some(said) => {
            let group = if said == -1 { width } else { usize::try_from(said).unwrap_or(0) };
            if group > 0 && room(group) == padded {
                return Ok(group);
            }
            let why = format!("{:?} has room for {padded} scales for {width} weights", scales.name());
            Err(module.blame(section.contradicts(key, &format!("but {why}"))))
        }
        None => {
            let found: Vec<usize> =
                [32, 64, 128].into_iter().filter(|&group| room(group) == padded).collect();
            match *found {
                [group] => Ok(group),
                _ => Err(module.unsupported(
                    "the size of its groups is not in its tensors; quantization_config.group_size would say it",
                )),
            }
        }
    }
}

/// Files without zero points are those of symmetric weights.
fn refuse_missing_zeros(module: &Module<'_>) -> Result<()> {
    match module.config.quantization().flag("zero_point") {
        Some(true) => Err(module.missing(&format!("{}.qzeros", module.quantized.name()))),
        _ => Ok(()),
    }
}
