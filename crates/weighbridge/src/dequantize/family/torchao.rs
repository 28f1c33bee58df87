//! torchao: metadata names the class of each tensor; of those with a byte a weight, it is made here.

use serde_json::Value as Json;

use super::super::codes::Packing;
use super::super::companion::Grid;
use super::super::config::float;
use super::super::module::{Dense, Draft, Module, rows};
use super::scaled;
use crate::error::Result;

pub(super) fn dense<'c>(module: &Module<'c>) -> Result<Dense<'c>> {
    let codes = module.codes()?;
    let described = description(module);
    let class = described.as_ref().and_then(|json| json.get("_type")).and_then(Json::as_str);
    let is_read = |class: &&str| matches!(*class, "Int8Tensor" | "Float8Tensor" | "IntxUnpackedToInt8Tensor");
    if let Some(class) = class.filter(|class| !is_read(class)) {
        let why = format!(
            "torchao's class {class} is not read; save it as Int8Tensor, or load the unquantised model"
        );
        return Err(module.unsupported(&why));
    }
    let part =
        |name: &str| module.own(&format!("_weight_{name}")).or_else(|| module.beside(&format!("_{name}")));
    let needed = |name: &str| part(name).ok_or_else(|| module.missing(&format!("{}_{name}", module.weight)));
    let scale = needed("scale")?;
    let &[height, width] = codes.shape() else {
        return Err(module.misshapen(&codes, "where a matrix is expected"));
    };
    let value = scaled::bytes(module, &codes)?;
    let grid = match *scale.shape() {
        [] | [1] | [1, 1] => Grid::ONE,
        [rows, groups] if rows == height && groups > 0 && width % groups == 0 => {
            Grid::rows(1, width / groups, groups, 0)
        }
        [rows] if rows == height => Grid::for_rows(0),
        _ => {
            return Err(
                module.misshapen(&scale, &format!("which is no grid of scales over {height} x {width}"))
            );
        }
    };
    let block = described.as_ref().and_then(|json| json.get("_data")?.get("block_size")?.get(1)?.as_u64());
    let is_other = |block: u64| grid.across != usize::MAX && usize::try_from(block).ok() != Some(grid.across);
    if let Some(block) = block.filter(|&block| is_other(block)) {
        return Err(module.misshapen(&scale, &format!("where the metadata says blocks of {block}")));
    }
    let dtype = described
        .as_ref()
        .and_then(|json| float(json.get("_data")?.get("dtype")?.get("_data")?.as_str()?))
        .unwrap_or_else(|| module.dtype(Some(scale.dtype())));
    let layout = rows(Packing::Along, 8, [height, width], width);
    let mut draft = Draft::new(codes, [1, height, width], layout, value);
    if let Some(zero) = part("zero_point") {
        if zero.elements() != scale.elements() {
            return Err(module.misshapen(&zero, "which is not that of its scales"));
        }
        draft.recipe.zero = Some(draft.companion(zero, None, grid));
    }
    draft.recipe.scale = Some(draft.companion(scale, None, grid));
    draft.dense(module, vec![height, width], dtype)
}

/// What the metadata of its file says about the weight.
fn description(module: &Module<'_>) -> Option<Json> {
    let codes = module.quantized.codes().next()?;
    let prefix = module.checkpoint.prefixes().nth(codes.shard_number())?;
    let name = module.weight.strip_prefix(prefix)?;
    serde_json::from_str(codes.shard().header().metadata_value(name)?).ok()
}
