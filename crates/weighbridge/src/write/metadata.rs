//! Changing the metadata of a file that is there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::layout::{Entry, check_length, encode, pad};
use super::output::OutputFile;
use super::recover::complete_pending;
use crate::error::{Error, ErrorKind, Result};
use crate::file_names::directory_of;
use crate::header::{Decode, Header};
use crate::source::FileSource;

/// Changes entries of a file's `__metadata__`.
///
/// The file is written anew beside the old one and renamed to it, as [`Save::file`](super::Save::file) does;
/// the data is copied by the kernel, or shared where the file system can. Data that started at a multiple of
/// a power of two, up to 4096, starts at one again.
///
/// ```no_run
/// use weighbridge::write::MetadataEdit;
///
/// # fn main() -> weighbridge::Result<()> {
/// MetadataEdit::new().set("format", "pt").remove("comment").apply("model.safetensors")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct MetadataEdit {
    clear: bool,
    changes: BTreeMap<String, Option<String>>,
    in_place: bool,
    decode: Decode,
}

impl MetadataEdit {
    /// No change yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets an entry.
    #[must_use]
    pub fn set(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.changes.insert(key.into(), Some(value.into()));
        self
    }

    /// Removes an entry; it need not be there.
    #[must_use]
    pub fn remove(mut self, key: impl Into<String>) -> Self {
        self.changes.insert(key.into(), None);
        self
    }

    /// Removes all entries that are not set.
    #[must_use]
    pub fn clear(mut self) -> Self {
        self.clear = true;
        self
    }

    /// Writes the new header over the old one, where it has room for it, instead of writing the file anew.
    /// **Not atomic**: when the machine stops in the middle, the header is lost and with it the file. A
    /// program that reads it meanwhile may see both headers mixed.
    #[must_use]
    pub fn in_place(mut self) -> Self {
        self.in_place = true;
        self
    }

    /// Sets how strictly, and up to which length, the header is read.
    #[must_use]
    pub fn decode(mut self, decode: Decode) -> Self {
        self.decode = decode;
        self
    }

    /// Changes a file.
    ///
    /// # Errors
    ///
    /// Fails when the file is not valid or cannot be written, and with [`ErrorKind::Busy`] when somebody else
    /// has written it meanwhile; it is as it was then. With [`in_place`](Self::in_place), fails with
    /// [`ErrorKind::NoRoom`] when the new header is longer than the old one.
    pub fn apply(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let apply = || {
            let cannot = |error| Error::io("it cannot be opened", error);
            if let Some(name) = path.file_name() {
                complete_pending(directory_of(path), name)?;
            }
            let source = match self.in_place {
                true => FileSource::open_to_write(path),
                false => FileSource::open(path),
            };
            let source = source?;
            let header = self.decode.read(&source)?;
            let metadata = self.changed(&header);
            let mut new = encode(&metadata, entries(&header));
            if self.in_place {
                return over(source.file(), &header, new);
            }
            pad(&mut new, alignment(header.data_start()));
            check_length(&new)?;
            let mut output = OutputFile::atomic(path)?;
            let old = source.file();
            copy_behind(&new, old, &header, &mut output)
                .map_err(|error| Error::io("it cannot be copied", error))?;
            if !is_still(old, path).map_err(cannot)? {
                return Err(Error::new(ErrorKind::Busy, "it was changed while it was copied"));
            }
            output.commit()
        };
        apply().map_err(|error: Error| error.in_file(path))
    }

    fn changed(&self, header: &Header) -> BTreeMap<String, String> {
        let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let mut metadata = BTreeMap::new();
        if !self.clear {
            metadata.extend(header.metadata().into_iter().flatten().map(owned));
        }
        for (key, value) in &self.changes {
            match value {
                Some(value) => drop(metadata.insert(key.clone(), value.clone())),
                None => drop(metadata.remove(key)),
            }
        }
        metadata
    }
}

/// Entries of a header that was read.
fn entries(header: &Header) -> impl Iterator<Item = Entry<'_>> {
    header.tensors().map(|tensor| Entry {
        name: tensor.name(),
        dtype: tensor.dtype(),
        shape: tensor.shape(),
        data: tensor.data_offsets(),
    })
}

/// The power of two at a multiple of which the data starts, as far as somebody may have meant it.
fn alignment(data_start: u64) -> u64 {
    (1 << data_start.trailing_zeros()).clamp(8, 4096)
}

/// The new header, and the old data behind it.
fn copy_behind(new: &[u8], mut old: &File, header: &Header, output: &mut OutputFile) -> io::Result<()> {
    output.write_all(new)?;
    old.seek(SeekFrom::Start(header.data_start()))?;
    // Between two files this is copy_file_range on Linux.
    let copied = io::copy(&mut old.take(header.data_len()), &mut output.raw()?)?;
    if copied != header.data_len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// Whether a path still leads to the file that was opened, and nobody has written to it.
fn is_still(file: &File, path: &Path) -> io::Result<bool> {
    let (old, new) = (file.metadata()?, fs::metadata(path)?);
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        if (old.dev(), old.ino()) != (new.dev(), new.ino()) {
            return Ok(false);
        }
    }
    Ok((old.len(), old.modified()?) == (new.len(), new.modified()?))
}

fn over(mut file: &File, header: &Header, mut new: Vec<u8>) -> Result<()> {
    let room = usize::try_from(header.data_start()).unwrap_or(usize::MAX);
    if new.len() > room {
        let (needs, has) = (new.len() - 8, room - 8);
        let message = format!("the new header needs {needs} bytes, the one in the file has {has}");
        return Err(Error::new(ErrorKind::NoRoom, message));
    }
    new.resize(room, b' ');
    new[..8].copy_from_slice(&(room as u64 - 8).to_le_bytes());
    let mut write = || {
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&new)?;
        file.sync_all()
    };
    write().map_err(|error| Error::io("it cannot be written", error))
}
