//! Which tensors of a model the modules of an adapter are for.
//!
//! Names of adapters and of models differ in what they begin with, and Kohya has underscores in the place of dots. One rule has
//! to fit all modules of an adapter, so that none is taken for another one by chance.

use std::collections::HashMap;
use std::ops::Range;

use super::parts::Part;
use super::{Adapter, AdapterFormat, Module};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::names::nearest_name;
use crate::text::start_of;

/// A weight that a module is for, or rows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) weight: String,
    /// Some rows of the weight, and the row of `B` that is for the first of them; `None` for all.
    pub(super) rows: Option<(Range<usize>, usize)>,
}

impl Target {
    fn whole(weight: String) -> Self {
        Self { weight, rows: None }
    }
}

/// How names of an adapter become those of the model.
enum Rule {
    /// Without this, and behind that.
    Prefix(String, String),
    /// What Kohya's names are without their dots.
    /// Two modules may have the same one.
    Flat(HashMap<String, Option<String>>),
}

impl Rule {
    fn apply(&self, name: &str) -> Option<String> {
        match self {
            Self::Prefix(old, new) => Some(format!("{new}{}", name.strip_prefix(&**old)?)),
            Self::Flat(names) => names.get(name).cloned().flatten(),
        }
    }
}

/// What Kohya puts in front of the names of a component, and what the names of models begin with there.
const KOHYA: &[(&str, &[&str])] = &[
    ("lora_unet_", &["", "unet.", "diffusion_model.", "model.diffusion_model.", "transformer."]),
    ("lora_transformer_", &["", "transformer.", "diffusion_model.", "model.diffusion_model."]),
    ("lora_prior_unet_", &["", "prior."]),
    ("lora_te_", &["", "text_encoder.", "text_model."]),
    ("lora_te1_", &["", "text_encoder."]),
    ("lora_te2_", &["", "text_encoder_2."]),
    ("lora_te3_", &["", "text_encoder_3."]),
];

/// What names of models begin with where those of adapters do not, and the other way round.
const PREFIXES: &[&str] = &[
    "model.",
    "transformer.",
    "language_model.",
    "model.language_model.",
    "unet.",
    "text_encoder.",
    "text_encoder_2.",
    "diffusion_model.",
    "model.diffusion_model.",
    "base_model.model.",
    "prior.",
    "roberta.",
    "bert.",
];

/// The same part of models, which versions of transformers call differently.
const SAME: &[&str] = &["model.", "model.language_model.", "language_model.model."];

/// The weights that each module of an adapter is for, and the names in the model of the tensors that it replaces.
#[derive(PartialEq, Eq)]
pub(super) struct Targets {
    pub(super) modules: Vec<Vec<Target>>,
    pub(super) whole: Vec<String>,
}

impl Targets {
    /// # Errors
    ///
    /// Fails at the first module that no tensor of the model is for.
    pub(super) fn find(base: &Checkpoint, adapter: &Adapter) -> Result<Self> {
        let rules = rules(base, adapter);
        let mut best: Option<(usize, usize)> = None;
        let mut found: Option<Self> = None;
        for (index, rule) in rules.iter().enumerate() {
            match (Self::by(rule, base, adapter), &found) {
                // The names as they are count.
                ((Some(targets), _), None) if index == 0 => return Ok(targets),
                ((Some(targets), _), None) => found = Some(targets),
                ((Some(other), _), Some(first)) if other != *first => {
                    return Err(first.ambiguous(&other, adapter));
                }
                ((None, count), _) if best.is_none_or(|(_, most)| count > most) => {
                    best = Some((index, count));
                }
                _ => {}
            }
        }
        if let Some(found) = found {
            return Ok(found);
        }
        // Of the rule that fits most, the first that it does not fit.
        let fallback = Rule::Prefix(String::new(), String::new());
        let rule = best.and_then(|(index, _)| rules.get(index)).unwrap_or(&fallback);
        for module in &adapter.modules {
            if targets_of(rule, base, adapter, module)?.is_none() {
                return Err(unmatched(base, rule, adapter, module));
            }
        }
        let missing = adapter
            .whole
            .iter()
            .find(|(_, name)| rule.apply(name).is_none_or(|name| base.tensor(&name).is_none()));
        let (own, name) = missing.cloned().unwrap_or_default();
        let mut message = format!("the model has no tensor {:?} that it could replace", start_of(&name));
        if name.ends_with("lm_head.weight") {
            message.push_str(tied(base));
        }
        Err(adapter.blame(Error::new(ErrorKind::MissingTensor, message), &own))
    }

