//! One byte a weight, and scales: FP8 of every kind, MXFP8, int8.

use super::super::codes::{HIGH_FIRST, Packing};
use super::super::companion::{Companion, Grid, Numbers};
use super::super::module::{Dense, Draft, Module, matrices, rows, table};
use super::super::recipe::Value;
use super::super::tables;
use crate::checkpoint::{QuantMethod, TensorRef};
use crate::dtype::Dtype;
use crate::error::Result;

/// The names of scales beside a weight, of which there is one.
const BESIDE: &[&str] =
    &["_scale_inv", "_scale", "_weight_scale_inv", "_weight_scale", ".scale_inv", ".scale"];
/// The same, of the module.
const OWN: &[&str] = &[
    "weight_scale",
    "weight_scale_inv",
    "scale",
    "scales",
    "scale_weight",
    "qscale_weight",
    "weight_scales",
    "weight_scaling_factor",
    "weights_scaling_factor",
    "per_channel_scale",
];

/// The scales of a module's weight.
pub(super) fn scales_of<'c>(module: &Module<'c>) -> Result<TensorRef<'c>> {
    let beside = BESIDE.iter().find_map(|ending| module.beside(ending));
    let scales = beside.or_else(|| OWN.iter().find_map(|name| module.own(name)));
    scales.ok_or_else(|| module.missing(&format!("{}_scale", module.weight)))
}

/// What the bytes of a tensor stand for: signed integers, or floats of 8 bits.
pub(super) fn bytes(module: &Module<'_>, codes: &TensorRef<'_>) -> Result<Value> {
    match codes.dtype() {
        Dtype::I8 => Ok(Value::Signed),
        Dtype::F8_E4M3 => Ok(Value::E4M3),
        dtype @ (Dtype::F8_E5M2 | Dtype::F8_E4M3FNUZ | Dtype::F8_E5M2FNUZ) => {
            Ok(table(&tables::values(dtype, 1.0).ok_or_else(|| module.mistyped(codes, "an 8-bit float"))?))
        }
        _ => Err(module.mistyped(codes, "a signed number of 8 bits")),
    }
}

/// A scale's numbers, where its dtype does not say what they are.
pub(super) fn numbers(scale: &TensorRef<'_>) -> Option<Numbers> {
    (scale.dtype() == Dtype::U8).then(|| Numbers::Bytes(tables::exponents()))
}

pub(super) fn dense<'c>(module: &Module<'c>) -> Result<Dense<'c>> {
    let codes = module.codes()?;
    let scale = scales_of(module)?;
    if codes.dtype() == Dtype::I8 && scale.name().ends_with("weight_scales") {
        let why = "EETQ permutes its codes for a CUTLASS kernel; load the unquantised model";
        return Err(module.unsupported(why));
    }
    let value = bytes(module, &codes)?;
    let shape = codes.shape().to_vec();
    let dims @ [_, height, width] =
        matrices(&shape).ok_or_else(|| module.misshapen(&codes, "where a matrix is expected"))?;
    let layout = rows(Packing::Along, 8, [height, width], width);
    let mut draft = Draft::new(codes, dims, layout, value);
    let grid = grid(module, &codes, &scale, dims)?;
    draft.recipe.scale = Some(draft.companion(scale, numbers(&scale), grid));
    let zero = module.beside("_zero_point").or_else(|| module.own("weight_zero_point"));
    if let Some(zero) = zero {
        if zero.elements() != scale.elements() {
            return Err(module.misshapen(&zero, "which is not that of its scales"));
        }
        if zero.dtype() != Dtype::I8 && !zero.dtype().is_float() {
            return Err(module.mistyped(&zero, "I8"));
        }
        draft.recipe.zero = Some(draft.companion(zero, None, grid));
    }
    if let Some(factor) = module.own("pre_quant_scale").filter(|_| codes.dtype() == Dtype::I8) {
        let why = format!(
            "{:?} scales what the layer is given before that is quantised, too (SmoothQuant); load the \
             unquantised model",
            factor.name()
        );
        return Err(module.unsupported(&why));
    }
    fold_pre_quant_scale(module, &mut draft, width)?;
    draft.dense(module, shape, module.dtype(Some(scale.dtype())))
}

/// The layer sees its input times these: so do the columns of the weight.
pub(super) fn fold_pre_quant_scale<'c>(
    module: &Module<'c>,
    draft: &mut Draft<'c>,
    columns: usize,
) -> Result<()> {
    let Some(factor) = module.own("pre_quant_scale").or_else(|| module.own("weight_pre_quant_scale")) else {
        return Ok(());
    };
    if factor.elements() != columns as u64 || !factor.dtype().is_float() {
        return Err(module.misshapen(&factor, "which is not one for each column of the weight"));
    }
    let grid = Grid::for_columns(0);
    draft.recipe.factor = Some(draft.companion(factor, None, grid));
    Ok(())
}

