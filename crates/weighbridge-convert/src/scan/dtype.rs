//! NumPy's types: their state says by flags whether elements are pointers to objects, and NumPy believes it.

use super::follow::{Id, NONE, OTHER, State, Value};

/// Types within types.
const DEEPEST: usize = 8;
/// That elements are objects, and that they are pickled as a list of these.
const OBJECTS: i64 = 3;

/// Whether a value is a type whose state may make arrays take bytes for objects.
pub(super) fn is_unsound(state: &State, id: Id) -> bool {
    let Some((_, given)) = parts(state, id) else { return false };
    let says_so = match state.value(given) {
        Value::Tuple(given) => match given.get(7).map(|&flags| state.value(flags)) {
            Some(&Value::Int(flags)) => flags & OBJECTS == OBJECTS,
            _ => false,
        },
        _ => false,
    };
    !says_so && may_hold_objects(state, id, 0)
}

/// The arguments and the state of a type.
fn parts(state: &State, id: Id) -> Option<(Id, Id)> {
    match *state.value(id) {
        Value::Object { class, args, state: given } => {
            let class = state.global(class)?;
            (class.module == "numpy" && class.name == "dtype").then_some((args, given))
        }
        _ => None,
    }
}

/// What is not known for certain may be.
fn may_hold_objects(state: &State, id: Id, depth: usize) -> bool {
    let Some((args, given)) = parts(state, id) else { return true };
    let name = match state.value(args) {
        Value::Tuple(args) => args.first().and_then(|&name| state.text(name)),
        _ => None,
    };
    let Some(name) = name.filter(|_| depth < DEEPEST) else { return true };
    // Objects have the letter, and only they; names of types in full have none of their own but `object`.
    if name.contains('O') || name.contains("object") {
        return true;
    }
    let inner = |id| match state.value(id) {
        Value::Tuple(items) => items.first().is_none_or(|&dtype| may_hold_objects(state, dtype, depth + 1)),
        _ => true,
    };
    match state.value(given) {
        // Raw bytes may have fields, which only the state tells.
        _ if given == OTHER => name.trim_start_matches(['<', '>', '=', '|']).starts_with('V'),
        Value::Tuple(items) => match items[..] {
            [_, _, subdtype, _, fields, ..] => {
                let in_fields = match state.value(fields) {
                    _ if fields == NONE => false,
                    Value::Dict(fields) => fields.iter().any(|field| inner(field.1)),
                    _ => true,
                };
                in_fields || subdtype != NONE && inner(subdtype)
            }
            _ => true,
        },
        _ => true,
    }
}
