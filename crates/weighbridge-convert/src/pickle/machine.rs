//! The pickle machine: runs the opcodes, but calls nothing; what it knows to be harmless it does itself.

use std::collections::HashMap;
use std::sync::Arc;

use weighbridge::{Error, ErrorKind, Result, Source};

use super::globals::Callable;
use super::opcode::{Op, Opcodes, malformed};
use super::value::{Id, Pickle, Place, Storage, Value};
use super::verdict::Verdict;

/// The memory that a pickle may become: far more than a checkpoint of 100,000 tensors needs.
const BUDGET: usize = 512 << 20;
/// Items on the stack.
const DEEPEST: usize = 16 << 20;

const NONE: Id = 0;

/// The state of the machine.
pub(super) struct Machine<'o> {
    pub(super) nodes: Vec<Value>,
    pub(super) storages: Vec<Storage>,
    pub(super) globals: Vec<(Box<str>, Box<str>)>,
    pub(super) source: Arc<dyn Source>,
    allowed: &'o [String],
    global_numbers: HashMap<(Box<str>, Box<str>), u32>,
    /// Numbers of storages by their keys.
    keys: HashMap<Box<str>, u32>,
    stack: Vec<Id>,
    /// Where in the stack the marks are.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    used: usize,
    /// Where the current opcode is.
    pub(super) at: u64,
}

/// Reads the pickle at `at`. Objects of the classes in `allowed`, `module.name`, are taken for records of attributes.
pub(crate) fn load(source: Arc<dyn Source>, at: u64, allowed: &[String]) -> Result<Pickle> {
    let mut opcodes = Opcodes::new(Arc::clone(&source), at);
    let mut machine = Machine {
        nodes: vec![Value::None, Value::Bool(false), Value::Bool(true)],
        storages: Vec::new(),
        globals: Vec::new(),
        source,
        allowed,
        global_numbers: HashMap::new(),
        keys: HashMap::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        used: 0,
        at,
    };
    machine.nodes.extend((0..256).map(Value::Int));
    loop {
        machine.at = opcodes.position();
        match opcodes.next()? {
            Op::Stop => break,
            op => machine.step(op)?,
        }
    }
    if let Some(what) = opcodes.ambiguous() {
        return Err(malformed(machine.at, &format!("{what}, which readers do not agree about")));
    }
    let root = machine.pop()?;
    let Machine { nodes, storages, globals, .. } = machine;
    Ok(Pickle { nodes, storages, globals, root, end: opcodes.position() })
}

