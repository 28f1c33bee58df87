//! The quantised modules of a checkpoint: by which method, and what their weights would take.

use std::collections::{HashMap, HashSet};
use std::io::Write;

use anyhow::Result;
use serde::Serialize;
use weighbridge::{Checkpoint, Dtype, Names, QuantizedModule};

use super::table::{Align, DIM, PLAIN, Table, cell};
use crate::show::{self, safe};

/// So many modules that cannot be dequantised are listed.
const MOST: usize = 5;

/// A quantised module.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Module<'c> {
    module: &'c str,
    method: &'static str,
    /// Of the codes, for each element of the weight.
    bits: Option<f64>,
    /// Of the codes, scales and whatever else belongs to it.
    bytes: u64,
    /// `None` where it cannot be dequantised.
    weight: Option<Weight>,
    /// Why it cannot be.
    reason: Option<String>,
}

/// What a module stands for.
#[derive(Clone, Debug, Serialize)]
struct Weight {
    name: String,
    #[serde(serialize_with = "by_name")]
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: u64,
}

/// The modules of which a tensor, or the weight, has one of these names. `weights` is the dequantised checkpoint, if it
/// can be had.
pub(super) fn modules<'c>(
    stored: &'c Checkpoint,
    weights: Option<&'c Checkpoint>,
    chosen: &Names,
) -> Vec<Module<'c>> {
    let left = weights.map(|weights| weights.quantized().map(|module| (module.weight(), reason(&module))));
    let left: HashMap<_, _> = left.into_iter().flatten().collect();
    let module = |module: QuantizedModule<'c>| {
        let name = module.weight();
        let weight = weights.and_then(|weights| weights.tensor(&name)).filter(|_| !left.contains_key(&name));
        let codes = module.codes().next().map_or(0, |codes| codes.byte_len());
        #[expect(clippy::cast_precision_loss, reason = "for people to read")]
        let bits = weight
            .filter(|weight| weight.elements() > 0)
            .map(|weight| codes as f64 * 8.0 / weight.elements() as f64);
        Module {
            module: module.name(),
            method: module.method().name(),
            bits,
            bytes: module.byte_len(),
            reason: left.get(&name).cloned().flatten(),
            weight: weight.map(|weight| Weight {
                dtype: weight.dtype(),
                shape: weight.shape().to_vec(),
                bytes: weight.byte_len(),
                name,
            }),
        }
    };
    let is_chosen = |module: &QuantizedModule<'_>| {
        chosen.contains(&module.weight()) || module.tensors().any(|tensor| chosen.contains(tensor.name()))
    };
    let own: HashSet<_> = stored.quantized().map(|module| module.weight()).collect();
    // Codes of no module that the tensors show; the configuration does.
    let others = weights.into_iter().flat_map(Checkpoint::quantized);
    let others = others.filter(|module| !own.contains(&module.weight()));
    stored.quantized().chain(others).filter(is_chosen).map(module).collect()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
fn by_name<S: serde::Serializer>(dtype: &Dtype, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(dtype.name())
}

fn reason(module: &QuantizedModule<'_>) -> Option<String> {
    module.reason().map(|reason| reason.message().to_owned())
}

/// Modules of one kind.
struct Kind {
    name: String,
    dtype: Option<Dtype>,
    modules: u64,
    stored: u64,
    dense: u64,
}

/// A line for each kind, and the first modules that cannot be dequantised.
pub(super) fn write(out: &mut impl Write, modules: &[Module<'_>]) -> Result<()> {
    if modules.is_empty() {
        return Ok(());
    }
    let kinds = kinds(modules);
    let rows: Vec<_> = kinds.iter().map(row).collect();
    let mut table = Table::new(&[Align::Left, Align::Right, Align::Right, Align::Right]);
    rows.iter().for_each(|row| table.measure(row));
    table.fit();
    writeln!(out, "\n{DIM}quantised{DIM:#}")?;
    rows.iter().try_for_each(|row| table.write(out, row))?;
    let refused: Vec<_> =
        modules.iter().filter_map(|module| Some((module.module, module.reason.as_ref()?))).collect();
    for (module, reason) in refused.iter().take(MOST) {
        writeln!(out, "  {}: {}", safe(module), safe(reason))?;
    }
    if refused.len() > MOST {
        let more = show::plural(refused.len() - MOST, "more module");
        writeln!(out, "  {DIM}nor can {more} be dequantised; --format json says why{DIM:#}")?;
    }
    Ok(())
}

fn row(kind: &Kind) -> Vec<super::table::Cell> {
    let dense = match kind.dtype {
        Some(dtype) => format!("{} as {dtype}", show::bytes(kind.dense)),
        None => "cannot be dequantised".to_owned(),
    };
    let name = super::table::Cell { lead: "  ".to_owned(), ..cell(safe(&kind.name), PLAIN) };
    vec![
        name,
        cell(show::plural(kind.modules as usize, "module"), PLAIN),
        cell(format!("{} stored", show::bytes(kind.stored)), PLAIN),
        cell(dense, DIM),
    ]
}

/// Those with the most bytes first.
fn kinds(modules: &[Module<'_>]) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = Vec::new();
    for module in modules {
        let name = match module.bits {
            Some(bits) if !module.method.contains("-bit") => format!("{}, {}", module.method, width(bits)),
            _ => module.method.to_owned(),
        };
        let dtype = module.weight.as_ref().map(|weight| weight.dtype);
        let place = kinds.iter().position(|kind| kind.name == name && kind.dtype == dtype);
        let place = place.unwrap_or_else(|| {
            kinds.push(Kind { name, dtype, modules: 0, stored: 0, dense: 0 });
            kinds.len() - 1
        });
        let kind = &mut kinds[place];
        kind.modules += 1;
        kind.stored = kind.stored.saturating_add(module.bytes);
        kind.dense = kind.dense.saturating_add(module.weight.as_ref().map_or(0, |weight| weight.bytes));
    }
    kinds.sort_by_key(|kind| std::cmp::Reverse(kind.stored));
    kinds
}

/// `4-bit`; `3.2-bit` where words are not filled.
fn width(bits: f64) -> String {
    let tenths = (bits * 10.0).round() / 10.0;
    format!("{tenths}-bit")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_have_no_needless_digits() {
        assert_eq!(
            [4.0, 3.2, 32.0 / 10.0, 8.04, 2.999].map(width),
            ["4-bit", "3.2-bit", "3.2-bit", "8-bit", "3-bit"]
        );
    }
}
