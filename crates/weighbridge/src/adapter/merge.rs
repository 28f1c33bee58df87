//! Weights with what adapters add to them, in the place of the stored ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::parts::Part;
use super::targets::{Target, Targets};
use super::{Adapter, AdapterFormat, Module};
use crate::checkpoint::{Checkpoint, TensorRef};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Cast, Delta, Entry, Input, LowRank};
use crate::text::{brief, start_of};

/// What becomes of one tensor of the model.
#[derive(Default)]
struct Change {
    deltas: Vec<(Delta, Vec<Input>)>,
    magnitude: Option<Input>,
    whole: Option<Input>,
    /// Tensors of adapters that it is made of, for messages.
    named: Vec<String>,
}

impl Checkpoint {
    /// The same checkpoint with adapters merged into its weights, each times a weight of its own.
    ///
    /// A weight `W` becomes `W + Σ weight · scale · B A`, computed in `F32` when it is read, tile by tile, and rounded once, to
    /// whatever dtype is asked for. Modules that are fused in the model and apart in the adapter find their rows, and the
    /// other way round; a [quantised](Self::quantized) model is [dequantised](Self::dequantized) first. The model's files
    /// are not changed.
    ///
    /// ```
    /// use weighbridge::{Adapter, Checkpoint, Dtype, TensorView, write::Save};
    ///
    /// # fn main() -> weighbridge::Result<()> {
    /// let f32 = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    /// let (w, a, b) = (f32(&[1.0, 2.0, 3.0, 4.0]), f32(&[1.0, 0.5]), f32(&[2.0, -2.0]));
    /// let base = Save::new().bytes([("up.weight", TensorView::new(Dtype::F32, &[2, 2], &w)?)])?;
    /// let adapter = Save::new().bytes([
    ///     ("up.lora_A.weight", TensorView::new(Dtype::F32, &[1, 2], &a)?),
    ///     ("up.lora_B.weight", TensorView::new(Dtype::F32, &[2, 1], &b)?),
    /// ])?;
    /// let adapter = Adapter::of(&Checkpoint::from_bytes(adapter)?)?;
    /// let merged = Checkpoint::from_bytes(base)?.adapted([(&adapter, 0.5)])?;
    /// assert_eq!(merged.read("up.weight")?.as_bytes(), f32(&[2.0, 2.5, 2.0, 3.5]));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Fails when a module of an adapter is for no weight of the model, when shapes do not fit, and when adapters cannot
    /// be merged together, as two of which one has a magnitude (DoRA).
    pub fn adapted<'a>(&self, adapters: impl IntoIterator<Item = (&'a Adapter, f32)>) -> Result<Self> {
        let base = self.dequantized()?;
        let mut changes = BTreeMap::<String, Change>::new();
        for (adapter, weight) in adapters {
            if !weight.is_finite() {
                return Err(Error::new(ErrorKind::Value, format!("{weight} is no weight of an adapter")));
            }
            let targets = Targets::find(&base, adapter)?;
            for (module, targets) in adapter.modules.iter().zip(&targets.modules) {
                for target in targets {
                    note(&base, adapter, module, target, targets.len(), weight, &mut changes)?;
                }
            }
            for ((own, _), name) in adapter.whole.iter().zip(&targets.whole) {
                let tensor = adapter.checkpoint.tensor(own);
                let change = changes.entry(name.clone()).or_default();
                change.named.push(own.clone());
                if let Some(tensor) = tensor.filter(|_| change.whole.is_none()) {
                    change.whole = Some(Input::of(&tensor));
                } else {
                    let message = format!("two adapters replace {:?}", start_of(name));
                    return Err(adapter.blame(Error::new(ErrorKind::Unsupported, message), own));
                }
            }
        }
        let entries = changes.into_iter().filter_map(|(name, change)| {
            let tensor = base.tensor(&name)?;
            Some(change.entry(&tensor))
        });
        base.with_entries(entries.collect::<Result<Vec<_>>>()?)
    }
}

