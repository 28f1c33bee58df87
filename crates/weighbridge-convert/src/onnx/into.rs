//! The way back: a checkpoint's tensors in the places of a model's initialisers, everything else byte for byte as it was.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use weighbridge::engine::Streamed;
use weighbridge::plan::{self, Entry};
use weighbridge::write::{OutputFile, TensorData};
use weighbridge::{Checkpoint, Dtype, Error, ErrorKind, Plan, QuantizedModule, Result, Source};

use super::external::Beside;
use super::graph::Model;
use super::tensor::{DATA, Data, External, Kind, Proto};
use super::wire::{message, put_varint};
use crate::cursor::{Cursor, unsupported};
use crate::input::{FilePart, Input, unread};
use crate::note::{Note, NoteKind};

/// A model whose initialisers can be replaced.
///
/// ```no_run
/// use weighbridge::{Checkpoint, Plan};
/// use weighbridge_convert::onnx::Graph;
///
/// # fn main() -> weighbridge::Result<()> {
/// let trained = Checkpoint::open("trained.safetensors")?;
/// let plan = Plan::of(&trained).build()?;
/// for note in Graph::open("model.onnx")?.replace(&plan, false, "trained.onnx")? {
///     println!("{note}");
/// }
/// # Ok(())
/// # }
/// ```
pub struct Graph {
    input: Input,
    model: Model,
    slots: Vec<Slot>,
}

/// An initialiser.
struct Slot {
    name: String,
    /// Its place among the messages.
    node: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    proto: Proto,
}

/// The codes of a quantised module.
fn codes(module: QuantizedModule<'_>) -> impl Iterator<Item = (plan::Input, QuantizedModule<'_>)> {
    module.codes().map(move |codes| (plan::Input::of(&codes), module))
}

/// What a protocol buffer may have.
const MOST_BYTES: u64 = i32::MAX as u64;
/// External data can be mapped if it begins at a multiple.
const ALIGN: u64 = 4096;

