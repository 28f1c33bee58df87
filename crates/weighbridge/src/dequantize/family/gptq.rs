//! GPTQ, and AutoRound's files in its layout: streams of bits down the columns of the transposed weight.

use super::super::codes::{Codes, Packing, Window};
use super::super::companion::{Grid, Numbers};
use super::super::config::Section;
use super::super::module::{Dense, Draft, Module, rows};
use super::super::recipe::{Groups, Value};
use crate::checkpoint::TensorRef;
use crate::dtype::Dtype;
use crate::error::Result;

/// Modules of these architectures that are stored transposed, as `Conv1D` of transformers has them.
const CONV_1D: &[&str] = &["c_attn", "c_proj", "c_fc", "q_attn"];

pub(super) fn dense<'c>(module: &Module<'c>) -> Result<Dense<'c>> {
    let section = module.config.quantization();
    refuse_kernels(module, &section)?;
    let (codes, scales) = (module.needed("qweight")?, module.needed("scales")?);
    let zeros = module.own("qzeros").filter(|zeros| zeros.elements() > 0);
    let index = module.own("g_idx").filter(|index| index.elements() > 0);
    let (&[words, height], &[groups, of_scales]) = (codes.shape(), scales.shape()) else {
        return Err(module.misshapen(&codes, "where a matrix with a matrix of scales is expected"));
    };
    if codes.dtype() != Dtype::I32 && codes.dtype() != Dtype::U32 {
        return Err(module.mistyped(&codes, "I32, the only \"pack_dtype\" that is read"));
    }
    if of_scales != height || groups == 0 || !scales.dtype().is_float() {
        let why = format!("where one scale for each of {height} columns is expected in each group");
        return Err(module.misshapen(&scales, &why));
    }
    let known = index.as_ref().map(|index| index.elements() as usize);
    let bits = bits(module, words, height, known, zeros.as_ref())?;
    let width = match known {
        Some(width) => width,
        None => words.checked_mul(32).map(|all| all / bits as usize).unwrap_or(0),
    };
    let said = section.number("group_size").or_else(|| section.number("q_group_size"));
    let group = group(module, &scales, &section, said, [width, groups])?;
    let index = match &index {
        Some(index) => read_index(module, index, group, groups, false)?,
        None => None,
    };
    let stored = Codes {
        packing: Packing::Down,
        bits,
        rows: width,
        columns: height,
        stride: height * 4,
        word_rows: words,
    };
    let conv = is_conv_1d(module);
    if conv && index.is_some() {
        return Err(module.unsupported(
            "its inputs are in an order of their own (act-order), which is not read of Conv1D",
        ));
    }
    let dims = if conv { [1, width, height] } else { [1, height, width] };
    let grid = match conv {
        true => Grid { down: group, across: 1, row: height, column: 1, matrix: 0 },
        false => Grid { down: 1, across: group, row: 1, column: height, matrix: 0 },
    };
    let mut draft = Draft::new(codes, dims, stored, Value::Number(0));
    draft.recipe.across = !conv;
    let middle = 1_i16 << (bits - 1);
    match zeros {
        Some(zeros) => {
            let columns = zeros.shape().get(1).copied().unwrap_or(0);
            let needed = (height * bits as usize).div_ceil(32);
            if zeros.shape() != [groups, columns] || columns < needed {
                let why =
                    format!("where [{groups}, {needed}] words of zero points of {bits} bits are expected");
                return Err(module.misshapen(&zeros, &why));
            }
            let packed = rows(Packing::Along, bits, [groups, height], columns * 4);
            let add = zero_offset(module, &section, &zeros, bits, columns)?;
            let numbers = Numbers::Packed { codes: packed, across: !conv, add };
            draft.recipe.zero = Some(draft.companion(zeros, Some(numbers), grid));
        }
        None => draft.recipe.value = Value::Number(-middle),
    }
    let dtype = module.dtype(Some(scales.dtype()));
    draft.recipe.scale = Some(draft.companion(scales, None, grid));
    draft.recipe.groups = index.map(|of_column| Groups { of_column: of_column.into(), count: groups });
    draft.leave_out(module.own("qzeros"));
    draft.leave_out(module.own("g_idx"));
    draft.dense(module, dims[1..].to_vec(), dtype)
}

/// Layouts that only a kernel reads.
fn refuse_kernels(module: &Module<'_>, section: &Section<'_>) -> Result<()> {
    let format = section.text("checkpoint_format").or_else(|| section.text("format"));
    if section.flag("is_marlin_format") == Some(true) || format == Some("marlin") {
        let field = section.field("checkpoint_format");
        let why = format!(
            "it is permuted for the Marlin kernel ({field} says so); re-export it as gptq, or load the unquantised model"
        );
        return Err(module.unsupported(&why));
    }
    match format {
        None | Some("gptq" | "gptq_v2" | "gemm" | "pack-quantized") => {}
        Some(other) => {
            let why = format!(
                "{} is {other:?}, an order that is not read; re-export it as gptq",
                section.field("checkpoint_format")
            );
            return Err(module.unsupported(&why));
        }
    }
    match section.text("pack_dtype") {
        None | Some("int32" | "torch.int32") => Ok(()),
        Some(other) => {
            let why = format!("{} is {other:?}; only int32 is read", section.field("pack_dtype"));
            Err(module.unsupported(&why))
        }
    }
}

