//! What pickles would import, found out without running them: every pickle in a file, a zip archive, or an array of NumPy.
//!
//! A pickle is not interpreted for this, only its texts are followed to where they become names. So it works where
//! [`open`](crate::open) refuses, and finds what stands before the place where a pickle breaks.

mod follow;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use weighbridge::{Result, Source};

use crate::archive::Archive;
use crate::input::{FilePart, Input};
use crate::pickle::Verdict;
use follow::follow;

/// Archives within archives.
const DEEPEST: usize = 4;
/// Members that are looked into, of all archives of a file together.
const MOST_MEMBERS: usize = 1 << 20;

/// What was found in a file.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Scan {
    /// The file.
    pub path: PathBuf,
    /// Every pickle in it, and everything that may be one and could not be looked at.
    pub pickles: Vec<Pickle>,
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
    /// Why it could not be followed to its end.
    pub problem: Option<String>,
}

/// Something that a pickle would import.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Global {
    /// The module; empty where it is made by a computation or looked up in a registry.
    pub module: String,
    /// The name in it, which may have dots.
    pub name: String,
    /// What is known of it.
    pub verdict: Verdict,
}

impl Scan {
    /// The globals of all pickles.
    pub fn globals(&self) -> impl Iterator<Item = &Global> {
        self.pickles.iter().flat_map(|pickle| &pickle.globals)
    }

    /// The worst of what is known of them; harmless where there are none.
    pub fn verdict(&self) -> Verdict {
        self.globals().map(|global| global.verdict).max().unwrap_or(Verdict::Harmless)
    }

    /// Whether every pickle was followed to its end.
    pub fn is_complete(&self) -> bool {
        self.pickles.iter().all(|pickle| pickle.problem.is_none())
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
///     println!("{}.{}", global.module, global.name);
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// Fails when the file cannot be read. What is in it makes no error but [`Pickle::problem`]s.
pub fn scan(path: impl AsRef<Path>) -> Result<Scan> {
    let path = path.as_ref();
    let input = Input::open(path)?;
    let mut search = Search { pickles: Vec::new(), members: 0 };
    search.file(&input.whole(), None, 0);
    Ok(Scan { path: path.to_owned(), pickles: search.pickles })
}

struct Search {
    pickles: Vec<Pickle>,
    members: usize,
}

impl Search {
    /// Looks into a file or a member.
    fn file(&mut self, part: &FilePart, member: Option<&str>, depth: usize) {
        let mut head = vec![0; part.size().min(16) as usize];
        if let Err(error) = part.read_at(0, &mut head) {
            return self.problem(member, &format!("it cannot be read: {error}"));
        }
        match &*head {
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] if depth == DEEPEST => {
                self.problem(member, "archives are within archives too deeply");
            }
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => self.archive(part, member, depth),
            // An array of objects is a pickle behind the header.
            [0x93, b'N', b'U', b'M', b'P', b'Y', 1, _, low, high, ..] => {
                let start = 10 + u64::from(u16::from_le_bytes([*low, *high]));
                self.array(part, member, start);
            }
            [0x93, b'N', b'U', b'M', b'P', b'Y', _, _, a, b, c, d, ..] => {
                let start = 12 + u64::from(u32::from_le_bytes([*a, *b, *c, *d]));
                self.array(part, member, start);
            }
            _ => self.pickles(part, member, 0),
        }
    }

    fn archive(&mut self, part: &FilePart, member: Option<&str>, depth: usize) {
        let archive = match Archive::open(part.clone()) {
            Ok(archive) => archive,
            Err(error) => return self.problem(member, &format!("the archive cannot be read: {error}")),
        };
        for inner in archive.members() {
            if inner.name.ends_with('/') {
                continue;
            }
            self.members += 1;
            if self.members > MOST_MEMBERS {
                return self.problem(member, "the archive has too many members");
            }
            let name = member.map_or_else(|| inner.name.clone(), |outer| format!("{outer}!{}", inner.name));
            match archive.bytes(inner) {
                Ok(bytes) => self.file(&bytes, Some(&name), depth + 1),
                Err(error) => self.problem(Some(&name), &error.to_string()),
            }
        }
    }

    fn array(&mut self, part: &FilePart, member: Option<&str>, start: u64) {
        let mut header = vec![0; start.min(part.size()).min(1 << 20) as usize];
        // `|O` in the description of the type: numbers are no pickle, whatever they look like.
        let holds_objects = |header: &[u8]| header.windows(2).any(|pair| pair == b"|O");
        if part.read_at(0, &mut header).is_ok() && holds_objects(&header) {
            self.pickles(part, member, start);
        }
    }

    /// Follows pickles that stand one behind another.
    fn pickles(&mut self, part: &FilePart, member: Option<&str>, start: u64) {
        let source: Arc<dyn Source> = Arc::new(part.clone());
        let named_so = |name: &str| {
            let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
            ["pkl", "pickle", "p", "joblib", "dill"].iter().any(|known| extension.eq_ignore_ascii_case(known))
        };
        let mut at = start;
        while at < part.size() {
            let mut head = [0; 2];
            let marked = part.read_at(at, &mut head).is_ok() && head[0] == 0x80 && head[1] <= 5;
            let followed = follow(&source, at);
            let (globals, end, problem) = (followed.globals, followed.end, followed.problem);
            // Data may look like a pickle for a few bytes. It is one if it says so or is called so, or if it imports what
            // has a proper name and comes to an end, or is dangerous without one.
            let says_so = marked && (member.is_none() || end > at + 2 && problem.is_none());
            let called_so = at == start && (member.is_some_and(named_so) || start > 0);
            let proper = |global: &Global| {
                let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.');
                !global.module.is_empty() && global.module.chars().chain(global.name.chars()).all(is_plain)
            };
            let is_one = says_so
                || called_so
                || globals.iter().any(|global| {
                    proper(global) && (problem.is_none() || global.verdict == Verdict::Dangerous)
                });
            if is_one {
                let member = member.map(str::to_owned);
                self.pickles.push(Pickle { member, offset: at, globals, problem: problem.clone() });
            }
            if problem.is_some() || !is_one || end <= at {
                return;
            }
            at = end;
        }
    }

    fn problem(&mut self, member: Option<&str>, problem: &str) {
        let (member, problem) = (member.map(str::to_owned), Some(problem.to_owned()));
        self.pickles.push(Pickle { member, offset: 0, globals: Vec::new(), problem });
    }
}
