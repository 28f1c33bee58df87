//! optimum-quanto: a byte a weight with a scale for each row, or rows that share bytes, with scales and shifts.

use super::super::codes::{Codes, Packing};
use super::super::companion::Grid;
use super::super::module::{Dense, Draft, Module, rows};
use super::super::recipe::Value;
use super::scaled;
use crate::checkpoint::TensorRef;
use crate::dtype::Dtype;
use crate::error::Result;

pub(super) fn dense<'c>(module: &Module<'c>) -> Result<Dense<'c>> {
    let scale =
        module.beside("._scale").ok_or_else(|| module.missing(&format!("{}._scale", module.weight)))?;
    if !scale.dtype().is_float() {
        return Err(module.mistyped(&scale, "a float"));
    }
    match module.beside("._data") {
        Some(codes) => bytes(module, codes, scale),
        None => packed(module, scale),
    }
}

/// `[outputs, inputs]`, with a scale for each output, or one for all.
fn bytes<'c>(module: &Module<'c>, codes: TensorRef<'c>, scale: TensorRef<'c>) -> Result<Dense<'c>> {
    let value = scaled::bytes(module, &codes)?;
    let Some((&height, inner)) = codes.shape().split_first() else {
        return Err(module.misshapen(&codes, "where a matrix is expected"));
    };
    let width = inner.iter().product();
    let grid = match scale.elements() {
        1 => Grid::ONE,
        elements if elements == height as u64 && scale.shape().first() == Some(&height) => Grid::for_rows(0),
        elements if elements == width as u64 && scale.shape().last() == Some(&width) => Grid::for_columns(0),
        _ => return Err(module.misshapen(&scale, &format!("where {height} scales are expected"))),
    };
    let layout = rows(Packing::Along, 8, [height, width], width);
    let shape = codes.shape().to_vec();
    let mut draft = Draft::new(codes, [1, height, width], layout, value);
    draft.recipe.scale = Some(draft.companion(scale, None, grid));
    draft.dense(module, shape, own_dtype(module, &scale))
}

/// Groups are rows, several of which share a row of bytes. How many groups a row of the weight has is not stored.
fn packed<'c>(module: &Module<'c>, scale: TensorRef<'c>) -> Result<Dense<'c>> {
    let name = format!("{}._data._data", module.weight);
    let codes = module.beside("._data._data").ok_or_else(|| module.missing(&name))?;
    let shift =
        module.beside("._shift").ok_or_else(|| module.missing(&format!("{}._shift", module.weight)))?;
    let (&[word_rows, columns], &[groups, 1]) = (codes.shape(), scale.shape()) else {
        return Err(module.misshapen(&scale, "where one scale a row of the groups is expected"));
    };
    if codes.dtype() != Dtype::U8 || shift.shape() != scale.shape() {
        return Err(module.misshapen(&shift, "where one a scale is expected"));
    }
    let (bits, shifts) = match groups {
        groups if groups.div_ceil(2) == word_rows => (4, vec![0, 4]),
        groups if groups.div_ceil(4) == word_rows => (2, vec![0, 2, 4, 6]),
        _ => {
            return Err(
                module.misshapen(&codes, &format!("which is not {groups} groups of 2 or 4 bits a weight"))
            );
        }
    };
    let height = height(module, groups, columns)?;
    let width = groups / height * columns;
    let layout = Codes {
        packing: Packing::Planes { word: 1, shifts },
        bits,
        rows: groups,
        columns,
        stride: columns,
        word_rows,
    };
    let grid = Grid::for_rows(0);
    let mut draft = Draft::new(codes, [1, groups, columns], layout, Value::Number(0));
    draft.recipe.scale = Some(draft.companion(scale, None, grid));
    if shift.dtype().is_float() {
        draft.recipe.shift = Some(draft.companion(shift, None, grid));
        draft.recipe.rounded = matches!(scale.dtype(), Dtype::F16 | Dtype::BF16).then_some(scale.dtype());
    } else {
        draft.recipe.zero = Some(draft.companion(shift, None, grid));
    }
    draft.dense(module, vec![height, width], own_dtype(module, &scale))
}

/// The rows of a weight of so many groups: as many as its bias has, or as its inputs leave.
fn height(module: &Module<'_>, groups: usize, columns: usize) -> Result<usize> {
    if let Some(bias) = module.own("bias") {
        let height = bias.elements() as usize;
        if height > 0 && groups % height == 0 {
            return Ok(height);
        }
        return Err(module.misshapen(&bias, &format!("which {groups} groups are not for")));
    }
    let config = module.config;
    let last = module.quantized.name().rsplit('.').next().unwrap_or_default();
    let hidden = config.size("hidden_size");
    let width = match last {
        "q_proj" | "k_proj" | "v_proj" | "qkv_proj" | "gate_proj" | "up_proj" | "gate_up_proj"
        | "lm_head" => hidden,
        "down_proj" if module.quantized.name().contains(".experts.") => config.size("moe_intermediate_size"),
        "down_proj" => config.size("intermediate_size"),
        "o_proj" => match (config.size("num_attention_heads"), config.size("head_dim")) {
            (Some(heads), Some(dim)) => heads.checked_mul(dim),
            _ => hidden,
        },
        _ => None,
    };
    let each = width.filter(|width| width.checked_rem(columns) == Some(0)).map(|width| width / columns);
    match each {
        Some(each) if each > 0 && groups % each == 0 => Ok(groups / each),
        _ => Err(module.unsupported(
            "how many inputs it has is not in its tensors; config.json's sizes would say it for the projections of a \
             transformer",
        )),
    }
}

fn own_dtype(module: &Module<'_>, scale: &TensorRef<'_>) -> Dtype {
    if scale.dtype() == Dtype::F32 { Dtype::F32 } else { module.dtype(Some(scale.dtype())) }
}
