//! What other frameworks call the parameters of Burn's layers, and how they lay them out.

use crate::walk::{Site, Step, dotted};

/// Names and layouts in files. Nothing is done unless one is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Convention {
    /// Burn's own: names are those of its records, a `Linear` is `[in, out]`.
    #[default]
    Burn,
    /// That of PyTorch, and of Hugging Face's models:
    ///
    /// | layer | Burn | file |
    /// |---|---|---|
    /// | `Linear` | `weight [in, out]` | `weight [out, in]` |
    /// | `BatchNorm`, `LayerNorm`, `GroupNorm`, `InstanceNorm`, `RmsNorm` | `gamma`, `beta` | `weight`, `bias` |
    /// | `PRelu` | `alpha` | `weight` |
    /// | `MultiHeadAttention` | `query`, `key`, `value`, `output` | `in_proj_weight`, `in_proj_bias`, `out_proj` |
    /// | `Lstm` | four gates of `input_transform`, `hidden_transform` | `weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`, `bias_hh_l0`: input, forget, cell, output |
    /// | `Gru` | three gates | the same: reset, update, new |
    /// | `Rnn` | one gate | the same |
    /// | `BiLstm`, `BiGru`, `BiRnn` | `forward`, `reverse` | the same, the reverse with `_reverse` at the end |
    /// | variants of an enum | a name | none |
    ///
    /// Layers are known by the names of their types, whoever defines them: a `Linear` of your own has to lie as Burn's does, or
    /// be [excepted](crate::Mapping::as_in_burn).
    ///
    /// Embeddings, convolutions and running statistics are the same in both. Where a file has no `in_proj_weight`, the
    /// attention's four layers are looked for under their own names, and `gamma` and `beta` where there is no `weight`.
    PyTorch,
}

/// Where a parameter's values are in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) name: String,
    /// The part of the file's tensor: which, and of how many equal ones, along its first dimension.
    pub(crate) part: Option<(usize, usize)>,
    /// Its last two dimensions are exchanged there.
    pub(crate) exchanged: bool,
    /// The dimension along which neighbours that are stored as one lie: that of a layer's outputs.
    pub(crate) axis: usize,
}

/// Which layers are usually one tensor in files.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fusing {
    /// Query, key and value.
    pub(crate) attention: bool,
    /// The gates of recurrent layers.
    pub(crate) gates: bool,
}

impl Convention {
    /// The places in which a parameter may be, the usual one first; `variants`: names have those of enums.
    pub(crate) fn places(self, site: &Site, variants: bool, fusing: Fusing) -> Vec<Place> {
        // Of a weight `[in, out]` the outputs are the second dimension.
        let is_row = site.is_linear_weight() && !site.is_column;
        let steps: Vec<_> = site.steps.iter().filter(|step| variants || !step.is_variant()).collect();
        match self {
            Self::Burn => {
                vec![Place { name: dotted(steps), part: None, exchanged: false, axis: usize::from(is_row) }]
            }
            Self::PyTorch => {
                let named = names(&steps, fusing);
                named
                    .into_iter()
                    .map(|(name, part)| Place { name, part, exchanged: is_row, axis: 0 })
                    .collect()
            }
        }
    }
}

type Part = Option<(usize, usize)>;

/// PyTorch's names for a parameter.
fn names(steps: &[&Step], fusing: Fusing) -> Vec<(String, Part)> {
    let Some((last, before)) = steps.split_last() else { return Vec::new() };
    let owner = last.owner.strip_prefix("Struct:").unwrap_or_default();
    let plain = dotted(steps.iter().copied());
    let norm = match (owner, &*last.name) {
        ("BatchNorm" | "LayerNorm" | "GroupNorm" | "InstanceNorm" | "RmsNorm", "gamma") => Some("weight"),
        ("BatchNorm" | "LayerNorm" | "GroupNorm" | "InstanceNorm" | "RmsNorm", "beta") => Some("bias"),
        ("PRelu", "alpha") => Some("weight"),
        _ => None,
    };
    if let Some(other) = norm {
        return vec![(under(before, other), None), (plain, None)];
    }
    if owner == "Linear" {
        let gate = gate(before, &last.name).map(|gate| (gate, fusing.gates));
        let fused = gate.or_else(|| Some((attention(before, &last.name)?, fusing.attention)));
        if let Some((Fused { at, name, part }, is_usual)) = fused {
            let (fused, apart) = ((under(at, &name), part), (plain, None));
            return if is_usual { vec![fused, apart] } else { vec![apart, fused] };
        }
    }
    vec![(plain, None)]
}

/// A layer that PyTorch stores as a part of a tensor.
struct Fused<'s> {
    /// The module that has the tensor.
    at: &'s [&'s Step],
    name: String,
    part: Part,
}

/// `lstm.input_gate.input_transform.weight` -> `lstm.weight_ih_l0`, part 0 of 4.
fn gate<'s>(steps: &'s [&'s Step], leaf: &str) -> Option<Fused<'s>> {
    let [at @ .., gate, side] = steps else { return None };
    if side.owner != "Struct:GateController" {
        return None;
    }
    let side = match &*side.name {
        "input_transform" => "ih",
        "hidden_transform" => "hh",
        _ => return None,
    };
    let part = match (&*gate.owner, &*gate.name) {
        ("Struct:Lstm", "input_gate") => Some((0, 4)),
        ("Struct:Lstm", "forget_gate") => Some((1, 4)),
        ("Struct:Lstm", "cell_gate") => Some((2, 4)),
        ("Struct:Lstm", "output_gate") => Some((3, 4)),
        ("Struct:Gru", "reset_gate") => Some((0, 3)),
        ("Struct:Gru", "update_gate") => Some((1, 3)),
        ("Struct:Gru", "new_gate") => Some((2, 3)),
        ("Struct:Rnn", "gate") => None,
        _ => return None,
    };
    let both = |step: &Step| ["Struct:BiLstm", "Struct:BiGru", "Struct:BiRnn"].contains(&&*step.owner);
    let (at, suffix) = match at {
        [at @ .., direction] if both(direction) && direction.name == "forward" => (at, ""),
        [at @ .., direction] if both(direction) && direction.name == "reverse" => (at, "_reverse"),
        _ => (at, ""),
    };
    Some(Fused { at, name: format!("{leaf}_{side}_l0{suffix}"), part })
}

/// `attention.key.bias` -> `attention.in_proj_bias`, part 1 of 3.
fn attention<'s>(steps: &'s [&'s Step], leaf: &str) -> Option<Fused<'s>> {
    let [at @ .., role] = steps else { return None };
    if role.owner != "Struct:MultiHeadAttention" {
        return None;
    }
    let number = match &*role.name {
        "query" => 0,
        "key" => 1,
        "value" => 2,
        "output" => return Some(Fused { at, name: format!("out_proj.{leaf}"), part: None }),
        _ => return None,
    };
    Some(Fused { at, name: format!("in_proj_{leaf}"), part: Some((number, 3)) })
}

fn under(steps: &[&Step], name: &str) -> String {
    if steps.is_empty() { name.to_owned() } else { format!("{}.{name}", dotted(steps.iter().copied())) }
}
