//! What the pickles in a file would import, found out without running them, and whether that is all that the file holds.
//!
//! [`scan`] takes a file apart: archives, what is compressed, arrays of NumPy's, pickles one behind another. A pickle is
//! followed from its first opcode to its STOP by the rules of CPython's unpickler; its texts are followed to where they become
//! names. So it works where [`open`](crate::open) refuses, and finds what is imported before a pickle breaks.
//!
//! A verdict is a proof: [`Verdict::Harmless`] is said only where every byte belongs to a format that is understood, and
//! every pickle imports only what is known to make data. Everything else is [`Verdict::Incomplete`] at least.

mod budget;
mod compressed;
mod dtype;
mod follow;
mod joblib;
mod known;
mod search;
mod tar;
mod torch;
mod zip;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weighbridge::Result;
use weighbridge::source::{Source, Window};

use crate::input::FilePart;
#[cfg(feature = "fs")]
use crate::input::Input;
use crate::pickle::Verdict;

/// What was found in a file.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Scan {
    /// The file.
    pub path: PathBuf,
    /// What the file is: `zip archive`, `pickle`, `text`.
    pub format: &'static str,
    /// Every pickle in it.
    pub pickles: Vec<Pickle>,
    /// What was not understood, or not looked into.
    pub problems: Vec<Problem>,
}

/// A pickle.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pickle {
    /// The member of the archive in which it is, or the members, outermost first, joined by `!`.
    pub member: Option<String>,
    /// Where it begins, in bytes from the start of the file or the member.
    pub offset: u64,
    /// What it would import, each once, in the order in which it would be imported.
    pub globals: Vec<Global>,
    /// Why it is not known for certain that this is all.
    pub problem: Option<String>,
}

/// Something that a pickle would import.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Global {
    /// The module; empty where the name is computed or looked up in a registry.
    pub module: String,
    /// The name in it, which may have dots.
    pub name: String,
    /// What is known of it.
    pub verdict: Verdict,
}

/// Bytes that may hold anything.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The member of the archive in which they are, as in [`Pickle::member`].
    pub member: Option<String>,
    /// Why.
    pub what: String,
}

/// `os.system`; what has no module has only its name.
impl fmt::Display for Global {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.module {
            "" => f.write_str(&self.name),
            module => write!(f, "{module}.{}", self.name),
        }
    }
}

impl Scan {
    /// The globals of all pickles.
    pub fn globals(&self) -> impl Iterator<Item = &Global> {
        self.pickles.iter().flat_map(|pickle| &pickle.globals)
    }

    /// The worst of what was found.
    pub fn verdict(&self) -> Verdict {
        self.verdict_without(|_| false)
    }

    /// The worst of what was found, if some of the unknown globals are known to the caller.
    pub fn verdict_without(&self, is_known: impl Fn(&Global) -> bool) -> Verdict {
        let complete = if self.is_complete() { Verdict::Harmless } else { Verdict::Incomplete };
        let counts = |global: &&Global| global.verdict != Verdict::Unknown || !is_known(global);
        self.globals().filter(counts).map(|global| global.verdict).fold(complete, Verdict::max)
    }

    /// Whether every byte was understood, and every pickle followed to its end.
    pub fn is_complete(&self) -> bool {
        self.problems.is_empty() && self.pickles.iter().all(|pickle| pickle.problem.is_none())
    }
}

/// Lists what the pickles in a file would import.
///
/// ```no_run
/// use weighbridge_convert::{Verdict, scan};
///
/// # fn main() -> weighbridge::Result<()> {
/// let scan = scan("pytorch_model.bin")?;
/// for global in scan.globals().filter(|global| global.verdict == Verdict::Dangerous) {
///     println!("{global}");
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// Fails when the file cannot be read. What is in it makes no error but [`Scan::problems`] and [`Pickle::problem`]s.
#[cfg(feature = "fs")]
pub fn scan(path: impl AsRef<Path>) -> Result<Scan> {
    let path = path.as_ref();
    of(path, &Input::open(path)?.whole())
}

/// The same of a file that a [`Source`] gives; `name` is what it is called.
///
/// # Errors
///
/// Fails when it cannot be read.
pub fn scan_source(name: impl AsRef<Path>, file: Arc<dyn Source>) -> Result<Scan> {
    of(name.as_ref(), &Window::whole(file))
}

fn of(path: &Path, file: &FilePart) -> Result<Scan> {
    let mut search = search::Search::new(path, file.size());
    let format = search.look(file, search::Place::default());
    if let Some(error) = search.unread {
        return Err(error.in_file(path));
    }
    Ok(Scan { path: path.to_owned(), format, pickles: search.pickles, problems: search.problems })
}
