//! Codes of quantised modules are no weights.

use weighbridge::{Checkpoint, Quantized, Result, TensorRef};

const ADVICE: &str = "`quantized(Quantized::Raw)` loads the codes as they are";

/// Fails where the tensor of that name holds codes, or would be the weight of a quantised module.
pub(crate) fn refuse(checkpoint: &Checkpoint, quantized: Quantized, name: &str) -> Result<()> {
    if quantized == Quantized::Raw {
        return Ok(());
    }
    let module = checkpoint.quantized_codes(name);
    let is_stored = || checkpoint.tensor(name).is_some();
    match module.or_else(|| if is_stored() { None } else { checkpoint.quantized_weight(name) }) {
        Some(module) => Err(module.refusal(name, ADVICE)),
        None => Ok(()),
    }
}

/// Fails where one of the wanted tensors holds codes; says how many modules there are.
pub(crate) fn refuse_any(
    checkpoint: &Checkpoint,
    quantized: Quantized,
    wanted: impl Fn(&TensorRef<'_>) -> bool,
) -> Result<()> {
    if quantized == Quantized::Raw {
        return Ok(());
    }
    let mut all = checkpoint.quantized().filter_map(|module| Some((module, module.codes().find(&wanted)?)));
    let Some((module, tensor)) = all.next() else { return Ok(()) };
    let advice = match all.count() {
        0 => ADVICE.to_owned(),
        1 => format!("so is one more module; {ADVICE}"),
        more => format!("so are {more} more modules; {ADVICE}"),
    };
    Err(module.refusal(tensor.name(), &advice))
}