/// Which scale belongs to a weight.
fn grid(module: &Module<'_>, codes: &TensorRef<'_>, scale: &TensorRef<'_>, dims: [usize; 3]) -> Result<Grid> {
    let [count, height, width] = dims;
    let wrong = |why: &str| Err(module.misshapen(scale, why));
    let is_float = scale.dtype().is_float() && scale.dtype().bits() >= 8 || scale.dtype() == Dtype::U8;
    if !is_float {
        return Err(module.mistyped(scale, "a float"));
    }
    let section = module.config.quantization();
    let shape = match *scale.shape() {
        [rows, 1, columns, 1] => vec![rows, columns],
        ref shape => shape.to_vec(),
    };
    // The dimensions before the last two are those of the weight, if there are any.
    let outer = &codes.shape()[..codes.shape().len().saturating_sub(2)];
    let (matrix, shape) = match shape.strip_prefix(outer) {
        Some(inner) if !outer.is_empty() && inner.len() <= 2 => (true, inner.to_vec()),
        _ => (false, shape),
    };
    if scale.elements() == 0 {
        return wrong("which has no scale");
    }
    // Of convolutions, one for each output; of experts, one for each, if it cannot be one for each row.
    match *scale.shape() {
        [first, ref rest @ ..]
            if outer.first() == Some(&first) && rest.iter().all(|&dim| dim == 1) && scale.elements() > 1 =>
        {
            let inner: usize = outer[1..].iter().product();
            let is_other = rest.is_empty() && (first == height || first == width);
            if inner != 1 || is_other {
                return wrong("which may be for more than one of the dimensions of its weight");
            }
            return Ok(Grid { matrix: 1, ..Grid::ONE });
        }
        _ => {}
    }
    let each = if matrix { shape.iter().product() } else { 0 };
    let is_wide = matches!(module.quantized.method(), QuantMethod::Fp8 | QuantMethod::Fp8Blocks)
        && module.config.method() == Some("fbgemm_fp8")
        && count > 1;
    Ok(match *shape {
        [] | [1] | [1, 1] => Grid { matrix: each, ..Grid::ONE },
        // Llama 4's experts, as fbgemm has them: of the last dimension.
        [each_column, 1] if is_wide && each_column == width => Grid::for_columns(each),
        [columns] if matrix && columns == width && width != height => Grid::for_columns(each),
        [rows] if matrix && rows == width => return wrong("which may be for rows or for columns"),
        [rows] | [rows, 1] if rows == height => Grid::for_rows(each),
        [1, columns] if columns == width => Grid::for_columns(each),
        [rows, columns] => {
            let [down, across] = block(module, scale, [height, width], [rows, columns])?;
            Grid::rows(down, across, columns, each)
        }
        _ => {
            let expected = if section.is_none() { "" } else { " of that strategy" };
            return wrong(&format!("which is no grid of scales{expected} over {height} x {width} weights"));
        }
    })
}

/// The size of the blocks that a grid of scales is for.
fn block(
    module: &Module<'_>,
    scale: &TensorRef<'_>,
    [height, width]: [usize; 2],
    [rows, columns]: [usize; 2],
) -> Result<[usize; 2]> {
    let fits = |[down, across]: [usize; 2]| {
        down > 0 && across > 0 && rows == height.div_ceil(down) && columns == width.div_ceil(across)
    };
    let section = module.config.quantization();
    let is_power = matches!(scale.dtype(), Dtype::F8_E8M0 | Dtype::U8);
    if is_power && fits([1, 32]) {
        return Ok([1, 32]);
    }
    let said = section.get("weight_block_size").and_then(|value| {
        let sizes = value.as_array()?;
        let size = |at: usize| usize::try_from(sizes.get(at)?.as_u64()?).ok();
        Some([size(0)?, size(1)?])
    });
    if let Some(said) = said {
        if fits(said) {
            return Ok(said);
        }
        // Some writers pad the grid.
        let is_larger = said[0] > 0
            && said[1] > 0
            && rows >= height.div_ceil(said[0])
            && columns >= width.div_ceil(said[1]);
        let is_other = [16, 32, 64, 128, 256, 512]
            .iter()
            .flat_map(|&down| [16, 32, 64, 128, 256, 512].map(|across| [down, across]))
            .chain([16, 32, 64, 128].map(|across| [1, across]))
            .any(fits);
        if is_larger && !is_other {
            return Ok(said);
        }
        let why = format!("{:?} has shape [{rows}, {columns}] for {height} x {width} weights", scale.name());
        return Err(module.blame(section.contradicts("weight_block_size", &format!("but {why}"))));
    }
    // compressed-tensors has its sizes in groups.
    let groups = section.section("config_groups").sections();
    let mut sizes: Vec<[usize; 2]> = Vec::new();
    let mut is_grouped = false;
    for weights in groups.iter().map(|group| group.section("weights")) {
        if let Some(size) = weights.number("group_size").and_then(|size| usize::try_from(size).ok()) {
            sizes.push([1, size]);
            is_grouped = true;
        }
        let structure = weights.get("block_structure").and_then(|value| {
            let values: Vec<usize> = match value.as_array() {
                Some(values) => {
                    values.iter().filter_map(|size| usize::try_from(size.as_u64()?).ok()).collect()
                }
                None => value.as_str()?.split('x').filter_map(|size| size.parse().ok()).collect(),
            };
            <[usize; 2]>::try_from(values).ok()
        });
        sizes.extend(structure);
    }
    if let Some(size) = section.number("group_size").and_then(|size| usize::try_from(size).ok()) {
        sizes.push([1, size]);
        is_grouped = true;
    }
    if let Some(size) = sizes.iter().copied().find(|&size| fits(size)) {
        return Ok(size);
    }
    if is_grouped && rows == height {
        let why = format!("{:?} has shape [{rows}, {columns}] for {height} x {width} weights", scale.name());
        return Err(module.blame(section.contradicts("config_groups", &format!("but {why}"))));
    }
    if fits([128, 128]) {
        return Ok([128, 128]);
    }
    if rows == height && columns > 0 && width % columns == 0 {
        return Ok([1, width / columns]);
    }
    if rows > 0 && columns > 0 && height % rows == 0 && width % columns == 0 {
        let [down, across] = [height / rows, width / columns];
        if down.is_power_of_two() && across.is_power_of_two() && down >= 16 && across >= 16 {
            return Ok([down, across]);
        }
    }
    Err(module.misshapen(scale, &format!("which is no grid of scales over {height} x {width} weights")))
}

