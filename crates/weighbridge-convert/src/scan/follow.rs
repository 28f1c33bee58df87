//! Following a pickle from its first opcode to its STOP: what it imports, found out without making anything.
//!
//! Values are known as far as somebody may ask for them: texts, because they become names; numbers, tuples and small dicts,
//! because they say how large storages and arrays are. Of the rest only the place on the stack is known. Where CPython would
//! fail, so does this; where it would only maybe, this goes on, so that nothing is missed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use weighbridge::Source;

use super::Global;
use crate::pickle::{Op, Opcodes, Verdict};

/// Longer texts are no names.
const LONGEST_NAME: usize = 4 << 10;
/// Memory for values, names, stack and memo.
const BUDGET: usize = 160 << 20;
/// Different globals in a pickle.
const MOST_GLOBALS: usize = 100_000;
/// Opcodes that a global counts for, which is looked up and kept; each byte of its name is one more.
const GLOBAL: u64 = 100;
/// Pickles within pickles.
const DEEPEST: usize = 8;
/// Entries of a dict that are kept in mind.
const MOST_ENTRIES: usize = 64;
/// Elements of a tuple that are kept in mind.
const LONGEST_TUPLE: usize = 64;

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
const OTHER: Id = 0;
/// A number, `None` or a container: no text, whatever happens.
const NO_TEXT: Id = 1;

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
    let ambiguous = state.opcodes.ambiguous();
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
    memo: HashMap<u64, Id>,
    /// The bytes of texts and containers.
    used: usize,
    globals: Vec<Global>,
    seen: HashMap<(String, String), u32>,
    storages: HashMap<Arc<str>, Storage>,
    pub(super) has_arrays: bool,
    changed: HashSet<u32>,
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
            values: vec![Value::Other, Value::NoText],
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            used: 0,
            globals: Vec::new(),
            seen: HashMap::new(),
            storages: HashMap::new(),
            has_arrays: false,
            changed: HashSet::new(),
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
                + self.memo.len() * 32;
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
                self.stack.push(top);
            }
            Op::Text(text) => self.push_text(&text),
            Op::Surrogates(_) | Op::LongText(_) => self.push(Value::OddText),
            // In which encoding others are texts is up to who reads.
            Op::String(bytes) => match std::str::from_utf8(&bytes) {
                Ok(text) if text.is_ascii() => self.push_text(text),
                _ => self.push(Value::OddText),
            },
            Op::Int(value) => self.push(Value::Int(value)),
            Op::None | Op::Bool(_) | Op::BigInt | Op::Float(_) | Op::Bytes(_) | Op::EmptySet => {
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
                self.pop_mark()?;
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
            Op::Get(number) => match self.memo.get(&number) {
                Some(&id) => self.stack.push(id),
                None => return Err(format!("nothing was memorised as {number}")),
            },
            Op::Put(number) => {
                let top = self.top()?;
                self.memo.insert(number, top);
            }
            Op::Memoize => {
                let top = self.top()?;
                self.memo.insert(self.memo.len() as u64, top);
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

    pub(super) fn value(&self, id: Id) -> &Value {
        self.values.get(id as usize).unwrap_or(&Value::Other)
    }

    pub(super) fn text(&self, id: Id) -> Option<Arc<str>> {
        match self.value(id) {
            Value::Text(text) => Some(Arc::clone(text)),
            _ => None,
        }
    }

    pub(super) fn global(&self, number: u32) -> Option<&Global> {
        self.globals.get(number as usize)
    }

    /// The name of a value that is a global.
    fn class(&self, id: Id) -> Option<String> {
        match self.value(id) {
            &Value::Global(number) => self.global(number).map(|global| global.name.clone()),
            _ => None,
        }
    }

    /// Passes over an array of so many bytes, and before it over padding, whose length is a byte.
    pub(super) fn pass_array(&mut self, len: u64, padded: bool) -> Result<(), Broken> {
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
    pub(super) fn nested(&mut self) -> Result<(), Broken> {
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

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
    }

    fn push_text(&mut self, text: &str) {
        if text.len() > LONGEST_NAME {
            return self.push(Value::OddText);
        }
        self.used += text.len() + 32;
        self.push(Value::Text(text.into()));
    }

    fn push_tuple(&mut self, items: Vec<Id>) {
        if items.len() > LONGEST_TUPLE {
            return self.stack.push(NO_TEXT);
        }
        self.used += size_of_val(&*items) + 16;
        self.push(Value::Tuple(items.into()));
    }

    fn floor(&self) -> usize {
        self.marks.last().map_or(0, |&mark| mark as usize)
    }

    fn top(&self) -> Result<Id, Broken> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => Err("nothing is on the stack".to_owned()),
        }
    }

    fn pop(&mut self) -> Result<Id, Broken> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>, Broken> {
        let start = self.stack.len().checked_sub(count).filter(|&start| start >= self.floor());
        let start = start.ok_or("too little is on the stack")?;
        Ok(self.stack.split_off(start))
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, Broken> {
        let mark = self.marks.pop().ok_or("no mark is on the stack")?;
        Ok(self.stack.split_off(mark as usize))
    }

    /// Adds items to what is on top.
    fn append(&mut self, items: &[Id]) -> Result<(), Broken> {
        let list = self.top()?;
        match self.values.get_mut(list as usize) {
            Some(Value::List(into)) => {
                into.extend_from_slice(items);
                self.used += size_of_val(items) * 2;
            }
            Some(&mut Value::Global(global)) => self.changes(global),
            _ => {}
        }
        Ok(())
    }

    /// Sets keys and values of what is on top.
    fn set(&mut self, items: &[Id]) -> Result<(), Broken> {
        let (pairs, []) = items.as_chunks::<2>() else { return Err("a key without a value".to_owned()) };
        let dict = self.top()?;
        match self.values.get_mut(dict as usize) {
            Some(Value::Dict(into)) => {
                let room = MOST_ENTRIES.saturating_sub(into.len());
                into.extend(pairs.iter().take(room).map(|&[key, value]| (key, value)));
                self.used += 16 * room.min(pairs.len());
            }
            Some(&mut Value::Global(global)) => self.changes(global),
            _ => {}
        }
        Ok(())
    }

    /// Calls a class, whose arguments are on the stack; leaves what it makes.
    fn call(&mut self, class: Value) -> Result<(), Broken> {
        let args = self.pop()?;
        match class {
            Value::Global(class) => self.push(Value::Object { class, args, state: OTHER }),
            _ => self.stack.push(OTHER),
        }
        Ok(())
    }

    fn build(&mut self) -> Result<(), Broken> {
        let given = self.pop()?;
        let object = self.top()?;
        match self.values.get_mut(object as usize) {
            Some(Value::Object { state, .. }) => *state = given,
            // Attributes of a class or a function hold for the whole process.
            Some(&mut Value::Global(global)) => self.changes(global),
            _ => {}
        }
        if self.arrays { super::joblib::pass(self, object) } else { Ok(()) }
    }

    fn stack_global(&mut self) -> Result<(), Broken> {
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
            return Err("the name of a global that is no text".to_owned());
        }
        // Names that are not written as texts are made so that nobody sees them.
        self.hidden("a name that is computed", Verdict::Dangerous);
        self.stack.push(OTHER);
        Ok(())
    }

    /// Remembers the storage that a persistent id of PyTorch's names: `('storage', class, key, location, elements, view)`.
    fn storage(&mut self, id: Id) {
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

    /// Counts a global; returns its number.
    fn found(&mut self, module: &str, name: &str) -> u32 {
        self.add(module, name, || Verdict::of(module, name))
    }

    fn hidden(&mut self, what: &str, verdict: Verdict) {
        self.add("", what, || verdict);
    }

    /// Something is done to a global itself, which holds for the whole process.
    fn changes(&mut self, global: u32) {
        if self.changed.insert(global)
            && let Some(global) = self.globals.get_mut(global as usize)
        {
            global.verdict = global.verdict.max(Verdict::Unknown);
            let what = format!("a change of {}.{} itself", global.module, global.name);
            self.hidden(&what, Verdict::Unknown);
        }
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
    use crate::input::Memory;

    #[test]
    fn globals_count_for_many_opcodes() {
        let lines: String = (0..100).map(|number| format!("cm{number}\nx\n")).collect();
        let source: Arc<dyn Source> = Arc::new(Memory(format!("{lines}.").into_bytes()));
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
