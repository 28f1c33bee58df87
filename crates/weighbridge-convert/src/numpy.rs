//! NumPy's arrays, `.npy`, and `.npz` with several: read, and written by [`npy`] and [`npz`].

pub(crate) mod dtypes;
mod header;
#[cfg(feature = "fs")]
mod write;

use weighbridge::{Result, Source};

use crate::archive::Archive;
use crate::arranged::{Order, arranged};
use crate::contents::{Contents, Tensor};
use crate::cursor::malformed;
use crate::input::{FilePart, Head, Input};
use crate::note::{Note, NoteKind};
use crate::options::Options;
use header::{Found, Header};

#[cfg(feature = "fs")]
use header::MOST_DIMS;
pub(crate) use header::{MAGIC, end};
#[cfg(feature = "fs")]
pub use write::{npy, npz};

/// Of the members of an archive.
const EXTENSION: &str = ".npy";

/// Reads one array; it has the name of the file.
pub(crate) fn read(input: &Input, options: &Options) -> Result<Contents> {
    let name = input.path().file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let mut contents = Contents::default();
    array(&mut contents, name, input.whole(), options)?;
    Ok(contents)
}

/// Whether an archive is NumPy's: there are arrays in it.
pub(crate) fn is_archive(archive: &Archive) -> bool {
    archive.members().iter().any(|member| member.name.ends_with(EXTENSION))
}

/// Reads an archive; each array has the name of its member.
pub(crate) fn read_archive(archive: &Archive, options: &Options) -> Result<Contents> {
    let mut contents = Contents::default();
    for member in archive.members() {
        if let Some(name) = member.name.strip_suffix(EXTENSION) {
            if options.wants(name) {
                array(&mut contents, name.to_owned(), archive.verified(member)?, options)?;
            } else {
                contents.unchosen += 1;
            }
        } else if !member.name.ends_with('/') {
            let why = "it is not an array: its name does not end in .npy";
            contents.notes.push(Note::new(NoteKind::Dropped, &member.name, why));
        }
    }
    Ok(contents)
}

/// Adds the tensor that an array is.
fn array(contents: &mut Contents, name: String, file: FilePart, options: &Options) -> Result<()> {
    if !options.wants(&name) {
        contents.unchosen += 1;
        return Ok(());
    }
    match Header::read(&file).map_err(|error| error.in_tensor(&name))? {
        Found::Unheld(what) => contents.leave_out(options, &name, &what),
        Found::Array(header) => {
            let (tensor, note) = tensor(&name, &header, &file).map_err(|error| error.in_tensor(&name))?;
            contents.tensors.push(tensor);
            contents.notes.extend(note);
            Ok(())
        }
    }
}

/// The tensor that an array is, and what is to be said of it.
fn tensor(name: &str, header: &Header, file: &FilePart) -> Result<(Tensor, Option<Note>)> {
    let &Header { dtype, big, fortran, ref shape, data } = header;
    let len = dtype.size_of(shape)?;
    let left = file.size().saturating_sub(data);
    let part = data.checked_add(len).and_then(|end| file.narrow(data..end)).ok_or_else(|| {
        malformed(format!("{dtype} of shape {shape:?} needs {len} bytes, the file has {left}"))
    })?;
    // NumPy reads past them without a word.
    let note = (left > len).then(|| {
        let next = file.head(data + len, MAGIC.len()).unwrap_or_default();
        let another = if next == MAGIC { ", which begin with another array" } else { "" };
        let why = format!("{} bytes behind the array's {len}{another}", left - len);
        Note::new(NoteKind::Dropped, name, why)
    });
    let data = arranged(part, dtype, shape, Order { big, fortran });
    Ok((Tensor { name: name.to_owned(), dtype, shape: shape.clone(), data }, note))
}
