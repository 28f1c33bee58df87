//! joblib's arrays: their bytes lie within the pickle, behind the object that describes them.

use super::follow::{Broken, FALSE, Id, NONE, State, Value};

/// What the object may say of an array. Anything else could replace the method by which joblib reads it.
const ATTRIBUTES: [&str; 6] =
    ["subclass", "shape", "order", "dtype", "allow_mmap", "numpy_array_alignment_bytes"];
/// Structures within structures.
const DEEPEST: usize = 8;

/// Whether an object that describes an array, or its class, is put where joblib puts none: it may come back from there, and be
/// built without anybody seeing that it is one.
pub(super) fn is_out_of_place(state: &State, id: Id) -> bool {
    match *state.value(id) {
        Value::Global(class) | Value::Object { class, state: super::follow::OTHER, .. } => {
            is_wrapper(state, class)
        }
        _ => false,
    }
}

/// Whether it is an object that describes an array, built or not.
pub(super) fn describes(state: &State, id: Id) -> bool {
    matches!(*state.value(id), Value::Object { class, .. } if is_wrapper(state, class))
}

fn is_wrapper(state: &State, class: u32) -> bool {
    state
        .global(class)
        .is_some_and(|class| class.name == "NumpyArrayWrapper" && class.module.ends_with("numpy_pickle"))
}

/// Passes over the array of an object that was just built, if it is one of joblib's, as its unpickler does.
pub(super) fn pass(state: &mut State, object: Id) -> Result<(), Broken> {
    let &Value::Object { class, state: attributes, .. } = state.value(object) else { return Ok(()) };
    if !is_wrapper(state, class) {
        return Ok(());
    }
    state.has_arrays = true;
    let unknown = || Broken::from("an array of joblib's whose size is not known");
    let described = Described::of(state, attributes).ok_or_else(unknown)?;
    let Element::Bytes(width) = element(state, described.dtype, 0).ok_or_else(unknown)? else {
        // A pickle of its own, if it is not to be mapped into memory.
        return if described.may_be_mapped { Err(unknown()) } else { state.nested() };
    };
    let Value::Tuple(dims) = state.value(described.shape) else { return Err(unknown()) };
    let count = dims.iter().try_fold(1_u64, |count, &dim| match *state.value(dim) {
        Value::Int(dim) => count.checked_mul(u64::try_from(dim).ok()?),
        _ => None,
    });
    let len = count.and_then(|count| count.checked_mul(width)).ok_or_else(unknown)?;
    state.pass_array(len, described.is_padded)
}

/// The attributes that say how long an array is.
struct Described {
    shape: Id,
    dtype: Id,
    is_padded: bool,
    may_be_mapped: bool,
}

impl Described {
    /// Nothing if there is any doubt about one of them.
    fn of(state: &State, attributes: Id) -> Option<Self> {
        let Value::Dict(pairs) = state.value(attributes) else { return None };
        let mut found = [None; ATTRIBUTES.len()];
        for &(key, value) in pairs {
            let key = state.text(key)?;
            let at = ATTRIBUTES.iter().position(|known| **known == *key)?;
            if found[at].replace(value).is_some() {
                return None;
            }
        }
        let [_, shape, _, dtype, allow_mmap, alignment] = found;
        let is_padded = match alignment {
            None | Some(NONE) => false,
            Some(alignment) => match state.value(alignment) {
                Value::Int(_) => true,
                _ => return None,
            },
        };
        Some(Self { shape: shape?, dtype: dtype?, is_padded, may_be_mapped: allow_mmap != Some(FALSE) })
    }
}

enum Element {
    Bytes(u64),
    /// Objects, which are a pickle of their own.
    Object,
}

/// What an array consists of: `numpy.dtype('f8', False, True)` and its state. The state may say otherwise than the name.
fn element(state: &State, dtype: Id, depth: usize) -> Option<Element> {
    let &Value::Object { class, args, state: given } = state.value(dtype) else { return None };
    let class = state.global(class)?;
    let (Value::Tuple(args), true) = (state.value(args), class.module == "numpy" && class.name == "dtype")
    else {
        return None;
    };
    let name = state.text(*args.first()?)?;
    let name = name.strip_prefix(['<', '>', '=', '|']).unwrap_or(&name);
    let kind = name.chars().next()?;
    let digits = name.get(1..)?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    let width = if kind == 'U' { count.checked_mul(4)? } else { count };
    // Version, byte order, subdtype, names, fields, size, alignment and flags.
    let Value::Tuple(given) = state.value(given) else { return None };
    let &[_, _, NONE, names, fields, size, _, flags, ..] = &**given else { return None };
    let (&Value::Int(size), &Value::Int(flags)) = (state.value(size), state.value(flags)) else {
        return None;
    };
    if fields != NONE {
        let Value::Dict(fields) = state.value(fields) else { return None };
        let is_plain = |&(_, field): &(Id, Id)| match state.value(field) {
            Value::Tuple(field) => field.first().is_some_and(|&dtype| {
                depth < DEEPEST && matches!(element(state, dtype, depth + 1), Some(Element::Bytes(_)))
            }),
            _ => false,
        };
        if !fields.iter().all(is_plain) {
            return None;
        }
    } else if names != NONE {
        return None;
    }
    // Whether an element holds objects is a flag.
    match kind {
        'O' => (flags & 1 == 1).then_some(Element::Object),
        _ if flags & 1 == 1 => None,
        'U' | 'S' | 'V' => (u64::try_from(size) == Ok(width)).then_some(Element::Bytes(width)),
        'b' | 'i' | 'u' | 'f' | 'c' | 'M' | 'm' => Some(Element::Bytes(width)),
        _ => None,
    }
}
