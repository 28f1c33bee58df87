//! Floats of 4 bits with scales for groups of a row: MXFP4 and NVFP4.

use super::super::codes::{LOW_FIRST, Packing};
use super::super::companion::{Grid, Numbers};
use super::super::module::{Dense, Draft, Module, matrices, rows, table};
use super::super::recipe::{Second, Value};
use super::super::tables;
use super::scaled::{fold_pre_quant_scale, numbers, one, scales_of};
use crate::checkpoint::TensorRef;
use crate::dtype::Dtype;
use crate::error::Result;

/// The shape of the weights that pairs of 4 bits are.
fn unpacked(module: &Module<'_>, codes: &TensorRef<'_>) -> Result<Vec<usize>> {
    let mut shape = codes.shape().to_vec();
    match (codes.dtype(), shape.last_mut()) {
        (Dtype::F4, Some(_)) => {}
        (Dtype::U8 | Dtype::I8, Some(last)) => {
            let Some(double) = last.checked_mul(2) else {
                return Err(module.misshapen(codes, "which is too large"));
            };
            *last = double;
        }
        _ => return Err(module.mistyped(codes, "a tensor of pairs of 4 bits")),
    }
    Ok(shape)
}

/// A weight whose scales are powers of two, one for each 32 of a row.
pub(super) fn mxfp4<'c>(module: &Module<'c>) -> Result<Dense<'c>> {
    let codes = module.codes()?;
    let scale = scales_of(module)?;
    let shape = unpacked(module, &codes)?;
    let dims @ [count, height, width] =
        matrices(&shape).ok_or_else(|| module.misshapen(&codes, "where a matrix is expected"))?;
    let groups = width.div_ceil(32);
    let fits = scale.elements() == (count * height * groups) as u64;
    if !fits || !matches!(scale.dtype(), Dtype::U8 | Dtype::F8_E8M0) {
        let why =
            format!("where one power of two (U8 or F8_E8M0) is expected for each 32 of {height} x {width}");
        return Err(module.misshapen(&scale, &why));
    }
    let layout = rows(Packing::Nibbles(LOW_FIRST), 4, [height, width], width / 2);
    let mut draft = Draft::new(codes, dims, layout, Value::E2M1);
    let numbers = numbers(&scale);
    draft.recipe.scale = Some(draft.companion(scale, numbers, Grid::rows(1, 32, groups, height * groups)));
    fold_pre_quant_scale(module, &mut draft, width)?;
    draft.dense(module, shape, module.dtype(None))
}

/// A weight whose scales are 8-bit floats, one for each 16 of a row, with a scale of their own.
pub(super) fn nvfp4<'c>(module: &Module<'c>) -> Result<Dense<'c>> {
    let codes = module.codes()?;
    let scale = scales_of(module)?;
    if is_transposed(&codes, &scale) {
        return nvfp4_transposed(module, codes, scale);
    }
    let shape = unpacked(module, &codes)?;
    let dims @ [count, height, width] =
        matrices(&shape).ok_or_else(|| module.misshapen(&codes, "where a matrix is expected"))?;
    let groups = width.div_ceil(16);
    let fits = scale.elements() == (count * height * groups) as u64;
    if !fits || scale.dtype() != Dtype::F8_E4M3 {
        let why = format!(
            "where one F8_E4M3 is expected for each 16 of {height} x {width}, row by row (engines store them \
             swizzled and padded)"
        );
        return Err(module.misshapen(&scale, &why));
    }
    let layout = rows(Packing::Nibbles(LOW_FIRST), 4, [height, width], width / 2);
    let mut draft = Draft::new(codes, dims, layout, Value::E2M1);
    draft.recipe.scale = Some(draft.companion(scale, None, Grid::rows(1, 16, groups, height * groups)));
    add_second(module, &mut draft, count)?;
    fold_pre_quant_scale(module, &mut draft, width)?;
    draft.dense(module, shape, module.dtype(None))
}

/// Whether pairs are two rows of a column: experts of which modelopt keeps the inputs in rows.
fn is_transposed(codes: &TensorRef<'_>, scale: &TensorRef<'_>) -> bool {
    let (&[_, pairs, columns], &[_, groups, of_scales]) = (codes.shape(), scale.shape()) else {
        return false;
    };
    columns == of_scales && groups.checked_mul(8) == Some(pairs) && codes.dtype() == Dtype::U8
}

