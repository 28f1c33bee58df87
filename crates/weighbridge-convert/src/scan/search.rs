//! Looking into a file, and into what is in it: which format it is, and who takes it apart.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use weighbridge::{Error, Source};

use super::budget::Budget;
use super::follow::{Followed, Root, Rules, Storage, follow};
use super::known::{self, Known};
use super::{Global, Pickle, Problem, compressed, tar, torch, zip};
use crate::cursor::Cursor;
use crate::input::{FilePart, Head};
use crate::numpy;
use crate::pickle::Verdict;
use crate::spool::Spool;

/// Archives within archives.
const DEEPEST: usize = 6;
/// Pickles in a file.
const MOST_PICKLES: usize = 1 << 17;
/// Problems that are told.
const MOST_PROBLEMS: usize = 1000;
/// Of the name of a global that is told of nevertheless.
const LONGEST_TOLD: usize = 4 << 10;

/// Where something was found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place<'a> {
    /// The member, or the members joined by `!`.
    pub(super) member: Option<&'a str>,
    /// How many archives it lies in.
    depth: usize,
}

impl<'a> Place<'a> {
    /// A member of it.
    pub(super) fn inner(self, member: &'a str) -> Self {
        Self { member: Some(member), depth: self.depth + 1 }
    }

    /// What a member of it is called.
    pub(super) fn name(self, member: &str) -> String {
        self.member.map_or_else(|| member.to_owned(), |outer| format!("{outer}!{member}"))
    }
}

/// The state of a scan.
pub(super) struct Search {
    pub(super) pickles: Vec<Pickle>,
    pub(super) problems: Vec<Problem>,
    /// Storages of PyTorch that the last pickles name, by key.
    pub(super) storages: HashMap<Arc<str>, Storage>,
    /// The file could not be read.
    pub(super) unread: Option<Error>,
    /// What was decompressed.
    pub(super) spool: Spool,
    pub(super) budget: Budget,
    /// Whether it was told that this is not all.
    is_overfull: bool,
    told_of_danger: bool,
    file_name: String,
}

impl Search {
    pub(super) fn new(path: &Path, size: u64) -> Self {
        Self {
            pickles: Vec::new(),
            problems: Vec::new(),
            storages: HashMap::new(),
            unread: None,
            spool: Spool::default(),
            budget: Budget::of_file(size),
            is_overfull: false,
            told_of_danger: false,
            file_name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        }
    }

