//! One file of a checkpoint.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::blocks::{BlockType, StoredBlocks};
use crate::engine::PageCache;
use crate::error::Error;
use crate::header::Header;
use crate::plan::{Derived, Input};
use crate::source::{Hints, Source};

/// One file of a checkpoint, with its header decoded.
///
/// It stays open: whatever happens to the file's name, the bytes are those whose header was proven.
pub struct Shard {
    /// What errors call it: the path of a file, or the label of another source.
    label: Option<PathBuf>,
    pub(super) is_file: bool,
    source: Arc<dyn Source>,
    /// The same, read past the page cache.
    uncached: Box<dyn Lazily>,
    header: Header,
    hints: Hints,
    number: u64,
    /// How its tensors are derived from stored ones, if it is no file.
    derived: Vec<Arc<Derived>>,
    /// The blocks that its tensors are computed from; empty where no tensor is.
    blocks: StoredBlocks,
}

/// What is made when it is asked for. A trait, so that a shard is seen not to change: it is part of keys.
trait Lazily: Send + Sync {
    fn get(&self) -> Option<&Arc<dyn Source>>;
}

/// A source to be read past the page cache.
struct Uncached {
    source: Arc<dyn Source>,
    made: OnceLock<Option<Arc<dyn Source>>>,
}

impl Lazily for Uncached {
    fn get(&self) -> Option<&Arc<dyn Source>> {
        self.made.get_or_init(|| self.source.uncached()).as_ref()
    }
}

/// Numbers shards in the order in which they are opened.
static OPENED: AtomicU64 = AtomicU64::new(0);

impl Shard {
    /// Bytes that are not a file of their own.
    pub(super) fn labelled(label: Option<&Path>, header: Header, source: impl Source + 'static) -> Self {
        let source: Arc<dyn Source> = Arc::new(source);
        Self {
            label: label.map(Path::to_owned),
            is_file: false,
            hints: source.hints(),
            header,
            uncached: Box::new(Uncached { source: Arc::clone(&source), made: OnceLock::new() }),
            source,
            number: OPENED.fetch_add(1, Ordering::Relaxed),
            derived: Vec::new(),
            blocks: Vec::new(),
        }
    }

    /// Tensors that are derived from stored ones, in the order of `header`; `source` gives their bytes, too.
    pub(crate) fn derived_from(
        label: Option<&Path>,
        header: Header,
        source: impl Source + 'static,
        derived: Vec<Arc<Derived>>,
    ) -> Self {
        Self { derived, ..Self::labelled(label, header, source) }
    }

    /// Says from which blocks tensors are computed.
    pub(super) fn with_blocks(self, blocks: StoredBlocks) -> Self {
        Self { blocks, ..self }
    }

    /// The blocks that a tensor of it is computed from, and their type.
    pub(crate) fn blocks(&self, tensor: usize) -> Option<&(BlockType, Input)> {
        self.blocks.get(tensor)?.as_ref()
    }

    /// How a tensor of it is derived, if it is not stored.
    pub(crate) fn derived(&self, tensor: usize) -> Option<&Arc<Derived>> {
        self.derived.get(tensor)
    }

    /// Whether it is no file, and its tensors are derived from stored ones.
    pub(crate) fn is_derived(&self) -> bool {
        !self.derived.is_empty()
    }

    /// The file name of its [`label`](Self::label), or `<memory>`.
    pub fn name(&self) -> Cow<'_, str> {
        match &self.label {
            Some(label) => label.file_name().unwrap_or(label.as_os_str()).to_string_lossy(),
            None => "<memory>".into(),
        }
    }

    /// The path of the safetensors file. `None` for bytes in memory and for a [`Source`].
    pub fn path(&self) -> Option<&Path> {
        self.label().filter(|_| self.is_file)
    }

    /// What errors call it: the path of the file, or the [label](crate::OpenOptions::label) that bytes or a
    /// [`Source`] were opened with. Only a [`path`](Self::path) is known to be a safetensors file.
    pub fn label(&self) -> Option<&Path> {
        self.label.as_deref()
    }

    /// What the file holds, under the names that it has there.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The bytes of the file.
    pub fn source(&self) -> &Arc<dyn Source> {
        &self.source
    }

    /// The same, to be read so that the page cache is kept or released.
    pub(crate) fn source_for(&self, page_cache: PageCache) -> &Arc<dyn Source> {
        match page_cache {
            PageCache::Keep => &self.source,
            PageCache::Release => self.uncached.get().unwrap_or(&self.source),
        }
    }

    /// Tells it from every other shard of the program; ascends in the order in which shards were opened.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// How its source likes to be read.
    pub(crate) fn hints(&self) -> Hints {
        self.hints
    }

    /// Names this shard in an error.
    pub(crate) fn blame(&self, error: Error) -> Error {
        match &self.label {
            Some(label) => error.in_file(label),
            None => error,
        }
    }

    /// What to call this shard in an error about another one: the file name suffices if both are in one
    /// directory.
    pub(super) fn name_beside(&self, other: &Self) -> Cow<'_, str> {
        let directory = |shard: &Self| shard.label.as_deref().and_then(Path::parent).map(Path::to_owned);
        match &self.label {
            Some(label) if directory(self) != directory(other) => label.to_string_lossy(),
            _ => self.name(),
        }
    }
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard")
            .field("label", &self.label)
            .field("tensors", &self.header.len())
            .field("bytes", &self.header.data_len())
            .finish()
    }
}
