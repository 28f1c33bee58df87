//! One copy of weights for several processes.
//!
//! A [`Share`] makes weights once, cast, dequantised or merged, in memory that nobody can change any more, and keeps it. Any other process
//! of the same user opens it by its name, `Checkpoint::open("share:NAME")`, which maps that memory: nothing is copied, and it is
//! counted once however many processes have it. They keep it for as long as they want, whether or not the share still exists.
//!
//! ```no_run
//! use weighbridge::share::Share;
//! use weighbridge::write::Save;
//! use weighbridge::{Checkpoint, Dtype, Plan};
//!
//! # fn main() -> weighbridge::Result<()> {
//! let model = Checkpoint::open("Llama-3.2-1B")?;
//! let plan = Plan::of(&model).dtype(|_| Some(Dtype::BF16)).build()?;
//! let share = Share::new("llama", Save::new(), plan.tensors(), model.directory())?;
//! println!("{} bytes, to be opened as share:{}", share.byte_len(), share.name());
//! // In any other process, for as long as `share` exists:
//! let same = Checkpoint::open("share:llama")?;
//! # Ok(())
//! # }
//! ```
//!
//! On Linux. The memory is a sealed `memfd` (`F_SEAL_WRITE`, `F_SEAL_SHRINK`, `F_SEAL_GROW`, `F_SEAL_SEAL`), so that mapping it needs no promise
//! from the caller; who opens it checks the seals. It is handed over by a Unix socket in the abstract namespace, whose name vanishes
//! with its process, however that ends: there is nothing to clean up. Both sides check that the other one is the same user.
//! Containers with network namespaces of their own do not see one another's shares.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod other;

#[cfg(target_os = "linux")]
use linux as system;
#[cfg(not(target_os = "linux"))]
use other as system;

use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, OpenOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::text::start_of;
use crate::write::{Save, TensorData};

/// What locations of shares begin with.
const PREFIX: &str = "share:";

/// Weights in memory, for other processes of this user, until it is dropped.
#[derive(Debug)]
pub struct Share {
    name: String,
    bytes: u64,
    /// Dropped, it is not found any more.
    _owner: system::Owner,
}

impl Share {
    /// Makes tensors as [`Save::file`] would write them, and keeps them under a name.
    ///
    /// The name is taken before anything is made; who opens it meanwhile is told to wait. `directory` is what
    /// [`Checkpoint::directory`] says to whoever opens it: where `config.json` and the tokenizer are.
    ///
    /// # Errors
    ///
    /// Fails with [`Busy`](ErrorKind::Busy) when the name is taken, with [`NoRoom`](ErrorKind::NoRoom) when less memory is free than
    /// the tensors need, with [`Unsupported`](ErrorKind::Unsupported) for names that are empty, longer than 80 bytes or have slashes
    /// or control characters in them, and elsewhere than on Linux; and as [`Save::file`].
    pub fn new<N: Into<String>, T: TensorData>(
        name: &str,
        save: Save,
        tensors: impl IntoIterator<Item = (N, T)>,
        directory: Option<&Path>,
    ) -> Result<Self> {
        check(name)?;
        let tensors: Vec<(String, T)> =
            tensors.into_iter().map(|(name, tensor)| (name.into(), tensor)).collect();
        let parts =
            tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dtype(), tensor.shape().to_vec()));
        let bytes = save.layout(parts)?.size();
        let directory = directory
            .map(|directory| std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned()));
        let write = |path: &Path| save.unprotected().file(path, tensors);
        let owner = system::Owner::new(name, bytes, directory, write).map_err(|error| called(name, error))?;
        Ok(Self { name: name.to_owned(), bytes, _owner: owner })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bytes of memory that it has.
    pub fn byte_len(&self) -> u64 {
        self.bytes
    }
}

/// A share of this user.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Shared {
    /// It is opened as `share:NAME`.
    pub name: String,
    /// The process that keeps it.
    pub process: u32,
    /// The bytes of memory that it has; `None` while it is made.
    pub bytes: Option<u64>,
    /// The directory of the model.
    pub directory: Option<PathBuf>,
}

/// The shares of this user, in the order of their names.
///
/// # Errors
///
/// Fails when the system does not say which there are, and with [`Unsupported`](ErrorKind::Unsupported) elsewhere than on Linux.
pub fn list() -> Result<Vec<Shared>> {
    let mut found = system::list()?;
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// The name of a share, if this is the location of one: `share:NAME`, where no such file exists.
pub fn name_in(location: &Path) -> Option<&str> {
    let name = location.to_str()?.strip_prefix(PREFIX)?;
    (!location.exists()).then_some(name)
}

/// Opens what is shared under a name.
pub(crate) fn open(name: &str, options: &OpenOptions) -> Result<Checkpoint> {
    let open = || {
        check(name)?;
        let (source, directory) = system::open(name)?;
        let options = options.clone().label(format!("{PREFIX}{name}"));
        match directory {
            Some(directory) => options.directory(directory),
            None => options,
        }
        .from_source(source)
    };
    open().map_err(|error| called(name, error))
}

fn called(name: &str, error: Error) -> Error {
    error.in_file(Path::new(&format!("{PREFIX}{}", start_of(name))))
}

fn check(name: &str) -> Result<()> {
    /// What the names of sockets have room for.
    const MOST: usize = 80;
    let is_good =
        !name.is_empty() && name.len() <= MOST && !name.contains(|c: char| c.is_control() || c == '/');
    if is_good {
        return Ok(());
    }
    let message = format!(
        "{:?} is no name of a share: it has from 1 to {MOST} bytes, and no slashes or control characters",
        start_of(name)
    );
    Err(called(name, Error::new(ErrorKind::Unsupported, message)))
}
