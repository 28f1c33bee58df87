//! A set of files that replaces another as a whole.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::beside::SideFile;
use super::data::TensorData;
use super::directory::{Directory, Staging, cannot_write, sync_directory};
use super::files::write_file;
use super::layout::{Form, Layout, check_names};
use super::output::OutputFile;
use super::recover::{complete, roll_forward, unless_gone};
use super::split::Split;
use super::tensors::{described, watch};
use crate::error::{Error, ErrorKind, Result};
use crate::file_names;
use crate::index::Index;
use crate::journal::Journal;
use crate::progress::Handler;

/// What [`Save::directory`](super::Save::directory) wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Saved {
    /// The safetensors files.
    pub shards: Vec<PathBuf>,
    /// The index, where there is more than one shard.
    pub index: Option<PathBuf>,
    /// The bytes of all tensors, shared storage counted once: the index's `total_size`.
    pub total_size: u64,
}

/// How a set is written.
#[derive(Debug)]
pub(super) struct SetOptions<'s> {
    pub(super) name: &'s str,
    pub(super) variant: Option<&'s str>,
    pub(super) form: &'s Form,
    pub(super) max_shard_size: u64,
    pub(super) unprotected: bool,
    pub(super) progress: Option<Handler>,
    pub(super) beside: &'s [SideFile],
}

/// A set that is laid out.
pub(super) struct Prepared {
    pub(super) stem: String,
    pub(super) split: Split,
    /// The names of the shards.
    pub(super) files: Vec<String>,
    pub(super) layouts: Vec<Layout>,
    /// The index and its name, where there is more than one shard.
    pub(super) index: Option<(String, Index)>,
}

/// Lays a set out; `names` gives the names of its shards, by the stem of the checkpoint.
pub(super) fn prepare<T: TensorData>(
    options: &SetOptions<'_>,
    tensors: &[(String, T)],
    names: impl Fn(&Split, &str) -> Vec<String>,
) -> Result<Prepared> {
    check_names(tensors.iter().map(|tensor| &*tensor.0))?;
    options.beside.iter().try_for_each(|file| SideFile::check(&file.name))?;
    let (stem, index) = file_names(options.name, options.variant)?;
    let split = split(tensors, options.max_shard_size)?;
    let files = names(&split, &stem);
    let layouts = split.shards().iter().map(|shard| {
        let tensors = shard.iter().map(|&number| described(&tensors[number]));
        Layout::new(options.form, tensors.collect())
    });
    let layouts = layouts.collect::<Result<Vec<_>>>()?;
    let weights = files.iter().zip(split.shards()).flat_map(|(file, shard)| {
        shard.iter().map(move |&number| (tensors[number].0.as_str(), file.as_str()))
    });
    let index = match files.len() {
        1 => None,
        _ => Some((index, Index::new(weights, split.total_size())?)),
    };
    Ok(Prepared { stem, split, files, layouts, index })
}

/// Writes tensors as a set of shards with their index, or as a single file where they fit into one.
pub(super) fn save<T: TensorData>(
    directory: &Path,
    options: SetOptions<'_>,
    tensors: &[(String, T)],
) -> Result<Saved> {
    let Prepared { stem, split, files, layouts, index } = prepare(&options, tensors, Split::file_names)?;
    let mut watch = watch(options.progress, &layouts);
    let mut set = SetWriter::begin(directory, &stem, options.unprotected)?;
    for ((file, layout), shard) in files.iter().zip(layouts).zip(split.shards()) {
        let mut output = set.create(file)?;
        output.expect(layout.size())?;
        write_file(layout, output, |given| &tensors[shard[given]].1, &mut watch)
            .and_then(OutputFile::commit)
            .map_err(|error| error.in_file(&directory.join(file)))?;
    }
    if let Some((file, index)) = &index {
        set.create(file)?.write_and_commit(index.to_json().as_bytes())?;
    }
    for file in options.beside {
        set.directory.write(&file.name, &file.bytes)?;
    }
    set.commit()?;
    Ok(Saved {
        shards: files.iter().map(|file| directory.join(file)).collect(),
        index: index.map(|(file, _)| directory.join(file)),
        total_size: split.total_size(),
    })
}

impl Split {
    /// The names of the shards' files, for a stem such as `model` or `model.fp16`.
    pub(super) fn file_names(&self, stem: &str) -> Vec<String> {
        match self.shards().len() {
            1 => vec![file_names::single(stem)],
            total => (1..=total).map(|number| file_names::shard(stem, number, total)).collect(),
        }
    }
}

