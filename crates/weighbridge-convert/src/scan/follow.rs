//! Following a pickle from its first opcode to its STOP: what it imports, found out without making anything.
//!
//! Values are known as far as somebody may ask for them: texts, because they become names; numbers, tuples and small dicts,
//! because they say how large storages and arrays are. Of the rest only the place on the stack is known. Where CPython would
//! fail, so does this; where it would only maybe, this goes on, so that nothing is missed.

mod calls;
mod memo;
mod stack;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use weighbridge::Source;

use super::Global;
use crate::pickle::{Op, Opcodes, Verdict};
use memo::Memo;

/// Memory for values, names, stack and memo.
const BUDGET: usize = 160 << 20;
/// Different globals in a pickle.
const MOST_GLOBALS: usize = 100_000;
/// Opcodes that a global counts for, which is looked up and kept; each byte of its name is one more.
const GLOBAL: u64 = 100;
/// What a pickle would import, and how far it was followed.
#[derive(Debug, Default)]
pub(super) struct Followed {
    pub(super) globals: Vec<Global>,
    /// Storages of PyTorch that it names, by key.
    pub(super) storages: HashMap<Arc<str>, Storage>,
    /// What it makes, if that is known.
    pub(super) root: Root,
    pub(super) end: u64,
    /// Whether its STOP was reached.
    pub(super) stopped: bool,
    /// Why it is not known for certain what it imports.
    pub(super) problem: Option<String>,
    /// Whether arrays of joblib's lie within it.
    pub(super) has_arrays: bool,
}

/// A storage that a persistent id names.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    /// The class, `FloatStorage`.
    pub(super) class: String,
    pub(super) elements: u64,
}

/// What a pickle makes, as far as old files of PyTorch say with it how they go on.
#[derive(Clone, Debug, Default)]
pub(super) enum Root {
    #[default]
    Other,
    Int(i64),
    /// The texts of a list.
    Texts(Vec<Arc<str>>),
    /// The name of the global that is last in a tuple of three.
    Class(String),
}

/// The number of a value.
pub(super) type Id = u32;

/// A value of which nothing is known.
pub(super) const OTHER: Id = 0;
/// A number or a container: no text, whatever happens.
const NO_TEXT: Id = 1;
pub(super) const NONE: Id = 2;
pub(super) const FALSE: Id = 3;

#[derive(Clone, Debug)]
pub(super) enum Value {
    Other,
    NoText,
    Text(Arc<str>),
    /// A text that may be a name, but not one that can be written down.
    OddText,
    Int(i64),
    /// By its number in `globals`.
    Global(u32),
    Tuple(Box<[Id]>),
    /// The first texts of a list.
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// What a global was called for, with which arguments, and its state.
    Object {
        class: u32,
        args: Id,
        state: Id,
    },
}

/// How a pickle is followed.
#[derive(Debug)]
pub(super) struct Rules<'b> {
    /// Whether the bytes of joblib's arrays are passed over, as its own unpickler does.
    pub(super) arrays: bool,
    /// How many pickles this one lies in.
    pub(super) depth: usize,
    /// Opcodes that may still be followed.
    pub(super) opcodes: &'b mut u64,
}

/// Follows the pickle at `at` to its end, or to where it breaks.
pub(super) fn follow(source: &Arc<dyn Source>, at: u64, rules: Rules<'_>) -> Followed {
    let mut state = State::new(source, at);
    (state.arrays, state.depth, state.left) = (rules.arrays, rules.depth, *rules.opcodes);
    let problem = state.run();
    *rules.opcodes = state.left;
    let ambiguous = state.opcodes.ambiguous().or(state.doubt);
    let root = match state.stack.last().map(|&id| state.value(id)) {
        Some(&Value::Int(value)) => Root::Int(value),
        Some(Value::List(items)) => Root::Texts(items.iter().filter_map(|&id| state.text(id)).collect()),
        Some(Value::Tuple(items)) => match items[..] {
            [_, _, class] => state.class(class).map_or(Root::Other, Root::Class),
            _ => Root::Other,
        },
        _ => Root::Other,
    };
    Followed {
        root,
        end: state.opcodes.position(),
        stopped: problem.is_none(),
        problem: problem.or(ambiguous.map(|what| format!("{what}, which readers do not agree about"))),
        has_arrays: state.has_arrays,
        globals: state.globals,
        storages: state.storages,
    }
}

