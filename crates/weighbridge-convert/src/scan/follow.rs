//! Following the texts of a pickle to where they become the names of globals.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use weighbridge::Source;

use super::Global;
use crate::pickle::{Op, Opcodes, Verdict};

/// Longer texts are no names.
const LONGEST_NAME: usize = 4 << 10;
/// What is kept in mind of stack and memo together, and the bytes of all names.
const MOST_ITEMS: usize = 8 << 20;
const LONGEST_NAMES: usize = 128 << 20;
/// Different globals in a pickle.
const MOST_GLOBALS: usize = 100_000;

/// What a pickle would import, and how far it was followed.
pub(super) struct Followed {
    pub(super) globals: Vec<Global>,
    pub(super) end: u64,
    pub(super) problem: Option<String>,
}

/// What is known of a value: whether it is a text that may be a name.
#[derive(Clone)]
enum Item {
    Text(Arc<str>),
    Mark,
    Other,
}

/// Follows the pickle at `at` to its end, or to where it breaks.
pub(super) fn follow(source: &Arc<dyn Source>, at: u64) -> Followed {
    let mut opcodes = Opcodes::new(Arc::clone(source), at);
    let mut state = State::default();
    let problem = loop {
        match opcodes.next() {
            Ok(Op::Stop) => break None,
            Ok(op) => state.step(op),
            Err(error) => break Some(error.to_string()),
        }
        if state.stack.len() + state.memo.len() > MOST_ITEMS || state.names > LONGEST_NAMES {
            break Some("it takes too much memory to follow".to_owned());
        }
        if state.globals.len() > MOST_GLOBALS {
            break Some("it imports too many globals".to_owned());
        }
    };
    Followed { globals: state.globals, end: opcodes.position(), problem }
}

#[derive(Default)]
struct State {
    stack: Vec<Item>,
    memo: HashMap<u64, Item>,
    names: usize,
    globals: Vec<Global>,
    seen: HashSet<(String, String)>,
}

impl State {
    /// A stack that is too short is taken to go on with values of which nothing is known: what would fail later may
    /// import before.
    fn step(&mut self, op: Op) {
        match op {
            Op::Proto(_) | Op::Stop | Op::Build | Op::ReadonlyBuffer => {
                if matches!(op, Op::Build) {
                    self.pop();
                }
            }
            Op::Mark => self.stack.push(Item::Mark),
            Op::Pop => drop(self.stack.pop()),
            Op::PopMark => self.pop_mark(),
            Op::Dup => {
                let top = self.stack.last().cloned().unwrap_or(Item::Other);
                self.stack.push(top);
            }
            Op::Text(text) => self.text(&text),
            Op::Surrogates(_) => self.other(),
            Op::String(bytes) => match std::str::from_utf8(&bytes) {
                Ok(text) => self.text(text),
                Err(_) => self.other(),
            },
            Op::None
            | Op::Bool(_)
            | Op::Int(_)
            | Op::BigInt
            | Op::Float(_)
            | Op::LongText(_)
            | Op::Bytes(_)
            | Op::EmptyList
            | Op::EmptyTuple
            | Op::EmptyDict
            | Op::EmptySet
            | Op::NextBuffer
            | Op::PersId(_) => self.other(),
            Op::List | Op::Tuple | Op::Dict | Op::FrozenSet | Op::Obj => {
                self.pop_mark();
                self.other();
            }
            Op::TupleOf(count) => {
                self.stack.truncate(self.stack.len().saturating_sub(count));
                self.other();
            }
            Op::Append => drop(self.pop()),
            Op::SetItem => {
                self.pop();
                self.pop();
            }
            Op::Appends | Op::SetItems | Op::AddItems => self.pop_mark(),
            Op::Get(number) => {
                let item = self.memo.get(&number).cloned().unwrap_or(Item::Other);
                self.stack.push(item);
            }
            Op::Put(number) => self.memorise(number),
            Op::Memoize => self.memorise(self.memo.len() as u64),
            Op::Global(module, name) => {
                self.found(&module, &name);
                self.other();
            }
            Op::Inst(module, name) => {
                self.found(&module, &name);
                self.pop_mark();
                self.other();
            }
            Op::StackGlobal => {
                let (name, module) = (self.pop(), self.pop());
                match (module, name) {
                    (Item::Text(module), Item::Text(name)) => self.found(&module, &name),
                    // Names that are not written as texts are made so that nobody sees them.
                    _ => self.hidden("a name that is computed", Verdict::Dangerous),
                }
                self.other();
            }
            Op::Reduce | Op::NewObj => {
                self.pop();
                self.pop();
                self.other();
            }
            Op::NewObjEx => {
                self.stack.truncate(self.stack.len().saturating_sub(3));
                self.other();
            }
            Op::BinPersId => {
                self.pop();
                self.other();
            }
            Op::Ext(code) => {
                self.hidden(&format!("extension {code} of copyreg"), Verdict::Unknown);
                self.other();
            }
        }
    }

    fn other(&mut self) {
        self.stack.push(Item::Other);
    }

    fn text(&mut self, text: &str) {
        if text.len() > LONGEST_NAME {
            return self.other();
        }
        self.names += text.len();
        self.stack.push(Item::Text(text.into()));
    }

    fn pop(&mut self) -> Item {
        self.stack.pop().unwrap_or(Item::Other)
    }

    fn pop_mark(&mut self) {
        while let Some(item) = self.stack.pop() {
            if matches!(item, Item::Mark) {
                return;
            }
        }
    }

    fn memorise(&mut self, number: u64) {
        let item = self.stack.last().cloned().unwrap_or(Item::Other);
        self.memo.insert(number, item);
    }

    fn found(&mut self, module: &str, name: &str) {
        if self.seen.insert((module.to_owned(), name.to_owned())) {
            self.names += 2 * (module.len() + name.len());
            let verdict = Verdict::of(module, name);
            self.globals.push(Global { module: module.to_owned(), name: name.to_owned(), verdict });
        }
    }

    fn hidden(&mut self, what: &str, verdict: Verdict) {
        if self.seen.insert((String::new(), what.to_owned())) {
            self.globals.push(Global { module: String::new(), name: what.to_owned(), verdict });
        }
    }
}
