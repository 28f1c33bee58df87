//! Leaves pickle, ONNX, NumPy and GGUF behind: reads them as safetensors checkpoints, executing nothing.
//!
//! ```
//! use weighbridge::Plan;
//! use weighbridge_convert::Options;
//!
//! # fn main() -> weighbridge::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let (input, output) = (concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pickle/tied.bin"), dir.path());
//! let foreign = weighbridge_convert::open(input, &Options::new())?;
//! for note in foreign.notes() {
//!     println!("{note}"); // aliased "model.embed.weight": the same tensor as "lm_head.weight"
//! }
//! let plan = Plan::of(foreign.checkpoint()).build()?;
//! foreign.save().directory(output, "model", plan.tensors())?;
//! # Ok(())
//! # }
//! ```
//!
//! What becomes of each format, and by which rules, is in [`formats`].
//!
//! # How it works
//!
//! A reader takes a foreign file apart into tensors: a name, a dtype, a shape, and a [`Source`] that
//! gives the bytes when they are asked for: a place in the file, elements gathered from one, a block that is decompressed
//! or dequantised. These are laid out as a safetensors file that is nowhere, whose bytes are made as they are read. So what
//! comes out is a [`Checkpoint`] like any other, and everything that is done with one can be done with it: plans,
//! casts, renaming, parts, loading into a framework, and saving in constant memory.

//!
//! Without the feature `fs`, which is on by default, nothing is opened by path, as in a browser: [`open_source`] and [`scan_source`] take
//! what any source gives.

#[doc = include_str!("../README.md")]
pub mod formats {}

#[cfg(feature = "fs")]
mod any;
mod archive;
mod arranged;
mod assembled;
mod burn_record;
mod contents;
mod cursor;
mod dcp;
mod flax;
mod format;
pub mod gguf;
mod gzip;
mod hdf5;
mod input;
mod keys;
#[cfg(feature = "fs")]
mod locate;
mod msgpack;
mod note;
pub mod numpy;
pub mod onnx;
mod options;
mod pickle;
#[cfg(test)]
mod probe;
pub mod ranks;
pub mod scan;
mod spool;
mod strided;
#[cfg(feature = "fs")]
mod zero;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weighbridge::write::Save;
use weighbridge::{Checkpoint, Result, Source};

#[cfg(feature = "fs")]
pub use any::{Opened, open_any, open_any_with};
pub use format::Format;
pub use note::{Note, NoteKind};
pub use options::Options;
pub use pickle::Verdict;
#[cfg(feature = "fs")]
pub use scan::scan;
pub use scan::{Scan, scan_source};
pub use weighbridge::write::Aliases;

/// A foreign file as a checkpoint.
#[derive(Clone, Debug)]
pub struct Foreign {
    checkpoint: Checkpoint,
    format: Format,
    metadata: BTreeMap<String, String>,
    notes: Vec<Note>,
    unchosen: usize,
}

/// Opens a file, or a directory that holds one, of any format that this crate knows; the content says which it is, not the
/// name.
///
/// # Errors
///
/// Fails with [`ErrorKind::Unsupported`](weighbridge::ErrorKind::Unsupported) for what is of no format that it knows or holds
/// what safetensors cannot, with [`ErrorKind::Malformed`](weighbridge::ErrorKind::Malformed) for a file that breaks the rules
/// of its format, and with [`ErrorKind::Unsafe`](weighbridge::ErrorKind::Unsafe) for a pickle that would call something
/// which is not known to be harmless.
#[cfg(feature = "fs")]
pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Foreign> {
    let path = path.as_ref();
    let (format, file, contents) = locate::read(path, options).map_err(|error| error.in_file(path))?;
    let directory = if file.is_dir() { Some(&*file) } else { file.parent() };
    Foreign::of(format, contents, &file, directory, options)
}

/// Opens a file that a [`Source`] gives, by what it is called.
///
/// `others` are the files that it may name: other parts of a split model, shards of an index, external data, by their paths from
/// where `name` is counted from.
///
/// ```
/// use std::sync::Arc;
///
/// use weighbridge::source::MemorySource;
/// use weighbridge_convert::{Options, open_source};
///
/// # fn main() -> weighbridge::Result<()> {
/// # let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pickle/tied.bin")).unwrap();
/// let file = Arc::new(MemorySource(bytes));
/// let foreign = open_source("pytorch_model.bin", file, [], &Options::new())?;
/// println!("{}: {} tensors", foreign.format(), foreign.checkpoint().len());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// As [`open`].
pub fn open_source(
    name: impl AsRef<Path>,
    file: Arc<dyn Source>,
    others: impl IntoIterator<Item = (PathBuf, Arc<dyn Source>)>,
    options: &Options,
) -> Result<Foreign> {
    let name = name.as_ref();
    let input = input::Input::given(name, file, Arc::new(others.into_iter().collect()));
    let (format, contents) = format::read(&input, options).map_err(|error| error.in_file(name))?;
    Foreign::of(format, contents, name, None, options)
}

impl Foreign {
    /// Lays out what was read from a file.
    fn of(
        format: Format,
        mut contents: contents::Contents,
        file: &Path,
        directory: Option<&Path>,
        options: &Options,
    ) -> Result<Self> {
        let all = contents.tensors.len();
        contents.tensors.retain(|tensor| options.wants(&tensor.name));
        let unchosen = contents.unchosen + all - contents.tensors.len();
        // transformers loads nothing without it.
        contents.put("format", "pt");
        let (metadata, mut notes) = (contents.metadata, contents.notes);
        notes.sort_by_key(Note::kind);
        let save = save(&metadata);
        let checkpoint =
            assembled::checkpoint_of_blocks(file, directory, &save, contents.tensors, contents.blocks);
        let checkpoint = checkpoint.map_err(|error| error.in_file(file))?;
        Ok(Self { checkpoint, format, metadata, notes, unchosen })
    }

    /// Its tensors. The metadata of the file is that of [`save`](Self::save).
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// What it was.
    pub fn format(&self) -> Format {
        self.format
    }

    /// What was changed on the way and why, the more important first.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// How many tensors were left out because [`Options::only`] did not choose them.
    pub fn unchosen(&self) -> usize {
        self.unchosen
    }

    /// A save that has the metadata set already.
    pub fn save(&self) -> Save {
        save(&self.metadata)
    }
}

fn save(metadata: &BTreeMap<String, String>) -> Save {
    metadata.iter().fold(Save::new(), |save, (key, value)| save.metadata(key, value))
}
