//! Looks for quantised modules: one pass over all tensors.

use super::evidence::{Seen, is_integer, may_be_codes};
use super::layout::{LAYOUTS, Layout};
use super::{Module, Modules, QuantMethod};
use crate::checkpoint::catalog::{Catalog, TensorIndex};
use crate::checkpoint::{Shard, TensorRef};
use crate::header::Cursor;

/// The metadata entry of `weighbridge-burn`: a JSON object of the names of quantised tensors.
const BURN: &str = "weighbridge.burn.quantised";
/// That of ComfyUI: an object whose `layers` are an object of modules.
const COMFY: &str = "_quantization_metadata";
/// What `weighbridge-convert` puts behind the name of a quantised tensor of a pickle.
const PYTORCH: &str = ".quantization";
/// What it puts before the name of an initialiser of 4-bit values.
const ONNX: &str = "onnx.packed.";

/// All quantised modules of a checkpoint, in the order of their tensors; each of `alone` is one, too, if no method has it.
pub(super) fn modules(catalog: &Catalog, alone: &[TensorIndex]) -> Modules {
    let mut finder = Finder { catalog, modules: Modules::default(), name: String::new() };
    for tensor in catalog.tensors() {
        if may_be_codes(tensor.dtype()) {
            finder.tensor(&tensor);
        }
    }
    for (number, shard) in catalog.shards().iter().enumerate() {
        finder.metadata(shard, catalog.prefix(number));
    }
    for tensor in alone.iter().filter_map(|&tensor| catalog.at(tensor)) {
        finder.told(QuantMethod::Unknown, tensor.name(), "");
    }
    finder.modules
}

struct Finder<'i> {
    catalog: &'i Catalog,
    modules: Modules,
    /// A name that is looked up.
    name: String,
}

impl<'i> Finder<'i> {
    /// Tries every row of the table on a tensor.
    fn tensor(&mut self, tensor: &TensorRef<'i>) {
        if self.modules.by_codes.contains_key(&tensor.index()) {
            return;
        }
        for layout in LAYOUTS {
            if !layout.dtypes.contains(&tensor.dtype()) {
                continue;
            }
            let stem = stem(tensor.name(), layout.anchor);
            if stem.is_some_and(|stem| self.fits(stem, tensor.index(), layout)) {
                return;
            }
        }
    }

    /// Whether a row fits, which makes a module.
    fn fits(&mut self, stem: &'i str, anchor: TensorIndex, layout: &Layout) -> bool {
        let beside = layout.beside.iter().find_map(|ending| self.at(stem, ending));
        let Some(codes) = layout.codes.first().and_then(|ending| self.at(stem, ending)) else { return false };
        if beside.is_none() && !layout.alone || self.modules.by_codes.contains_key(&codes) {
            return false;
        }
        let tensor = |index: TensorIndex| self.catalog.at(index);
        let Some(seen) = tensor(codes).map(|codes| Seen { codes, beside: beside.and_then(tensor) }) else {
            return false;
        };
        let Some(method) = (layout.method)(&seen) else { return false };
        let sign = beside.filter(|beside| *beside != codes).or((anchor != codes).then_some(anchor));
        self.module(method, stem, layout.dense, sign, layout.codes, layout.numbers);
        true
    }

