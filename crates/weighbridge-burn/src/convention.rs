//! How other frameworks name and lay out the parameters of Burn's layers.

use crate::walk::{Site, Step, dotted};

/// Names and layouts in files. Unless another one is chosen, files are taken to be as Burn writes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Convention {
    /// Burn's own: the names of its records, and `[in, out]` for the weight of a `Linear`.
    #[default]
    Burn,
    /// That of PyTorch and of the models of Hugging Face:
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
    /// Layers are recognised by the names of their types, whoever defines them: a `Linear` of your own must
    /// have Burn's layout, or be [excepted](crate::Mapping::as_in_burn).
    ///
    /// Embeddings, convolutions and running statistics are the same in both. If a file has no
    /// `in_proj_weight`, the four layers of the attention are looked for under their own names; if it has no
    /// `weight`, so are `gamma` and `beta`.
    PyTorch,
}

/// Where a file may hold the values of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) name: String,
    /// The portion of the file's tensor, along its first dimension.
    pub(crate) portion: Option<Portion>,
    /// Whether its last two dimensions are transposed there.
    pub(crate) transposed: bool,
    /// The dimension along which layers that are stored as one are joined: that of a layer's outputs.
    pub(crate) axis: usize,
}

/// One of several equal portions of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Portion {
    pub(crate) index: usize,
    pub(crate) of: usize,
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
    /// Where a file may hold a parameter, the usual tensor first. `variants`: names have the variants of
    /// enums.
    pub(crate) fn candidates(self, site: &Site, variants: bool, fusing: Fusing) -> Vec<Candidate> {
        // The outputs of a weight `[in, out]` are its second dimension.
        let is_row = site.is_linear_weight() && !site.is_column;
        let steps: Vec<_> = site.steps.iter().filter(|step| variants || !step.is_variant()).collect();
        match self {
            Self::Burn => {
                let axis = usize::from(is_row);
                vec![Candidate { name: dotted(steps), portion: None, transposed: false, axis }]
            }
            Self::PyTorch => names(&steps, fusing)
                .into_iter()
                .map(|(name, portion)| Candidate { name, portion, transposed: is_row, axis: 0 })
                .collect(),
        }
    }
}

/// PyTorch's names for a parameter.
fn names(steps: &[&Step], fusing: Fusing) -> Vec<(String, Option<Portion>)> {
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
        if let Some((Fused { at, name, portion }, is_usual)) = fused {
            let (fused, apart) = ((under(at, &name), portion), (plain, None));
            return if is_usual { vec![fused, apart] } else { vec![apart, fused] };
        }
    }
    vec![(plain, None)]
}

/// A layer that PyTorch stores as a portion of a tensor.
struct Fused<'s> {
    /// The module that has the tensor.
    at: &'s [&'s Step],
    name: String,
    portion: Option<Portion>,
}

/// `lstm.input_gate.input_transform.weight` -> `lstm.weight_ih_l0`, portion 0 of 4.
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
    let portion = match (&*gate.owner, &*gate.name) {
        ("Struct:Lstm", "input_gate") => Some(Portion { index: 0, of: 4 }),
        ("Struct:Lstm", "forget_gate") => Some(Portion { index: 1, of: 4 }),
        ("Struct:Lstm", "cell_gate") => Some(Portion { index: 2, of: 4 }),
        ("Struct:Lstm", "output_gate") => Some(Portion { index: 3, of: 4 }),
        ("Struct:Gru", "reset_gate") => Some(Portion { index: 0, of: 3 }),
        ("Struct:Gru", "update_gate") => Some(Portion { index: 1, of: 3 }),
        ("Struct:Gru", "new_gate") => Some(Portion { index: 2, of: 3 }),
        ("Struct:Rnn", "gate") => None,
        _ => return None,
    };
    let both = |step: &Step| ["Struct:BiLstm", "Struct:BiGru", "Struct:BiRnn"].contains(&&*step.owner);
    let (at, suffix) = match at {
        [at @ .., direction] if both(direction) && direction.name == "forward" => (at, ""),
        [at @ .., direction] if both(direction) && direction.name == "reverse" => (at, "_reverse"),
        _ => (at, ""),
    };
    Some(Fused { at, name: format!("{leaf}_{side}_l0{suffix}"), portion })
}

/// `attention.key.bias` -> `attention.in_proj_bias`, portion 1 of 3.
fn attention<'s>(steps: &'s [&'s Step], leaf: &str) -> Option<Fused<'s>> {
    let [at @ .., role] = steps else { return None };
    if role.owner != "Struct:MultiHeadAttention" {
        return None;
    }
    let index = match &*role.name {
        "query" => 0,
        "key" => 1,
        "value" => 2,
        "output" => return Some(Fused { at, name: format!("out_proj.{leaf}"), portion: None }),
        _ => return None,
    };
    Some(Fused { at, name: format!("in_proj_{leaf}"), portion: Some(Portion { index, of: 3 }) })
}

fn under(steps: &[&Step], name: &str) -> String {
    if steps.is_empty() { name.to_owned() } else { format!("{}.{name}", dotted(steps.iter().copied())) }
}
