//! What calls and states do to values, as far as it can be known.

use std::sync::Arc;

use super::super::{Global, dtype, joblib};
use super::{Broken, Id, OTHER, Rules, State, Storage, Value, follow};
use crate::pickle::Verdict;

/// What gives back an argument, or sets attributes of one.
const GIVING_BACK: &[(&str, &str)] = &[
    ("torch._utils", "_set_obj_state"),
    ("torch.jit._pickle", "restore_type_tag"),
    ("torch.jit._pickle", "build_intlist"),
    ("torch.jit._pickle", "build_tensorlist"),
    ("torch.jit._pickle", "build_doublelist"),
    ("torch.jit._pickle", "build_boollist"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
];
/// What takes a type of NumPy's, and leaves it as it is.
const KEEPING_TYPES: &[(&str, &str)] = &[
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
];
/// Pickles within pickles.
const DEEPEST: usize = 8;
impl State {
    /// Skips padding, whose length is in its first byte, and then an array of `len` bytes.
    pub(in crate::scan) fn pass_array(&mut self, len: u64, padded: bool) -> Result<(), Broken> {
        let mut at = self.opcodes.position();
        if padded {
            let mut padding = [0];
            self.source.read_at(at, &mut padding).map_err(|_| "an array that is cut off")?;
            at += 1 + u64::from(padding[0]);
        }
        let end = at.checked_add(len).filter(|&end| end <= self.source.size());
        self.opcodes.jump(end.ok_or("an array that is cut off")?);
        Ok(())
    }

    /// Follows a pickle that lies within this one.
    pub(in crate::scan) fn nested(&mut self) -> Result<(), Broken> {
        if self.depth == DEEPEST {
            return Err("pickles within pickles too deeply".to_owned());
        }
        let rules = Rules { arrays: false, depth: self.depth + 1, opcodes: &mut self.left };
        let inner = follow(&self.source, self.opcodes.position(), rules);
        for global in inner.globals {
            self.add(&global.module, &global.name, || global.verdict);
        }
        match inner.problem {
            None => {
                self.opcodes.jump(inner.end);
                Ok(())
            }
            Some(problem) => Err(format!("in an array of objects: {problem}")),
        }
    }

    /// Calls a class, whose arguments are on the stack; leaves what it makes.
    pub(super) fn call(&mut self, class: Value) -> Result<(), Broken> {
        let args = self.pop()?;
        self.passes(&class, args);
        match class {
            Value::Global(class) => {
                // With a buffer it takes any bytes for objects. What NumPy writes does not call it.
                if self.global(class).is_some_and(|class| class.module == "numpy" && class.name == "ndarray")
                {
                    self.hidden("a call of numpy.ndarray", Verdict::Dangerous);
                }
                self.push(Value::Object { class, args, state: OTHER });
            }
            _ => self.stack.push(OTHER),
        }
        Ok(())
    }

    /// Arguments that a call may give back, or change: under another number nobody knows them for what they are.
    pub(super) fn passes(&mut self, class: &Value, args: Id) {
        let Value::Tuple(args) = self.value(args) else { return };
        let callee = match *class {
            Value::Global(class) => self.global(class),
            _ => None,
        };
        let nested = args.iter().filter_map(|&arg| match self.value(arg) {
            Value::Tuple(items) => Some(items.iter()),
            _ => None,
        });
        let args: Vec<Id> = args.iter().chain(nested.flatten()).copied().collect();
        let gives_back = args.iter().filter_map(|&arg| match *self.value(arg) {
            Value::Global(global) => self.global(global),
            _ => None,
        });
        let gives_back = gives_back.chain(callee).any(|callee| lists(GIVING_BACK, callee));
        let keeps = callee.is_some_and(|callee| lists(KEEPING_TYPES, callee));
        for arg in args {
            match *self.value(arg) {
                Value::Global(global) if gives_back => self.changes(global),
                Value::Object { class, .. } if !keeps => {
                    let is_type = self.global(class).is_some_and(|class| class.name == "dtype");
                    if let (true, Some(Value::Object { state, .. })) =
                        (is_type, self.values.get_mut(arg as usize))
                    {
                        *state = OTHER;
                    }
                }
                _ => {}
            }
        }
    }

    pub(super) fn build(&mut self) -> Result<(), Broken> {
        let given = self.pop()?;
        self.hold(&[given]);
        let object = self.top()?;
        match self.values.get_mut(object as usize) {
            Some(Value::Object { state, .. }) => {
                *state = given;
                if dtype::is_unsound(self, object) {
                    self.hidden("a type of NumPy that may take bytes for objects", Verdict::Unknown);
                }
            }
            // Attributes of a class or a function hold for the whole process.
            Some(&mut Value::Global(global)) => self.changes(global),
            _ => {}
        }
        if self.arrays { joblib::pass(self, object) } else { Ok(()) }
    }

    pub(super) fn stack_global(&mut self) -> Result<(), Broken> {
        let name = self.pop()?;
        let module = self.pop()?;
        if let (Some(module), Some(name)) = (self.text(module), self.text(name)) {
            let global = self.found(&module, &name);
            self.push(Value::Global(global));
            return Ok(());
        }
        let may_be_text = |id| {
            let value = self.value(id);
            !matches!(
                value,
                Value::NoText | Value::Int(_) | Value::Tuple(_) | Value::List(_) | Value::Dict(_)
            )
        };
        if !may_be_text(module) || !may_be_text(name) {
            return Err("the name of a global that is not text".to_owned());
        }
        // Names that are not written as texts are made so that nobody sees them.
        self.hidden("a name that is computed", Verdict::Dangerous);
        self.stack.push(OTHER);
        Ok(())
    }

    /// Remembers the storage that a persistent id of PyTorch's names: `('storage', class, key, location, elements, view)`.
    pub(super) fn storage(&mut self, id: Id) {
        let Value::Tuple(items) = self.value(id) else { return };
        let [tag, class, key, _, elements, ..] = items[..] else { return };
        let key = match self.value(key) {
            Value::Text(key) => Arc::clone(key),
            Value::Int(number) => number.to_string().into(),
            _ => return,
        };
        let &Value::Int(elements) = self.value(elements) else { return };
        let is_storage = matches!(self.value(tag), Value::Text(tag) if **tag == *"storage");
        let class = self.class(class);
        if let (true, Some(class), Ok(elements)) = (is_storage, class, u64::try_from(elements)) {
            self.used += class.len() + 2 * key.len() + 96;
            self.storages.insert(key, Storage { class, elements });
        }
    }

    /// Something is done to a global itself, which holds for the whole process.
    pub(super) fn changes(&mut self, global: u32) {
        if self.changed.insert(global)
            && let Some(global) = self.globals.get_mut(global as usize)
        {
            global.verdict = global.verdict.max(Verdict::Unknown);
            let what = format!("a change of {}.{} itself", global.module, global.name);
            self.hidden(&what, Verdict::Unknown);
        }
    }
}

fn lists(table: &[(&str, &str)], global: &Global) -> bool {
    table.contains(&(&*global.module, &*global.name))
}
