//! bitsandbytes' NF4 and FP4: blocks of the flattened weight, each with its largest magnitude.

use std::sync::Arc;

use serde_json::Value as Json;

use super::super::companion::{Grid, Numbers};
use super::super::config::float;
use super::super::module::{Dense, Draft, Module, rows, table};
use super::super::tables;
use super::scaled::HIGH;
use crate::checkpoint::TensorRef;
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};

/// What the module's state says.
struct State {
    block: usize,
    shape: Vec<usize>,
    dtype: Option<Dtype>,
    nested: Option<(usize, f32)>,
}

pub(super) fn dense<'c>(module: &Module<'c>) -> Result<Dense<'c>> {
    let codes = module.checkpoint.tensor(&module.weight).ok_or_else(|| module.missing(&module.weight))?;
    let needed = |ending: &str| {
        module.beside(ending).ok_or_else(|| module.missing(&format!("{}{ending}", module.weight)))
    };
    let state = module.beside(".quant_state.bitsandbytes__nf4");
    let Some(state_tensor) = state.or_else(|| module.beside(".quant_state.bitsandbytes__fp4")) else {
        return Err(module.missing(&format!("{}.quant_state.bitsandbytes__nf4", module.weight)));
    };
    let state = read_state(module, &state_tensor)?;
    let (absmax, map) = (needed(".absmax")?, needed(".quant_map")?);
    let values = module.floats(&map)?;
    if values.len() != 16 {
        return Err(module.misshapen(&map, "where 16 values are expected"));
    }
    let Some(elements) = state.shape.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim))
    else {
        return Err(invalid(module, &state_tensor, "shape"));
    };
    if codes.byte_len() != elements.div_ceil(2) as u64 {
        let why = format!("which is not what {:?} says: {:?}", state_tensor.name(), state.shape);
        return Err(module.misshapen(&codes, &why));
    }
    let blocks = elements.div_ceil(state.block);
    if absmax.elements() != blocks as u64 {
        let why = format!("where {blocks} are expected for blocks of {}", state.block);
        return Err(module.misshapen(&absmax, &why));
    }
    // As rows and columns where blocks do not go beyond a row: then parts of rows are made together.
    let width = state.shape.last().copied().unwrap_or(1);
    let (dims, grid) = match width > 0 && width % 2 == 0 && width.checked_rem(state.block) == Some(0) {
        true => ([1, elements / width, width], Grid::rows(1, state.block, width / state.block, 0)),
        false => ([1, 1, elements], Grid::rows(1, state.block, blocks, 0)),
    };
    let layout = rows(HIGH, 4, [dims[1], dims[2]], dims[2].div_ceil(2));
    let mut draft = Draft::new(codes, dims, layout, table(&tables::listed(&values)));
    let numbers = match state.nested {
        None if absmax.dtype() == Dtype::F32 => None,
        None => return Err(module.mistyped(&absmax, "F32")),
        Some((block, offset)) => {
            let (scales, map) = (needed(".nested_absmax")?, needed(".nested_quant_map")?);
            let (numbers, table) = (module.floats(&scales)?, module.floats(&map)?);
            let Ok(table) = <[f32; 256]>::try_from(table) else {
                return Err(module.misshapen(&map, "where 256 values are expected"));
            };
            if numbers.len() != blocks.div_ceil(block) {
                return Err(
                    module.misshapen(&scales, &format!("where {} are expected", blocks.div_ceil(block)))
                );
            }
            if absmax.dtype() != Dtype::U8 {
                return Err(module.mistyped(&absmax, "U8"));
            }
            draft.leave_out([scales, map]);
            Some(Numbers::Nested { map: Arc::new(table), scales: numbers.into(), block, offset })
        }
    };
    draft.recipe.scale = Some(draft.companion(absmax, numbers, grid));
    draft.leave_out([map, state_tensor]);
    draft.dense(module, state.shape, state.dtype.unwrap_or_else(|| module.dtype(None)))
}

fn read_state(module: &Module<'_>, tensor: &TensorRef<'_>) -> Result<State> {
    let bytes = module.read(tensor)?;
    let wrong = |field: &str| invalid(module, tensor, field);
    let json: Json = serde_json::from_slice(&bytes).map_err(|error| {
        let message = format!("{:?} is not valid JSON: {error}", tensor.name());
        module.blame(Error::new(ErrorKind::Malformed, message))
    })?;
    let size = |key: &str| {
        let value = json.get(key)?.as_u64().filter(|&value| value > 0)?;
        usize::try_from(value).ok()
    };
    let shape = json.get("shape").and_then(Json::as_array).and_then(|dims| {
        dims.iter().map(|dim| usize::try_from(dim.as_u64()?).ok()).collect::<Option<Vec<_>>>()
    });
    let nested = match json.get("nested_blocksize").or_else(|| json.get("nested_offset")) {
        None => None,
        Some(_) => {
            let offset =
                json.get("nested_offset").and_then(Json::as_f64).ok_or_else(|| wrong("nested_offset"))?;
            let block = size("nested_blocksize").ok_or_else(|| wrong("nested_blocksize"))?;
            Some((block, offset as f32))
        }
    };
    Ok(State {
        block: size("blocksize").ok_or_else(|| wrong("blocksize"))?,
        shape: shape.ok_or_else(|| wrong("shape"))?,
        dtype: json.get("dtype").and_then(Json::as_str).and_then(float),
        nested,
    })
}

fn invalid(module: &Module<'_>, tensor: &TensorRef<'_>, field: &str) -> Error {
    let message = format!("{:?} has no valid {field:?}", tensor.name());
    module.blame(Error::new(ErrorKind::Malformed, message))
}