impl Graph {
    /// Reads where the initialisers of a model are.
    ///
    /// # Errors
    ///
    /// As [`open`](crate::open).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::read(Input::open(path)?).map_err(|error| error.in_file(path))
    }

    fn read(input: Input) -> Result<Self> {
        let model = Model::read(input.file())?;
        let mut slots = Vec::with_capacity(model.initializers.len());
        let mut cursor = Cursor::new(input.file(), 0, input.size());
        let mut names = HashSet::new();
        for found in &model.initializers {
            let read = || {
                let proto = Proto::read(&mut cursor, model.nodes[found.node].body.clone())?;
                let kind = proto.values();
                if !matches!(kind, Kind::Plain(_) | Kind::Packed(..)) {
                    return Ok(None);
                }
                let (dtype, shape) = proto.stored(kind)?;
                Ok(Some(Slot { name: found.name.clone(), node: found.node, dtype, shape, proto }))
            };
            let mut read = read;
            slots.extend(read().map_err(|error: Error| error.in_tensor(&found.name))?);
            if !names.insert(&*found.name) {
                let message = "two initialisers have this name";
                return Err(Error::new(ErrorKind::DuplicateTensor, message).in_tensor(&found.name));
            }
        }
        drop(cursor);
        Ok(Self { input, model, slots })
    }

    /// The initialisers: names, dtypes and shapes as they are in safetensors.
    pub fn initializers(&self) -> impl ExactSizeIterator<Item = (&str, Dtype, &[usize])> {
        self.slots.iter().map(|slot| (&*slot.name, slot.dtype, &*slot.shape))
    }

    /// Writes the model with the tensors of a plan in the places of the initialisers of the same names; with `cast`,
    /// those of another dtype are cast to the initialiser's. Returns what was left as it was.
    ///
    /// The file is written beside its destination and renamed to it. If data of the model lies outside, all data that did
    /// is written to a new file beside the destination, which has its name and `.data` behind it, before the model is.
    ///
    /// # Errors
    ///
    /// Fails when no tensor has the name of an initialiser, when one has another shape or, without `cast`, another dtype,
    /// when the codes of a quantised module would be cast, and when files cannot be read or written. The destination is as it was then.
    pub fn replace(&self, plan: &Plan, cast: bool, output: impl AsRef<Path>) -> Result<Vec<Note>> {
        let output = output.as_ref();
        let tensors = self.matching(plan, cast)?;
        let mut notes = self.unmatched(plan);
        let written = || {
            let (data, moved) = self.move_external(&tensors, output)?;
            let written = self.write(&tensors, &moved, output);
            if let Some(data) = &data {
                if written.is_err() {
                    // Without the model it is of no use.
                    let _ = fs::remove_file(output.with_file_name(data));
                }
                notes.push(Note::new(NoteKind::Changed, "external data", format!("is in {data:?} now")));
            }
            written
        };
        let mut written = written;
        written().map_err(|error| error.in_file(self.input.path()))?;
        Ok(notes)
    }

    /// The tensors that take the places of initialisers.
    fn matching(&self, plan: &Plan, cast: bool) -> Result<HashMap<String, Streamed>> {
        let slots: HashMap<&str, &Slot> = self.slots.iter().map(|slot| (&*slot.name, slot)).collect();
        // By where the codes are, since an entry may have got another name.
        let modules = plan.checkpoints().iter().flat_map(Checkpoint::quantized);
        let quantised: HashMap<_, _> = modules.flat_map(codes).collect();
        let mut chosen = Vec::new();
        for entry in plan.entries() {
            let Some(slot) = slots.get(entry.name()) else { continue };
            let fits = || {
                if entry.shape() != slot.shape {
                    let message =
                        format!("its shape is {:?}, in the model it is {:?}", entry.shape(), slot.shape);
                    return Err(Error::new(ErrorKind::Shape, message));
                }
                if entry.dtype() == slot.dtype {
                    return Ok(Entry::clone(entry));
                }
                if !cast {
                    let (own, model) = (entry.dtype(), slot.dtype);
                    let message =
                        format!("it is {own}, in the model it is {model}; it can be cast on request");
                    return Err(Error::new(ErrorKind::Dtype, message));
                }
                if let Some(module) = entry.inputs().first().and_then(|input| quantised.get(input)) {
                    let advice = format!("the model has {} there; dequantise it first", slot.dtype);
                    return Err(module.refusal(entry.name(), &advice));
                }
                entry.recast(slot.dtype)
            };
            chosen.push(fits().map_err(|error: Error| error.in_tensor(entry.name()))?);
        }
        if chosen.is_empty() {
            let message = "no tensor of the checkpoint has the name of an initialiser";
            return Err(Error::new(ErrorKind::MissingTensor, message).in_file(self.input.path()));
        }
        Ok(Plan::new(chosen).tensors().collect())
    }

    fn unmatched(&self, plan: &Plan) -> Vec<Note> {
        let names: HashSet<&str> = self.slots.iter().map(|slot| &*slot.name).collect();
        let given: HashSet<&str> = plan.entries().iter().map(|entry| entry.name()).collect();
        let mut notes = Vec::new();
        for name in given.difference(&names) {
            notes.push(Note::new(NoteKind::Dropped, *name, "the model has no initialiser of that name"));
        }
        for name in names.difference(&given) {
            notes.push(Note::new(NoteKind::Kept, *name, "the checkpoint has no tensor of that name"));
        }
        for name in &self.model.sparse {
            notes.push(Note::new(NoteKind::Kept, name, "it is sparse in the model"));
        }
        notes.sort_by(|one, other| (one.kind(), one.name()).cmp(&(other.kind(), other.name())));
        notes
    }

    /// Brings all data outside into a new file; returns its name and, by initialiser, where its data is.
    fn move_external(
        &self,
        tensors: &HashMap<String, Streamed>,
        output: &Path,
    ) -> Result<(Option<String>, HashMap<&str, External>)> {
        let outside = |slot: &&Slot| matches!(slot.proto.data, Data::External(_));
        let mut moved = HashMap::new();
        if !self.slots.iter().any(|slot| outside(&slot)) {
            return Ok((None, moved));
        }
        self.no_external_constants()?;
        let path = free_name(output)?;
        let location = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let (mut file, mut beside, mut at) = (OutputFile::atomic(&path)?, Beside::new(&self.input), 0_u64);
        for slot in self.slots.iter().filter(outside) {
            let Data::External(external) = &slot.proto.data else { continue };
            let mut write = || {
                let len = slot.dtype.size_of(&slot.shape)?;
                let padding = at.next_multiple_of(ALIGN) - at;
                file.write_all(&vec![0; padding as usize]).map_err(unwritten)?;
                match tensors.get(&slot.name) {
                    Some(tensor) => write_tensor(tensor, len, &mut file)?,
                    None => copy(&beside.part(external, len)?, &mut file)?,
                }
                let offset = at + padding;
                at = offset + len;
                Ok(External { location: location.clone(), offset, len: Some(len) })
            };
            let external = write().map_err(|error: Error| error.in_tensor(&slot.name))?;
            moved.insert(&*slot.name, external);
        }
        file.commit()?;
        Ok((Some(location), moved))
    }

    /// Constants whose data lies outside would be left behind.
    fn no_external_constants(&self) -> Result<()> {
        let mut cursor = Cursor::new(self.input.file(), 0, self.input.size());
        for constant in &self.model.constants {
            if let Data::External(external) = Proto::read(&mut cursor, constant.clone())?.data {
                let message = format!(
                    "a constant has external data in {:?}; make it an initialiser",
                    external.location
                );
                return Err(unsupported(message));
            }
        }
        Ok(())
    }

    fn write(
        &self,
        tensors: &HashMap<String, Streamed>,
        moved: &HashMap<&str, External>,
        output: &Path,
    ) -> Result<()> {
        let nodes = &self.model.nodes;
        let mut lens: Vec<u64> = nodes.iter().map(|node| node.body.end - node.body.start).collect();
        let mut bodies: HashMap<usize, Vec<Piece<'_>>> = HashMap::new();
        for slot in &self.slots {
            let data = match (moved.get(&*slot.name), tensors.get(&slot.name)) {
                (Some(external), _) => external_fields(external),
                (None, Some(tensor)) => raw_field(tensor, slot.dtype.size_of(&slot.shape)?),
                (None, None) => continue,
            };
            let body = self.body(slot, data)?;
            lens[slot.node] = body.iter().map(Piece::len).sum();
            bodies.insert(slot.node, body);
        }
        // Messages stand behind those that they are in.
        let mut size = i128::from(self.input.size());
        for (place, node) in nodes.iter().enumerate().rev() {
            let old = node.body.end - node.body.start;
            if lens[place] != old {
                let (mut now, before) = (Vec::new(), node.len.end - node.len.start);
                put_varint(lens[place], &mut now);
                let grown =
                    i128::from(lens[place]) - i128::from(old) + now.len() as i128 - i128::from(before);
                match node.parent {
                    Some(parent) => lens[parent] = lens[parent].wrapping_add(grown as u64),
                    None => size += grown,
                }
            }
        }
        if size > i128::from(MOST_BYTES) {
            let message =
                format!("it would have {size} bytes, and ONNX reads 2 GiB; use a model with external data");
            return Err(unsupported(message));
        }
        let mut file = OutputFile::atomic(output)?;
        file.expect(size as u64)?;
        let mut at = 0;
        for (place, node) in nodes.iter().enumerate() {
            if lens[place] != node.body.end - node.body.start {
                self.copy(at..node.len.start, &mut file)?;
                let mut len = Vec::new();
                put_varint(lens[place], &mut len);
                file.write_all(&len).map_err(unwritten)?;
                at = node.len.end;
            }
            if let Some(body) = bodies.remove(&place) {
                self.copy(at..node.body.start, &mut file)?;
                for piece in body {
                    match piece {
                        Piece::Stored(range) => self.copy(range, &mut file)?,
                        Piece::Bytes(bytes) => file.write_all(&bytes).map_err(unwritten)?,
                        Piece::Tensor(tensor, len) => write_tensor(tensor, len, &mut file)?,
                    }
                }
                at = node.body.end;
            }
        }
        self.copy(at..self.input.size(), &mut file)?;
        file.commit()
    }

    /// The message of an initialiser with other data, which stands where the old began.
    fn body<'t>(&self, slot: &Slot, data: Vec<Piece<'t>>) -> Result<Vec<Piece<'t>>> {
        let mut cursor = Cursor::new(self.input.file(), 0, self.input.size());
        let (mut body, mut data) = (Vec::new(), Some(data));
        message(&mut cursor, slot.proto.body.clone(), &mut |_, field| {
            match DATA.contains(&field.number) {
                true => body.extend(data.take().into_iter().flatten()),
                false => body.push(Piece::Stored(field.whole)),
            }
            Ok(())
        })?;
        body.extend(data.into_iter().flatten());
        Ok(body)
    }

    fn copy(&self, range: Range<u64>, out: &mut dyn Write) -> Result<()> {
        let part = self
            .input
            .part(range)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "a message ends too late"))?;
        copy(&part, out)
    }
}