/// The stem of a checkpoint's files, and the name of its index.
fn file_names(name: &str, variant: Option<&str>) -> Result<(String, String)> {
    let stem = variant.map_or_else(|| name.to_owned(), |variant| format!("{name}.{variant}"));
    let index = file_names::index(name, variant);
    let own = [&file_names::single(&stem), &index];
    let recognised = own.iter().all(|file| file_names::stem(file).as_deref() == Some(&*stem));
    if !file_names::is_plain(&stem) || !recognised {
        let message = format!("{stem:?} cannot be the name of a checkpoint");
        return Err(Error::new(ErrorKind::ShardName, message));
    }
    Ok((stem, index))
}

fn split<T: TensorData>(tensors: &[(String, T)], max_shard_size: u64) -> Result<Split> {
    let sizes = tensors.iter().map(|(name, data)| {
        let bytes = data.dtype().size_of(data.shape()).map_err(|error| error.in_tensor(name))?;
        Ok((bytes, data.storage()))
    });
    Ok(Split::new(sizes.collect::<Result<Vec<_>>>()?, max_shard_size))
}

/// Takes the files of a new checkpoint and replaces the old one by them.
#[derive(Debug)]
struct SetWriter {
    stem: String,
    files: Vec<String>,
    /// Where the new files are until the switch; `None` if they are written over the old ones. Dropped before
    /// `directory`, which is removed if it was made for nothing.
    staging: Option<Staging>,
    directory: Directory,
}

impl SetWriter {
    fn begin(directory: &Path, stem: &str, unprotected: bool) -> Result<Self> {
        let directory = Directory::create(directory)?;
        complete(directory.path(), stem)?;
        let staging = match unprotected {
            true => None,
            false => Some(directory.staging(file_names::single(stem).as_ref()).map_err(cannot_write)?),
        };
        Ok(Self { stem: stem.to_owned(), files: Vec::new(), staging, directory })
    }

    /// A file of the new set; it is part of it when it was committed.
    fn create(&mut self, file: &str) -> Result<OutputFile> {
        let path = self.directory.path().join(file);
        self.files.push(file.to_owned());
        match &self.staging {
            Some(staging) => OutputFile::staged(&staging.path().join(file), &path),
            None => {
                // A tensor that is still to be written may come from the old file: it keeps its bytes.
                unless_gone(fs::remove_file(&path)).map_err(|error| cannot_write(error).in_file(&path))?;
                OutputFile::unprotected(path)
            }
        }
    }

    /// Makes the new set the checkpoint.
    fn commit(mut self) -> Result<()> {
        let remove = self.superseded().map_err(cannot_write)?;
        let Self { stem, files, staging, directory } = &mut self;
        let path = directory.path();
        let Some(staging) = staging.take() else {
            let removed = remove.iter().try_for_each(|file| fs::remove_file(path.join(file)));
            return removed.and_then(|()| sync_directory(path)).map_err(cannot_write);
        };
        sync_directory(staging.path()).and_then(|()| sync_directory(path)).map_err(cannot_write)?;
        let name = staging.path().file_name().and_then(OsStr::to_str);
        let Some(name) = name.map(str::to_owned) else {
            return Err(Error::new(ErrorKind::Internal, "the name of a temporary directory is not Unicode"));
        };
        let journal =
            Journal { stem: std::mem::take(stem), staging: name, files: std::mem::take(files), remove };
        let file = Journal::file_name(&journal.stem);
        if let Err(error) = directory.write(&file, journal.to_json().as_bytes()) {
            // The journal may have been renamed before the error. If it cannot be removed it counts, and the
            // files that it names must stay.
            match fs::remove_file(path.join(file)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => drop(staging.keep()),
                _ => {}
            }
            return Err(error);
        }
        // From here on the new set is the checkpoint.
        let _lock = staging.keep();
        roll_forward(path, &journal)
    }

    /// Files of the old set that the new one does not replace.
    fn superseded(&self) -> io::Result<Vec<String>> {
        let mut superseded = Vec::new();
        for entry in fs::read_dir(self.directory.path())? {
            let entry = entry?;
            let Ok(file) = entry.file_name().into_string() else { continue };
            if entry.file_type()?.is_dir() {
                continue;
            }
            if file_names::stem(&file).as_deref() == Some(&*self.stem) && !self.files.contains(&file) {
                superseded.push(file);
            }
        }
        superseded.sort();
        Ok(superseded)
    }
}
