//! The way back: tensors as NumPy's arrays, streamed, and there when they are whole.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;

use weighbridge::write::{OutputFile, TensorData};
use weighbridge::{Dtype, Error, ErrorKind, Result};
use zip::write::{SimpleFileOptions, ZipWriter};

use super::{EXTENSION, MOST_DIMS};
use crate::note::{Note, NoteKind};

/// Before NumPy 2.
const OLD_MOST_DIMS: usize = 32;

/// Writes one tensor as `.npy`; returns a warning if it has more dimensions than NumPy 1 reads.
///
/// # Errors
///
/// Fails with [`ErrorKind::Dtype`] for a dtype that NumPy does not have (cast it, to F32 say), with [`ErrorKind::Shape`] for more
/// than its 64 dimensions, when the tensor cannot be read, and when the file cannot be written. The destination is as it
/// was then.
pub fn npy<T: TensorData>(path: impl AsRef<Path>, tensor: &T) -> Result<Vec<Note>> {
    let path = path.as_ref();
    let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let write = || {
        let header = header(tensor)?;
        let mut file = OutputFile::atomic(path)?;
        file.expect(header.len() as u64 + tensor.dtype().size_of(tensor.shape())?)?;
        array(&header, tensor, &mut file)?;
        file.commit()?;
        Ok(old_numpy(&name, tensor.shape()).into_iter().collect())
    };
    write().map_err(|error: Error| error.in_file(path))
}

/// Writes tensors as `.npz`, uncompressed: what `numpy.load` gives by name; returns what is to be said of them.
///
/// # Errors
///
/// As [`npy`], and with [`ErrorKind::TensorName`] for names that no member should have: empty, absolute, with `..`, backslashes or
/// NUL in them, or two that are one to NumPy.
pub fn npz<N: Into<String>, T: TensorData>(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = (N, T)>,
) -> Result<Vec<Note>> {
    let path = path.as_ref();
    let tensors: Vec<(String, T)> = tensors.into_iter().map(|(name, tensor)| (name.into(), tensor)).collect();
    let write = || {
        let mut headers = Vec::with_capacity(tensors.len());
        let mut notes = Vec::new();
        let names: HashSet<&str> = tensors.iter().map(|(name, _)| &**name).collect();
        for (name, tensor) in &tensors {
            let checked = check_name(name, &names).and_then(|()| header(tensor));
            headers.push(checked.map_err(|error| error.in_tensor(name))?);
            notes.extend(old_numpy(name, tensor.shape()));
        }
        if names.len() < tensors.len() {
            return Err(Error::new(ErrorKind::DuplicateTensor, "two tensors have one name"));
        }
        let mut zip = ZipWriter::new_stream(OutputFile::atomic(path)?);
        for ((name, tensor), header) in tensors.iter().zip(&headers) {
            let mut write = || {
                let bytes = header.len() as u64 + tensor.dtype().size_of(tensor.shape())?;
                // The same tensors give the same bytes: members have no time of their own.
                let options = SimpleFileOptions::default()
                    .compression_method(zip::CompressionMethod::Stored)
                    .last_modified_time(zip::DateTime::default())
                    .large_file(bytes >= u64::from(u32::MAX));
                zip.start_file(format!("{name}{EXTENSION}"), options).map_err(unzipped)?;
                array(header, tensor, &mut zip)
            };
            write().map_err(|error: Error| error.in_tensor(name))?;
        }
        zip.finish().map_err(unzipped)?.into_inner().commit()?;
        Ok(notes)
    };
    write().map_err(|error: Error| error.in_file(path))
}

/// A name that is a file within the directory that the archive is unpacked into, on every system, and that NumPy finds.
fn check_name(name: &str, all: &HashSet<&str>) -> Result<()> {
    let is_drive = matches!(name.as_bytes(), [letter, b':', ..] if letter.is_ascii_alphabetic());
    let what = if name.is_empty() {
        "an empty name"
    } else if name.starts_with('/') || is_drive || name.split('/').any(|part| part == "..") {
        "a name that leads out of an archive"
    } else if name.contains('\\') {
        "a name with a backslash, which separates directories on Windows"
    } else if name.contains('\0') {
        "a name with a NUL"
    } else if name.len() + EXTENSION.len() > usize::from(u16::MAX) {
        "a name that is longer than archives have them"
    } else if name.strip_suffix(EXTENSION).is_some_and(|other| all.contains(other)) {
        "a name that NumPy takes for that of the tensor without .npy"
    } else {
        return Ok(());
    };
    let message = format!("it has {what}; rename it (--rename)");
    Err(Error::new(ErrorKind::TensorName, message))
}