pub(super) struct State {
    source: Arc<dyn Source>,
    opcodes: Opcodes,
    arrays: bool,
    depth: usize,
    left: u64,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Where in the stack the marks are.
    marks: Vec<u32>,
    memo: Memo,
    /// The bytes of texts and containers.
    used: usize,
    globals: Vec<Global>,
    seen: HashMap<(String, String), u32>,
    storages: HashMap<Arc<str>, Storage>,
    pub(super) has_arrays: bool,
    changed: HashSet<u32>,
    /// What joblib would not have written.
    doubt: Option<&'static str>,
}

/// Why a pickle cannot be followed further.
pub(super) type Broken = String;

impl State {
    fn new(source: &Arc<dyn Source>, at: u64) -> Self {
        Self {
            source: Arc::clone(source),
            opcodes: Opcodes::new(Arc::clone(source), at),
            arrays: false,
            depth: 0,
            left: 0,
            values: vec![Value::Other, Value::NoText, Value::NoText, Value::NoText],
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Memo::default(),
            used: 0,
            globals: Vec::new(),
            seen: HashMap::new(),
            storages: HashMap::new(),
            has_arrays: false,
            changed: HashSet::new(),
            doubt: None,
        }
    }

    /// Why it broke; nothing if it came to its STOP.
    fn run(&mut self) -> Option<Broken> {
        while self.left > 0 {
            self.left -= 1;
            let at = self.opcodes.position();
            match self.opcodes.next() {
                Ok(Op::Stop) => return self.top().err().map(|what| broken(at, &what)),
                Ok(op) => {
                    if let Err(what) = self.step(op) {
                        return Some(broken(at, &what));
                    }
                }
                Err(error) => {
                    if let Some((module, name)) = self.opcodes.cut_global() {
                        self.found(&module, &name);
                    }
                    return Some(error.to_string());
                }
            }
            let memory = self.used
                + self.values.len() * size_of::<Value>()
                + self.stack.len() * size_of::<Id>()
                + self.marks.len() * size_of::<u32>()
                + self.memo.bytes();
            if memory > BUDGET {
                return Some("it takes too much memory to follow".to_owned());
            }
            if self.globals.len() > MOST_GLOBALS {
                return Some("it imports too many globals".to_owned());
            }
        }
        Some("it has too many opcodes and globals".to_owned())
    }