    /// The error that names fit two parts of the model.
    fn ambiguous(&self, other: &Self, adapter: &Adapter) -> Error {
        let name = |targets: &Self| {
            targets.modules.iter().flatten().next().map_or("", |target| &*target.weight).to_owned()
        };
        let (one, two) = (name(self), name(other));
        let message = format!("it could be for {:?} or for {:?}", start_of(&one), start_of(&two));
        let tensor = adapter.modules.first().and_then(|module| module.parts.values().next());
        adapter.blame(Error::new(ErrorKind::Ambiguous, message), tensor.map_or("", |name| name))
    }

    /// All of them by one rule, if it fits all; and how many it fits.
    fn by(rule: &Rule, base: &Checkpoint, adapter: &Adapter) -> (Option<Self>, usize) {
        let modules =
            adapter.modules.iter().map(|module| targets_of(rule, base, adapter, module).ok().flatten());
        let modules: Vec<_> = modules.collect();
        let whole =
            adapter.whole.iter().map(|(_, name)| rule.apply(name).filter(|name| base.tensor(name).is_some()));
        let whole: Vec<_> = whole.collect();
        let count = modules.iter().flatten().count() + whole.iter().flatten().count();
        let all = || {
            Some(Self {
                modules: modules.into_iter().collect::<Option<_>>()?,
                whole: whole.into_iter().collect::<Option<_>>()?,
            })
        };
        (all(), count)
    }
}

/// The modules of a model by what Kohya's names for them are; `None` if two have the same one.
pub(super) fn kohya_modules(base: &Checkpoint) -> HashMap<String, Option<String>> {
    let mut names = HashMap::<String, Option<String>>::new();
    for tensor in base.tensors() {
        let Some(module) = tensor.name().strip_suffix(".weight") else { continue };
        for (kohya, prefixes) in KOHYA {
            for plain in prefixes.iter().filter_map(|prefix| module.strip_prefix(prefix)) {
                let known = names.entry(format!("{kohya}{}", plain.replace('.', "_")));
                let known = known.or_insert_with(|| Some(module.to_owned()));
                if known.as_deref() != Some(module) {
                    *known = None;
                }
            }
        }
    }
    names
}

/// The rules to try, the plainest first.
fn rules(base: &Checkpoint, adapter: &Adapter) -> Vec<Rule> {
    if adapter.format == AdapterFormat::Kohya {
        return vec![Rule::Flat(kohya_modules(base))];
    }
    let none = || String::new();
    let mut rules = vec![Rule::Prefix(none(), none())];
    rules.extend(PREFIXES.iter().map(|prefix| Rule::Prefix((*prefix).to_owned(), none())));
    rules.extend(PREFIXES.iter().map(|prefix| Rule::Prefix(none(), (*prefix).to_owned())));
    for old in SAME {
        let others = SAME.iter().filter(|new| *new != old);
        rules.extend(others.map(|new| Rule::Prefix((*old).to_owned(), (*new).to_owned())));
    }
    rules
}

/// The rows of a fused weight: what its parts are called, and in which order.
const FUSED: &[(&str, &[&str])] = &[
    ("qkv_proj", &["q_proj", "k_proj", "v_proj"]),
    ("to_qkv", &["to_q", "to_k", "to_v"]),
    ("gate_up_proj", &["gate_proj", "up_proj"]),
];