/// Whether modules may differ from what the configuration says for all.
fn has_overrides(section: &Section<'_>) -> bool {
    ["dynamic", "extra_config", "quantized_layers"].iter().any(|key| {
        section.get(key).and_then(|value| value.as_object()).is_some_and(|object| !object.is_empty())
    })
}

/// The bits of a code, which shapes show.
fn bits(
    module: &Module<'_>,
    words: usize,
    height: usize,
    width: Option<usize>,
    zeros: Option<&TensorRef<'_>>,
) -> Result<u32> {
    let section = module.config.quantization();
    let (said, key) = match section.number("bits") {
        Some(bits) => (Some(bits), "bits"),
        None => (section.number("w_bit"), "w_bit"),
    };
    let stream = |count: usize, bits: u32| (count.saturating_mul(bits as usize)).div_ceil(32);
    let fits = |&bits: &u32| {
        let by_width = width.is_none_or(|width| stream(width, bits) == words);
        let by_zeros = zeros
            .is_none_or(|zeros| zeros.shape().get(1).is_some_and(|&columns| columns == stream(height, bits)));
        by_width && by_zeros
    };
    // AutoRound packs 5, 6 and 7 bits as a stream, GPTQModel in planes.
    let is_auto_round = module.config.method().is_some_and(|method| method.contains("auto-round"));
    let packing = section.text("packing_format").or_else(|| section.text("backend")).unwrap_or_default();
    let has_planes = !is_auto_round || packing.contains("gptqmodel");
    let all: &[u32] = if has_planes { &[2, 3, 4, 8] } else { &[2, 3, 4, 5, 6, 7, 8] };
    let found: Vec<u32> = all.iter().copied().filter(fits).collect();
    if let Some(said) = said {
        if matches!(said, 5..=7) && has_planes && !has_overrides(&section) {
            let why = format!(
                "{} is {said}: its codes are stored in planes, which are not read",
                section.field(key)
            );
            return Err(module.unsupported(&why));
        }
        let has_evidence = width.is_some() || zeros.is_some();
        match u32::try_from(said).ok().filter(|said| found.contains(said)) {
            Some(bits) => return Ok(bits),
            None if has_overrides(&section) && found.len() == 1 => {}
            None if width
                .is_some_and(|width| u32::try_from(said).is_ok_and(|said| stream(width, said) == words)) =>
            {
                let why = format!("where zero points of {said} bits for {height} columns are expected");
                return Err(
                    zeros.map_or_else(|| module.missing("qzeros"), |zeros| module.misshapen(zeros, &why))
                );
            }
            None => {
                let fit = match (&*found, has_evidence) {
                    ([bits], true) => format!("{bits} bits fit"),
                    _ => "no number of bits that is read fits".to_owned(),
                };
                let why = format!("the shapes of its codes and zero points are others: {fit}");
                return Err(module.blame(section.contradicts(key, &format!("but {why}"))));
            }
        }
    }
    match *found {
        [bits] => Ok(bits),
        _ => {
            let why = format!(
                "how many bits a code has is not in its tensors; {} would say it in config.json",
                section.field("bits")
            );
            Err(module.unsupported(&why))
        }
    }
}

/// Inputs in a group.
pub(super) fn group(
    module: &Module<'_>,
    scales: &TensorRef<'_>,
    section: &Section<'_>,
    said: Option<i64>,
    [width, groups]: [usize; 2],
) -> Result<usize> {
    let key = if section.number("group_size").is_some() { "group_size" } else { "q_group_size" };
    let said = match said {
        Some(-1) => Some(width),
        Some(said) => Some(usize::try_from(said).unwrap_or(0)),
        None => None,
    };
    match said {
        Some(said) if said > 0 && width.div_ceil(said) == groups => Ok(said),
        Some(_) if !has_overrides(section) => {
            let why = format!("{:?} has {groups} rows of scales for {width} inputs", scales.name());
            Err(module.blame(section.contradicts(key, &format!("but {why}"))))
        }
        _ if groups > 0 && width % groups == 0 => Ok(width / groups),
        _ => {
            let why = format!("which are not the scales of groups of {width} inputs");
            Err(module.misshapen(scales, &why))
        }
    }
}

