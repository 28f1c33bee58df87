//! joblib's arrays: their bytes lie within the pickle, behind the object that describes them.

use super::follow::{Broken, Id, State, Value};

/// Passes over the array of an object that was just built, if it is one of joblib's, as its unpickler does.
pub(super) fn pass(state: &mut State, object: Id) -> Result<(), Broken> {
    let &Value::Object { class, state: attributes, .. } = state.value(object) else { return Ok(()) };
    let class = state.global(class);
    if class.is_none_or(|class| class.name != "NumpyArrayWrapper" || !class.module.ends_with("numpy_pickle"))
    {
        return Ok(());
    }
    state.has_arrays = true;
    let unknown = || Broken::from("an array of joblib's whose size is not known");
    let attribute = |key: &str| match state.value(attributes) {
        Value::Dict(pairs) => pairs
            .iter()
            .rev()
            .find(|pair| state.text(pair.0).is_some_and(|text| *text == *key))
            .map(|pair| pair.1),
        _ => None,
    };
    let (shape, dtype) = attribute("shape").zip(attribute("dtype")).ok_or_else(unknown)?;
    let element = element(state, dtype).ok_or_else(unknown)?;
    let Element::Bytes(width) = element else { return state.nested() };
    let Value::Tuple(dims) = state.value(shape) else { return Err(unknown()) };
    let count = dims.iter().try_fold(1_u64, |count, &dim| match *state.value(dim) {
        Value::Int(dim) => count.checked_mul(u64::try_from(dim).ok()?),
        _ => None,
    });
    let len = count.and_then(|count| count.checked_mul(width)).ok_or_else(unknown)?;
    let padded = attribute("numpy_array_alignment_bytes")
        .is_some_and(|alignment| matches!(state.value(alignment), Value::Int(_)));
    state.pass_array(len, padded)
}

enum Element {
    Bytes(u64),
    /// Objects, which are a pickle of their own.
    Object,
}

/// What an array consists of: `numpy.dtype('f8', False, True)` and its state.
fn element(state: &State, dtype: Id) -> Option<Element> {
    let &Value::Object { class, args, state: given } = state.value(dtype) else { return None };
    let class = state.global(class)?;
    let (Value::Tuple(args), true) = (state.value(args), class.module == "numpy" && class.name == "dtype")
    else {
        return None;
    };
    // Fields, or a shape of its own.
    if let Value::Tuple(given) = state.value(given)
        && !given.iter().skip(2).take(3).all(|&id| matches!(state.value(id), Value::NoText))
    {
        return None;
    }
    let name = state.text(*args.first()?)?;
    let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    let kind = name.trim_start_matches(['<', '>', '=', '|']).chars().next()?;
    let count: u64 = digits.parse().ok()?;
    match kind {
        'O' => Some(Element::Object),
        'U' => Some(Element::Bytes(count.checked_mul(4)?)),
        'b' | 'i' | 'u' | 'f' | 'c' | 'S' | 'V' | 'M' | 'm' => Some(Element::Bytes(count)),
        _ => None,
    }
}
