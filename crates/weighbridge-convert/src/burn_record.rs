//! Records that Burn wrote until 0.21: MessagePack with the names of fields (`.mpk`), also compressed (`.mpk.gz`). The names of
//! tensors are those of the fields on the way; parameters, which are a dict of `id` and `param`, add nothing to them.

mod tensor;
mod tree;

use weighbridge::{Dtype, Result, Source};

use crate::contents::Contents;
use crate::cursor::{Cursor, malformed, unsupported};
use crate::gzip;
use crate::input::{FilePart, Head, Input};
use crate::keys::{Key, Keys};
use crate::note::{Note, NoteKind};
use crate::options::Options;
use crate::spool::Spool;
use tree::Node;

/// Bytes that show what a file is.
const HEAD: u64 = 64;
/// A list of numbers that is not a tensor is kept in the metadata up to this length.
const LONGEST_LIST: u64 = 64;

/// The encodings of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    MessagePack,
    Bincode,
    Json,
}

impl Encoding {
    fn of(head: &[u8]) -> Option<Self> {
        match head {
            [0x81..=0x8F, key @ ..] if key.starts_with(b"\xA8metadata") => {
                matches!(key.get(9..), Some([0x81..=0x8F, rest @ ..]) if rest.starts_with(b"\xA5float"))
                    .then_some(Self::MessagePack)
            }
            _ if is_bincode(head) => Some(Self::Bincode),
            _ => {
                let text: Vec<u8> = head.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
                text.starts_with(b"{\"metadata\":{\"float\":").then_some(Self::Json)
            }
        }
    }
}

/// The names of two types, and that of the recorder, each behind its length.
fn is_bincode(head: &[u8]) -> bool {
    let text = |bytes: &[u8]| -> Option<usize> {
        let len = usize::from(*bytes.first()?);
        let is_type = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'_');
        bytes.get(1..=len).filter(|text| !text.is_empty() && text.iter().all(is_type)).map(|_| len + 1)
    };
    let recorder = || {
        let rest = head.get(text(head)?..)?;
        rest.get(text(rest)? + 1..)
    };
    recorder().is_some_and(|name| name.starts_with(b"burn_core::record") || name.starts_with(b"burn::record"))
}

/// Whether these are the first bytes of a record.
pub(crate) fn is_record(head: &[u8]) -> bool {
    Encoding::of(head).is_some()
}

/// Whether a file that is compressed is a record.
pub(crate) fn is_compressed_record(input: &Input) -> bool {
    is_record(&gzip::head(input, HEAD))
}

/// Reads a file that was recognised.
pub(crate) fn read(input: &Input, options: &Options) -> Result<Contents> {
    let is_compressed = gzip::is_compressed(&input.head(0, HEAD as usize)?);
    let file = if is_compressed { gzip::unpack(input)? } else { input.whole() };
    const INSTEAD: &str = "load it in Burn into the module that it was saved from, and save that with weighbridge-burn, or with NamedMpkFileRecorder (.mpk)";
    match Encoding::of(&file.head(0, HEAD as usize)?) {
        Some(Encoding::MessagePack) => {}
        Some(Encoding::Bincode) => {
            return Err(unsupported(format!(
                "it is a record of Burn's in bincode, which has no names; {INSTEAD}"
            )));
        }
        Some(Encoding::Json) => {
            return Err(unsupported(format!("it is a record of Burn's in JSON; {INSTEAD}")));
        }
        None => return Err(malformed("it is not a record of Burn's")),
    }
    let mut cursor = Cursor::new(&file, 0, file.size());
    let top = tree::read(&mut cursor)?;
    if cursor.left() > 0 {
        return Err(malformed(format!("{} bytes stand behind its end", cursor.left())));
    }
    let mut reader = Reader::new(&file, options);
    let (mut metadata, mut item) = (None, None);
    for (key, node) in top.entries() {
        match &*key.text {
            "metadata" => metadata = Some(node),
            "item" => item = Some(node),
            // A marker without a value.
            "_b" => {}
            other => return Err(malformed(format!("beside its metadata and its item is {other:?}"))),
        }
    }
    let (Some(metadata), Some(item)) = (metadata, item) else {
        return Err(malformed("it is a record without an item"));
    };
    reader.metadata(metadata);
    reader.value(item)?;
    Ok(reader.finish())
}

