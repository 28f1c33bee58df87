//! ONNX: the initialisers of a model's graphs, wherever their data is, and back with [`Graph`]. Nothing but messages' frames is read to find them, so
//! that a model may be as large as it likes.

mod external;
mod graph;
#[cfg(feature = "fs")]
mod into;
mod tensor;
mod typed;
mod wire;

use std::sync::Arc;

use weighbridge::{Dtype, Result, Source};

use crate::contents::{Contents, Tensor};
use crate::cursor::{Cursor, malformed};
use crate::input::Input;
use crate::note::{Note, NoteKind};
use crate::options::Options;
use crate::spool::Spool;
use external::Beside;
use graph::Model;
use tensor::{Data, Kind, Proto};

#[cfg(feature = "fs")]
pub use into::Graph;

/// Of the keys of the metadata that say what packed numbers are.
const PACKED: &str = "onnx.packed.";

/// Whether these are the first bytes of a model: its version, as every writer puts it first, or a field that may follow.
pub(crate) fn is_model(head: &[u8]) -> bool {
    matches!(head, [0x08, version, tag, ..] if (1..=64).contains(version) && matches!(tag, 0x12 | 0x1A | 0x22 | 0x28 | 0x32 | 0x3A | 0x42 | 0x72))
}

/// Reads a file that was recognised.
pub(crate) fn read(input: &Input, options: &Options) -> Result<Contents> {
    let model = Model::read(input.file())?;
    let mut contents = Contents { metadata: model.properties, ..Contents::default() };
    let mut reader = Reader::new(input);
    for initializer in &model.initializers {
        let name = &initializer.name;
        if !options.wants(name) {
            contents.unchosen += 1;
            continue;
        }
        let body = model.nodes[initializer.node].body.clone();
        let found = reader.tensor(name, body).map_err(|error| error.in_tensor(name))?;
        let packed = match found {
            Found::Tensor(tensor, packed) => {
                contents.tensors.push(tensor);
                packed
            }
            Found::Text => {
                let why = "it is text, which safetensors cannot hold";
                contents.notes.push(Note::new(NoteKind::Dropped, name, why));
                continue;
            }
            Found::Other(what) => {
                contents.leave_out(options, name, &what)?;
                continue;
            }
        };
        if initializer.renamed {
            let own = name.rsplit('/').next().unwrap_or(name);
            let why = format!("is {name:?}: it belongs to a graph within the graph");
            contents.notes.push(Note::new(NoteKind::Renamed, own, why));
        }
        if let Some(packed) = packed {
            let why = format!("{packed}, kept as packed bytes");
            contents.notes.push(Note::new(NoteKind::Changed, name, why));
            contents.put(format!("{PACKED}{name}"), packed);
        }
    }
    for name in &model.sparse {
        contents.unchosen += usize::from(!options.wants(name));
        contents.leave_out(options, name, "a sparse tensor")?;
    }
    let mut leave_out = |name: &str, why: String| {
        contents.notes.push(Note::new(NoteKind::Dropped, name, why));
    };
    let constants = model.constants.len() + model.sparse_constants;
    if constants > 0 {
        leave_out(
            "constants",
            format!("{constants} tensors in attributes of nodes, which are part of the graph"),
        );
    }
    if model.trainings > 0 {
        leave_out("training_info", "graphs for training, which are not read".to_owned());
    }
    for (key, why) in model.unkept {
        leave_out(&key, why);
    }
    Ok(contents)
}

/// What an initialiser is.
enum Found {
    /// A tensor, and, if it is packed, what it is.
    Tensor(Tensor, Option<String>),
    Text,
    /// What safetensors cannot hold.
    Other(String),
}

/// Takes initialisers apart.
struct Reader<'i> {
    input: &'i Input,
    cursor: Cursor<'i>,
    beside: Beside,
    spool: Spool,
}

impl<'i> Reader<'i> {
    fn new(input: &'i Input) -> Self {
        let cursor = Cursor::new(input.file(), 0, input.size());
        Self { input, cursor, beside: Beside::new(input), spool: Spool::default() }
    }

    fn tensor(&mut self, name: &str, body: std::ops::Range<u64>) -> Result<Found> {
        let proto = Proto::read(&mut self.cursor, body)?;
        let kind = proto.values();
        match kind {
            Kind::Text => return Ok(Found::Text),
            Kind::Other(_) | Kind::Segment => return Ok(Found::Other(kind.what())),
            Kind::Plain(_) | Kind::Packed(..) => {}
        }
        let (dtype, shape) = proto.stored(kind)?;
        let bytes = dtype.size_of(&shape)?;
        let data = self.data(&proto, kind, dtype, bytes)?;
        let packed = match kind {
            Kind::Packed(packed, _) => Some(format!("{packed} {:?}", proto.shape)),
            _ => None,
        };
        Ok(Found::Tensor(Tensor { name: name.to_owned(), dtype, shape, data }, packed))
    }

    fn data(&mut self, proto: &Proto, kind: Kind, dtype: Dtype, bytes: u64) -> Result<Arc<dyn Source>> {
        let missing = |given: u64| malformed(format!("its shape needs {bytes} bytes, it has {given}"));
        let range = match &proto.data {
            Data::Nothing => 0..0,
            Data::Raw(range) => range.clone(),
            Data::External(external) => return Ok(Arc::new(self.beside.part(external, bytes)?)),
            Data::Typed(field, _) if !typed::belongs(kind, *field) => {
                return Err(malformed(format!("its data is in field {field}, where data of {dtype} is not")));
            }
            Data::Typed(field, Some(range)) if typed::is_plain(*field) => range.clone(),
            Data::Typed(field, _) => {
                return typed::unpack(self.input, proto, *field, kind, bytes, &mut self.spool);
            }
        };
        let given = range.end - range.start;
        if given != bytes {
            return Err(missing(given));
        }
        Ok(Arc::new(self.input.part(range).ok_or_else(|| missing(0))?))
    }
}