/// `[experts, inputs, outputs]`, of which two inputs share a byte.
fn nvfp4_transposed<'c>(
    module: &Module<'c>,
    codes: TensorRef<'c>,
    scale: TensorRef<'c>,
) -> Result<Dense<'c>> {
    let &[count, pairs, width] = codes.shape() else {
        return Err(module.misshapen(&codes, "where matrices are expected"));
    };
    let height = pairs * 2;
    let packing = Packing::Interleaved { shifts: vec![0, 4] };
    let mut layout = rows(packing, 4, [height, width], width);
    layout.word_rows = pairs;
    let mut draft = Draft::new(codes, [count, height, width], layout, Value::E2M1);
    let grid = Grid { down: 16, across: 1, row: width, column: 1, matrix: height / 16 * width };
    draft.recipe.scale = Some(draft.companion(scale, None, grid));
    add_second(module, &mut draft, count)?;
    draft.dense(module, vec![count, height, width], module.dtype(None))
}

/// The scale of the scales.
fn add_second<'c>(module: &Module<'c>, draft: &mut Draft<'c>, count: usize) -> Result<()> {
    let factor = module.own("weight_scale_2").or_else(|| module.beside("_scale_2"));
    let factor = factor.or_else(|| module.beside("_weight_scale_2"));
    let divisor = module.own("weight_global_scale").or_else(|| module.beside("_global_scale"));
    let (second, how) = match (factor, divisor) {
        (Some(factor), None) => (factor, Second::Factor),
        (None, Some(divisor)) => (divisor, Second::Divisor),
        (None, None) => {
            let is_packed = module.quantized.codes().any(|codes| codes.name().ends_with("_packed"));
            let name = if is_packed { "global_scale" } else { "scale_2" };
            return Err(module.missing(&format!("{}_{name}", module.weight)));
        }
        (Some(_), Some(divisor)) => {
            return Err(
                module.misshapen(&divisor, "and there is a \"weight_scale_2\", too: which of them counts?")
            );
        }
    };
    if second.dtype() != Dtype::F32 {
        return Err(module.mistyped(&second, "F32"));
    }
    let second = match second.elements() {
        1 => one(draft, second),
        elements if elements == count as u64 => {
            let grid = Grid { matrix: 1, ..Grid::ONE };
            draft.companion(second, None, grid)
        }
        _ => return Err(module.misshapen(&second, "where one number, or one a matrix, is expected")),
    };
    draft.recipe.second = Some((second, how));
    if how == Second::Factor {
        // modelopt, whose values these are, has no negative zero.
        draft.recipe.value = table(&tables::e2m1_of_modelopt());
    }
    Ok(())
}

/// gpt-oss: blocks of 32 weights, and a power of two for each. Its dense parameters have rows and columns exchanged.
pub(super) fn blocks<'c>(module: &Module<'c>) -> Result<Dense<'c>> {
    let codes = module.codes()?;
    // OpenAI's own files call them `.blocks` and have weights as they are used.
    let is_own = codes.name().ends_with(".blocks");
    let name = if is_own { ".scales" } else { "_scales" };
    let scale = module.beside(name).ok_or_else(|| module.missing(&format!("{}{name}", module.weight)))?;
    let &[ref outer @ .., height, groups, 16] = codes.shape() else {
        return Err(module.misshapen(&codes, "where blocks of 16 bytes are expected"));
    };
    let fits = scale.shape().strip_prefix(outer) == Some(&[height, groups]);
    if !fits || !matches!(scale.dtype(), Dtype::U8 | Dtype::F8_E8M0) || codes.dtype() != Dtype::U8 {
        return Err(module.misshapen(&scale, "where one power of two is expected for each block"));
    }
    let (Some(width), Some(count)) =
        (groups.checked_mul(32), outer.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim)))
    else {
        return Err(module.misshapen(&codes, "which is too large"));
    };
    let layout = rows(Packing::Nibbles(LOW_FIRST), 4, [height, width], width / 2);
    // Twice the values and half the scales: so the highest power is a number, as in the library.
    let value = table(&tables::e2m1(2.0));
    let numbers = Some(Numbers::Bytes(tables::half_exponents()));
    let (dims, grid) = match is_own {
        true => ([count, height, width], Grid::rows(1, 32, groups, height * groups)),
        false => (
            [count, width, height],
            Grid { down: 32, across: 1, row: 1, column: groups, matrix: height * groups },
        ),
    };
    let mut draft = Draft::new(codes, dims, layout, value);
    draft.recipe.across = !is_own;
    draft.recipe.scale = Some(draft.companion(scale, numbers, grid));
    let shape = [outer, &dims[1..]].concat();
    draft.dense(module, shape, module.dtype(None))
}
