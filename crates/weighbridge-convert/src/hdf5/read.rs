//! Every dataset of numbers is a tensor, its path the name. Read by the crate `hdf5-reader`; what lies in one piece is not read by
//! it, but from where it is.

use std::collections::HashSet;
use std::sync::Arc;

use hdf5_reader::error::Error as Theirs;
use hdf5_reader::group::Group;
use hdf5_reader::storage::{Storage, StorageBuffer};
use hdf5_reader::{Dataset, Hdf5File, OpenOptions};
use weighbridge::{Error, ErrorKind, Result, Source};

use super::dataset::{self, Found};
use super::datatype::Numbers;
use super::links::{self, Child, Children, Link};
use super::{lzf, start};
use crate::contents::Contents;
use crate::cursor::{malformed, unsupported};
use crate::input::FilePart;
use crate::note::{Note, NoteKind};
use crate::options::Options;
use crate::spool::Spool;

/// Groups in groups.
const DEEPEST: u32 = 64;
const MOST: usize = 1 << 20;
/// Longer texts are not kept in the metadata.
const LONGEST: usize = 64 << 10;
/// Of a chunk, decompressed.
const LARGEST_CHUNK: usize = 64 << 20;

pub(super) fn read(file: FilePart, options: &Options) -> Result<Contents> {
    // Positions in the file are counted from there.
    let start = start(&file).ok_or_else(|| malformed("it is not an HDF5 file"))?;
    let file = file.narrow(start..file.size()).ok_or_else(|| malformed("it has no bytes"))?;
    let settings = OpenOptions::default()
        .with_chunk_cache_bytes(0)
        .with_max_chunk_bytes(LARGEST_CHUNK)
        .with_max_read_bytes(dataset::AT_ONCE)
        .with_max_object_header_bytes(4 << 20)
        .with_filter_registry(lzf::filters(LARGEST_CHUNK));
    let reader =
        Hdf5File::from_storage_with_options(Arc::new(Bytes(file.clone())), settings).map_err(broken)?;
    let root = reader.root_group().map_err(broken)?;
    let mut walk = Walk {
        datasets: dataset::Datasets { file, reader, spool: Spool::default(), made: 0 },
        options,
        contents: Contents::default(),
        seen: HashSet::new(),
        text: 0,
    };
    walk.properties(&root);
    walk.group(&root, "", 0)?;
    Ok(walk.contents)
}

struct Walk<'o> {
    datasets: dataset::Datasets,
    options: &'o Options,
    contents: Contents,
    /// The groups that were walked: links may go in circles.
    seen: HashSet<u64>,
    /// Bytes of all names together.
    text: usize,
}

