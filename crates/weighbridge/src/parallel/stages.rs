//! Where layers are, and which pipeline stage has them.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::heads::even;
use crate::error::{Error, ErrorKind, Result};
use crate::text::start_of;

/// The experts that a tensor is one of (what stands before its number), and its number.
pub(super) fn expert_of(name: &str) -> Option<(&str, usize)> {
    numbered(name).filter(|(before, _)| before.ends_with("experts")).last()
}

/// The list that a name is in (what stands before its first number), and its number.
pub(super) fn layer_of(name: &str) -> Option<(&str, usize)> {
    numbered(name).next()
}

/// The numbers among the components of a name, and what stands before each of them.
fn numbered(name: &str) -> impl Iterator<Item = (&str, usize)> {
    let mut at = 0;
    name.split('.').filter_map(move |component| {
        let start = at;
        at += component.len() + 1;
        let is_number = !component.is_empty() && component.bytes().all(|byte| byte.is_ascii_digit());
        let number = component.parse().ok().filter(|_| is_number)?;
        Some((name.get(..start)?.strip_suffix('.').unwrap_or(""), number))
    })
}

/// The layers of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layers {
    /// What stands before their numbers.
    pub(super) prefix: String,
    pub(super) count: usize,
}

impl Layers {
    /// Those at `prefix`, or else the list that has the most bytes.
    pub(super) fn of<'n>(
        prefix: Option<&str>,
        tensors: impl Iterator<Item = (&'n str, u64)>,
    ) -> Result<Option<Self>> {
        let mut lists = BTreeMap::<&str, (usize, u64)>::new();
        for (name, bytes) in tensors {
            let found = match prefix {
                Some(prefix) => numbered(name).find(|(before, _)| *before == prefix),
                None => layer_of(name),
            };
            if let Some((before, number)) = found {
                let (count, sum) = lists.entry(before).or_default();
                *count = (*count).max(number.saturating_add(1));
                *sum = sum.saturating_add(bytes);
            }
        }
        let largest = lists.into_iter().max_by_key(|(_, (_, bytes))| *bytes);
        match (largest, prefix) {
            (Some((before, (count, _))), _) => Ok(Some(Self { prefix: before.to_owned(), count })),
            (None, None) => Ok(None),
            (None, Some(prefix)) => {
                let message = format!("no tensor is in a layer of {:?}", start_of(prefix));
                Err(Error::new(ErrorKind::MissingTensor, message))
            }
        }
    }

    /// The layer that a tensor belongs to.
    pub(super) fn of_tensor(&self, name: &str) -> Option<usize> {
        let behind = match &*self.prefix {
            "" => name,
            prefix => name.strip_prefix(prefix)?.strip_prefix('.')?,
        };
        let number = behind.split('.').next()?;
        number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse().ok())?
    }
}

/// The layers of each stage: as many as was said, or equally many, of which the first ones have one more where there is
/// a remainder.
pub(super) fn stages(counts: Option<&[usize]>, layers: usize, stages: usize) -> Result<Vec<Range<usize>>> {
    let Some(counts) = counts else {
        return (0..stages).map(|stage| even(layers, stage, stages)).collect::<Result<_>>().map_err(|_| {
            Error::new(ErrorKind::Slice, format!("{layers} layers are too few for {stages} pipeline stages"))
        });
    };
    let sum = counts.iter().try_fold(0_usize, |sum, count| sum.checked_add(*count));
    if counts.len() != stages || sum != Some(layers) || counts.contains(&0) {
        let message = format!(
            "`@stages` gives {} stages with {} layers together, but there are {stages} stages and {layers} layers",
            counts.len(),
            sum.unwrap_or(usize::MAX)
        );
        return Err(Error::new(ErrorKind::Slice, message));
    }
    let mut next = 0;
    let stage = |count: &usize| {
        let start = next;
        next += count;
        start..next
    };
    Ok(counts.iter().map(stage).collect())
}

/// Which end of a model a tensor is at that belongs to no layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) first: bool,
    pub(super) last: bool,
}

