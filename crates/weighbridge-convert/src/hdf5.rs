//! HDF5, as Keras and TensorFlow write weights: every dataset of numbers is a tensor, its path the name. Read by the crate
//! `hdf5-reader`; what lies in one piece is not read by it, but from where it is.

mod dataset;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use hdf5_reader::group::Group;
use hdf5_reader::storage::{Storage, StorageBuffer};
use hdf5_reader::{Hdf5File, OpenOptions};
use weighbridge::{Error, ErrorKind, Result, Source};

use crate::archive::Archive;
use crate::contents::Contents;
use crate::cursor::{malformed, unsupported};
use crate::input::{FilePart, Input};
use crate::note::{Note, NoteKind};
use crate::options::Options;
use crate::spool::Spool;

/// What every such file begins with.
pub(crate) const MAGIC: &[u8] = b"\x89HDF\r\n\x1a\n";

/// The member of a Keras archive that has the weights.
const WEIGHTS: &str = "model.weights.h5";

/// Groups in groups.
const DEEPEST: u32 = 64;
const MOST: usize = 1 << 20;
/// Longer texts are not kept in the metadata.
const LONGEST: usize = 64 << 10;
/// Of a chunk, decompressed.
const LARGEST_CHUNK: usize = 64 << 20;

/// Reads a file that was recognised.
pub(crate) fn read(input: &Input, _options: &Options) -> Result<Contents> {
    let whole = input.part(0..input.size()).ok_or_else(|| malformed("it has no bytes"))?;
    read_part(whole)
}

/// Whether an archive is Keras'.
pub(crate) fn is_keras(archive: &Archive) -> bool {
    archive.member(WEIGHTS).is_some()
}

/// Reads an archive of Keras'.
pub(crate) fn read_keras(archive: &Archive, _options: &Options) -> Result<Contents> {
    let member = archive.member(WEIGHTS).ok_or_else(|| malformed(format!("it has no {WEIGHTS}")))?;
    let mut contents = read_part(archive.bytes(member)?)?;
    for other in archive.members().iter().filter(|other| other.name != WEIGHTS) {
        contents.notes.push(Note::new(NoteKind::Dropped, &other.name, "it has no weights"));
    }
    Ok(contents)
}

fn read_part(file: FilePart) -> Result<Contents> {
    let options = OpenOptions::default()
        .with_chunk_cache_bytes(0)
        .with_max_chunk_bytes(LARGEST_CHUNK)
        .with_max_read_bytes(dataset::AT_ONCE)
        .with_max_object_header_bytes(4 << 20);
    let reader =
        Hdf5File::from_storage_with_options(Arc::new(Bytes(file.clone())), options).map_err(broken)?;
    let root = reader.root_group().map_err(broken)?;
    let mut walk = Walk {
        datasets: dataset::Datasets { file, reader, spool: Spool::default(), made: 0 },
        contents: Contents::default(),
        seen: HashSet::new(),
        text: 0,
    };
    walk.properties(&root);
    walk.group(&root, "", 0)?;
    Ok(walk.contents)
}

struct Walk {
    datasets: dataset::Datasets,
    contents: Contents,
    /// The groups that were walked: links may go in circles.
    seen: HashSet<u64>,
    /// Bytes of all names together.
    text: usize,
}

impl Walk {
    fn group(&mut self, group: &Group, path: &str, depth: u32) -> Result<()> {
        if depth > DEEPEST {
            return Err(malformed(format!("groups are nested deeper than {DEEPEST}")));
        }
        if !self.seen.insert(group.address()) {
            self.contents.notes.push(Note::new(
                NoteKind::Dropped,
                path,
                "another name of a group that was read",
            ));
            return Ok(());
        }
        let (groups, datasets) = group.members().map_err(broken)?;
        // Names in the order of the file differ from writer to writer.
        let names: BTreeSet<_> = datasets.iter().map(|dataset| dataset.name().to_owned()).collect();
        if names.len() != datasets.len() {
            return Err(malformed(format!("two datasets of one name are in {path:?}")));
        }
        for dataset in datasets {
            let name = format!("{path}{}", dataset.name());
            self.count(&name)?;
            match self.datasets.tensor(&name, &dataset).map_err(|error| error.in_tensor(&name))? {
                Ok(tensor) => self.contents.tensors.push(tensor),
                Err(why) => self.contents.notes.push(Note::new(NoteKind::Dropped, name, why)),
            }
        }
        for group in groups {
            let path = format!("{path}{}/", group.name());
            self.count(&path)?;
            self.group(&group, &path, depth + 1)?;
        }
        Ok(())
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
        for attribute in root.attributes().unwrap_or_default() {
            let name = attribute.name.clone();
            match attribute.read_string() {
                Ok(text) if text.len() <= LONGEST => drop(self.contents.metadata.insert(name, text)),
                Ok(text) => {
                    let why = format!("a text of {} bytes, too long for the metadata", text.len());
                    self.contents.notes.push(Note::new(NoteKind::Dropped, name, why));
                }
                Err(_) => self.contents.notes.push(Note::new(
                    NoteKind::Dropped,
                    name,
                    "an attribute that is no text",
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

fn broken(error: hdf5_reader::error::Error) -> Error {
    use hdf5_reader::error::Error as Theirs;
    let message = error.to_string();
    match &error {
        Theirs::Io(_) => Error::new(ErrorKind::Io, message),
        Theirs::ResourceLimit { .. } | Theirs::UnsupportedFilter(_) => unsupported(message),
        _ => malformed(message),
    }
}
