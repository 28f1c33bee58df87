//! MLX: words of 32 bits along each row, with scales and biases for groups of it.

use super::super::codes::Packing;
use super::super::companion::{Grid, Numbers};
use super::super::module::{Dense, Draft, Module, matrices, rows, table};
use super::super::recipe::Value;
use super::super::tables;
use crate::dtype::Dtype;
use crate::error::Result;

/// How MLX quantised a module.
struct Mode {
    bits: u32,
    group: usize,
    name: String,
}

pub(super) fn dense<'c>(module: &Module<'c>) -> Result<Dense<'c>> {
    let codes = module.checkpoint.tensor(&module.weight).ok_or_else(|| module.missing(&module.weight))?;
    let scale = module.needed("scales")?;
    let Mode { bits, group, name } = mode(module)?;
    let mut shape = codes.shape().to_vec();
    let [count, height, words] =
        matrices(&shape).ok_or_else(|| module.misshapen(&codes, "where a matrix is expected"))?;
    let groups = scale.shape().last().copied().unwrap_or(0);
    let section = module.config.mlx();
    // Both have to say how many columns there are.
    let columns = groups.checked_mul(group);
    let width = words.checked_mul(32).map(|all| all / bits as usize);
    let (Some(columns), Some(width)) = (columns, width) else {
        return Err(module.misshapen(&codes, "which is too large"));
    };
    if columns != width || (words * 32) % bits as usize != 0 {
        let why = format!(
            "and its {:?} is {group}, so that {words} words a row are {width} weights, and {groups} scales are for {columns}",
            "group_size"
        );
        return Err(module.blame(section.contradicts("bits", &why)));
    }
    if scale.shape().len() != shape.len() || scale.elements() != (count * height * groups) as u64 {
        return Err(module.misshapen(&scale, &format!("where one is expected for each {group} of a row")));
    }
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    let grid = Grid::rows(1, group, groups, height * groups);
    let layout = rows(Packing::Along, bits, [height, width], words * 4);
    let biases = module.own("biases").or_else(|| module.own("qbiases"));
    let small = match &*name {
        "mxfp4" => Some((tables::e2m1(1.0), tables::exponents(), 4, 32)),
        "nvfp4" => tables::values(Dtype::F8_E4M3, 1.0).map(|scales| (tables::e2m1(1.0), scales, 4, 16)),
        "mxfp8" => tables::values(Dtype::F8_E4M3, 1.0).map(|values| (values, tables::exponents(), 8, 32)),
        "affine" => None,
        _ => return Err(module.unsupported(&format!("{name:?} is no mode of MLX that is known here"))),
    };
    if let Some((values, scales, its_bits, its_group)) = small {
        if (bits, group) != (its_bits, its_group) || scale.dtype() != Dtype::U8 {
            let why = format!("but {name} has {its_bits} bits and U8 scales for groups of {its_group}");
            return Err(module.blame(section.contradicts("mode", &why)));
        }
        let mut draft = Draft::new(codes, [count, height, width], layout, table(&values));
        draft.recipe.scale = Some(draft.companion(scale, Some(Numbers::Bytes(scales)), grid));
        if let Some(global) = module.own("global_scale") {
            return Err(module.misshapen(&global, "which is newer than what is known here of MLX"));
        }
        return draft.dense(module, shape, module.dtype(None));
    }
    let Some(biases) = biases else {
        return Err(module.missing(&format!("{}.biases", module.quantized.name())));
    };
    if biases.shape() != scale.shape() || biases.dtype() != scale.dtype() || !scale.dtype().is_float() {
        return Err(module.misshapen(&biases, "where shape and dtype of the scales are expected"));
    }
    let mut draft = Draft::new(codes, [count, height, width], layout, Value::Number(0));
    draft.recipe.scale = Some(draft.companion(scale, None, grid));
    draft.recipe.bias = Some(draft.companion(biases, None, grid));
    // MLX computes in the dtype of the scales.
    draft.recipe.rounded = matches!(scale.dtype(), Dtype::F16 | Dtype::BF16).then_some(scale.dtype());
    let dtype = if scale.dtype() == Dtype::F32 { Dtype::F32 } else { scale.dtype() };
    draft.dense(module, shape, dtype)
}

fn mode(module: &Module<'_>) -> Result<Mode> {
    let section = module.config.mlx();
    let prefix = module
        .quantized
        .codes()
        .next()
        .and_then(|codes| module.checkpoint.prefixes().nth(codes.shard_number()));
    let name = module.quantized.name();
    let own = section.section(name.strip_prefix(prefix.unwrap_or_default()).unwrap_or(name));
    let field = |key: &str| own.get(key).or_else(|| section.get(key));
    // What a module says of itself is all: it does not take the mode of the others.
    let mode = if own.is_none() { section.get("mode") } else { own.get("mode") };
    let name = mode.and_then(|mode| mode.as_str()).unwrap_or("affine").to_owned();
    let (bits, group) = match &*name {
        "mxfp4" => (Some(4), Some(32)),
        "nvfp4" => (Some(4), Some(16)),
        "mxfp8" => (Some(8), Some(32)),
        _ => (None, None),
    };
    let number = |key: &str| field(key).and_then(serde_json::Value::as_u64);
    let (bits, group) = (number("bits").or(bits), number("group_size").or(group));
    let (Some(bits), Some(group)) = (bits, group) else {
        let why = "its bits and the size of its groups are not in its tensors, but in config.json (\"quantization\": \
                   {\"bits\": ..., \"group_size\": ...}), which is not there";
        return Err(module.unsupported(why));
    };
    let group = usize::try_from(group).unwrap_or(0);
    if !matches!(bits, 2..=6 | 8) || group == 0 {
        let key = if group == 0 { "group_size" } else { "bits" };
        return Err(module.blame(section.contradicts(key, "but MLX has 2, 3, 4, 5, 6 and 8 bits")));
    }
    Ok(Mode { bits: bits as u32, group, name })
}