impl Ends {
    /// What its name says; nothing where it says nothing.
    pub(super) fn of(name: &str) -> Option<Self> {
        const FIRST: [&str; 13] = [
            "embed",
            "wte",
            "wpe",
            "position",
            "rotary",
            "vision",
            "visual",
            "multi_modal",
            "mm_projector",
            "conv1",
            "conv2",
            "audio",
            "shared",
        ];
        const LAST: [&str; 12] = [
            "lm_head",
            "output",
            "norm",
            "ln_f",
            "head",
            "score",
            "classifier",
            "pooler",
            "embed_out",
            "logits",
            "qa_",
            "cls",
        ];
        let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
        // An embedding's norm is where the embedding is; what puts out embeddings is not.
        let last = has(&LAST) && (!has(&FIRST) || name.contains("embed_out"));
        match (has(&FIRST), last) {
            (_, true) => Some(Self { first: false, last: true }),
            (true, false) => Some(Self { first: true, last: false }),
            (false, false) => None,
        }
    }
}

/// How many experts there are, by what stands before their numbers.
pub(super) fn experts<'n>(names: impl Iterator<Item = &'n str>) -> HashMap<&'n str, usize> {
    let mut experts = HashMap::new();
    for (before, number) in names.filter_map(expert_of) {
        let count = experts.entry(before).or_insert(0);
        *count = (*count).max(number.saturating_add(1));
    }
    experts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_and_experts_are_known_by_their_numbers() {
        assert_eq!(layer_of("model.layers.12.mlp.experts.3.up.weight"), Some(("model.layers", 12)));
        assert_eq!(
            expert_of("model.layers.12.mlp.experts.3.up.weight"),
            Some(("model.layers.12.mlp.experts", 3))
        );
        assert_eq!(expert_of("model.layers.12.mlp.up.weight"), None);
        assert_eq!(layer_of("0.weight"), Some(("", 0)));
        assert_eq!(layer_of("lm_head.weight"), None);
        assert_eq!(layer_of("a.99999999999999999999999.b"), None);
        let names = ["visual.blocks.0.w", "model.layers.0.w", "model.layers.1.w", "lm_head.weight"];
        let tensors = || names.iter().map(|name| (*name, if name.starts_with("model") { 9 } else { 10 }));
        let layers = Layers::of(None, tensors()).unwrap().unwrap();
        assert_eq!(layers, Layers { prefix: "model.layers".to_owned(), count: 2 });
        assert_eq!(layers.of_tensor("model.layers.1.w"), Some(1));
        assert_eq!(layers.of_tensor("model.layers2.1.w"), None);
        assert_eq!(layers.of_tensor("visual.blocks.0.w"), None);
        assert_eq!(Layers::of(Some("visual.blocks"), tensors()).unwrap().unwrap().count, 1);
        assert!(Layers::of(Some("model"), tensors()).is_err());
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "a list of ranges")]
    fn stages_have_all_layers() {
        assert_eq!(stages(None, 7, 3).unwrap(), [0..3, 3..5, 5..7]);
        assert_eq!(stages(Some(&[1, 2, 4]), 7, 3).unwrap(), [0..1, 1..3, 3..7]);
        assert_eq!(stages(None, 1, 1).unwrap(), [0..1]);
        assert!(stages(None, 2, 3).is_err());
        assert!(stages(Some(&[1, 2]), 7, 2).is_err());
        assert!(stages(Some(&[7, 0]), 7, 2).is_err());
    }

    #[test]
    fn ends_are_known_by_their_names() {
        for first in [
            "model.embed_tokens.weight",
            "transformer.wte.weight",
            "word_embeddings_layernorm.weight",
            "visual.norm.w",
        ] {
            assert_eq!(Ends::of(first), Some(Ends { first: true, last: false }), "{first}");
        }
        for last in [
            "model.norm.weight",
            "lm_head.weight",
            "transformer.ln_f.bias",
            "embed_out.weight",
            "score.weight",
        ] {
            assert_eq!(Ends::of(last), Some(Ends { first: false, last: true }), "{last}");
        }
        assert_eq!(Ends::of("model.mystery"), None);
    }
}
