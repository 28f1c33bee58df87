//! Codes of quantised modules are no weights.

use weighbridge::{Checkpoint, Quantized, Result, TensorRef};

const ADVICE: &str = "`quantized(Quantized::Raw)` loads the codes as they are";

/// Fails where the tensor of that name holds codes, or, where there is none, would be the weight of a quantised module.
/// What is not `wanted` is not there.
pub(crate) fn refuse(
    checkpoint: &Checkpoint,
    quantized: Quantized,
    name: &str,
    wanted: impl Fn(&TensorRef<'_>) -> bool,
) -> Result<()> {
    if quantized == Quantized::Raw {
        return Ok(());
    }
    let module = match checkpoint.tensor(name) {
        Some(tensor) => checkpoint.quantized_codes(name).filter(|_| wanted(&tensor)),
        None => checkpoint.quantized_weight(name).filter(|module| module.codes().any(|codes| wanted(&codes))),
    };
    match module {
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
