//! Files of PyTorch since 1.6: a zip archive with the pickle `data.pkl` and a member for each storage.

use std::sync::Arc;

use weighbridge::{Error, ErrorKind, Result, Source};

use super::element::Element;
use super::machine::load;
#[cfg(feature = "fs")]
use super::machine::load_known;
use super::plain::inline;
use super::tensors::{Storages, contents};
use super::value::{Id, Pickle, Place, Storage, Value};
use super::{jit, view};
use crate::archive::{Archive, Member};
use crate::contents::Contents;
use crate::input::{FilePart, Input, unread};
use crate::options::Options;

/// The pickle of an archive that PyTorch wrote.
pub(crate) fn pickle_in(archive: &Archive) -> Option<&Member> {
    archive.members().iter().find(|member| member.name == "data.pkl" || member.name.ends_with("/data.pkl"))
}

/// An archive, and what its pickle says.
pub(crate) struct Opened {
    archive: Archive,
    /// In which its members are, with a slash at its end.
    directory: String,
    /// The pickle's bytes.
    source: Arc<dyn Source>,
    pub(crate) pickle: Pickle,
    /// Whether the words of its storages are big-endian.
    swap: bool,
}

impl Opened {
    fn of(file: FilePart, options: &Options) -> Result<Self> {
        Self::read_by(file, |source| load(source, 0, options))
    }

    /// The same for a reader that knows which values it wants: objects of unknown classes among the others are no error.
    #[cfg(feature = "fs")]
    pub(crate) fn of_known(file: FilePart, options: &Options) -> Result<Self> {
        Self::read_by(file, |source| load_known(source, options))
    }

    fn read_by(file: FilePart, load: impl Fn(Arc<dyn Source>) -> Result<Pickle>) -> Result<Self> {
        let archive = Archive::open(file)?;
        let missing = || {
            Error::new(ErrorKind::Unsupported, "it is a zip archive, but not PyTorch's: no data.pkl is in it")
        };
        let member = pickle_in(&archive).ok_or_else(missing)?;
        let directory = member.name.strip_suffix("data.pkl").unwrap_or_default().to_owned();
        let source: Arc<dyn Source> = Arc::new(archive.verified(member)?);
        let mut pickle = load(Arc::clone(&source))?;
        jit::mark(&mut pickle, &archive, &directory);
        let swap = match archive.member(&format!("{directory}byteorder")) {
            None => false,
            Some(member) => {
                let part = archive.bytes(member)?;
                let mut order = vec![0; part.size().min(8) as usize];
                part.read_at(0, &mut order).map_err(unread)?;
                match &*order {
                    b"little" => false,
                    b"big" => true,
                    _ => {
                        let message = "its byte order is neither little nor big";
                        return Err(Error::new(ErrorKind::Malformed, message));
                    }
                }
            }
        };
        Ok(Self { archive, directory, source, pickle, swap })
    }

    fn storage(&self, storage: &Storage) -> Result<Arc<dyn Source>> {
        self::storage(&self.archive, &format!("{}data/", self.directory), storage, &self.source)
    }

    /// A value that must be a tensor, and be as it is stored: not quantised.
    pub(crate) fn tensor(&self, id: Id) -> Result<Single> {
        let view = match self.pickle.at(id) {
            Value::Tensor(view) if view.quantiser.is_none() => view,
            Value::Tensor(_) => return Err(Error::new(ErrorKind::Unsupported, "it is a quantised tensor")),
            Value::Refused(refusal) => {
                let what = match refusal.kind {
                    ErrorKind::Unsupported => format!("it is {}", refusal.what),
                    _ => refusal.what.clone(),
                };
                return Err(Error::new(refusal.kind, what));
            }
            _ => return Err(Error::new(ErrorKind::Malformed, "what was saved is no tensor")),
        };
        let storage = self.pickle.storages.get(view.storage as usize);
        let storage = storage.ok_or_else(|| Error::new(ErrorKind::Internal, "no such storage"))?;
        let data = view::bytes(view, self.storage(storage)?, self.swap)?;
        Ok(Single { element: view.element, shape: view.shape.clone(), data })
    }
}

pub(super) fn read(input: &Input, options: &Options) -> Result<Contents> {
    let opened = Opened::of(input.whole(), options)?;
    let open = |found: &Storage| opened.storage(found);
    let storages = Storages { open, swap: opened.swap, file_len: input.size() };
    let mut all = contents(&opened.pickle, storages, options)?;
    let (archive, directory) = (&opened.archive, &*opened.directory);
    jit::constants(
        &mut all,
        jit::is_frozen(&opened.pickle),
        archive,
        directory,
        (input, opened.swap),
        options,
    )?;
    Ok(all)
}

/// A tensor that was saved by itself.
pub(crate) struct Single {
    pub(crate) element: Element,
    /// Of elements.
    pub(crate) shape: Vec<usize>,
    /// Row by row, little-endian.
    pub(crate) data: Arc<dyn Source>,
}

/// The tensor that a part of a file holds as an archive of its own.
pub(crate) fn single(part: FilePart, options: &Options) -> Result<Single> {
    let opened = Opened::of(part, options)?;
    opened.tensor(opened.pickle.root)
}

/// A storage in a directory of the archive.
pub(super) fn storage(
    archive: &Archive,
    directory: &str,
    storage: &Storage,
    pickle: &Arc<dyn Source>,
) -> Result<Arc<dyn Source>> {
    let Place::Key(key) = &storage.place else { return inline(storage, pickle) };
    let name = format!("{directory}{key}");
    let missing = || Error::new(ErrorKind::Malformed, format!("its storage {name:?} is not in the archive"));
    let member = archive.member(&name).ok_or_else(missing)?;
    super::of_size(Arc::new(archive.bytes(member)?), storage)
}