impl Walk<'_> {
    fn group(&mut self, group: &Group, path: &str, depth: u32) -> Result<()> {
        if depth > DEEPEST {
            return Err(malformed(format!("groups are nested deeper than {DEEPEST}")));
        }
        if !self.seen.insert(group.address()) {
            self.note(path, "another name of a group that was read");
            return Ok(());
        }
        // By name: the order in the file differs from writer to writer.
        let links = links::links(&self.datasets.reader, group).map_err(broken)?;
        let mut children = Children::of(group, links.len()).map_err(broken)?;
        let mut groups = Vec::new();
        for (own, link) in links {
            let name = format!("{path}{own}");
            self.count(&name)?;
            if let Link::External(file) = &link {
                self.note(&name, &format!("a link into the file {file:?}, which is not followed"));
                continue;
            }
            match (children.take(&own), link) {
                (_, Link::Twice) => {
                    return Err(malformed(format!("two objects of the name {own:?} are in {path:?}")));
                }
                (Ok(Child::Dataset(dataset)), _) => self.dataset(&name, &dataset)?,
                // A group that is there has a name of its own, too.
                (Ok(_), Link::Soft(target)) => {
                    self.note(&name, &format!("a link to {target:?}, which is not another dataset"));
                }
                (Ok(Child::Group(group)), _) => groups.push((group, name)),
                (Ok(Child::Nothing), _) => self.note(&name, "it is neither dataset nor group"),
                (Err(error), _) => self.refuse(&name, broken(error))?,
            }
        }
        for (group, name) in groups {
            self.group(&group, &format!("{name}/"), depth + 1)?;
        }
        Ok(())
    }

    fn dataset(&mut self, name: &str, dataset: &Dataset) -> Result<()> {
        if !self.options.wants(name) {
            self.contents.unchosen += 1;
            return Ok(());
        }
        match self.datasets.read(name, dataset) {
            Ok(Found::Tensor(tensor, numbers)) => {
                self.contents.tensors.push(tensor);
                self.describe(name, numbers);
            }
            Ok(Found::Text) => self.note(name, "it is text, which safetensors cannot hold"),
            Ok(Found::Empty) => self.note(name, "it is empty: it has neither elements nor a shape"),
            Ok(Found::Other(what)) => self.contents.leave_out(self.options, name, &what)?,
            Err(error) => self.refuse(name, error)?,
        }
        Ok(())
    }

    /// What became of numbers that safetensors has in another way, or that were guessed.
    fn describe(&mut self, name: &str, numbers: Numbers) {
        let mut changed = |why: String| self.contents.notes.push(Note::new(NoteKind::Changed, name, why));
        if let Some(complex) = numbers.pair {
            changed(format!("complex numbers as pairs of {} in a last dimension of 2", numbers.dtype));
            self.contents.put(format!("{name}.dtype"), complex);
        } else if numbers.guessed {
            changed(format!("raw bytes, taken for {}", numbers.dtype));
        }
    }

    /// A dataset that cannot be read: not chosen, left out with a note if that is no fault of the file, or an error.
    fn refuse(&mut self, name: &str, error: Error) -> Result<()> {
        match (self.options.wants(name), error.kind()) {
            (false, _) => self.contents.unchosen += 1,
            (true, ErrorKind::Unsupported) if self.options.skip_unsupported => {
                self.note(name, &error.to_string());
            }
            _ => return Err(error.in_tensor(name)),
        }
        Ok(())
    }

    fn note(&mut self, name: &str, why: &str) {
        self.contents.notes.push(Note::new(NoteKind::Dropped, name, why));
    }

    fn count(&mut self, name: &str) -> Result<()> {
        self.text += name.len() + 1;
        if self.text > 64 * MOST || self.contents.tensors.len() > MOST {
            return Err(malformed(format!(
                "it has more than {MOST} tensors, or names of {} bytes",
                64 * MOST
            )));
        }
        Ok(())
    }

    /// What the file says about itself: the model's configuration, and who wrote it.
    fn properties(&mut self, root: &Group) {
        let attributes = root.attributes().unwrap_or_else(|error| {
            self.note("attributes", &format!("they cannot be read: {}", told(&error)));
            Vec::new()
        });
        for attribute in attributes {
            let name = attribute.name.clone();
            match attribute.read_string() {
                Ok(text) if text.len() <= LONGEST => self.contents.put(name, text),
                Ok(text) => {
                    let why = format!("a text of {} bytes, too long for the metadata", text.len());
                    self.contents.notes.push(Note::new(NoteKind::Dropped, name, why));
                }
                Err(_) => self.contents.notes.push(Note::new(
                    NoteKind::Dropped,
                    name,
                    "an attribute that is not text",
                )),
            }
        }
    }
}

/// The file, as the reader wants it.
struct Bytes(FilePart);

impl Storage for Bytes {
    fn len(&self) -> u64 {
        self.0.size()
    }

    fn read_range(&self, offset: u64, len: usize) -> hdf5_reader::error::Result<StorageBuffer> {
        // Before memory for it is asked for.
        if offset.checked_add(len as u64).is_none_or(|end| end > self.0.size()) {
            return Err(hdf5_reader::error::Error::OffsetOutOfBounds(offset));
        }
        let mut bytes = vec![0; len];
        self.0.read_at(offset, &mut bytes)?;
        Ok(StorageBuffer::from_vec(bytes))
    }
}

/// What an error says, on one line: it may repeat a name from the file, of any characters and of any length.
fn told(error: &Theirs) -> String {
    const LONGEST: usize = 500;
    let mut line = String::new();
    for character in error.to_string().chars().take(LONGEST) {
        match character.is_control() {
            true => line.extend(character.escape_default()),
            false => line.push(character),
        }
    }
    line
}

pub(super) fn broken(error: Theirs) -> Error {
    let message = told(&error);
    let mut inner = &error;
    while let Theirs::Context { source, .. } = inner {
        inner = source;
    }
    match inner {
        Theirs::Io(_) => Error::new(ErrorKind::Io, message),
        Theirs::UnsupportedDatatypeClass(11) => {
            unsupported("complex numbers in the form of HDF5 2.0 are not read; write a compound of r and i")
        }
        Theirs::ResourceLimit { .. }
        | Theirs::UnsupportedFilter(_)
        | Theirs::UnsupportedEncoding(_)
        | Theirs::UnsupportedDatatypeClass(_)
        | Theirs::UnsupportedLayoutClass(_)
        | Theirs::UnsupportedLayoutVersion(_) => unsupported(message),
        _ => malformed(message),
    }
}
