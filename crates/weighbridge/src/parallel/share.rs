//! How a tensor is cut, and how a rule writes it.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};

/// What the ranks have of a tensor: a rule of a [`ParallelPlan`](super::ParallelPlan) without its names.
///
/// It is written as in [a file of rules](super#rules).
///
/// ```
/// use weighbridge::parallel::Share;
///
/// # fn main() -> weighbridge::Result<()> {
/// let gate_and_up: Share = "column packed 2".parse()?;
/// assert_eq!(gate_and_up.to_string(), "column packed 2");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Share {
    /// A part each.
    Cut(Cut),
    /// Equally many rows each; rows of zeros are added until their number divides by the ranks and by this number.
    Vocabulary(usize),
    /// Whole experts.
    Experts,
    /// All of it.
    Replicated,
}

/// Vocabularies are padded to no larger multiples.
const MOST_MULTIPLE: usize = 1 << 20;

/// Along which dimension a tensor is cut, and where it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    pub(super) along: Along,
    pub(super) unit: Unit,
    pub(super) pieces: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Along {
    Column,
    Row,
    Dim(usize),
}

/// What is not cut in two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unit {
    /// So many rows or columns.
    Multiple(usize),
    /// An attention head.
    Heads,
    /// A head of keys or values.
    KvHeads,
    /// A head of queries, then of keys, then of values, which lie one after the other.
    Qkv,
    /// A head of keys and values with its heads of queries.
    Groups,
}

impl Cut {
    /// Along the outputs of a linear layer.
    pub fn column() -> Self {
        Self { along: Along::Column, unit: Unit::Multiple(1), pieces: 1 }
    }

    /// Along the inputs of a linear layer; what has no inputs, a bias, is in all ranks.
    pub fn row() -> Self {
        Self { along: Along::Row, ..Self::column() }
    }

    /// Along a dimension.
    pub fn dim(dim: usize) -> Self {
        Self { along: Along::Dim(dim), ..Self::column() }
    }

    /// Between units only.
    #[must_use]
    pub fn by(self, unit: Unit) -> Self {
        Self { unit, ..self }
    }

    /// Each of so many equal pieces, which lie one after the other.
    #[must_use]
    pub fn packed(self, pieces: usize) -> Self {
        Self { pieces: pieces.max(1), ..self }
    }

    /// The dimension of a tensor of that shape; `None` if all ranks have it whole.
    pub(super) fn dim_of(self, shape: &[usize]) -> Result<Option<usize>> {
        let rank = shape.len();
        let dim = match self.along {
            Along::Column => rank.saturating_sub(2),
            Along::Row if rank == 1 => return Ok(None),
            Along::Row => rank.saturating_sub(1),
            Along::Dim(dim) => dim,
        };
        if dim < rank {
            return Ok(Some(dim));
        }
        let message = format!("its rule is `{self}`, but it has {rank} dimensions");
        Err(Error::new(ErrorKind::Shape, message))
    }
}

impl From<Cut> for Share {
    fn from(cut: Cut) -> Self {
        Self::Cut(cut)
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.along {
            Along::Column => write!(f, "column")?,
            Along::Row => write!(f, "row")?,
            Along::Dim(dim) => write!(f, "{dim}")?,
        }
        if self.pieces > 1 {
            write!(f, " packed {}", self.pieces)?;
        }
        match self.unit {
            Unit::Multiple(1) => Ok(()),
            Unit::Multiple(count) => write!(f, " by {count}"),
            Unit::Heads => write!(f, " by heads"),
            Unit::KvHeads => write!(f, " by kv_heads"),
            Unit::Qkv => write!(f, " by qkv"),
            Unit::Groups => write!(f, " by groups"),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut(cut) => cut.fmt(f),
            Self::Vocabulary(1) => write!(f, "vocab"),
            Self::Vocabulary(multiple) => write!(f, "vocab {multiple}"),
            Self::Experts => write!(f, "experts"),
            Self::Replicated => write!(f, "replicated"),
        }
    }
}

impl FromStr for Share {
    type Err = Error;

    /// Fails with [`ErrorKind::Pattern`] where it is none.
    fn from_str(text: &str) -> Result<Self> {
        const WRITTEN: &str = "write `column`, `row`, a dimension, `vocab`, `experts` or `replicated`";
        const BEHIND: &str =
            "behind a cut stands `packed N`, or `by` and `heads`, `kv_heads`, `qkv`, `groups` or a number";
        let fail = |why: &str| Err(Error::new(ErrorKind::Pattern, format!("{text:?}: {why}")));
        let count = |word: &str| word.parse::<usize>().ok().filter(|count| *count > 0);
        let words: Vec<&str> = text.split_whitespace().collect();
        let Some((&first, mut rest)) = words.split_first() else { return fail(WRITTEN) };
        let mut cut = match (first, rest) {
            ("replicated", []) => return Ok(Self::Replicated),
            ("experts", []) => return Ok(Self::Experts),
            ("vocab", []) => return Ok(Self::Vocabulary(1)),
            ("vocab", [multiple]) => match count(multiple).filter(|multiple| *multiple <= MOST_MULTIPLE) {
                Some(multiple) => return Ok(Self::Vocabulary(multiple)),
                None => return fail("behind `vocab` stands what the number of rows must divide by"),
            },
            ("column", _) => Cut::column(),
            ("row", _) => Cut::row(),
            (dim, _) => match dim.parse() {
                Ok(dim) => Cut::dim(dim),
                Err(_) => return fail(WRITTEN),
            },
        };
        while let [word, value, behind @ ..] = rest {
            cut = match (*word, *value) {
                ("packed", pieces) if cut.pieces == 1 => match count(pieces) {
                    Some(pieces) => cut.packed(pieces),
                    None => return fail(BEHIND),
                },
                ("by", unit) if cut.unit == Unit::Multiple(1) => match unit {
                    "heads" => cut.by(Unit::Heads),
                    "kv_heads" => cut.by(Unit::KvHeads),
                    "qkv" => cut.by(Unit::Qkv),
                    "groups" => cut.by(Unit::Groups),
                    number => match count(number) {
                        Some(number) => cut.by(Unit::Multiple(number)),
                        None => return fail(BEHIND),
                    },
                },
                _ => return fail(BEHIND),
            };
            rest = behind;
        }
        if !rest.is_empty() || cut.pieces > 1 && cut.unit == Unit::Qkv {
            return fail(BEHIND);
        }
        Ok(Self::Cut(cut))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for text in [
            "column",
            "row",
            "3",
            "column packed 2",
            "row by heads",
            "0 by qkv",
            "column by kv_heads",
            "column by groups",
            "row packed 3 by 128",
            "vocab",
            "vocab 64",
            "experts",
            "replicated",
        ] {
            assert_eq!(text.parse::<Share>().unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "rows",
            "column by",
            "column by x",
            "column packed 0",
            "vocab 0",
            "vocab x",
            "replicated 2",
            "-1",
            "column by heads by heads",
            "column packed 2 by qkv",
            "row row",
            "experts 4",
            "column by 0",
        ] {
            assert_eq!(wrong.parse::<Share>().unwrap_err().kind(), ErrorKind::Pattern, "{wrong}");
        }
    }
}
