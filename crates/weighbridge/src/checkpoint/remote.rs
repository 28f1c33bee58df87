//! Checkpoints on the hub, on web servers and in object stores.

use std::io;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use weighbridge_remote::{Address, ErrorKind as RemoteErrorKind, Place, RemoteFile};

use super::home::{Home, RemoteHome};
use super::locate::{self, Files};
use super::{Checkpoint, OpenOptions, Shard, assemble};
use crate::error::{Error, ErrorKind, Result};
use crate::index::Index;
use crate::remote::{self, told};
use crate::source::{Hints, Source};

/// Opens what an address names.
pub(super) fn open(address: &Address, options: &OpenOptions) -> Result<Checkpoint> {
    let place = remote::place(address, options.files.remote.as_ref())?;
    let located = Arc::new(Located { place, options: options.clone() });
    let files = located.files().map_err(|error| error.in_file(&PathBuf::from(address.to_string())))?;
    located.open(files)
}

/// A place that holds a checkpoint.
struct Located {
    place: Place,
    options: OpenOptions,
}

impl Located {
    fn files(&self) -> Result<Files> {
        if let Some(name) = self.place.file() {
            let is_index = locate::is_index(Path::new(name));
            return Ok(if is_index { Files::Index(name.to_owned()) } else { Files::Single(name.to_owned()) });
        }
        let names: Vec<_> = match self.place.names().map_err(told)? {
            Some(names) => names.into_iter().map(|named| named.name).collect(),
            None => {
                let message = "a web server does not list its files: add the name of a safetensors file or an index to \
                               the address";
                return Err(Error::new(ErrorKind::NotFound, message));
            }
        };
        let variant = self.options.files.variant.as_deref();
        let found = locate::choose(&names, variant)?;
        found.ok_or_else(|| locate::nothing("here", &names, variant, Vec::new()))
    }

    /// What errors call a file.
    fn label(&self, name: &str) -> PathBuf {
        remote::label(&self.place, name)
    }

    fn open(self: Arc<Self>, files: Files) -> Result<Checkpoint> {
        let home = Home::Remote(Arc::clone(&self) as Arc<dyn RemoteHome>);
        match files {
            Files::Single(name) => assemble::unlisted(vec![self.shard(&name)?], Some(home)),
            Files::Set(names) => assemble::unlisted(self.shards(&names)?, Some(home)),
            Files::Index(name) => {
                let index = self.index(&name)?;
                let names: Vec<_> = index.shards().map(str::to_owned).collect();
                assemble::listed(self.shards(&names), &index, &self.label(&name), Some(home))
            }
        }
    }

    fn index(&self, name: &str) -> Result<Index> {
        let label = self.label(name);
        let read = || {
            let bytes = self.place.read(name, Index::LIMIT).map_err(told)?;
            let bytes = bytes.ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no such file"))?;
            let text = String::from_utf8(bytes);
            Index::parse(&text.map_err(|_| Error::new(ErrorKind::Index, "it is not UTF-8"))?)
        };
        read().map_err(|error| error.in_file(&label))
    }

    /// Opens shards, several at a time: each is a request or two.
    fn shards(&self, names: &[String]) -> Result<Vec<Shard>> {
        let (next, opened) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(names.len())));
        let lock = || opened.lock().unwrap_or_else(PoisonError::into_inner);
        let open = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(name) = names.get(number) else { return };
                let shard = self.shard(name);
                if shard.is_err() {
                    next.store(names.len(), Ordering::Relaxed);
                }
                lock().push((number, shard));
            }
        };
        thread::scope(|scope| {
            for _ in 1..names.len().min(AT_A_TIME) {
                let builder = thread::Builder::new().name("weighbridge-open".to_owned());
                // Where no threads can be started, this one does it all.
                let _ = builder.spawn_scoped(scope, open);
            }
            open();
        });
        let mut opened = opened.into_inner().unwrap_or_else(PoisonError::into_inner);
        opened.sort_by_key(|(number, _)| *number);
        opened.into_iter().map(|(_, shard)| shard).collect()
    }

    fn shard(&self, name: &str) -> Result<Shard> {
        if let Some(path) = self.place.local(name) {
            return self.options.file(&path);
        }
        let label = self.label(name);
        let open = || {
            let file = RemoteSource { file: self.place.open(name).map_err(told)? };
            let header = self.options.decode.read(&file)?;
            file.file.keep();
            Ok(Shard::labelled(Some(&label), header, file))
        };
        open().map_err(|error: Error| error.in_file(&label))
    }
}

/// Headers that are asked for at a time.
const AT_A_TIME: usize = 16;

impl RemoteHome for Located {
    fn address(&self) -> PathBuf {
        PathBuf::from(self.place.address())
    }

    fn fetch(&self, name: &str) -> Result<Option<PathBuf>> {
        match self.place.fetch(name, &mut |_, _| ControlFlow::Continue(())) {
            Ok(path) => Ok(Some(path)),
            Err(error) if error.kind() == RemoteErrorKind::NotFound => Ok(None),
            Err(error) => Err(told(error).in_file(&self.label(name))),
        }
    }

    fn names(&self) -> Result<Vec<String>> {
        let names = self.place.names().map_err(|error| told(error).in_file(&self.address()))?;
        Ok(names.unwrap_or_default().into_iter().map(|named| named.name).collect())
    }
}

/// A file on a network.
struct RemoteSource {
    file: RemoteFile,
}

impl Source for RemoteSource {
    fn size(&self) -> u64 {
        self.file.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, buf).map_err(unread)
    }

    fn read_as_it_comes(
        &self,
        offset: u64,
        buf: &mut [u8],
        arrived: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        self.file.read_as_it_comes(offset, buf, arrived).map_err(unread)
    }

    fn is_cached(&self, range: Range<u64>) -> Option<bool> {
        Some(self.file.is_cached(range))
    }

    fn hints(&self) -> Hints {
        // Measured with 20 ms a request: 8 of 8 MiB fill a link of 100 MB/s, and 16 one of 400 and more.
        Hints::default().chunk(8 << 20).least(4 << 20).concurrency(16).read_through(self.file.read_through())
    }

    fn interrupt(&self) {
        self.file.interrupt();
    }

    fn requests(&self) -> Option<u64> {
        Some(self.file.counts().requests)
    }
}

/// An error of the network as one that a source may have.
fn unread(error: weighbridge_remote::Error) -> io::Error {
    match error.kind() {
        RemoteErrorKind::Cancelled => io::ErrorKind::Interrupted.into(),
        _ => io::Error::other(told(error)),
    }
}
