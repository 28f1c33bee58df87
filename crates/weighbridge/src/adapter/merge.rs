//! Weights with what adapters add to them, in the place of the stored ones.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::parts::Part;
use super::targets::{Target, Targets};
use super::{Adapter, AdapterFormat, Module};
use crate::checkpoint::{Checkpoint, Quantized, TensorRef};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Delta, Entry, Input, LowRank, Read};
use crate::text::{brief, start_of};

/// What becomes of one tensor of the model.
#[derive(Default)]
struct Change {
    deltas: Vec<(Delta, Vec<Input>)>,
    /// And whether it is for columns.
    magnitude: Option<(Input, bool)>,
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
    /// are not changed. What an adapter has whole (`modules_to_save`) replaces the model's tensor whatever the weight; with a
    /// magnitude (DoRA), the weight is that of the product only.
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
            let turns = Turns::of(&base, adapter, &targets);
            let mut taken = HashMap::new();
            for (module, targets) in adapter.modules.iter().zip(&targets.modules) {
                for target in targets {
                    if let (None, Some(first)) = (&target.rows, taken.insert(&*target.weight, &*module.name))
                    {
                        let message = format!(
                            "{:?} and {:?} are for the same weight, {:?}",
                            start_of(first),
                            start_of(&module.name),
                            start_of(&target.weight)
                        );
                        let named = module.parts.values().next().map_or("", |name| name);
                        return Err(adapter.blame(Error::new(ErrorKind::Ambiguous, message), named));
                    }
                    note(&base, adapter, module, target, targets.len(), weight, &turns, &mut changes)?;
                }
            }
            for ((own, _), name) in adapter.whole.iter().zip(&targets.whole) {
                let tensor = adapter.checkpoint.tensor(own);
                let change = changes.entry(name.clone()).or_default();
                change.named.push(own.clone());
                if let Some(tensor) = tensor.filter(|_| change.whole.is_none()) {
                    change.whole = Some(Input::of(&tensor));
                } else {
                    let message = format!("two tensors of adapters replace {:?}", start_of(name));
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

    /// The checkpoint as a loader sees it: with adapters merged, each times a weight of its own, and quantised modules as
    /// `quantized` says. Modules that are [refused](Quantized::Refuse) stay as they are stored, with adapters, too.
    ///
    /// # Errors
    ///
    /// As [`adapted`](Self::adapted) and [`dequantized`](Self::dequantized). Fails when an adapter is to be merged into codes
    /// that are to stay [as they are](Quantized::Raw).
    pub fn with_adapters(&self, adapters: &[(Self, f32)], quantized: Quantized) -> Result<Self> {
        if adapters.is_empty() {
            return if quantized == Quantized::Dequantize { self.dequantized() } else { Ok(self.clone()) };
        }
        if quantized != Quantized::Dequantize && self.quantized().len() > 0 {
            if quantized == Quantized::Refuse {
                return Ok(self.clone());
            }
            let message = "an adapter cannot be merged into codes as they are stored";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let adapters = adapters.iter().map(|(adapter, weight)| Ok((Adapter::of(adapter)?, *weight)));
        let adapters: Vec<_> = adapters.collect::<Result<_>>()?;
        self.adapted(adapters.iter().map(|(adapter, weight)| (adapter, *weight)))
    }
}

/// Notes what a module changes.
#[expect(clippy::too_many_arguments, reason = "what is noted, of what, and where")]
fn note(
    base: &Checkpoint,
    adapter: &Adapter,
    module: &Module,
    Target { weight: name, rows }: &Target,
    count: usize,
    weight: f32,
    turns: &Turns,
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
    if !scale.is_finite() {
        let message = format!("its scale times {weight} is no finite number");
        let named = module.parts.values().next().map_or("", |name| name);
        return Err(adapter.blame(Error::new(ErrorKind::Value, message), named));
    }
    let is_embedding = tensor(Part::EmbeddingDown).is_some();
    let factors = || Some((tensor(Part::Down)?, tensor(Part::Up)?));
    let embedding = || Some((tensor(Part::EmbeddingDown)?, tensor(Part::EmbeddingUp)?));
    if let Some((down, up)) = factors() {
        let is_turned = turns.is_turned(name, &stored, &down, &up).ok_or_else(|| {
            let message = "its weight is square, and nothing says whether it is stored as [outputs, inputs] or the other way round";
            adapter.blame(Error::new(ErrorKind::Ambiguous, message), down.name())
        })?;
        let delta = match is_turned {
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
            factors().is_some_and(|(down, up)| turns.is_turned(name, &stored, &down, &up) != Some(false));
        if count > 1 || rows.is_some() {
            return fail(
                "its magnitude (DoRA) is for rows of a fused weight, which is not merged here; merge it with PEFT".to_owned(),
            );
        }
        // Where the rest is not PEFT's, one number for each column has a first dimension of 1.
        let shape = magnitude.shape();
        let is_matrix = stored.shape().len() == 2;
        let says_columns =
            adapter.format != AdapterFormat::Peft && shape.len() > 1 && shape.first() == Some(&1);
        let is_of_columns = is_by_column || is_embedding || (says_columns && is_matrix);
        let count = stored.shape().get(usize::from(is_of_columns)).map_or(0, |&count| count as u64);
        if magnitude.elements() != count || (says_columns && !is_matrix) {
            let what = if is_of_columns { "column" } else { "row" };
            return fail(format!("its magnitude has shape {}, not one number for each {what}", brief(shape)));
        }
        change.magnitude = Some((Input::of(&magnitude), is_of_columns));
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

/// Which weights are stored the other way round, `[inputs, outputs]`.
///
/// PEFT goes by the class of a layer, which no file says: `Conv1D`, which GPT-2 and its like have, is. The shapes of other modules
/// of the same name show it, and what the configuration says counts where none does.
struct Turns {
    /// Of the last parts of names.
    by_name: HashMap<String, bool>,
    said: bool,
}

/// What layers of class `Conv1D` are called.
const CONV1D: &[&str] = &["c_attn", "c_proj", "c_fc", "q_attn"];

impl Turns {
    fn of(base: &Checkpoint, adapter: &Adapter, targets: &Targets) -> Self {
        let mut by_name = HashMap::new();
        for (module, targets) in adapter.modules.iter().zip(&targets.modules) {
            let factors = || Some((adapter.tensor(module, Part::Down)?, adapter.tensor(module, Part::Up)?));
            let ([target], Some((down, up))) = (&**targets, factors()) else { continue };
            let Some(stored) = base.tensor(&target.weight) else { continue };
            let (plain, turned) = fits(&stored, &down, &up);
            if plain != turned {
                by_name.insert(last(&target.weight).to_owned(), turned);
            }
        }
        Self { by_name, said: adapter.is_transposed }
    }

    /// `None` if nothing says it.
    fn is_turned(
        &self,
        name: &str,
        stored: &TensorRef<'_>,
        down: &TensorRef<'_>,
        up: &TensorRef<'_>,
    ) -> Option<bool> {
        let is_conv1d = CONV1D.contains(&last(name));
        match fits(stored, down, up) {
            (true, true) => {}
            // Of any other layer it is no shape that fits.
            (false, true) => return Some(is_conv1d || self.said),
            _ => return Some(false),
        }
        if let Some(&turned) = self.by_name.get(last(name)) {
            return Some(turned);
        }
        let others = || CONV1D.iter().find_map(|name| self.by_name.get(*name).copied());
        match is_conv1d {
            true => Some(others().unwrap_or(self.said)),
            false if self.said && self.by_name.values().all(|turned| *turned) => None,
            false => Some(false),
        }
    }
}

/// The last part of the name of a module whose weight has this name.
fn last(weight: &str) -> &str {
    let module = weight.strip_suffix(".weight").unwrap_or(weight);
    module.rsplit('.').next().unwrap_or(module)
}

/// Whether a product fits a weight as it is, and the other way round.
fn fits(stored: &TensorRef<'_>, down: &TensorRef<'_>, up: &TensorRef<'_>) -> (bool, bool) {
    match (stored.shape(), up.shape().first(), down.shape().get(1)) {
        ([rows, columns], Some(outputs), Some(inputs)) if down.shape().len() == 2 => {
            ((outputs, inputs) == (rows, columns), (inputs, outputs) == (rows, columns))
        }
        _ => (true, false),
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
        if first.shape() != stored.shape() {
            let message = format!(
                "its shape is {}, and what would replace it has {}; resize the model's first",
                brief(stored.shape()),
                brief(first.shape())
            );
            return Err(blame(Error::new(ErrorKind::Shape, message)));
        }
        if deltas.is_empty() {
            let entry = Entry::new(stored.name(), vec![first], Arc::new(Read));
            return entry.and_then(|entry| entry.recast(stored.dtype())).map_err(blame);
        }
        if magnitude.is_some() && deltas.len() > 1 {
            let message =
                "several adapters change it, of which one has a magnitude (DoRA): they do not add up";
            return Err(blame(Error::new(ErrorKind::Unsupported, message)));
        }
        let (deltas, inputs): (Vec<_>, Vec<_>) = deltas.into_iter().unzip();
        let mut operation = LowRank::new(deltas);
        if let Some((_, is_of_columns)) = magnitude {
            operation = if is_of_columns { operation.magnitude_of_columns() } else { operation.magnitude() };
        }
        let magnitude = magnitude.map(|(magnitude, _)| magnitude);
        let all = std::iter::once(first).chain(inputs.into_iter().flatten()).chain(magnitude);
        let entry = Entry::new(stored.name(), all.collect(), Arc::new(operation));
        entry.and_then(|entry| entry.recast(stored.dtype())).map_err(blame)
    }
}
