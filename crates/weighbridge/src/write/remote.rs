//! Checkpoints in object stores: written in parts straight from the layout, without a copy on the disk.
//!
//! Objects cannot be renamed, so the index is where a set is switched: its shards are written under names that no set had
//! before, and the index, which names them, comes last, if it is still the one that was there at the start. Whoever reads
//! takes the names from the index, and so has the old set or the new one. What only the old one has is deleted afterwards.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use weighbridge_remote::{Listed, Place, Tag, Upload, When};

use super::beside::SideFile;
use super::data::TensorData;
use super::layout::Layout;
use super::set::{Prepared, Saved, SetOptions, prepare};
use super::tensors::{watch, write_into};
use super::watch::Watch;
use crate::error::{Error, ErrorKind, Result};
use crate::file_names;
use crate::index::Index;
use crate::remote::{label, random, switched, told};

/// Parts that are sent at a time. With the one that is filled, and those that wait, memory is this many and two more.
const AT_A_TIME: usize = 4;

/// What a save that was killed has left is removed by the next one when it is as old as this.
const LEFT: Duration = Duration::from_secs(24 * 60 * 60);

/// Writes one object.
pub(super) fn file<T: TensorData>(
    place: &Place,
    layout: Layout,
    tensors: &[(String, T)],
    watch: &mut Watch,
) -> Result<()> {
    let Some(name) = place.file() else {
        let message = "it is a folder; add the name of a file, model.safetensors";
        return Err(Error::new(ErrorKind::Unsupported, message));
    };
    upload(place, name, layout, |given| &tensors[given].1, watch, When::Always, || Ok(()))
}

/// Writes a set of shards with its index, or a single object if it fits into one.
pub(super) fn directory<T: TensorData>(
    place: &Place,
    options: SetOptions<'_>,
    tensors: &[(String, T)],
) -> Result<Saved> {
    if place.file().is_some() {
        let message = "it names a file, and a checkpoint of several is to be written; name a folder";
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let progress = options.progress.clone();
    // Eight digits that no set before has had, as far as chance allows.
    let fresh = format!("{:08x}", random());
    let set = prepare(&options, tensors, |split, stem| match split.shards().len() {
        1 => split.file_names(stem),
        _ => split.file_names(&format!("{stem}-{fresh}")),
    })?;
    let old = Old::look(place, &set)?;
    let mut watch = watch(progress, &set.layouts);
    let Prepared { files, layouts, split, index, .. } = set;
    let mut written = Written { place, names: Vec::new() };
    for ((file, layout), shard) in files.iter().zip(layouts).zip(split.shards()) {
        // Of a set that is one object, that is the switch.
        let when = if index.is_none() { old.when(file) } else { When::Absent };
        if index.is_some() {
            written.names.push(file.clone());
        }
        let ready = || if index.is_none() { put_beside(place, options.beside) } else { Ok(()) };
        upload(place, file, layout, |given| &tensors[shard[given]].1, &mut watch, when, ready)
            .map_err(|error| error.in_file(&label(place, file)))?;
    }
    if let Some((file, index)) = &index {
        put_beside(place, options.beside)?;
        let put = place.put(file, index.to_json().as_bytes(), old.when(file));
        put.map_err(switched).map_err(|error| error.in_file(&label(place, file)))?;
    }
    // From here on the new set is the checkpoint.
    written.names.clear();
    let own: HashSet<&str> =
        files.iter().map(String::as_str).chain(index.iter().map(|(file, _)| &**file)).collect();
    old.delete(place, &own)?;
    Ok(Saved {
        shards: files.iter().map(|file| label(place, file)).collect(),
        index: index.map(|(file, _)| label(place, &file)),
        total_size: split.total_size(),
    })
}

/// Writes what lies beside a set.
fn put_beside(place: &Place, files: &[SideFile]) -> Result<()> {
    files.iter().try_for_each(|SideFile { name, bytes }| {
        let put = place.put(name, bytes, When::Always);
        put.map(drop).map_err(|error| told(error).in_file(&label(place, name)))
    })
}

/// Objects that are deleted again unless the set becomes the checkpoint.
struct Written<'p> {
    place: &'p Place,
    names: Vec<String>,
}

impl Drop for Written<'_> {
    fn drop(&mut self) {
        for name in &self.names {
            // What cannot be deleted now is left for a later save.
            let _ = self.place.delete(name);
        }
    }
}

/// What was there before.
struct Old {
    /// The name of the set.
    stem: String,
    objects: Vec<Listed>,
    /// Objects that the old index names.
    named: HashSet<String>,
}