    /// Adds a module; `codes` and `numbers` are endings of names, the first one of a tensor that is there.
    fn module(
        &mut self,
        method: QuantMethod,
        stem: &str,
        dense: &'static str,
        sign: Option<TensorIndex>,
        codes: &[&str],
        numbers: &[&str],
    ) {
        let start = self.modules.tensors.len();
        let number = u32::try_from(self.modules.modules.len()).unwrap_or(u32::MAX);
        let mut others = Vec::new();
        for (at, ending) in codes.iter().enumerate() {
            let Some(index) = self.at(stem, ending) else { continue };
            // A scale that is stored as a float is a number, one that is stored as a byte is a code.
            let is_code = at == 0 || self.catalog.at(index).is_some_and(|tensor| is_integer(tensor.dtype()));
            if is_code && !self.modules.by_codes.contains_key(&index) {
                self.modules.by_codes.insert(index, number);
                self.modules.tensors.push(index);
            } else if !is_code {
                others.push(index);
            }
        }
        let middle = self.modules.tensors.len();
        others.extend(numbers.iter().filter_map(|ending| self.at(stem, ending)));
        self.modules.tensors.extend(others);
        let name = match dense {
            "weight" => stem.trim_end_matches(['.', '_', '/']),
            _ => stem.strip_suffix(".weight").unwrap_or(stem),
        };
        let first = codes.first().map_or(0, |ending| stem.len() + ending.len());
        self.modules.modules.push(Module {
            method,
            codes: start,
            numbers: middle,
            end: self.modules.tensors.len(),
            sign,
            // A module without a name, of a file with one layer, is called as its tensor is.
            name: if name.is_empty() { first } else { name.len() },
            stem: stem.len(),
            dense,
        });
    }

    /// The tensor whose name is `stem` and `ending`.
    fn at(&mut self, stem: &str, ending: &str) -> Option<TensorIndex> {
        self.name.clear();
        self.name.push_str(stem);
        self.name.push_str(ending);
        self.catalog.find(&self.name)
    }

    /// Modules that the metadata of a shard declares, under names without the prefix of its tensors;
    /// malformed entries are ignored.
    fn metadata(&mut self, shard: &Shard, prefix: &str) {
        let mut told = |method, name: &str, ending| self.told(method, &format!("{prefix}{name}"), ending);
        for (key, value) in shard.header().metadata().into_iter().flatten() {
            match key {
                BURN => _ = each_key(&mut Cursor::new(value), |name| told(QuantMethod::Burn, name, "")),
                COMFY => _ = comfy_layers(value, |layer| told(QuantMethod::ComfyUi, layer, ".weight")),
                _ => {
                    let pytorch = key.strip_suffix(PYTORCH).filter(|_| value.starts_with('{'));
                    if let Some(name) = pytorch {
                        told(QuantMethod::PyTorch, name, "");
                    } else if let Some(name) = key.strip_prefix(ONNX) {
                        told(QuantMethod::Onnx, name, "");
                    }
                }
            }
        }
    }

    /// Adds a module of one tensor, if that can hold codes and the table does not have it.
    fn told(&mut self, method: QuantMethod, stem: &str, ending: &'static str) {
        let Some(index) = self.at(stem, ending) else { return };
        let is_coded = |tensor: TensorRef<'_>| is_integer(tensor.dtype()) || tensor.dtype().bits() < 16;
        if !self.catalog.at(index).is_some_and(is_coded) || self.modules.by_codes.contains_key(&index) {
            return;
        }
        self.module(method, stem, ending, None, &[ending], &[".scales", ".zero_points"]);
    }
}

/// What is left of a name without its ending. An ending that begins with a letter begins a part of the name.
fn stem<'n>(name: &'n str, ending: &str) -> Option<&'n str> {
    let stem = name.strip_suffix(ending)?;
    let is_part = !ending.starts_with(|first: char| first.is_ascii_alphanumeric())
        || stem.is_empty()
        || stem.ends_with(['.', '_', '/']);
    is_part.then_some(stem)
}

/// Calls `on` with every key of an object.
fn each_key(cursor: &mut Cursor<'_>, mut on: impl FnMut(&str)) -> Option<()> {
    cursor.open(b'{', "").ok()?;
    let mut first = true;
    while let Some(key) = cursor.key(first).ok()? {
        first = false;
        on(&key.value());
        cursor.skip().ok()?;
    }
    Some(())
}

/// The keys of `layers`.
fn comfy_layers(text: &str, mut on: impl FnMut(&str)) -> Option<()> {
    let mut cursor = Cursor::new(text);
    cursor.open(b'{', "").ok()?;
    let mut first = true;
    while let Some(key) = cursor.key(first).ok()? {
        first = false;
        match &*key.value() {
            "layers" => each_key(&mut cursor, &mut on)?,
            _ => cursor.skip().ok()?,
        }
    }
    Some(())
}
