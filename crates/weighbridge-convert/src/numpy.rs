//! NumPy's arrays, `.npy`, and `.npz` with several: read, and written by [`npy`] and [`npz`].

mod header;
mod write;

use weighbridge::{Result, Source};

use crate::archive::Archive;
use crate::arranged::{Order, arranged};
use crate::contents::{Contents, Tensor};
use crate::cursor::malformed;
use crate::input::{FilePart, Input};
use crate::note::{Note, NoteKind};
use crate::options::Options;
use header::Header;

pub(crate) use header::MAGIC;
pub use write::{npy, npz};

/// Where an array of plain numbers ends, which may be beyond the end of the file; `None` if it is anything else.
pub(crate) fn end_of_numbers(file: &FilePart) -> Option<u64> {
    let header = Header::read(file).ok()?;
    header.data.checked_add(header.dtype.size_of(&header.shape).ok()?)
}

/// Of the members of an archive.
const EXTENSION: &str = ".npy";

/// Reads one array; it has the name of the file.
pub(crate) fn read(input: &Input, _options: &Options) -> Result<Contents> {
    let name = input.path().file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let whole = input.part(0..input.size()).ok_or_else(|| malformed("it has no bytes"))?;
    let (tensor, notes) = array(name, whole)?;
    Ok(Contents { tensors: vec![tensor], notes, ..Contents::default() })
}

/// Whether an archive is NumPy's: nothing but arrays.
pub(crate) fn is_archive(archive: &Archive) -> bool {
    !archive.members().is_empty() && archive.members().iter().all(|member| member.name.ends_with(EXTENSION))
}

/// Reads an archive; each array has the name of its member.
pub(crate) fn read_archive(archive: &Archive, _options: &Options) -> Result<Contents> {
    let mut contents = Contents::default();
    for member in archive.members() {
        let name = member.name.strip_suffix(EXTENSION).unwrap_or(&member.name);
        let (tensor, notes) = array(name.to_owned(), archive.bytes(member)?)?;
        contents.tensors.push(tensor);
        contents.notes.extend(notes);
    }
    Ok(contents)
}

/// The tensor that an array is, and what is to be said of it.
pub(crate) fn array(name: String, file: FilePart) -> Result<(Tensor, Vec<Note>)> {
    let read = || {
        let Header { dtype, big, fortran, shape, data } = Header::read(&file)?;
        let len = dtype.size_of(&shape)?;
        let left = file.size() - data;
        let mut notes = Vec::new();
        if left > len {
            let why = format!("{} bytes behind the array's {len}", left - len);
            notes.push(Note::new(NoteKind::Dropped, &name, why));
        }
        let part = data.checked_add(len).and_then(|end| file.part(data..end)).ok_or_else(|| {
            malformed(format!("{dtype} of shape {shape:?} needs {len} bytes, the file has {left}"))
        })?;
        let data = arranged(part, dtype, &shape, Order { big, fortran });
        Ok((Tensor { name: name.clone(), dtype, shape, data }, notes))
    };
    read().map_err(|error: weighbridge::Error| error.in_tensor(&name))
}
