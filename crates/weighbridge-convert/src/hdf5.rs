//! HDF5, as Keras and TensorFlow write weights.

#[cfg(feature = "hdf5")]
mod dataset;
#[cfg(feature = "hdf5")]
mod datatype;
#[cfg(feature = "hdf5")]
mod links;
#[cfg(feature = "hdf5")]
mod lzf;
#[cfg(feature = "hdf5")]
mod read;

use weighbridge::{Result, Source};

use crate::archive::Archive;
use crate::contents::Contents;
use crate::cursor::malformed;
use crate::input::{FilePart, Input};
use crate::note::{Note, NoteKind};
use crate::options::Options;

/// What every such file begins with, unless somebody else's bytes are in front.
pub(crate) const MAGIC: &[u8] = b"\x89HDF\r\n\x1a\n";

/// The member of a Keras archive that has the weights.
const WEIGHTS: &str = "model.weights.h5";

/// Reads a file that was recognised.
pub(crate) fn read(input: &Input, options: &Options) -> Result<Contents> {
    read_part(input.whole(), options)
}

/// Whether an archive is Keras'.
pub(crate) fn is_keras(archive: &Archive) -> bool {
    archive.member(WEIGHTS).is_some()
}

/// Reads an archive of Keras'.
pub(crate) fn read_keras(archive: &Archive, options: &Options) -> Result<Contents> {
    let member = archive.member(WEIGHTS).ok_or_else(|| malformed(format!("it has no {WEIGHTS}")))?;
    let mut contents = read_part(archive.bytes(member)?, options)?;
    for other in archive.members().iter().filter(|other| other.name != WEIGHTS) {
        contents.notes.push(Note::new(NoteKind::Dropped, &other.name, "it has no weights"));
    }
    Ok(contents)
}

/// Where the file begins: behind a block of its user's, which has 512 bytes or a power of two more.
pub(crate) fn start(file: &dyn Source) -> Option<u64> {
    let places = std::iter::once(0).chain((9..63).map(|power| 1_u64 << power));
    let mut places = places.take_while(|place| place + MAGIC.len() as u64 <= file.size());
    places.find(|&place| {
        let mut head = [0; MAGIC.len()];
        file.read_at(place, &mut head).is_ok() && head == MAGIC
    })
}

#[cfg(feature = "hdf5")]
fn read_part(file: FilePart, options: &Options) -> Result<Contents> {
    read::read(file, options)
}

#[cfg(not(feature = "hdf5"))]
fn read_part(_: FilePart, _: &Options) -> Result<Contents> {
    Err(crate::cursor::unsupported(
        "it is HDF5, which is read with the feature `hdf5` of weighbridge-convert only",
    ))
}
