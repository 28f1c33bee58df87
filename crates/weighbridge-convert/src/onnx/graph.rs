//! Where in a model its initialisers are: those of the main graph, and those of the graphs in its nodes and functions.

use std::collections::BTreeMap;
use std::ops::Range;

use weighbridge::{Result, Source};

use super::wire::{self, Field, Value, message};
use crate::cursor::{Cursor, malformed};

/// What was found in a model.
#[derive(Default)]
pub(super) struct Model {
    /// The messages on the way to initialisers, each after the one it is in.
    pub(super) nodes: Vec<Node>,
    pub(super) initializers: Vec<Initializer>,
    /// The names of initialisers that are sparse.
    pub(super) sparse: Vec<String>,
    /// What the model says about itself.
    pub(super) properties: BTreeMap<String, String>,
    /// Keys of what has no place among these, and why.
    pub(super) unkept: Vec<(String, String)>,
    /// Tensors in the attributes of nodes, which are no initialisers.
    pub(super) constants: Vec<Range<u64>>,
    /// The same, of sparse ones.
    pub(super) sparse_constants: usize,
    /// Graphs that initialise a training, and those that do its steps.
    pub(super) trainings: usize,
    graphs: u32,
    /// Bytes of all names together.
    text: u64,
    /// Bytes of all properties together.
    kept: u64,
}

/// A message, which is as long as its length says.
#[cfg_attr(not(feature = "fs"), allow(dead_code))]
pub(super) struct Node {
    /// The bytes of the length.
    pub(super) len: Range<u64>,
    pub(super) body: Range<u64>,
    /// The message around it.
    pub(super) parent: Option<usize>,
}

/// The message of an initialiser.
pub(super) struct Initializer {
    pub(super) name: String,
    /// Whether that is not what the graph calls it.
    pub(super) renamed: bool,
    /// Its place among the messages.
    pub(super) node: usize,
}

/// Graphs in nodes of graphs.
const DEEPEST: u32 = 64;
const MOST: usize = 1 << 20;
const MOST_TEXT: u64 = 64 << 20;
/// Longer texts are no names.
const LONGEST: u64 = 64 << 10;
const MOST_PROPERTIES: usize = 4096;
/// Of properties: a model for reading text has its alphabet there.
const MOST_KEPT: u64 = 8 << 20;

impl Model {
    pub(super) fn read(source: &dyn Source) -> Result<Self> {
        let mut model = Self::default();
        let mut cursor = Cursor::new(source, 0, source.size());
        message(&mut cursor, 0..source.size(), &mut |cursor, field| match field.number {
            7 => model.graph(cursor, &field, None, "", 0),
            14 => model.property(cursor, &field),
            20 => {
                model.trainings += 1;
                Ok(())
            }
            25 => model.function(cursor, &field),
            _ => Ok(()),
        })?;
        if model.graphs == 0 {
            return Err(malformed("it has no graph"));
        }
        Ok(model)
    }

    fn graph(
        &mut self,
        cursor: &mut Cursor<'_>,
        field: &Field,
        parent: Option<usize>,
        path: &str,
        depth: u32,
    ) -> Result<()> {
        if depth > DEEPEST {
            return Err(malformed(format!("graphs are nested deeper than {DEEPEST}")));
        }
        self.graphs += 1;
        let (before, mut number) = (self.initializers.len(), 0);
        let node = self.enter(field, parent)?;
        message(cursor, field.body()?, &mut |cursor, field| match field.number {
            1 => {
                number += 1;
                self.operator(cursor, &field, node, path, number - 1, depth)
            }
            5 => self.initializer(cursor, &field, node, path),
            15 => self.sparse_initializer(cursor, &field, path),
            _ => Ok(()),
        })?;
        self.leave(node, before);
        Ok(())
    }

    /// A function has nodes as a graph has.
    fn function(&mut self, cursor: &mut Cursor<'_>, field: &Field) -> Result<()> {
        let (before, mut number) = (self.initializers.len(), 0);
        let node = self.enter(field, None)?;
        let name = text_in(cursor, field, 1)?;
        message(cursor, field.body()?, &mut |cursor, field| {
            if field.number == 7 {
                number += 1;
                self.operator(cursor, &field, node, &format!("{name}/"), number - 1, 0)?;
            }
            Ok(())
        })?;
        self.leave(node, before);
        Ok(())
    }

