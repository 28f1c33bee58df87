//! What was changed on the way.

use std::fmt;

/// Something that is not in the result as it was in the file, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    kind: NoteKind,
    name: String,
    why: String,
}

/// What happened to a tensor or a value. The order is that of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum NoteKind {
    /// It is not in the result.
    Dropped,
    /// It is in the result under another name.
    Renamed,
    /// It is the same tensor as another and is kept once.
    Aliased,
    /// Its values or its dtype were represented differently.
    Changed,
    /// It is in the metadata.
    Metadata,
    /// It was left as it was.
    Kept,
}

impl Note {
    pub(crate) fn new(kind: NoteKind, name: impl Into<String>, why: impl Into<String>) -> Self {
        Self { kind, name: name.into(), why: why.into() }
    }

    /// What happened.
    pub fn kind(&self) -> NoteKind {
        self.kind
    }

    /// The name in the foreign file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Why, or what it became.
    pub fn why(&self) -> &str {
        &self.why
    }
}

impl NoteKind {
    /// One word: `dropped`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dropped => "dropped",
            Self::Renamed => "renamed",
            Self::Aliased => "aliased",
            Self::Changed => "changed",
            Self::Metadata => "metadata",
            Self::Kept => "kept",
        }
    }
}

/// `dropped "epoch": a number that ...`, on one line.
impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}: {}", self.kind.name(), self.name, self.why)
    }
}
