//! The weights that quantised modules stand for, in the place of what is stored.

use std::collections::{HashMap, HashSet};

use clap::Args;
use weighbridge::write::Save;
use weighbridge::{Checkpoint, Error, Names, Plan, QuantizedModule, natural_order};

use crate::casts;
use crate::destination::Destination;
use crate::metadata;
use crate::outcome::Outcome;
use crate::show::plural;
use crate::term::Term;

/// What to do about modules that cannot be dequantised where tensors can be chosen.
pub(crate) const ADVICE: &str = "--except leaves tensors out, without --dense what is stored is looked at";

/// Which side of quantised modules a verb looks at.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Dense {
    /// Look at the weights that quantised modules stand for (`up.weight`), not at the codes and scales that are
    /// stored (`up.qweight`, `up.scales`)
    #[arg(long)]
    pub(crate) dense: bool,
}

impl Dense {
    /// The checkpoint as it is to be looked at; `advice` says what to do about modules that cannot be dequantised.
    pub(crate) fn of(
        self,
        checkpoint: Checkpoint,
        chosen: &Names,
        advice: &str,
    ) -> weighbridge::Result<Checkpoint> {
        if self.dense { weights(&checkpoint, chosen, advice) } else { Ok(checkpoint) }
    }
}

/// The checkpoint with the weights that are chosen of all quantised modules; the other modules stay as they are stored.
///
/// # Errors
///
/// Fails where one of them cannot be dequantised: names it, says how many others there are, and ends with `advice`.
pub(crate) fn weights(
    checkpoint: &Checkpoint,
    chosen: &Names,
    advice: &str,
) -> weighbridge::Result<Checkpoint> {
    let is_chosen = |module: &QuantizedModule<'_>| chosen.contains(&module.weight());
    let dense = checkpoint.dequantized_where(is_chosen)?;
    let refused = dense.quantized().filter(is_chosen);
    match refusal(refused, advice) {
        Some(error) => Err(error),
        None => Ok(dense),
    }
}

/// The names of the weights that `dense` has in the place of the codes in `stored`.
pub(crate) fn dequantised(stored: &Checkpoint, dense: &Checkpoint) -> HashSet<String> {
    let codes: HashSet<_> = dense.quantized().map(|module| module.weight()).collect();
    stored.quantized().map(|module| module.weight()).filter(|weight| !codes.contains(weight)).collect()
}

/// The error that none of these modules can be dequantised; `None` if there are none.
pub(crate) fn refusal<'c>(
    mut refused: impl Iterator<Item = QuantizedModule<'c>>,
    advice: &str,
) -> Option<Error> {
    let first = refused.next()?;
    let more = match refused.count() {
        0 => String::new(),
        more => format!("nor can {} be dequantised; ", plural(more, "other module")),
    };
    Some(first.refusal(&first.weight(), &format!("{more}{advice}")))
}

/// Writes weights under the names that they have in `checkpoint`; in files of the sizes that these become, if it has several.
pub(crate) fn write(
    plan: &Plan,
    checkpoint: &Checkpoint,
    destination: &Destination,
    term: &Term,
) -> anyhow::Result<Outcome> {
    let metadata = metadata::without_codes(metadata::union(&[checkpoint], term), &[checkpoint]);
    let save = metadata::with(Save::new(), metadata);
    let destination = match largest_shard(plan, checkpoint) {
        Some(bytes) => destination.in_shards_of(bytes),
        None => destination.clone(),
    };
    self::save(plan, save, &destination, term)
}

/// Writes what a plan makes, so that what belongs together lies together.
pub(crate) fn save(
    plan: &Plan,
    save: Save,
    destination: &Destination,
    term: &Term,
) -> anyhow::Result<Outcome> {
    let mut tensors: Vec<_> = plan.tensors().collect();
    tensors.sort_by(|(a, _), (b, _)| natural_order(a, b));
    destination.save(save, tensors, term).map_err(casts::in_options)
}

/// The most bytes that the tensors of one file become, if there are several.
fn largest_shard(plan: &Plan, checkpoint: &Checkpoint) -> Option<u64> {
    let mut shards = HashMap::<_, u64>::new();
    for entry in plan.entries() {
        let label = checkpoint.tensor(entry.name()).and_then(|tensor| tensor.shard().label());
        *shards.entry(label.map(ToOwned::to_owned)).or_default() += entry.byte_len();
    }
    shards.values().copied().max().filter(|_| shards.len() > 1)
}
