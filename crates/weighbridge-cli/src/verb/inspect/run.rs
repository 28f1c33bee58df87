//! The page of a directory of training checkpoints.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use weighbridge::epochs::{Epochs, Milestone, Opened, Scalar, Scalars};
use weighbridge::{Checkpoint, Names, TensorRef, natural_order};
use weighbridge_page::run::{self, Numbers, Run, Saved, Weights};

use super::page;
use crate::load::name_of;
use crate::term::Term;
use crate::verb::diff::values::{Moved, Tolerance, compare};

/// The file that says which checkpoints count.
const MANIFEST: &str = "checkpoints.json";
const MODEL: &str = "model";
const SCHEDULER: &str = "scheduler";
/// Where a scheduler's file has its numbers.
const SCALARS: &str = "weighbridge.burn.scalars";

/// Whether a path is a directory of training checkpoints, and not a model itself.
pub(super) fn is_run(path: &Path) -> bool {
    let has = |name| path.join(name).is_file();
    has(MANIFEST) && !has("model.safetensors") && !has("model.safetensors.index.json")
}

/// Reads the weights of all checkpoints and writes the page.
pub(super) fn write(html: &Path, path: &Path, chosen: &Names, term: &Term) -> Result<()> {
    let run = read(path, chosen, term)?;
    page::write(html, term, |mut out| Ok(run::write(&mut out, &run)?))
}

fn read(path: &Path, chosen: &Names, term: &Term) -> Result<Run> {
    let epochs = Epochs::new(path, [MODEL]);
    let mut milestones = epochs.milestones()?;
    milestones.sort();
    if milestones.is_empty() {
        bail!("{}: there is no checkpoint in it yet", path.display());
    }
    let opened: Vec<Opened> =
        milestones.iter().map(|&milestone| epochs.open(milestone)).collect::<weighbridge::Result<_>>()?;
    let models = opened.iter().map(|opened| opened.part(MODEL));
    let models: Vec<&Checkpoint> = models.collect::<weighbridge::Result<_>>()?;
    let mut numbers = BTreeMap::new();
    for (place, opened) in opened.iter().enumerate() {
        keep(&mut numbers, "", opened.scalars(), place, milestones.len());
        let scheduler = if opened.has(SCHEDULER) { scheduler(opened)? } else { Scalars::new() };
        keep(&mut numbers, "scheduler ", &scheduler, place, milestones.len());
    }
    let tensors = weights(&models, chosen, term)?;
    let saved = |(milestone, (opened, model)): (&Milestone, (&Opened, &&Checkpoint))| Saved {
        epoch: milestone.epoch_number(),
        step: milestone.step_number(),
        bytes: model.byte_len(),
        parts: [MODEL, "optimizer", SCHEDULER, "ema"]
            .iter()
            .filter(|part| opened.has(part))
            .map(|&part| part.into())
            .collect(),
    };
    let newest = models.last().into_iter().flat_map(|model| model.tensors());
    Ok(Run {
        name: name_of(path),
        path: path.display().to_string(),
        elements: newest.fold(0_u64, |sum, tensor| sum.saturating_add(tensor.elements())),
        checkpoints: milestones.iter().zip(opened.iter().zip(&models)).map(saved).collect(),
        numbers: numbers.into_iter().map(|(name, values)| Numbers { name, values }).collect(),
        tensors,
    })
}

/// Puts the numbers of one checkpoint into their places.
fn keep(
    numbers: &mut BTreeMap<String, Vec<Option<f64>>>,
    prefix: &str,
    scalars: &Scalars,
    place: usize,
    all: usize,
) {
    for (name, scalar) in scalars {
        let values = numbers.entry(format!("{prefix}{name}")).or_insert_with(|| vec![None; all]);
        values[place] = number(*scalar);
    }
}

#[expect(clippy::cast_precision_loss, reason = "for a chart")]
fn number(scalar: Scalar) -> Option<f64> {
    match scalar {
        Scalar::Int(value) => Some(value as f64),
        Scalar::UInt(value) => Some(value as f64),
        Scalar::Float(value) => Some(value),
        Scalar::Bool(value) => Some(f64::from(u8::from(value))),
        _ => None,
    }
}

/// What the scheduler says of itself; Candle's has its names behind `0.`.
fn scheduler(opened: &Opened) -> Result<Scalars> {
    let mut all = Scalars::new();
    for shard in opened.part(SCHEDULER)?.shards() {
        let entries = shard.header().metadata().into_iter().flatten();
        for (_, text) in entries.filter(|(key, _)| *key == SCALARS) {
            let texts: BTreeMap<String, String> = serde_json::from_str(text)
                .with_context(|| format!("{}: {SCALARS} is no object of texts", shard.name()))?;
            let named = texts.into_iter().filter_map(|(name, text)| {
                let name = name.strip_prefix("0.").unwrap_or(&name).to_owned();
                Some((name, text.parse::<Scalar>().ok()?))
            });
            all.extend(named);
        }
    }
    Ok(all)
}

/// Norms of all tensors, and of how far they moved from one checkpoint to the next.
fn weights(models: &[&Checkpoint], chosen: &Names, term: &Term) -> Result<Weights> {
    let mut names: Vec<&str> =
        models.iter().flat_map(|model| model.tensors()).map(|tensor| tensor.name()).collect();
    names.retain(|name| chosen.contains(name));
    names.sort_by(|a, b| natural_order(a, b).then_with(|| a.cmp(b)));
    names.dedup();
    let mut norm = vec![vec![None; models.len()]; names.len()];
    let mut distance = norm.clone();
    let places: BTreeMap<&str, usize> =
        names.iter().enumerate().map(|(place, &name)| (name, place)).collect();
    for (at, model) in models.iter().enumerate() {
        // What has nothing to be compared with is compared with itself, for its norm.
        let other = |tensor: &TensorRef<'_>| {
            let before = at.checked_sub(1).and_then(|before| models[before].tensor(tensor.name()));
            before.filter(|before| before.shape() == tensor.shape() && before.dtype() == tensor.dtype())
        };
        let tensors: Vec<_> = model.tensors().filter(|tensor| chosen.contains(tensor.name())).collect();
        let pairs: Vec<_> =
            tensors.iter().map(|tensor| [*tensor, other(tensor).unwrap_or(*tensor)]).collect();
        for Moved { name, norm: length, distance: moved, .. } in compare(&pairs, Tolerance::Bits, term)? {
            let Some(&place) = places.get(name) else { continue };
            norm[place][at] = length;
            let compared = model.tensor(name).is_some_and(|tensor| other(&tensor).is_some());
            distance[place][at] = moved.filter(|_| compared);
        }
    }
    Ok(Weights { name: names.into_iter().map(ToOwned::to_owned).collect(), norm, distance })
}