    /// Takes a file or a member apart; says what it is.
    pub(super) fn look(&mut self, part: &FilePart, place: Place<'_>) -> &'static str {
        let head = match part.head(0, 512) {
            Ok(head) => head,
            Err(error) => {
                self.problem(place, error.to_string());
                self.unread.get_or_insert(error);
                return "unreadable";
            }
        };
        if head.is_empty() {
            return "empty";
        }
        let inside = Inside::of(part, &head);
        if matches!(inside, Inside::Nothing) {
            return self.flat(part, place, &head);
        }
        self.shadow(part, place);
        if place.depth == DEEPEST {
            self.problem(place, "archives are within archives too deeply");
            return "archive";
        }
        match inside {
            Inside::Zip => zip::look(self, part, place),
            Inside::Tar => tar::look(self, part, place),
            Inside::Compressed(how) => compressed::look(self, part, place, how),
            Inside::Nothing => "nothing",
        }
    }

    /// Counts a member; `false` where there were too many.
    pub(super) fn counts_member(&mut self, place: Place<'_>) -> bool {
        let counts = self.budget.members.take(1);
        if !counts {
            self.problem(place, "the archive has too many members");
        }
        counts
    }

    /// Counts bytes of a member that is stored; `false` where there were too many.
    pub(super) fn counts_stored(&mut self, len: u64, place: Place<'_>) -> bool {
        let counts = self.budget.stored.take(len);
        if !counts {
            self.problem(place, "members of the archive overlap, and are too long together to look into");
        }
        counts
    }

    /// Looks at what is no archive.
    fn flat(&mut self, part: &FilePart, place: Place<'_>, head: &[u8]) -> &'static str {
        if head.starts_with(numpy::MAGIC) {
            self.shadow(part, place);
            self.array(part, place);
            return "NumPy array";
        }
        if let Some(Known { format, problem, globals }) = known::of(part, head) {
            self.shadow(part, place);
            if let Some(problem) = problem {
                self.problem(place, format!("{format}: {problem}"));
            }
            if !globals.is_empty() {
                self.found(place, 0, globals, None);
            }
            return format;
        }
        self.pickles(part, place)
    }

    /// An array of NumPy's: only objects are a pickle, which stands behind the header; what else may look like one is not read as
    /// one.
    fn array(&mut self, part: &FilePart, place: Place<'_>) {
        if let Ok(Some(end)) = numpy::end(part) {
            if end < part.size() {
                self.problem(place, format!("{} bytes behind the array", part.size() - end));
            } else if end > part.size() {
                self.problem(place, "the array is cut off");
            }
            return;
        }
        let mut cursor = Cursor::new(part, 0, part.size());
        let data = cursor.skip(6).and_then(|()| {
            Ok(match cursor.array::<2>()? {
                [1, _] => 10 + u64::from(u16::from_le_bytes(cursor.array()?)),
                _ => 12 + u64::from(u32::from_le_bytes(cursor.array()?)),
            })
        });
        match data {
            Ok(data) if data < part.size() => {
                let first = self.follow(part, data);
                self.chain(part, place, data, first);
            }
            _ => self.problem(place, "its header is cut off"),
        }
    }

    /// Looks at what may be a pickle, or text, or what nothing is known of.
    fn pickles(&mut self, part: &FilePart, place: Place<'_>) -> &'static str {
        let first = self.follow(part, 0);
        let marked = is_marked(part, 0);
        let imports = !first.globals.is_empty();
        let is_whole = first.stopped && first.end == part.size();
        if !marked && !is_whole && (!imports || first.problem.is_some() && !first.globals.iter().any(is_told))
        {
            // No loader gets to anything in a text that is not followed to an import.
            let name = place.member.unwrap_or(&self.file_name);
            if (!imports || known::is_named_text(name))
                && !self.imports_later(part, first.stopped.then_some(first.end))
                && known::is_text(part)
            {
                return "text";
            }
        }
        if !marked && !first.stopped && !imports {
            self.problem(place, "it is of no format that is understood");
            return "unknown format";
        }
        self.chain(part, place, 0, first);
        "pickle"
    }

    /// Whether one of the pickles that follow, each behind the STOP of another, imports something.
    fn imports_later(&mut self, part: &FilePart, mut next: Option<u64>) -> bool {
        for _ in 0..MOST_PICKLES {
            let Some(at) = next.filter(|&at| at < part.size()) else { return false };
            let followed = self.follow(part, at);
            if followed.globals.iter().any(is_told) {
                return true;
            }
            next = followed.stopped.then_some(followed.end);
        }
        // No file that people write has that many ends.
        true
    }

    /// Follows pickles that stand one behind another, and accounts for what old files of PyTorch have behind them.
    fn chain(&mut self, part: &FilePart, place: Place<'_>, start: u64, first: Followed) {
        let mut legacy = torch::Legacy::new(part, start);
        let (mut at, mut first) = (start, Some(first));
        while at < part.size() {
            let mut followed = first.take().unwrap_or_else(|| self.follow(part, at));
            let is_one = at == start
                || followed.stopped
                || is_marked(part, at)
                || followed.globals.iter().any(is_proper);
            if !is_one {
                return self.behind(place, part.size() - at);
            }
            if self.pickles.len() >= MOST_PICKLES {
                return self.problem(place, "there are too many pickles");
            }
            legacy.takes(&followed);
            self.storages.extend(std::mem::take(&mut followed.storages));
            let (end, stopped) = (followed.end, followed.stopped);
            self.found(place, at, followed.globals, followed.problem);
            if !stopped {
                return;
            }
            at = end;
            match legacy.storages(at) {
                Some(Ok(end)) => at = end,
                Some(Err(problem)) => return self.problem(place, problem),
                None => {}
            }
        }
    }

    pub(super) fn behind(&mut self, place: Place<'_>, len: u64) {
        self.problem(place, format!("{len} bytes behind what is understood"));
    }

    /// What a loader would import that takes for a pickle what is something else. Most of what it would read is no name.
    pub(super) fn shadow(&mut self, part: &FilePart, place: Place<'_>) {
        let followed = self.follow(part, 0);
        // Where a global can be imported, what is computed with it may be a name.
        let imports = followed.globals.iter().any(is_proper);
        let globals: Vec<_> =
            followed.globals.into_iter().filter(|global| imports || is_told(global)).collect();
        if globals.iter().any(|global| global.verdict != Verdict::Harmless) {
            let problem = "what is of another format is also a pickle".to_owned();
            self.found(place, 0, globals, Some(problem));
        }
    }

    /// Follows the pickle at an offset.
    pub(super) fn follow(&mut self, part: &FilePart, at: u64) -> Followed {
        let source: Arc<dyn Source> = Arc::new(part.clone());
        let mut follow =
            |arrays| follow(&source, at, Rules { arrays, depth: 0, opcodes: &mut self.budget.opcodes });
        let mut followed = follow(true);
        if followed.has_arrays {
            // Other loaders than joblib's go on within the bytes of its arrays.
            let other = follow(false);
            let more = other.globals.into_iter().filter(is_proper);
            let more: Vec<_> = more.filter(|global| !followed.globals.contains(global)).collect();
            followed.globals.extend(more);
        }
        followed
    }

    pub(super) fn found(
        &mut self,
        place: Place<'_>,
        offset: u64,
        mut globals: Vec<Global>,
        problem: Option<String>,
    ) {
        let len = |global: &Global| global.module.len() + global.name.len();
        let names: usize = globals.iter().map(|global| size_of::<Global>() + 32 + len(global)).sum();
        let member = place.member.map_or(0, str::len);
        if !self.tells(size_of::<Pickle>() + member + names + problem.as_ref().map_or(0, String::len)) {
            // One that is dangerous is told in any case.
            globals.retain(|global| global.verdict == Verdict::Dangerous && len(global) < LONGEST_TOLD);
            globals.truncate(1);
            if !globals.is_empty() && !self.told_of_danger {
                self.told_of_danger = true;
                self.pickles.push(Pickle { member: None, offset, globals, problem: None });
            }
            return;
        }
        let member = place.member.map(str::to_owned);
        self.pickles.push(Pickle { member, offset, globals, problem });
    }

    pub(super) fn problem(&mut self, place: Place<'_>, what: impl Into<String>) {
        let what = what.into();
        let len = size_of::<Problem>() + place.member.map_or(0, str::len) + what.len();
        if self.problems.len() < MOST_PROBLEMS && self.tells(len) {
            let member = place.member.map(str::to_owned);
            self.problems.push(Problem { member, what });
        }
    }

    /// Counts bytes of what is to be told; `false` where there is too much, which is a problem by itself.
    fn tells(&mut self, len: usize) -> bool {
        let tells = self.budget.told.take(len as u64);
        if !tells && !self.is_overfull {
            self.is_overfull = true;
            let what = "there is more in it than can be told".to_owned();
            self.problems.push(Problem { member: None, what });
        }
        tells
    }
}

/// What is taken apart before anything else.
enum Inside {
    Zip,
    Tar,
    Compressed(compressed::How),
    Nothing,
}

impl Inside {
    fn of(part: &FilePart, head: &[u8]) -> Self {
        if let Some(how) = compressed::How::of(head) {
            return Self::Compressed(how);
        }
        if tar::is_archive(head) {
            return Self::Tar;
        }
        if matches!(head, [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..]) || zip::ends_here(part) {
            return Self::Zip;
        }
        Self::Nothing
    }
}

/// Whether a pickle begins here that says so, of a protocol that there is or may be.
pub(super) fn is_marked(part: &FilePart, at: u64) -> bool {
    part.head(at, 2).is_ok_and(|head| matches!(head[..], [0x80, 0..=9]))
}

/// Whether a global can be imported, and was not read out of something else.
fn is_proper(global: &Global) -> bool {
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_alphabetic() || c == '_')
            && word.chars().all(|c| c.is_alphanumeric() || c == '_')
    };
    match &*global.module {
        // A name that is computed is dangerous where a pickle is one; in other bytes it is nothing.
        "" => false,
        module => module.split('.').all(is_word) && global.name.split('.').all(is_word),
    }
}

/// Whether it is worth telling where no pickle need be.
fn is_told(global: &Global) -> bool {
    is_proper(global) || global.module.is_empty() && global.verdict == Verdict::Dangerous
}

/// A global that no pickle imports, but something else in a file does.
pub(super) fn global(module: &str, name: &str) -> Global {
    Global { module: module.to_owned(), name: name.to_owned(), verdict: Verdict::Dangerous }
}

/// The number that a pickle makes.
pub(super) fn count(root: &Root) -> Option<u64> {
    match root {
        Root::Int(count) => u64::try_from(*count).ok(),
        _ => None,
    }
}