impl Old {
    fn look(place: &Place, set: &Prepared) -> Result<Self> {
        let stem = set.stem.clone();
        // A variant's index has its name before the ending.
        let mut objects = place.list(&stem).map_err(told)?;
        if let Some((name, _)) = &set.index
            && !name.starts_with(&stem)
        {
            objects.extend(place.list(name).map_err(told)?);
        }
        objects.retain(|object| !object.name.contains('/'));
        let index =
            objects.iter().find(|object| file_names::index_stem(&object.name).as_deref() == Some(&*stem));
        let mut named = HashSet::new();
        if let Some(index) = index {
            let bytes = place.read(&index.name, Index::LIMIT).map_err(told)?.unwrap_or_default();
            // One that is broken names nothing, and is replaced.
            if let Ok(index) =
                String::from_utf8(bytes).map_err(drop).and_then(|text| Index::parse(&text).map_err(drop))
            {
                named.extend(index.shards().map(str::to_owned));
            }
        }
        // Parts of a save that was killed are seen by nobody, and cost.
        let _ = place.abort_stale(&stem, LEFT);
        Ok(Self { stem, objects, named })
    }

    /// A file is written if it is as it was.
    fn when(&self, name: &str) -> When {
        match self.objects.iter().find(|object| object.name == name) {
            Some(Listed { tag: Some(tag), .. }) => When::Unchanged(Tag::clone(tag)),
            Some(_) => When::Always,
            None => When::Absent,
        }
    }

    /// Deletes what belongs to the old set and not to the new one, and what saves that were killed have left.
    fn delete(&self, place: &Place, own: &HashSet<&str>) -> Result<()> {
        for object in &self.objects {
            let name = &*object.name;
            let is_old = self.named.contains(name) || file_names::stem(name).as_deref() == Some(&*self.stem);
            let age = object.modified.and_then(|modified| SystemTime::now().duration_since(modified).ok());
            let is_left = is_fresh_shard(name, &self.stem) && age.is_some_and(|age| age >= LEFT);
            if (is_old || is_left) && !own.contains(name) {
                place.delete(name).map_err(told).map_err(|error| error.in_file(&label(place, name)))?;
            }
        }
        Ok(())
    }
}

/// Whether a name is one that shards of this set get here: `model-0a1b2c3d-00001-of-00002.safetensors`.
fn is_fresh_shard(name: &str, stem: &str) -> bool {
    let shard = name.strip_suffix(".safetensors").and_then(file_names::shard_number);
    shard.and_then(|(key, ..)| file_names::stem_of_fresh(key)) == Some(stem)
}

/// Writes an object: this thread makes its bytes, others send them. `ready` is called before it is there.
fn upload<'t, T: TensorData + 't>(
    place: &Place,
    name: &str,
    layout: Layout,
    tensor: impl Fn(usize) -> &'t T,
    watch: &mut Watch,
    when: When,
    ready: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let upload = place.upload(name, layout.size()).map_err(told)?;
    let failed = Mutex::new(None);
    let (sender, parts) = sync_channel(0);
    let parts = Mutex::new(parts);
    let written = thread::scope(|scope| {
        for _ in 0..AT_A_TIME.min(upload.parts()) {
            scope.spawn(|| send(&upload, &parts, &failed));
        }
        let sink = Parts { upload: &upload, sender, part: Vec::new(), number: 0 };
        let written = write_into(layout, sink, tensor, watch)
            .and_then(|mut sink| sink.cut().map_err(|error| Error::io("it cannot be written", error)));
        if written.is_err() {
            upload.interrupt();
        }
        written
    });
    // Why a part could not be sent says more than that nobody takes parts any more.
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(told(error));
    }
    written?;
    ready()?;
    upload.complete(when).map(drop).map_err(switched)
}

/// Sends parts as they come, until there are no more or one fails.
fn send(
    upload: &Upload,
    parts: &Mutex<Receiver<(usize, Vec<u8>)>>,
    failed: &Mutex<Option<weighbridge_remote::Error>>,
) {
    let lock = || failed.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let next = parts.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((number, bytes)) = next else { return };
        // After a failure what comes is taken, so that nobody waits, and dropped.
        if lock().is_some() {
            continue;
        }
        if let Err(error) = upload.part(number, &bytes) {
            lock().get_or_insert(error);
        }
    }
}

/// Cuts what is written to it into parts.
struct Parts<'u> {
    upload: &'u Upload,
    sender: SyncSender<(usize, Vec<u8>)>,
    part: Vec<u8>,
    number: usize,
}

impl Parts<'_> {
    /// Has what there is sent.
    fn cut(&mut self) -> io::Result<()> {
        if self.part.is_empty() {
            return Ok(());
        }
        let part = std::mem::take(&mut self.part);
        let number = self.number;
        self.number += 1;
        self.sender.send((number, part)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Parts<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let size = usize::try_from(self.upload.part_size()).unwrap_or(usize::MAX);
        if self.part.capacity() == 0 {
            self.part.reserve_exact(size.min(MOST_AT_ONCE));
        }
        let taken = bytes.len().min(size - self.part.len());
        self.part.extend_from_slice(&bytes[..taken]);
        if self.part.len() == size {
            self.cut()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// More is not allocated before it is known to come.
const MOST_AT_ONCE: usize = 16 << 20;

/// What errors call the place of a save.
pub(super) fn named(place: &Place) -> PathBuf {
    PathBuf::from(place.address())
}