/// The group of each input, unless they are in order.
pub(super) fn read_index(
    module: &Module<'_>,
    tensor: &TensorRef<'_>,
    group: usize,
    groups: usize,
    minus_is_unset: bool,
) -> Result<Option<Vec<u32>>> {
    let index = module.integers(tensor)?;
    // Some exporters leave zeros, compressed-tensors minus ones.
    let is_unset = index.iter().all(|&group| group == 0) || minus_is_unset && index.contains(&-1);
    let is_in_order =
        (0..).zip(&index).all(|(column, &its)| usize::try_from(its).ok() == Some(column / group));
    if is_unset || is_in_order {
        return Ok(None);
    }
    let valid = index.iter().map(|&its| u32::try_from(its).ok().filter(|&its| (its as usize) < groups));
    match valid.collect() {
        Some(index) => Ok(Some(index)),
        None => {
            let other = index.iter().find(|&&its| usize::try_from(its).map_or(true, |its| its >= groups));
            let why = format!(
                "and one of its groups is {}, where there are {groups}",
                other.copied().unwrap_or(-1)
            );
            Err(module.misshapen(tensor, &why))
        }
    }
}

/// What is added to a stored zero point: 1 in the first version of the format, nothing in the second.
fn zero_offset(
    module: &Module<'_>,
    section: &Section<'_>,
    zeros: &TensorRef<'_>,
    bits: u32,
    columns: usize,
) -> Result<u8> {
    let format = section.text("checkpoint_format").or_else(|| section.text("format"));
    let packing = section.text("packing_format").or_else(|| section.text("backend"));
    let packing = packing.map(|packing| packing.to_lowercase().replace('_', "-"));
    let is_auto_round = module.config.method().is_some_and(|method| method.contains("auto-round"));
    let key = if is_auto_round { "packing_format" } else { "checkpoint_format" };
    let said = match (format, packing.as_deref()) {
        (Some("gptq_v2"), _) => Some(0),
        (Some("gptq" | "gemm"), _) => Some(1),
        (_, Some("auto-round:auto-gptq" | "auto-gptq")) if is_auto_round => Some(1),
        (_, Some("auto-round" | "auto-round:gptqmodel" | "gptqmodel")) if is_auto_round => Some(0),
        _ if is_auto_round => None,
        // The first version had no name. Without a configuration it may be either.
        _ if section.is_none() => None,
        _ => Some(1),
    };
    // Of symmetric weights all zero points are the middle, which tells the versions apart.
    let symmetric = section.flag("sym") == Some(true);
    let middle = match symmetric || said.is_none() {
        true => middle_offset(module, zeros, bits, columns)?,
        false => None,
    };
    match (said, middle) {
        (Some(said), Some(seen)) if said != seen => {
            if format.is_none() && !is_auto_round {
                return Ok(seen);
            }
            let [is, version] = if seen == 0 { ["what", "second"] } else { ["one less than what", "first"] };
            let why = format!(
                "{:?} holds {is} symmetric weights have, as the {version} version of the format does",
                zeros.name()
            );
            Err(module.blame(section.contradicts(key, &format!("but {why}"))))
        }
        (Some(said), _) => Ok(said),
        (None, Some(seen)) => Ok(seen),
        (None, None) => {
            let why = format!(
                "{} does not say whether 1 is to be added to its zero points, nor do they; config.json would say it \
                 with \"gptq\" or \"gptq_v2\", or auto_round:auto_gptq",
                section.field(key)
            );
            Err(module.unsupported(&why))
        }
    }
}

/// The offset that makes all zero points of the first group the middle, if one does.
fn middle_offset(
    module: &Module<'_>,
    zeros: &TensorRef<'_>,
    bits: u32,
    columns: usize,
) -> Result<Option<u8>> {
    let fields = columns * 32 / bits as usize;
    let first = module.start_of(zeros, columns as u64 * 4)?;
    let codes = rows(Packing::Along, bits, [1, fields], columns * 4);
    let window = Window::new(codes.place(&(0..1), &(0..fields)), &first);
    let middle = 1_u8 << (bits - 1);
    let fields = (0..fields).map(|column| codes.code(&window, 0, column));
    let mut found = None;
    for field in fields {
        let offset = match field {
            field if field == middle => 0,
            field if field.checked_add(1) == Some(middle) => 1,
            // Padding.
            0 => continue,
            _ => return Ok(None),
        };
        if found.is_some_and(|found| found != offset) {
            return Ok(None);
        }
        found = Some(offset);
    }
    Ok(found)
}

/// Whether transformers has the module as a `Conv1D`, whose weight is `[inputs, outputs]`.
fn is_conv_1d(module: &Module<'_>) -> bool {
    let last = module.quantized.name().rsplit('.').next().unwrap_or_default();
    let is_gpt_2 = matches!(
        module.config.model_type(),
        Some("gpt2" | "imagegpt" | "openai-gpt" | "decision_transformer")
    );
    is_gpt_2 && CONV_1D.contains(&last)
}
