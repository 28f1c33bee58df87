//! The pickle machine: runs the opcodes, but calls nothing; what it knows to be harmless it does itself.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use weighbridge::{Error, ErrorKind, Result, Source};

use super::allow::{Allowed, check};
use super::globals::Callable;
use super::opcode::{Op, Opcodes, malformed};
use super::value::{Global, Id, Object, Pickle, Place, Standing, Storage, Value};
use crate::options::Options;

/// The memory that a pickle may become: more than a checkpoint of 100,000 tensors needs.
const BUDGET: usize = 200 << 20;
/// What the allocator takes for a value of its own, beyond its length.
const HEAP: usize = 32;
/// What becomes of a tensor later, too: a name, a source, an entry of the header.
const TENSOR: usize = 512;
/// Different globals.
const MOST_GLOBALS: usize = 100_000;
/// Items on the stack.
const DEEPEST: usize = 16 << 20;

pub(super) const NONE: Id = 0;

/// The state of the machine.
pub(super) struct Machine {
    pub(super) nodes: Vec<Value>,
    pub(super) storages: Vec<Storage>,
    pub(super) globals: Vec<Global>,
    pub(super) beside: HashMap<Id, Vec<Id>>,
    pub(super) source: Arc<dyn Source>,
    allowed: Allowed,
    global_numbers: HashMap<(Box<str>, Box<str>), u32>,
    /// Numbers of storages by their keys.
    pub(super) keys: HashMap<Box<str>, u32>,
    stack: Vec<Id>,
    /// Where in the stack the marks are.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    used: usize,
    /// Where the current opcode is.
    pub(super) at: u64,
}

/// Reads the pickle at `at`. Objects of classes that are not known become records of what they are made of. An unknown class
/// is an error here, unless only some names are wanted or a tensor cannot be converted: then it depends on where it is.
pub(crate) fn load(source: Arc<dyn Source>, at: u64, options: &Options) -> Result<Pickle> {
    load_by(source, at, options, options.names.is_some())
}

/// The same for a reader that knows which values it wants: unknown classes are an error only where it wants such an object.
#[cfg(feature = "fs")]
pub(crate) fn load_known(source: Arc<dyn Source>, options: &Options) -> Result<Pickle> {
    load_by(source, 0, options, true)
}

fn load_by(source: Arc<dyn Source>, at: u64, options: &Options, of_some: bool) -> Result<Pickle> {
    let mut opcodes = Opcodes::new(Arc::clone(&source), at);
    let mut machine = Machine::new(source, at, Allowed::of(&options.allowed)?);
    let root = machine.run(&mut opcodes);
    // All that is imported up to a place that cannot be run, too: what is refused is told at once.
    let is_refused = |node: &Value| matches!(node, Value::Refused(_));
    let depends = root.is_ok() && (of_some || machine.nodes.iter().any(is_refused));
    check(&machine.globals, |_| !depends)?;
    let (root, end) = (root?, opcodes.position());
    let Machine { nodes, storages, globals, beside, .. } = machine;
    Ok(Pickle { nodes, storages, globals, beside, unregistered: HashSet::new(), root, end })
}

/// Whether a file without any mark of a pickle is one from its first byte to its last, such as of protocol 0 and 1.
pub(crate) fn is_whole(source: Arc<dyn Source>) -> bool {
    let size = source.size();
    let mut opcodes = Opcodes::new(Arc::clone(&source), 0);
    let Ok(allowed) = Allowed::of(&[]) else { return false };
    let mut machine = Machine::new(source, 0, allowed);
    let ends = machine.run(&mut opcodes).is_ok() && opcodes.position() == size;
    // Where it imports something that is refused, its calls may make no sense to the machine.
    ends || machine.globals.iter().any(|global| global.standing != Standing::Harmless)
        && ends_well(&mut opcodes, size)
}