/// Notes what a module changes.
fn note(
    base: &Checkpoint,
    adapter: &Adapter,
    module: &Module,
    Target { weight: name, rows }: &Target,
    count: usize,
    weight: f32,
    changes: &mut BTreeMap<String, Change>,
) -> Result<()> {
    let tensor = |part| adapter.tensor(module, part);
    let Some(stored) = base.tensor(name) else { return Ok(()) };
    let with_rows = |delta: Delta| match rows {
        Some((rows, first)) => delta.rows(rows.clone(), *first),
        None => delta,
    };
    let change = changes.entry(name.clone()).or_default();
    let mut add = |delta: Delta, tensors: &[TensorRef<'_>]| {
        change.named.extend(tensors.iter().map(|tensor| tensor.name().to_owned()));
        change.deltas.push((with_rows(delta), tensors.iter().map(Input::of).collect()));
    };
    let scale = weight * module.scale;
    let is_embedding = tensor(Part::EmbeddingDown).is_some();
    let factors = || Some((tensor(Part::Down)?, tensor(Part::Up)?));
    let embedding = || Some((tensor(Part::EmbeddingDown)?, tensor(Part::EmbeddingUp)?));
    if let Some((down, up)) = factors() {
        let delta = match is_transposed(&stored, &down, &up, adapter.is_transposed) {
            true => Delta::new(scale).transposed(),
            false => Delta::new(scale),
        };
        add(delta, &[down, up]);
    }
    if let Some((down, up)) = embedding() {
        add(Delta::new(scale).transposed(), &[down, up]);
    }
    if let Some(full) = tensor(Part::Full) {
        add(Delta::full(weight), &[full]);
    }
    if let Some(magnitude) = tensor(Part::Magnitude) {
        let fail = |message: String| {
            Err(adapter.blame(Error::new(ErrorKind::Unsupported, message), magnitude.name()))
        };
        let is_by_column =
            factors().is_some_and(|(down, up)| is_transposed(&stored, &down, &up, adapter.is_transposed));
        if is_embedding || is_by_column || count > 1 || rows.is_some() {
            return fail(
                "its magnitude (DoRA) is for columns, or for rows of a fused weight, which is not merged here; merge it with \
                 PEFT"
                    .to_owned(),
            );
        }
        let shape = magnitude.shape();
        let rows = stored.shape().first().map_or(0, |&rows| rows as u64);
        // Of one number for each column the first dimension is 1, but PEFT has that for convolutions, too.
        let is_for_rows =
            adapter.format == AdapterFormat::Peft || shape.len() < 2 || shape.first() != Some(&1);
        if magnitude.elements() != rows || !is_for_rows {
            return fail(format!(
                "its magnitude has shape {}, not one number for each row",
                brief(magnitude.shape())
            ));
        }
        change.magnitude = Some(Input::of(&magnitude));
    }
    for (part, scale) in [(Part::BiasUp, scale), (Part::FullBias, weight)] {
        let Some(bias) = tensor(part) else { continue };
        let of_bias = name.strip_suffix("weight").map(|module| format!("{module}bias"));
        let Some(of_bias) = of_bias.filter(|name| base.tensor(name).is_some()) else {
            let message =
                format!("the model has no bias beside {:?} that it could be added to", start_of(name));
            return Err(adapter.blame(Error::new(ErrorKind::MissingTensor, message), bias.name()));
        };
        if count > 1 || rows.is_some() {
            let message = "a bias of a fused module is not merged here; merge it with PEFT";
            return Err(adapter.blame(Error::new(ErrorKind::Unsupported, message), bias.name()));
        }
        let change = changes.entry(of_bias).or_default();
        change.named.push(bias.name().to_owned());
        change.deltas.push((Delta::full(scale), vec![Input::of(&bias)]));
    }
    Ok(())
}

/// Whether a weight is stored the other way round: as the adapter says, unless its shape says otherwise.
fn is_transposed(stored: &TensorRef<'_>, down: &TensorRef<'_>, up: &TensorRef<'_>, said: bool) -> bool {
    let (outputs, inputs) = (up.shape().first(), down.shape().get(1));
    match (stored.shape(), outputs, inputs) {
        ([rows, columns], Some(outputs), Some(inputs)) if down.shape().len() == 2 => {
            let (plain, turned) =
                ((outputs, inputs) == (rows, columns), (inputs, outputs) == (rows, columns));
            turned && (said || !plain)
        }
        _ => false,
    }
}

impl Change {
    fn entry(self, stored: &TensorRef<'_>) -> Result<Entry> {
        let Self { deltas, magnitude, whole, named } = self;
        let because = |error: Error| {
            let named = named.first().map_or("", |name| start_of(name));
            error.advised(&format!("{named:?} of the adapter is for it"))
        };
        let blame = |error: Error| stored.shard().blame(because(error).in_tensor(stored.name()));
        let first = whole.unwrap_or_else(|| Input::of(stored));
        if deltas.is_empty() {
            return Entry::new(stored.name(), vec![first], Arc::new(Cast::to(stored.dtype()))).map_err(blame);
        }
        if magnitude.is_some() && deltas.len() > 1 {
            let message =
                "several adapters change it, of which one has a magnitude (DoRA): they do not add up";
            return Err(blame(Error::new(ErrorKind::Unsupported, message)));
        }
        let (deltas, inputs): (Vec<_>, Vec<_>) = deltas.into_iter().unzip();
        let mut operation = LowRank::new(deltas);
        if magnitude.is_some() {
            operation = operation.magnitude();
        }
        let all = std::iter::once(first).chain(inputs.into_iter().flatten()).chain(magnitude);
        let entry = Entry::new(stored.name(), all.collect(), Arc::new(operation));
        entry.and_then(|entry| entry.recast(stored.dtype())).map_err(blame)
    }
}
