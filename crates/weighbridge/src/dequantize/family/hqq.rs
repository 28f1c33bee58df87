//! HQQ: rows of the reshaped weight share words, with scales and zero points that are floats.

use super::super::codes::{Codes, Packing};
use super::super::companion::Grid;
use super::super::module::{Dense, Draft, Module};
use super::super::recipe::Value;
use crate::dtype::Dtype;
use crate::error::Result;

/// Tensors that describe a module.
const DESCRIPTIONS: &[&str] = &[
    "nbits",
    "group_size",
    "axis",
    "shape",
    "packing",
    "view_as_float",
    "compute_dtype",
    "quant_scale",
    "quant_zero",
    "unpack_view_dtype",
    "offload_meta",
    "channel_wise",
    "optimize",
    "round_zero",
    "encoded_state_dict",
    "stores_quant_config",
];

pub(super) fn dense<'c>(module: &Module<'c>) -> Result<Dense<'c>> {
    let (codes, scale, zero) = (module.needed("W_q")?, module.needed("scale")?, module.needed("zero")?);
    for name in ["quant_scale", "quant_zero"] {
        let flags = module.own(name).map(|flag| module.integers(&flag)).transpose()?;
        if flags.is_some_and(|flags| flags.iter().any(|&flag| flag != 0)) {
            let why = format!("its scales or zero points are quantised, too ({name:?}), which is not read");
            return Err(module.unsupported(&why));
        }
    }
    let (shape, axis) = (module.needed("shape")?, module.needed("axis")?);
    let dims: Option<Vec<usize>> =
        module.integers(&shape)?.iter().map(|&dim| usize::try_from(dim).ok()).collect();
    let elements = dims.as_ref().and_then(|dims| {
        dims.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim)).filter(|&all| all > 0)
    });
    let (Some(dims), Some(elements)) = (dims, elements) else {
        return Err(module.misshapen(&shape, "and is no shape of weights"));
    };
    let packing = module.needed("packing")?;
    let packing = String::from_utf8_lossy(&module.read(&packing)?).into_owned();
    let (bits, word, shifts): (u32, usize, Vec<u32>) = match &*packing {
        "8bit_u8" => (8, 1, vec![0]),
        "4bit_u8" => (4, 1, vec![4, 0]),
        "3bit_32" => (3, 4, (0..10).rev().map(|at| at * 3).collect()),
        "2bit_u8" => (2, 1, vec![6, 4, 2, 0]),
        "1bit_u8" => (1, 1, (0..8).rev().collect()),
        other => return Err(module.unsupported(&format!("the packing {other:?} is not known here"))),
    };
    // Words may be stored under another dtype; the bytes are the same.
    let word_rows = codes.shape().first().copied().unwrap_or(0);
    let stride = usize::try_from(codes.byte_len()).unwrap_or(0).checked_div(word_rows).unwrap_or(0);
    let columns = stride / word;
    let rows = elements.checked_div(columns).unwrap_or(0);
    let fits = columns > 0
        && rows * columns == elements
        && stride % word == 0
        && rows.div_ceil(shifts.len()) == word_rows;
    if !fits {
        let why = format!("which is not {dims:?} weights packed as {packing}");
        return Err(module.misshapen(&codes, &why));
    }
    let (numbers, size, grid) = match module.integer(&axis)? {
        0 => (columns, rows, Grid::for_columns(0)),
        1 => (rows, columns, Grid::for_rows(0)),
        other => return Err(module.misshapen(&axis, &format!("and is {other}, neither 0 nor 1"))),
    };
    if let Some(said) = module.own("group_size") {
        let group = module.integer(&said)?;
        if group > 0 && usize::try_from(group).ok() != Some(size) {
            return Err(
                module.misshapen(&said, &format!("and says {group}, where groups have {size} weights"))
            );
        }
    }
    for companion in [&scale, &zero] {
        if companion.elements() != numbers as u64 || !companion.dtype().is_float() {
            return Err(module.misshapen(companion, &format!("where {numbers} floats are expected")));
        }
    }
    let layout = Codes { packing: Packing::Planes { word, shifts }, bits, rows, columns, stride, word_rows };
    let dtype = module.dtype(Some(scale.dtype()));
    let mut draft = Draft::new(codes, [1, rows, columns], layout, Value::Number(0));
    draft.recipe.zero = Some(draft.companion(zero, None, grid));
    draft.recipe.scale = Some(draft.companion(scale, None, grid));
    // It computes in the dtype of its scales.
    draft.recipe.rounded = matches!(scale.dtype(), Dtype::F16 | Dtype::BF16).then_some(scale.dtype());
    draft.leave_out(DESCRIPTIONS.iter().filter_map(|name| module.own(name)));
    draft.dense(module, dims, if scale.dtype() == Dtype::F32 { Dtype::F32 } else { dtype })
}