/// What a message is made of.
enum Piece<'t> {
    /// Bytes of the old model.
    Stored(Range<u64>),
    Bytes(Vec<u8>),
    /// A tensor of this many bytes.
    Tensor(&'t Streamed, u64),
}

impl Piece<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Stored(range) => range.end - range.start,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Tensor(_, len) => *len,
        }
    }
}

/// `raw_data`.
fn raw_field(tensor: &Streamed, len: u64) -> Vec<Piece<'_>> {
    let mut start = vec![9 << 3 | 2];
    put_varint(len, &mut start);
    vec![Piece::Bytes(start), Piece::Tensor(tensor, len)]
}

/// `external_data` and `data_location`.
fn external_fields(external: &External) -> Vec<Piece<'static>> {
    let mut bytes = Vec::new();
    let len = external.len.unwrap_or_default().to_string();
    for (key, value) in
        [("location", &external.location), ("offset", &external.offset.to_string()), ("length", &len)]
    {
        let mut entry = Vec::new();
        for (tag, text) in [(1 << 3 | 2, key), (2 << 3 | 2, value)] {
            entry.push(tag);
            put_varint(text.len() as u64, &mut entry);
            entry.extend_from_slice(text.as_bytes());
        }
        bytes.push(13 << 3 | 2);
        put_varint(entry.len() as u64, &mut bytes);
        bytes.extend(entry);
    }
    bytes.extend([14 << 3, 1]);
    vec![Piece::Bytes(bytes)]
}