/// modelopt's int4 with scales for groups: two rows share a row of bytes.
pub(super) fn rows_in_pairs<'c>(module: &Module<'c>) -> Result<Dense<'c>> {
    let codes = module.codes()?;
    let scale = scales_of(module)?;
    let [count, pairs, width] =
        matrices(codes.shape()).ok_or_else(|| module.misshapen(&codes, "where a matrix is expected"))?;
    let Some(height) = pairs.checked_mul(2) else {
        return Err(module.misshapen(&codes, "which is too large"));
    };
    let groups = scale.shape().last().copied().unwrap_or(0);
    let fits = groups > 0
        && scale.elements() == (count * height * groups) as u64
        && width % groups == 0
        && scale.dtype().is_float();
    if !fits {
        return Err(module.misshapen(&scale, &format!("which is no grid over {height} x {width} weights")));
    }
    let size = width / groups;
    let section = module.config.quantization();
    let said = section.number("group_size").filter(|&said| said > 0);
    if said.is_some_and(|said| usize::try_from(said).ok() != Some(size)) {
        let why = format!("{:?} has {groups} scales for {width} columns", scale.name());
        return Err(module.blame(section.contradicts("group_size", &format!("but {why}"))));
    }
    let mut shape = codes.shape().to_vec();
    if let Some(rows) = shape.iter_mut().rev().nth(1) {
        *rows = height;
    }
    let packing = Packing::Interleaved { shifts: vec![0, 4] };
    let mut layout = rows(packing, 4, [height, width], width);
    layout.word_rows = pairs;
    let mut draft = Draft::new(codes, [count, height, width], layout, Value::Signed);
    let grid = Grid::rows(1, size, groups, height * groups);
    draft.recipe.scale = Some(draft.companion(scale, None, grid));
    fold_pre_quant_scale(module, &mut draft, width)?;
    draft.dense(module, shape, module.dtype(Some(scale.dtype())))
}

/// bitsandbytes' LLM.int8().
pub(super) fn bitsandbytes<'c>(module: &Module<'c>) -> Result<Dense<'c>> {
    /// One 127th, as it is rounded in the library.
    const SEVENTH: f32 = 0.007_874_016;
    let codes = module.codes()?;
    let Some(scale) =
        module.own("SCB").or_else(|| module.beside(".SCB")).or_else(|| module.own("weight_scb"))
    else {
        return Err(module.missing(&format!("{}.SCB", module.quantized.name())));
    };
    let format = module.own("weight_format");
    if let Some(format) = &format {
        if module.integers(format)?.iter().any(|&format| format != 0) {
            let why = format!(
                "{:?} says that its rows are in tiles for a GPU; save it in rows, as transformers does",
                format.name()
            );
            return Err(module.unsupported(&why));
        }
    }
    let &[height, width] = codes.shape() else {
        return Err(module.misshapen(&codes, "where a matrix is expected"));
    };
    if scale.elements() != height as u64 || scale.dtype() != Dtype::F32 {
        return Err(module.misshapen(&scale, &format!("where {height} scales of F32 are expected")));
    }
    let layout = rows(Packing::Along, 8, [height, width], width);
    let mut draft = Draft::new(codes, [1, height, width], layout, Value::Signed);
    let grid = Grid::for_rows(0);
    draft.recipe.scale = Some(draft.companion(scale, None, grid));
    draft.recipe.last = Some(SEVENTH);
    draft.leave_out(format);
    let section = module.config.quantization();
    let said = section.text("bnb_4bit_compute_dtype").and_then(super::super::config::float);
    draft.dense(module, vec![height, width], module.config.dtype().or(said).unwrap_or(Dtype::F16))
}

/// The halves of bytes, the high one first.
pub(super) const HIGH: Packing = Packing::Nibbles(HIGH_FIRST);

/// A companion that is the same for all.
pub(super) fn one<'c>(draft: &mut Draft<'c>, tensor: TensorRef<'c>) -> Companion {
    draft.companion(tensor, None, Grid::ONE)
}
