//! compressed-tensors' packed integers: words of 32 bits along each row.

use super::super::codes::{Codes, Packing};
use super::super::companion::{Grid, Numbers};
use super::super::module::{Dense, Draft, Module, matrices};
use super::super::recipe::{Groups, Value};
use super::gptq;
use crate::checkpoint::TensorRef;
use crate::dtype::Dtype;
use crate::error::Result;

pub(super) fn dense<'c>(module: &Module<'c>) -> Result<Dense<'c>> {
    let ending =
        |name: &str| module.own(&format!("weight_{name}")).or_else(|| module.beside(&format!("_{name}")));
    let needed =
        |name: &str| ending(name).ok_or_else(|| module.missing(&format!("{}_{name}", module.weight)));
    let codes = needed("packed")?;
    let scale = needed("scale")?;
    let size = needed("shape")?;
    if !matches!(codes.dtype(), Dtype::I32 | Dtype::U32) {
        return Err(module.mistyped(&codes, "I32"));
    }
    let [count, height, words] =
        matrices(codes.shape()).ok_or_else(|| module.misshapen(&codes, "where a matrix is expected"))?;
    let dims: Vec<usize> =
        module.integers(&size)?.iter().map(|&dim| usize::try_from(dim).unwrap_or(usize::MAX)).collect();
    // Of several matrices, each may have its shape.
    let own: &[usize] = dims.get(dims.len().saturating_sub(2)..).unwrap_or_default();
    let &[rows, width] = own else {
        return Err(module.misshapen(&size, "where the number of rows and of columns is expected"));
    };
    let is_each =
        dims.len() == 2 || dims.len() == codes.shape().len() || dims.chunks(2).all(|dims| dims == own);
    if rows != height || !is_each {
        let why = format!("and says {rows} rows, where {:?} has {height}", codes.name());
        return Err(module.misshapen(&size, &why));
    }
    let (bits, packing) = bits(module, &codes, words, width)?;
    let groups = scale.shape().last().copied().unwrap_or(0);
    let one = scale.elements() == 1;
    if !one && scale.elements() != (count * height * groups) as u64 || !scale.dtype().is_float() {
        return Err(module.misshapen(&scale, &format!("where some for each of {height} rows are expected")));
    }
    let index = module.own("weight_g_idx").or_else(|| module.beside("_g_idx"));
    let group = group(module, &scale, width, groups, one)?;
    let index = match &index {
        Some(index) if index.elements() == width as u64 => {
            gptq::read_index(module, index, group, groups, true)?
        }
        Some(index) => return Err(module.misshapen(index, &format!("where {width} groups are expected"))),
        None => None,
    };
    let grid = match one {
        true => Grid::ONE,
        false => Grid::rows(1, group, groups, height * groups),
    };
    let mut shape = codes.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    let layout = Codes { packing, bits, rows: height, columns: width, stride: words * 4, word_rows: height };
    let mut draft = Draft::new(codes, [count, height, width], layout.clone(), Value::Number(0));
    match ending("zero_point") {
        None => {
            refuse_missing_zeros(module)?;
            draft.recipe.value = Value::Number(-(1 << (bits - 1)));
        }
        Some(zeros) if matches!(zeros.dtype(), Dtype::I32 | Dtype::U32) && !one => {
            let words = zeros.shape().iter().rev().nth(1).copied().unwrap_or(0);
            if zeros.elements() != (count * words * groups) as u64 {
                return Err(module.misshapen(&zeros, &format!("where {groups} columns are expected")));
            }
            let (packing, needed) = match layout.packing {
                Packing::Fields => (Packing::FieldsDown, height.div_ceil(32 / bits as usize)),
                _ => (Packing::Down, (height * bits as usize).div_ceil(32)),
            };
            if words != needed {
                let why = format!("where {needed} rows of zero points of {bits} bits are expected");
                return Err(module.misshapen(&zeros, &why));
            }
            let packed =
                Codes { packing, bits, rows: height, columns: groups, stride: groups * 4, word_rows: words };
            let numbers = Numbers::Packed { codes: packed, across: false, add: 0 };
            draft.recipe.zero = Some(draft.companion(zeros, Some(numbers), grid));
        }
        Some(zeros) if zeros.elements() == scale.elements() && zeros.dtype() == Dtype::I8 => {
            // They are not packed, and signed: codes are made so, too.
            draft.recipe.value = Value::Number(-(1 << (bits - 1)));
            draft.recipe.zero = Some(draft.companion(zeros, None, grid));
        }
        Some(zeros) => return Err(module.misshapen(&zeros, "which is not that of packed zero points")),
    }
    let dtype = module.dtype(Some(scale.dtype()));
    draft.recipe.scale = Some(draft.companion(scale, None, grid));
    draft.recipe.groups = index.map(|of_column| Groups { of_column: of_column.into(), count: groups });
    draft.leave_out([size]);
    draft.leave_out(module.own("weight_g_idx").or_else(|| module.beside("_g_idx")));
    draft.dense(module, shape, dtype)
}