/// That NumPy 1 does not read a shape.
fn old_numpy(name: &str, shape: &[usize]) -> Option<Note> {
    let dims = shape.len();
    let why = format!("it has {dims} dimensions; NumPy reads more than {OLD_MOST_DIMS} since version 2");
    (dims > OLD_MOST_DIMS).then(|| Note::new(NoteKind::Kept, name, why))
}

/// Writes an array, whose bytes must be as many as its shape needs.
fn array<T: TensorData>(header: &[u8], tensor: &T, out: &mut dyn Write) -> Result<()> {
    out.write_all(header).map_err(unwritten)?;
    let mut counted = Counted { out, bytes: 0 };
    tensor.write_to(&mut counted).map_err(unwritten)?;
    let need = tensor.dtype().size_of(tensor.shape())?;
    if counted.bytes != need {
        let message = format!("its shape needs {need} bytes, it has {}", counted.bytes);
        return Err(Error::new(ErrorKind::TensorSize, message));
    }
    Ok(())
}

struct Counted<'o> {
    out: &'o mut dyn Write,
    bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.out.write(buf)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The header, with spaces until the elements begin at a multiple of 64, as NumPy has it.
fn header<T: TensorData>(tensor: &T) -> Result<Vec<u8>> {
    let shape = tensor.shape();
    if shape.len() > MOST_DIMS {
        let message = format!("it has {} dimensions, NumPy at most {MOST_DIMS}", shape.len());
        return Err(Error::new(ErrorKind::Shape, message));
    }
    // NumPy multiplies the dimensions that are not zero, too.
    let width = tensor.dtype().bits().div_ceil(8).into();
    let bytes = shape.iter().try_fold(width, |bytes: u64, &dim| bytes.checked_mul(dim.max(1) as u64));
    if bytes.is_none_or(|bytes| i64::try_from(bytes).is_err()) {
        return Err(Error::new(ErrorKind::Shape, format!("its shape {shape:?} is too large for NumPy")));
    }
    let dims: Vec<_> = tensor.shape().iter().map(usize::to_string).collect();
    let shape = match &dims[..] {
        [one] => format!("({one},)"),
        dims => format!("({})", dims.join(", ")),
    };
    let descr = descr(tensor.dtype())?;
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    let len = (10 + text.len() + 1).next_multiple_of(64) - 10;
    let short = u16::try_from(len).map_err(|_| Error::new(ErrorKind::Internal, "its header is too long"))?;
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend(short.to_le_bytes());
    header.extend(text.as_bytes());
    header.resize(10 + len - 1, b' ');
    header.push(b'\n');
    Ok(header)
}

fn descr(dtype: Dtype) -> Result<&'static str> {
    Ok(match dtype {
        Dtype::Bool => "|b1",
        Dtype::I8 => "|i1",
        Dtype::U8 => "|u1",
        Dtype::I16 => "<i2",
        Dtype::U16 => "<u2",
        Dtype::I32 => "<i4",
        Dtype::U32 => "<u4",
        Dtype::I64 => "<i8",
        Dtype::U64 => "<u8",
        Dtype::F16 => "<f2",
        Dtype::F32 => "<f4",
        Dtype::F64 => "<f8",
        Dtype::C64 => "<c8",
        Dtype::F6_E2M3 | Dtype::F6_E3M2 => {
            let message = format!(
                "NumPy has no {dtype}, and values of it have no agreed packing; leave the tensor out"
            );
            return Err(Error::new(ErrorKind::Dtype, message));
        }
        _ => {
            let message = format!("NumPy has no {dtype}; cast it to one that it has, such as F32");
            return Err(Error::new(ErrorKind::Dtype, message));
        }
    })
}

fn unwritten(error: io::Error) -> Error {
    Error::io("it cannot be written", error)
}

fn unzipped(error: zip::result::ZipError) -> Error {
    match error {
        zip::result::ZipError::Io(error) => unwritten(error),
        error => Error::new(ErrorKind::Internal, format!("it cannot be written: {error}")),
    }
}
