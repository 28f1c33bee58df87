//! The weights that quantised modules stand for, in the place of what is stored.

use std::collections::HashSet;

use clap::Args;
use weighbridge::{Checkpoint, Error, Names, QuantizedModule};

use crate::show::plural;

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