/// Whether opcodes follow to the end of a file.
fn ends_well(opcodes: &mut Opcodes, size: u64) -> bool {
    loop {
        match opcodes.next() {
            Ok(Op::Stop) => return opcodes.position() == size,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

impl Machine {
    fn new(source: Arc<dyn Source>, at: u64, allowed: Allowed) -> Self {
        let mut nodes = vec![Value::None, Value::Bool(false), Value::Bool(true)];
        nodes.extend((0..256).map(Value::Int));
        Self {
            nodes,
            storages: Vec::new(),
            globals: Vec::new(),
            beside: HashMap::new(),
            source,
            allowed,
            global_numbers: HashMap::new(),
            keys: HashMap::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            used: 0,
            at,
        }
    }

    /// Runs to the end, and returns what is on the stack then.
    fn run(&mut self, opcodes: &mut Opcodes) -> Result<Id> {
        loop {
            self.at = opcodes.position();
            match opcodes.next()? {
                Op::Stop => break,
                op => self.step(op)?,
            }
        }
        if let Some(what) = opcodes.ambiguous() {
            return Err(self.malformed(&format!("{what}, which readers do not agree about")));
        }
        self.pop()
    }

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
            Op::EmptyList | Op::EmptyTuple => self.make(Value::Sequence(Vec::new())),
            Op::EmptySet => self.make(Value::Set(Vec::new())),
            Op::EmptyDict => self.make(Value::Dict(Vec::new())),
            Op::List | Op::Tuple => {
                let items = self.pop_mark()?;
                self.make(Value::Sequence(items))
            }
            Op::FrozenSet => {
                let items = self.pop_mark()?;
                self.make(Value::Set(items))
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
                    return Err(self.malformed("the name of a global that is not text"));
                };
                let (module, name) = (Box::from(module), Box::from(name));
                let global = self.global(&module, &name)?;
                self.make(Value::Global(global))
            }
            Op::Inst(module, name) => {
                let global = self.global(&module, &name)?;
                let args = self.pop_mark()?;
                self.construct(global, args)
            }
            Op::Obj => {
                let mut args = self.pop_mark()?;
                if args.is_empty() {
                    return Err(self.malformed("an object without a class"));
                }
                let class = args.remove(0);
                self.construct(self.class(class)?, args)
            }
            Op::Reduce | Op::NewObj => {
                let operands = self.pop_many(2)?;
                let args = self.sequence(operands[1])?.to_vec();
                self.construct(self.class(operands[0])?, args)
            }
            Op::NewObjEx => {
                let operands = self.pop_many(3)?;
                let mut args = self.sequence(operands[1])?.to_vec();
                if !matches!(self.value(operands[2]), Value::Dict(named) if named.is_empty()) {
                    args.push(operands[2]);
                }
                self.construct(self.class(operands[0])?, args)
            }
            Op::Build => {
                let state = self.pop()?;
                let object = self.top()?;
                self.build(object, state)
            }
            Op::BinPersId => {
                let id = self.pop()?;
                match self.module_class(id) {
                    Some(class) => self.push(class),
                    None => {
                        let storage = self.persistent(id)?;
                        self.make(storage)
                    }
                }
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
            Value::Text(text) | Value::Opaque(text) => HEAP + text.len(),
            Value::Bytes(Place::Memory(bytes)) => HEAP + bytes.len(),
            Value::Sequence(items) | Value::Set(items) if items.capacity() > 0 => {
                HEAP + items.capacity() * size_of::<Id>()
            }
            Value::Object(object) => HEAP + size_of::<Object>() + object.args.capacity() * size_of::<Id>(),
            Value::Refused(refusal) => HEAP + size_of_val(&**refusal) + refusal.what.len(),
            Value::Dict(pairs) => pairs.capacity() * size_of::<(Id, Id)>(),
            Value::Tensor(view) => TENSOR + 16 * view.shape.len(),
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
            Some(Value::Sequence(into) | Value::Set(into)) => into.extend(items),
            // A class of its own that was derived from a list.
            Some(Value::Object(object)) => object.items.extend(items),
            Some(Value::Opaque(_) | Value::Refused(_)) => self.keep_beside(list, &items)?,
            _ => return Err(self.malformed("items for what is not a list")),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Result<()> {
        let pairs = self.pairs(items)?;
        self.charge(2 * size_of_val(&*pairs))?;
        let dict = self.top()?;
        match self.nodes.get_mut(dict as usize) {
            Some(Value::Dict(into)) => into.extend(pairs),
            Some(Value::Object(object)) => object.entries.extend(pairs),
            Some(Value::Opaque(_) | Value::Refused(_)) => self.keep_beside(dict, items)?,
            _ => return Err(self.malformed("entries for what is not a dict")),
        }
        Ok(())
    }

    /// Keeps in mind what a value was given that has no place in it, unless it is nothing that could be missed.
    pub(super) fn keep_beside(&mut self, id: Id, given: &[Id]) -> Result<()> {
        let matters = |&&id: &&Id| match self.value(id) {
            Value::Sequence(items) | Value::Set(items) => !items.is_empty(),
            Value::Dict(pairs) => !pairs.is_empty(),
            &Value::Global(number) => {
                self.globals.get(number as usize).is_some_and(|it| it.standing == Standing::Unknown)
            }
            Value::Tensor(_) | Value::Object(_) | Value::Refused(_) | Value::Opaque(_) => true,
            _ => false,
        };
        let given: Vec<Id> = given.iter().filter(matters).copied().collect();
        if given.is_empty() {
            return Ok(());
        }
        self.charge(96 + 2 * size_of_val(&*given))?;
        self.beside.entry(id).or_default().extend(given);
        Ok(())
    }

    fn pairs(&self, items: &[Id]) -> Result<Vec<(Id, Id)>> {
        match items.as_chunks() {
            (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
            _ => Err(self.malformed("a key without a value")),
        }
    }

    fn global(&mut self, module: &str, name: &str) -> Result<u32> {
        let key = (Box::from(module), Box::from(name));
        if let Some(&number) = self.global_numbers.get(&key) {
            return Ok(number);
        }
        if (module, name) == ("joblib.numpy_pickle", "NumpyArrayWrapper") {
            return Err(self
                .unsupported("an array of joblib, whose bytes lie between the opcodes; save it by pickle"));
        }
        if self.globals.len() == MOST_GLOBALS {
            return Err(self.malformed("too many globals"));
        }
        self.charge(2 * (module.len() + name.len()) + 160)?;
        let number = self.globals.len() as u32;
        self.globals.push(self.allowed.global(module, name));
        self.global_numbers.insert(key, number);
        Ok(number)
    }

    /// What is done for a global. Objects of classes that are not known are records.
    pub(super) fn callable(&self, number: u32) -> Option<(&Global, Callable)> {
        let global = self.globals.get(number as usize)?;
        Some((global, global.callable.unwrap_or(Callable::Record)))
    }

    /// The number of a global on the stack.
    pub(super) fn class(&self, id: Id) -> Result<u32> {
        match *self.value(id) {
            Value::Global(number) => Ok(number),
            _ => Err(self.malformed("a call of what is not a global")),
        }
    }

    /// Calls a global and pushes what it returns.
    fn construct(&mut self, class: u32, args: Vec<Id>) -> Result<()> {
        self.charge(size_of_val(&*args))?;
        let Some((_, callable)) = self.callable(class) else {
            return Err(self.malformed("an unknown global"));
        };
        match callable {
            // Parameters are the tensors that they are made of, which stay the same node.
            Callable::RebuildParameter | Callable::Same => {
                let same = args.first().copied().ok_or_else(|| self.malformed("a call without arguments"))?;
                if callable == Callable::RebuildParameter {
                    self.keep_beside(same, &args[1..])?;
                }
                self.push(same)
            }
            Callable::NewObject => {
                let Some((&inner, args)) = args.split_first() else {
                    return Err(self.malformed("an object without a class"));
                };
                match self.class(inner)? {
                    same if same == class => Err(self.malformed("a call of itself")),
                    inner => {
                        let args = args.to_vec();
                        self.construct_of(inner, args)
                    }
                }
            }
            _ => self.construct_of(class, args),
        }
    }

    fn construct_of(&mut self, class: u32, args: Vec<Id>) -> Result<()> {
        let given = self.beside_of(class, &args).to_vec();
        let made = self.call(class, args)?;
        let id = self.add(made)?;
        self.keep_beside(id, &given)?;
        self.push(id)
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