struct Reader<'i> {
    file: &'i FilePart,
    options: &'i Options,
    contents: Contents,
    keys: Keys,
    spool: Spool,
    /// What the record says that its floats and its integers are.
    float: Option<Dtype>,
    int: Option<Dtype>,
    /// Values that are nothing: constants and modules that are not there.
    nothing: u64,
    /// Tensors that could be integers as well as floats.
    ambiguous: u64,
}

impl<'i> Reader<'i> {
    fn new(file: &'i FilePart, options: &'i Options) -> Self {
        Self {
            file,
            options,
            contents: Contents::default(),
            keys: Keys::default(),
            spool: Spool::default(),
            float: None,
            int: None,
            nothing: 0,
            ambiguous: 0,
        }
    }

    /// What the record says about itself.
    fn metadata(&mut self, node: &Node) {
        for (key, node) in node.entries() {
            let Node::Text(text) = node else { continue };
            match &*key.text {
                "float" => self.float = tensor::rust_type(text),
                "int" => self.int = tensor::rust_type(text),
                _ => {}
            }
            let name = format!("burn.{}", key.text);
            self.contents.notes.push(Note::new(NoteKind::Metadata, &name, "what the record says of itself"));
            self.contents.metadata.insert(name, text.clone());
        }
    }

    /// Takes a value, and what it holds.
    fn value(&mut self, node: &Node) -> Result<()> {
        if let Some(param) = param(node) {
            return self.value(param);
        }
        if let Some(data) = tensor::Data::of(node) {
            return self.tensor(&data);
        }
        match node {
            Node::Dict(entries) => {
                for (key, node) in entries {
                    self.keys.enter(if key.is_text {
                        Key::Text(&key.text)
                    } else {
                        Key::Number(&key.text)
                    })?;
                    self.value(node)?;
                    self.keys.leave();
                }
            }
            Node::List(nodes) => {
                for (place, node) in nodes.iter().enumerate() {
                    self.keys.enter(Key::Number(&place.to_string()))?;
                    self.value(node)?;
                    self.keys.leave();
                }
            }
            Node::Nil => self.nothing += 1,
            Node::Value(text) | Node::Text(text) => self.keep(text.clone()),
            Node::Numbers(numbers) if numbers.count <= LONGEST_LIST => {
                let text = numbers.text(self.file)?;
                self.keep(text);
            }
            Node::Numbers(numbers) => {
                self.note(
                    NoteKind::Dropped,
                    &format!("it is a list of {} numbers, not a tensor", numbers.count),
                );
            }
            Node::Bytes(_) => self.note(NoteKind::Dropped, "it is bytes, not a tensor"),
            Node::Long => self.note(NoteKind::Dropped, "it is a text, and long"),
        }
        Ok(())
    }

    /// The name of what is here; of a record that is nothing but a parameter, one of ours.
    fn name(&self) -> &str {
        if self.keys.is_top() { "tensor" } else { self.keys.name() }
    }

    fn keep(&mut self, text: String) {
        let name = self.name().to_owned();
        if self.contents.metadata.contains_key(&name) {
            return self.note(NoteKind::Dropped, "another value has this name");
        }
        self.note(NoteKind::Metadata, "it is not a tensor");
        self.contents.metadata.insert(name, text);
    }

    fn note(&mut self, kind: NoteKind, why: &str) {
        let name = self.name().to_owned();
        self.contents.notes.push(Note::new(kind, name, why));
    }

    fn finish(mut self) -> Contents {
        let mut say = |kind, count: u64, what: &str, why: &str| {
            if count > 0 {
                self.contents.notes.push(Note::new(kind, "*", format!("{what}: {count}; {why}")));
            }
        };
        let why = "options that are not set, and constants, which Burn does not record";
        say(NoteKind::Dropped, self.nothing, "values that are null", why);
        let why =
            "integers that are not negative look the same in a record of half precision before Burn 0.14";
        say(NoteKind::Changed, self.ambiguous, "tensors taken for floats", why);
        self.contents
    }
}

/// What a parameter holds: the value beside its id.
fn param(node: &Node) -> Option<&Node> {
    let Node::Dict(entries) = node else { return None };
    match &entries[..] {
        [(id, Node::Text(_)), (param, value)] if id.text == "id" && param.text == "param" => Some(value),
        [(param, value), (id, Node::Text(_))] if id.text == "id" && param.text == "param" => Some(value),
        _ => None,
    }
}