    /// A node, whose attributes may be graphs.
    fn operator(
        &mut self,
        cursor: &mut Cursor<'_>,
        field: &Field,
        parent: usize,
        path: &str,
        number: usize,
        depth: u32,
    ) -> Result<()> {
        let (before, node) = (self.initializers.len(), self.enter(field, Some(parent))?);
        message(cursor, field.body()?, &mut |cursor, attribute| match attribute.number {
            5 => self.attribute(cursor, &attribute, field, node, path, number, depth),
            _ => Ok(()),
        })?;
        self.leave(node, before);
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "where it is takes as many words")]
    fn attribute(
        &mut self,
        cursor: &mut Cursor<'_>,
        field: &Field,
        operator: &Field,
        parent: usize,
        path: &str,
        number: usize,
        depth: u32,
    ) -> Result<()> {
        let (before, node) = (self.initializers.len(), self.enter(field, Some(parent))?);
        let mut place = 0;
        message(cursor, field.body()?, &mut |cursor, part| match part.number {
            // One tensor, several of them.
            5 | 10 => {
                if self.constants.len() == MOST {
                    return Err(malformed(format!("it has more than {MOST} constants")));
                }
                self.constants.push(part.body()?);
                Ok(())
            }
            22 | 23 => {
                self.sparse_constants += 1;
                Ok(())
            }
            // One graph, several of them.
            6 | 11 => {
                let mut name = text_in(cursor, operator, 3)?;
                if name.is_empty() {
                    name = format!("{}_{number}", text_in(cursor, operator, 4)?);
                }
                let attribute = text_in(cursor, field, 1)?;
                let path = match part.number {
                    6 => format!("{path}{name}/{attribute}/"),
                    _ => format!("{path}{name}/{attribute}.{place}/"),
                };
                place += 1;
                if path.len() as u64 > LONGEST {
                    return Err(malformed(format!("a graph in it has a name of more than {LONGEST} bytes")));
                }
                self.graph(cursor, &part, Some(node), &path, depth + 1)
            }
            _ => Ok(()),
        })?;
        self.leave(node, before);
        Ok(())
    }

    fn initializer(
        &mut self,
        cursor: &mut Cursor<'_>,
        field: &Field,
        parent: usize,
        path: &str,
    ) -> Result<()> {
        let name = text_in(cursor, field, 8)?;
        if name.is_empty() {
            return Err(malformed(format!("its initialiser at position {} has no name", field.whole.start)));
        }
        self.count(path, &name)?;
        let node = self.enter(field, Some(parent))?;
        self.initializers.push(Initializer {
            name: format!("{path}{name}"),
            renamed: !path.is_empty(),
            node,
        });
        Ok(())
    }

    /// A sparse initialiser, which has the name of its values.
    fn sparse_initializer(&mut self, cursor: &mut Cursor<'_>, field: &Field, path: &str) -> Result<()> {
        let name = match last_in(cursor, field, 1)? {
            Some(values) => text_in(cursor, &values, 8)?,
            None => String::new(),
        };
        self.count(path, &name)?;
        self.sparse.push(format!("{path}{name}"));
        Ok(())
    }

    /// Counts an initialiser that is about to be kept.
    fn count(&mut self, path: &str, name: &str) -> Result<()> {
        self.text += (path.len() + name.len()) as u64;
        match self.initializers.len() + self.sparse.len() < MOST && self.text <= MOST_TEXT {
            true => Ok(()),
            false => {
                Err(malformed(format!("it has more than {MOST} initialisers, or names of {MOST_TEXT} bytes")))
            }
        }
    }

    fn property(&mut self, cursor: &mut Cursor<'_>, field: &Field) -> Result<()> {
        let mut body = |number| match last_in(cursor, field, number)? {
            Some(found) => found.body(),
            None => Ok(0..0),
        };
        let (key, value) = (body(1)?, body(2)?);
        let len = value.end - value.start;
        if key.end - key.start > LONGEST {
            return Err(malformed(format!("a key of its metadata has more than {LONGEST} bytes")));
        }
        let key = wire::bytes(cursor, key)?;
        let total = self.kept + key.len() as u64 + len;
        if self.properties.len() >= MOST_PROPERTIES || total > MOST_KEPT {
            let why = format!("a text of {len} bytes, which is too much for the metadata");
            self.leave_out(&key, why);
            return Ok(());
        }
        match (String::from_utf8(key), String::from_utf8(wire::bytes(cursor, value)?)) {
            (Ok(key), Ok(value)) => {
                self.kept = total;
                self.properties.insert(key, value);
            }
            (Ok(key), Err(_)) => self.leave_out(key.as_bytes(), "metadata that is not UTF-8".to_owned()),
            (Err(error), _) => self.leave_out(error.as_bytes(), "metadata that is not UTF-8".to_owned()),
        }
        Ok(())
    }

    /// Remembers that a property is left out; of very many, that there are more.
    fn leave_out(&mut self, key: &[u8], why: String) {
        match self.unkept.len() {
            0..MOST_PROPERTIES => self.unkept.push((String::from_utf8_lossy(key).into_owned(), why)),
            MOST_PROPERTIES => {
                let why = "there are more entries than are listed";
                self.unkept.push(("metadata".to_owned(), why.to_owned()));
            }
            _ => {}
        }
    }

    fn enter(&mut self, field: &Field, parent: Option<usize>) -> Result<usize> {
        let Value::Bytes { len, body } = &field.value else {
            return Err(malformed(format!("its field at position {} is not a message", field.whole.start)));
        };
        self.nodes.push(Node { len: len.clone(), body: body.clone(), parent });
        Ok(self.nodes.len() - 1)
    }

    /// Forgets a message that has no initialiser in it: `before` were there when it began.
    fn leave(&mut self, node: usize, before: usize) {
        if self.initializers.len() == before {
            self.nodes.truncate(node);
        }
    }
}

/// The last field of a number, as any reader of protocol buffers takes it.
fn last_in(cursor: &mut Cursor<'_>, field: &Field, number: u32) -> Result<Option<Field>> {
    let mut found = None;
    message(cursor, field.body()?, &mut |_, field| {
        if field.number == number {
            found = Some(field);
        }
        Ok(())
    })?;
    Ok(found)
}

/// The text in the last field of a number; empty if there is none.
fn text_in(cursor: &mut Cursor<'_>, field: &Field, number: u32) -> Result<String> {
    let Some(found) = last_in(cursor, field, number)? else { return Ok(String::new()) };
    let body = found.body()?;
    if body.end - body.start > LONGEST {
        return Err(malformed(format!(
            "a name in it at position {} has more than {LONGEST} bytes",
            body.start
        )));
    }
    wire::text(cursor, &found)
}