fn targets_of(
    rule: &Rule,
    base: &Checkpoint,
    adapter: &Adapter,
    module: &Module,
) -> Result<Option<Vec<Target>>> {
    let Some(name) = rule.apply(&module.name) else { return Ok(None) };
    let weight = format!("{name}.weight");
    if base.tensor(&weight).is_some() {
        return Ok(Some(vec![Target::whole(weight)]));
    }
    let up = adapter.tensor(module, Part::Up);
    let Some(rows) = up.and_then(|up| up.shape().first().copied()) else { return Ok(None) };
    let (parent, last) = name.rsplit_once('.').map_or(("", &*name), |(parent, last)| (parent, last));
    let beside = |last: &str| {
        if parent.is_empty() { format!("{last}.weight") } else { format!("{parent}.{last}.weight") }
    };
    for (fused, parts) in FUSED {
        // A part, of a model that has all of them in one.
        if let Some(index) = parts.iter().position(|part| *part == last) {
            let weight = beside(fused);
            let Some(tensor) = base.tensor(&weight) else { continue };
            let Some(&total) = tensor.shape().first() else { continue };
            let place = place_in(total, rows, index, parts.len());
            let start = place.ok_or_else(|| {
                let message =
                    format!("{:?} has {total} rows, of which it cannot have {rows}", start_of(&weight));
                adapter.blame(Error::new(ErrorKind::Shape, message), up.map_or("", |up| up.name()))
            })?;
            return Ok(Some(vec![Target { weight, rows: Some((start..start + rows, 0)) }]));
        }
        // All of them, of a model that has each by itself.
        if *fused == last {
            let found: Option<Vec<_>> = parts.iter().map(|part| base.tensor(&beside(part))).collect();
            let Some(found) = found else { continue };
            let mut first = 0;
            let mut targets = Vec::with_capacity(found.len());
            for tensor in found {
                let own = tensor.shape().first().copied().unwrap_or_default();
                targets.push(Target { weight: tensor.name().to_owned(), rows: Some((0..own, first)) });
                first += own;
            }
            if first != rows {
                let message = format!("it has {rows} rows, and the weights that it is for have {first}");
                return Err(
                    adapter.blame(Error::new(ErrorKind::Shape, message), up.map_or("", |up| up.name()))
                );
            }
            return Ok(Some(targets));
        }
    }
    Ok(None)
}

/// The first of the rows of a part in a fused weight. Keys and values have the same number of rows, queries may have more.
fn place_in(total: usize, rows: usize, index: usize, parts: usize) -> Option<usize> {
    match (parts, index) {
        (2, _) => (total == rows.checked_mul(2)?).then_some(index * rows),
        (_, 0) => (rows <= total && (total - rows) % 2 == 0).then_some(0),
        (_, 1) => total.checked_sub(rows.checked_mul(2)?),
        _ => total.checked_sub(rows.checked_mul(2)?).map(|start| start + rows),
    }
}

/// What is said about an output that a model does not have.
fn tied(base: &Checkpoint) -> &'static str {
    match base.tensors().any(|tensor| tensor.name().ends_with("embed_tokens.weight")) {
        true => "; its output is tied to the embeddings, which would have to be untied first",
        false => "",
    }
}

fn unmatched(base: &Checkpoint, rule: &Rule, adapter: &Adapter, module: &Module) -> Error {
    let wanted = format!("{}.weight", rule.apply(&module.name).unwrap_or_else(|| module.name.clone()));
    let mut message = format!("the model has no tensor {:?} that it could be for", start_of(&wanted));
    if let Some(nearest) = nearest_name(&wanted, base.tensors().map(|tensor| tensor.name())) {
        message.push_str(&format!(", nearest is {:?}", start_of(nearest)));
    }
    if matches!(rule, Rule::Flat(names) if names.get(&module.name).is_some_and(Option::is_none)) {
        message =
            "two modules of the model have this name when underscores are in the place of dots".to_owned();
    }
    if wanted.ends_with("lm_head.weight") {
        message.push_str(tied(base));
    }
    let tensor = module.parts.values().next().map_or("", |name| name);
    adapter.blame(Error::new(ErrorKind::MissingTensor, message), tensor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_their_place() {
        // Eight rows of queries, two of keys and two of values.
        assert_eq!(place_in(12, 8, 0, 3), Some(0));
        assert_eq!(place_in(12, 2, 1, 3), Some(8));
        assert_eq!(place_in(12, 2, 2, 3), Some(10));
        assert_eq!(place_in(12, 7, 0, 3), None);
        assert_eq!(place_in(12, 7, 1, 3), None);
        assert_eq!(place_in(12, 6, 1, 2), Some(6));
        assert_eq!(place_in(12, 5, 1, 2), None);
    }
}