impl Machine<'_> {
    fn step(&mut self, op: Op) -> Result<()> {
        match op {
            Op::Proto(2..=5) | Op::Stop => Ok(()),
            Op::Proto(0 | 1) => Ok(()),
            Op::Proto(version) => Err(self.unsupported(&format!("protocol {version}; 2 to 5 are read"))),
            Op::Mark => {
                self.charge(size_of::<usize>())?;
                self.marks.push(self.stack.len());
                Ok(())
            }
            Op::Pop => match self.marks.last() {
                Some(&mark) if mark == self.stack.len() => {
                    self.marks.pop();
                    Ok(())
                }
                _ => self.pop().map(drop),
            },
            Op::PopMark => self.pop_mark().map(drop),
            Op::Dup => {
                let top = self.top()?;
                self.push(top)
            }
            Op::None => self.push(NONE),
            Op::Bool(value) => self.push(1 + Id::from(value)),
            Op::Int(value @ 0..256) => self.push(3 + value as Id),
            Op::Int(value) => self.make(Value::Int(value)),
            Op::BigInt => self.make(Value::Opaque("an integer of more than 64 bits".into())),
            Op::Float(value) => self.make(Value::Float(value)),
            Op::Text(text) => self.make(Value::Text(text)),
            Op::Surrogates(_) => self.make(Value::Opaque("a text with lone surrogates".into())),
            Op::LongText(_) => self.make(Value::Opaque("a text of more than 64 MiB".into())),
            Op::Bytes(range) => self.make(Value::Bytes(Place::Range(range))),
            Op::String(bytes) => self.make(match String::from_utf8(bytes.into_vec()) {
                Ok(text) => Value::Text(text.into()),
                Err(error) => Value::Bytes(Place::Memory(error.into_bytes().into())),
            }),
            Op::EmptyList | Op::EmptyTuple | Op::EmptySet => self.make(Value::Sequence(Vec::new())),
            Op::EmptyDict => self.make(Value::Dict(Vec::new())),
            Op::List | Op::Tuple | Op::FrozenSet => {
                let items = self.pop_mark()?;
                self.make(Value::Sequence(items))
            }
            Op::TupleOf(count) => {
                let items = self.pop_many(count)?;
                self.make(Value::Sequence(items))
            }
            Op::Dict => {
                let items = self.pop_mark()?;
                let pairs = self.pairs(&items)?;
                self.make(Value::Dict(pairs))
            }
            Op::Append => {
                let item = self.pop()?;
                self.extend(vec![item])
            }
            Op::Appends | Op::AddItems => {
                let items = self.pop_mark()?;
                self.extend(items)
            }
            Op::SetItem => {
                let items = self.pop_many(2)?;
                self.set(&items)
            }
            Op::SetItems => {
                let items = self.pop_mark()?;
                self.set(&items)
            }
            Op::Get(number) => match self.memo.get(&number) {
                Some(&id) => self.push(id),
                None => Err(self.malformed(&format!("nothing was memorised as {number}"))),
            },
            Op::Put(number) => self.memorise(number),
            Op::Memoize => self.memorise(self.memo.len() as u64),
            Op::Global(module, name) => {
                let global = self.global(&module, &name)?;
                self.make(Value::Global(global))
            }
            Op::StackGlobal => {
                let names = self.pop_many(2)?;
                let (Some(module), Some(name)) = (self.text(names[0]), self.text(names[1])) else {
                    return Err(self.malformed("the name of a global that is no text"));
                };
                let (module, name) = (Box::from(module), Box::from(name));
                let global = self.global(&module, &name)?;
                self.make(Value::Global(global))
            }
            Op::Inst(module, name) => {
                let global = self.global(&module, &name)?;
                let args = self.pop_mark()?;
                let made = self.call(global, args)?;
                self.make(made)
            }
            Op::Obj => {
                let mut args = self.pop_mark()?;
                if args.is_empty() {
                    return Err(self.malformed("an object without a class"));
                }
                let class = args.remove(0);
                self.construct(class, args)
            }
            Op::Reduce | Op::NewObj => {
                let operands = self.pop_many(2)?;
                let args = self.sequence(operands[1])?.to_vec();
                self.construct(operands[0], args)
            }
            Op::NewObjEx => {
                let operands = self.pop_many(3)?;
                let args = self.sequence(operands[1])?.to_vec();
                self.construct(operands[0], args)
            }
            Op::Build => {
                let state = self.pop()?;
                let object = self.top()?;
                self.build(object, state)
            }
            Op::BinPersId => {
                let id = self.pop()?;
                let storage = self.persistent(id)?;
                self.make(storage)
            }
            Op::PersId(id) => {
                Err(self.unsupported(&format!("the persistent id {id:?}, which means nothing here")))
            }
            Op::Ext(code) => {
                let message =
                    format!("it asks for extension {code}, which only the program that wrote it knows");
                Err(Error::new(ErrorKind::Unsafe, message))
            }
            Op::NextBuffer | Op::ReadonlyBuffer => Err(self.unsupported("a buffer that lies outside of it")),
        }
    }

    /// Counts memory, and refuses what would take too much.
    pub(super) fn charge(&mut self, bytes: usize) -> Result<()> {
        self.used = self.used.saturating_add(bytes);
        if self.used > BUDGET {
            let message = format!("the pickle would take more than {} MiB of memory", BUDGET >> 20);
            return Err(Error::new(ErrorKind::Memory, message));
        }
        Ok(())
    }

    fn push(&mut self, id: Id) -> Result<()> {
        if self.stack.len() >= DEEPEST {
            return Err(self.malformed("the stack grows too high"));
        }
        self.stack.push(id);
        Ok(())
    }

    fn make(&mut self, value: Value) -> Result<()> {
        let id = self.add(value)?;
        self.push(id)
    }

    /// A new node.
    pub(super) fn add(&mut self, value: Value) -> Result<Id> {
        let more = match &value {
            Value::Text(text) | Value::Opaque(text) => text.len(),
            Value::Bytes(Place::Memory(bytes)) => bytes.len(),
            Value::Sequence(items) => items.capacity() * size_of::<Id>(),
            Value::Dict(pairs) => pairs.capacity() * size_of::<(Id, Id)>(),
            Value::Tensor(view) => 160 + 16 * view.shape.len(),
            _ => 0,
        };
        self.charge(size_of::<Value>() + more)?;
        let id = Id::try_from(self.nodes.len()).map_err(|_| self.malformed("too many values"))?;
        self.nodes.push(value);
        Ok(id)
    }

    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => Err(self.malformed("nothing is on the stack")),
        }
    }

    fn pop(&mut self) -> Result<Id> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>> {
        let start = self.stack.len().checked_sub(count).filter(|&start| start >= self.floor());
        let start = start.ok_or_else(|| self.malformed("too little is on the stack"))?;
        Ok(self.stack.split_off(start))
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| self.malformed("no mark is on the stack"))?;
        Ok(self.stack.split_off(mark))
    }

    fn memorise(&mut self, number: u64) -> Result<()> {
        let id = self.top()?;
        // What a map needs for an entry, with room to grow.
        let is_new = self.memo.insert(number, id).is_none();
        self.charge(if is_new { 48 } else { 0 })
    }

    fn extend(&mut self, items: Vec<Id>) -> Result<()> {
        self.charge(2 * items.len() * size_of::<Id>())?;
        let list = self.top()?;
        match self.nodes.get_mut(list as usize) {
            Some(Value::Sequence(into)) => into.extend(items),
            // A class of its own that was derived from a list.
            Some(Value::Record(_) | Value::Opaque(_) | Value::Refused(_)) => {}
            _ => return Err(self.malformed("items for what is no list")),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Result<()> {
        let pairs = self.pairs(items)?;
        self.charge(2 * size_of_val(&*pairs))?;
        let dict = self.top()?;
        match self.nodes.get_mut(dict as usize) {
            Some(Value::Dict(into)) => into.extend(pairs),
            Some(Value::Record(_) | Value::Opaque(_) | Value::Refused(_)) => {}
            _ => return Err(self.malformed("entries for what is no dict")),
        }
        Ok(())
    }

    fn pairs(&self, items: &[Id]) -> Result<Vec<(Id, Id)>> {
        match items.as_chunks() {
            (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
            _ => Err(self.malformed("a key without a value")),
        }
    }

    fn global(&mut self, module: &str, name: &str) -> Result<u32> {
        let known = Callable::of(module, name).is_some();
        if !known && !self.is_allowed(module, name) {
            let verdict = match Verdict::of(module, name) {
                Verdict::Dangerous => "which is dangerous; do not load it with anything that runs pickles",
                _ => "which is not known to be harmless",
            };
            let message = format!("the pickle imports {:?}, {verdict}", format!("{module}.{name}"));
            return Err(Error::new(ErrorKind::Unsafe, message));
        }
        let key = (Box::from(module), Box::from(name));
        if let Some(&number) = self.global_numbers.get(&key) {
            return Ok(number);
        }
        self.charge(2 * (module.len() + name.len()) + 128)?;
        let number = self.globals.len() as u32;
        self.globals.push(key.clone());
        self.global_numbers.insert(key, number);
        Ok(number)
    }

    fn is_allowed(&self, module: &str, name: &str) -> bool {
        let same = |allowed: &String| {
            allowed.strip_prefix(module).and_then(|rest| rest.strip_prefix('.')) == Some(name)
        };
        self.allowed.iter().any(same)
    }

    /// The name of a global, and what is done for it.
    pub(super) fn callable(&self, number: u32) -> Option<(&str, &str, Callable)> {
        let (module, name) = self.globals.get(number as usize)?;
        Some((module, name, Callable::of(module, name).unwrap_or(Callable::Record)))
    }

    fn construct(&mut self, class: Id, args: Vec<Id>) -> Result<()> {
        self.charge(size_of_val(&*args))?;
        let Value::Global(number) = *self.value(class) else {
            return Err(self.malformed("a call of what is no global"));
        };
        // Parameters are the tensors that they are made of, which stay the same node.
        if let Some((_, _, Callable::RebuildParameter)) = self.callable(number) {
            let data = args.first().copied().ok_or_else(|| self.malformed("a parameter without data"))?;
            return self.push(data);
        }
        let made = self.call(number, args)?;
        self.make(made)
    }

    fn persistent(&mut self, id: Id) -> Result<Value> {
        let items = self.sequence(id)?;
        let &[tag, class, key, _, len, ref rest @ ..] = items else {
            return Err(self.unsupported("a persistent id that is not PyTorch's"));
        };
        let view = rest.first().map_or(NONE, |&id| id);
        let (class, is_storage) = (self.value(class), self.text(tag) == Some("storage"));
        let element = match *class {
            Value::Global(number) => match self.callable(number) {
                Some((_, "UntypedStorage" | "_UntypedStorage", Callable::Storage)) => None,
                Some((_, name, Callable::Storage)) => super::element::of_storage(name),
                _ => return Err(self.unsupported("a storage of an unknown class")),
            },
            _ => return Err(self.unsupported("a storage of an unknown class")),
        };
        let (Some(key), true) = (self.key(key), is_storage) else {
            return Err(self.unsupported("a persistent id that is no storage"));
        };
        let elements = self.unsigned(len)?;
        let unit = element.map_or(1, |element| element.bytes() as u64);
        let bytes = elements.checked_mul(unit);
        let len = bytes.ok_or_else(|| self.malformed("the size of a storage that does not fit 64 bits"))?;
        // Of old versions: a storage that is a part of another one, from an element on.
        let first = match self.value(view) {
            Value::None => 0,
            Value::Sequence(items) => match items[..] {
                [_, first, _] => self.unsigned(first)?,
                _ => return Err(self.malformed("a view of a storage that is none")),
            },
            _ => return Err(self.malformed("a view of a storage that is none")),
        };
        let number = match self.keys.get(&key) {
            Some(&number) => number,
            None => {
                self.charge(2 * key.len() + 128)?;
                let number = self.storages.len() as u32;
                self.storages.push(Storage { place: Place::Key(key.clone()), len, unit });
                self.keys.insert(key, number);
                number
            }
        };
        if self.storages.get(number as usize).is_none_or(|storage| storage.len != len) {
            return Err(self.malformed("a storage that has two sizes"));
        }
        Ok(Value::Storage { number, element, first })
    }

    /// The key of a storage, which old versions wrote as a number.
    fn key(&self, id: Id) -> Option<Box<str>> {
        match self.value(id) {
            Value::Text(text) => Some(text.clone()),
            Value::Int(number) => Some(number.to_string().into()),
            _ => None,
        }
    }

    pub(super) fn value(&self, id: Id) -> &Value {
        self.nodes.get(id as usize).unwrap_or(&Value::None)
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.value(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn sequence(&self, id: Id) -> Result<&[Id]> {
        match self.value(id) {
            Value::Sequence(items) => Ok(items),
            _ => Err(self.malformed("a value that should be a tuple")),
        }
    }

    pub(super) fn unsigned(&self, id: Id) -> Result<u64> {
        match *self.value(id) {
            Value::Int(value) => u64::try_from(value).map_err(|_| self.malformed("a negative size")),
            _ => Err(self.malformed("a value that should be an integer")),
        }
    }

    pub(super) fn malformed(&self, what: &str) -> Error {
        malformed(self.at, what)
    }

    pub(super) fn unsupported(&self, what: &str) -> Error {
        let message = format!("the pickle has something at byte {} that is not read: {what}", self.at);
        Error::new(ErrorKind::Unsupported, message)
    }
}