    fn step(&mut self, op: Op) -> Result<(), Broken> {
        match op {
            Op::Proto(0..=5) => {}
            Op::Proto(version) => return Err(format!("protocol {version}, of which nothing is known")),
            // Handled where they are met.
            Op::Stop => {}
            Op::Mark => self.marks.push(self.stack.len() as u32),
            Op::Pop => match self.marks.last() {
                Some(&mark) if mark as usize == self.stack.len() => drop(self.marks.pop()),
                _ => drop(self.pop()?),
            },
            Op::PopMark => drop(self.pop_mark()?),
            Op::Dup => {
                let top = self.top()?;
                self.again(top);
            }
            Op::Text(text) => self.push_text(&text),
            Op::Surrogates(_) | Op::LongText(_) => self.push(Value::OddText),
            // In which encoding others are texts is up to the reader.
            Op::String(bytes) => match std::str::from_utf8(&bytes) {
                Ok(text) if text.is_ascii() => self.push_text(text),
                _ => self.push(Value::OddText),
            },
            Op::Int(value) => self.push(Value::Int(value)),
            Op::None => self.stack.push(NONE),
            Op::Bool(false) => self.stack.push(FALSE),
            Op::Bool(true) | Op::BigInt | Op::Float(_) | Op::Bytes(_) | Op::EmptySet => {
                self.stack.push(NO_TEXT);
            }
            Op::NextBuffer => self.stack.push(OTHER),
            Op::ReadonlyBuffer => drop(self.top()?),
            Op::PersId(_) => self.stack.push(OTHER),
            Op::EmptyList => self.push(Value::List(Vec::new())),
            Op::EmptyDict => self.push(Value::Dict(Vec::new())),
            Op::EmptyTuple => self.push(Value::Tuple(Box::default())),
            Op::Tuple => {
                let items = self.pop_mark()?;
                self.push_tuple(items);
            }
            Op::TupleOf(count) => {
                let items = self.pop_many(count)?;
                self.push_tuple(items);
            }
            Op::List => {
                let items = self.pop_mark()?;
                self.push(Value::List(Vec::new()));
                self.append(&items)?;
            }
            Op::Dict => {
                let items = self.pop_mark()?;
                self.push(Value::Dict(Vec::new()));
                self.set(&items)?;
            }
            Op::FrozenSet => {
                let items = self.pop_mark()?;
                self.hold(&items);
                self.stack.push(NO_TEXT);
            }
            Op::Append => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            Op::Appends | Op::AddItems => {
                let items = self.pop_mark()?;
                self.append(&items)?;
            }
            Op::SetItem => {
                let items = self.pop_many(2)?;
                self.set(&items)?;
            }
            Op::SetItems => {
                let items = self.pop_mark()?;
                self.set(&items)?;
            }
            Op::Get(number) => match self.memo.get(number) {
                Some(id) => self.again(id),
                None => return Err(format!("nothing was memorised as {number}")),
            },
            Op::Put(number) => {
                let top = self.top()?;
                self.memo.insert(number, top);
            }
            Op::Memoize => {
                let top = self.top()?;
                self.memo.insert(self.memo.len(), top);
            }
            Op::Global(module, name) => {
                let global = self.found(&module, &name);
                self.push(Value::Global(global));
            }
            Op::StackGlobal => self.stack_global()?,
            Op::Inst(module, name) => {
                // Python's reader in Python imports before it looks for the mark.
                let class = self.found(&module, &name);
                let args = self.pop_mark()?;
                self.push_tuple(args);
                self.call(Value::Global(class))?;
            }
            Op::Obj => {
                let mut args = self.pop_mark()?;
                if args.is_empty() {
                    return Err("an object without a class".to_owned());
                }
                let class = self.value(args.remove(0)).clone();
                self.push_tuple(args);
                self.call(class)?;
            }
            Op::Reduce | Op::NewObj => {
                let args = self.pop()?;
                let class = self.pop()?;
                let class = self.value(class).clone();
                self.stack.push(args);
                self.call(class)?;
            }
            Op::NewObjEx => {
                let operands = self.pop_many(3)?;
                let class = self.value(operands[0]).clone();
                self.stack.push(operands[1]);
                self.call(class)?;
            }
            Op::Build => self.build()?,
            Op::BinPersId => {
                let id = self.pop()?;
                self.storage(id);
                self.stack.push(OTHER);
            }
            Op::Ext(code) => {
                self.hidden(&format!("extension {code} of copyreg"), Verdict::Unknown);
                self.stack.push(OTHER);
            }
        }
        Ok(())
    }

    /// Counts a global; returns its number.
    fn found(&mut self, module: &str, name: &str) -> u32 {
        self.add(module, name, || Verdict::of(module, name))
    }

    fn hidden(&mut self, what: &str, verdict: Verdict) {
        self.add("", what, || verdict);
    }

    fn add(&mut self, module: &str, name: &str, verdict: impl FnOnce() -> Verdict) -> u32 {
        let key = (module.to_owned(), name.to_owned());
        if let Some(&number) = self.seen.get(&key) {
            return number;
        }
        let len = module.len() + name.len();
        self.used += 2 * len + 128;
        self.left = self.left.saturating_sub(GLOBAL + len as u64);
        let number = self.globals.len() as u32;
        self.seen.insert(key, number);
        let verdict = verdict();
        self.globals.push(Global { module: module.to_owned(), name: name.to_owned(), verdict });
        number
    }
}

fn broken(at: u64, what: &str) -> String {
    format!("the pickle is broken at byte {at}: {what}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighbridge::source::MemorySource;

    #[test]
    fn globals_count_for_many_opcodes() {
        let lines: String = (0..100).map(|number| format!("cm{number}\nx\n")).collect();
        let source: Arc<dyn Source> = Arc::new(MemorySource(format!("{lines}.").into_bytes()));
        let follow = |mut opcodes| {
            let followed = follow(&source, 0, Rules { arrays: false, depth: 0, opcodes: &mut opcodes });
            (followed.globals.len(), followed.problem, opcodes)
        };
        let (found, problem, left) = follow(1_000_000);
        assert_eq!((found, problem), (100, None));
        assert!(left < 1_000_000 - 100 * GLOBAL, "{left}");
        let (found, problem, left) = follow(50 * GLOBAL);
        assert!(found < 50, "{found}");
        assert_eq!((problem.as_deref(), left), (Some("it has too many opcodes and globals"), 0));
    }
}