/// What the groups of a configuration say about weights.
fn said(module: &Module<'_>, key: &str) -> Vec<i64> {
    let groups = module.config.quantization().section("config_groups").sections();
    let mut said: Vec<i64> = groups.iter().filter_map(|group| group.section("weights").number(key)).collect();
    said.sort_unstable();
    said.dedup();
    said
}

/// Weights that are not symmetric have zero points.
fn refuse_missing_zeros(module: &Module<'_>) -> Result<()> {
    let groups = module.config.quantization().section("config_groups").sections();
    let mut symmetric = groups.iter().map(|group| group.section("weights").flag("symmetric"));
    match groups.is_empty() || symmetric.any(|symmetric| symmetric != Some(false)) {
        true => Ok(()),
        false => Err(module.missing(&format!("{}_zero_point", module.weight))),
    }
}

/// The bits of a code, and how they are packed: a stream since 2026, before whole codes in each word.
fn bits(module: &Module<'_>, codes: &TensorRef<'_>, words: usize, width: usize) -> Result<(u32, Packing)> {
    let said = said(module, "num_bits");
    let is_said = |&bits: &u32| said.is_empty() || said.contains(&i64::from(bits));
    let mut found = Vec::new();
    for bits in (1..=8).filter(is_said) {
        let stream = width.checked_mul(bits as usize).map(|bits| bits.div_ceil(32));
        let whole = width.div_ceil(32 / bits as usize);
        let is_same = 32 % bits == 0;
        if stream == Some(words) {
            found.push((bits, Packing::Along));
        }
        if whole == words && !is_same {
            found.push((bits, Packing::Fields));
        }
    }
    let unclear = || {
        let why = format!(
            "{words} words for rows of {width} codes may be packed in two ways, and nothing says in which"
        );
        module.misshapen(codes, &why)
    };
    match &*found {
        [one] => Ok(one.clone()),
        [] => {
            let why = format!("{:?} has {words} words for rows of {width} codes", codes.name());
            Err(module
                .blame(module.config.quantization().contradicts("config_groups", &format!("but {why}"))))
        }
        // Whole codes leave the highest bits of words unused, which a stream does not.
        [(bits, _), (same, _)] if bits == same => match has_high_bits(module, codes, words, *bits)? {
            Some(true) => Ok((*bits, Packing::Along)),
            Some(false) => Ok((*bits, Packing::Fields)),
            None => Err(unclear()),
        },
        _ => Err(unclear()),
    }
}

/// Whether bits are set that no whole codes of so many bits would use, as the beginning of a tensor shows; `None` if it
/// shows too little.
fn has_high_bits(
    module: &Module<'_>,
    codes: &TensorRef<'_>,
    words: usize,
    bits: u32,
) -> Result<Option<bool>> {
    /// So many words whose highest bits are unset by chance there are not.
    const ENOUGH: usize = 64;
    let used = 32 / bits * bits;
    let start = module.start_of(codes, 1 << 20)?;
    let all = start.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    // The last word of a row may be filled in part.
    let whole: Vec<u32> =
        all.zip(0..).filter(|(_, at)| at % words + 1 < words).map(|(word, _)| word).collect();
    Ok(match whole.iter().any(|word| word >> used != 0) {
        true => Some(true),
        false => (whole.len() >= ENOUGH).then_some(false),
    })
}

/// Weights in a group.
fn group(
    module: &Module<'_>,
    scale: &TensorRef<'_>,
    width: usize,
    groups: usize,
    one: bool,
) -> Result<usize> {
    let sizes = said(module, "group_size");
    let fits = |size: i64| usize::try_from(size).is_ok_and(|size| size > 0 && width.div_ceil(size) == groups);
    if one || groups == 1 {
        return Ok(width.max(1));
    }
    if let Some(&size) = sizes.iter().find(|&&size| fits(size)) {
        return Ok(usize::try_from(size).unwrap_or(1));
    }
    if sizes.iter().any(|&size| size > 0) {
        let why = format!("{:?} has {groups} scales for {width} columns", scale.name());
        return Err(
            module.blame(module.config.quantization().contradicts("config_groups", &format!("but {why}")))
        );
    }
    if groups > 0 && width % groups == 0 {
        return Ok(width / groups);
    }
    Err(module.misshapen(scale, &format!("which is not that of groups of {width} columns")))
}