/// A name for the data of a model that nothing has yet.
fn free_name(model: &Path) -> Result<PathBuf> {
    let name = model.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.ok_or_else(|| unsupported(format!("{} is not the name of a file", model.display())))?;
    for number in 0_u32.. {
        let number = if number == 0 { String::new() } else { format!(".{number}") };
        let path = model.with_file_name(format!("{name}{number}.data"));
        if path.symlink_metadata().is_err() {
            return Ok(path);
        }
    }
    Err(unsupported("there is no free name for its data"))
}

/// Writes a tensor, which must have its bytes.
fn write_tensor(tensor: &Streamed, len: u64, out: &mut dyn Write) -> Result<()> {
    let mut counted = Counted { out, left: len };
    let written = tensor.write_to(&mut counted);
    written
        .map_err(|error| Error::io("a tensor cannot be written", error).in_tensor(tensor.entry().name()))?;
    match counted.left {
        0 => Ok(()),
        left => {
            let message = format!("{left} of its bytes are missing");
            Err(Error::new(ErrorKind::TensorSize, message).in_tensor(tensor.entry().name()))
        }
    }
}

/// Takes a number of bytes and no more.
struct Counted<'o> {
    out: &'o mut dyn Write,
    left: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.out.write(buf)?;
        let left = self.left.checked_sub(written as u64);
        self.left = left.ok_or_else(|| io::Error::other("a tensor has more bytes than its shape needs"))?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn copy(part: &FilePart, out: &mut dyn Write) -> Result<()> {
    const STEP: u64 = 1 << 20;
    let mut buf = vec![0; part.size().min(STEP) as usize];
    let mut at = 0;
    while at < part.size() {
        let buf = &mut buf[..(part.size() - at).min(STEP) as usize];
        part.read_at(at, buf).map_err(unread)?;
        out.write_all(buf).map_err(unwritten)?;
        at += buf.len() as u64;
    }
    Ok(())
}

fn unwritten(error: io::Error) -> Error {
    Error::io("it cannot be written", error)
}
