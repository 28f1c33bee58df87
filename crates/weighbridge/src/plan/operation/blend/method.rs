//! The ways of blending models.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind};

/// How the values of several models become one, `x` being those of the models with their weights `w`, `b`
/// those of a base, and `d = x - b`, a model's *task vector*. The formulas are those of the methods of these
/// names in mergekit 0.1.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BlendMethod {
    /// The weighted average, `sum(w x) / sum(w)`; without [`normalize`](super::Blend::normalize) the sum.
    Linear,
    /// Along the arc between two tensors, seen as vectors with an angle `a` between them: `(sin((1-t) a) x1 +
    /// sin(t a) x2) / sin(a)`. Where the cosine is beyond 0.9995 either way, along the line: `(1-t) x1 + t
    /// x2`.
    Slerp,
    /// `b + lambda sum(w d)`.
    TaskArithmetic,
    /// Of each task vector the largest magnitudes are kept, as many as the density says, and all that are as
    /// large as the smallest of them. Of each element the sign of `sum(w d)` is elected, positive if that is
    /// zero, and the terms that have it make the sum: `b + lambda sum(w d) / sum(w)`.
    Ties,
    /// As task arithmetic, of differences kept at random, as many as the density says, and divided by it.
    DareLinear,
    /// As ties, of differences kept at random, as many as the density says, and divided by it. The sum is not
    /// divided by weights unless told so.
    DareTies,
}

impl BlendMethod {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Linear, Self::Slerp, Self::TaskArithmetic, Self::Ties, Self::DareLinear, Self::DareTies];

    /// Its name: `task_arithmetic`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Slerp => "slerp",
            Self::TaskArithmetic => "task_arithmetic",
            Self::Ties => "ties",
            Self::DareLinear => "dare_linear",
            Self::DareTies => "dare_ties",
        }
    }

    /// Whether it blends differences from a base.
    pub fn has_base(self) -> bool {
        !matches!(self, Self::Linear | Self::Slerp)
    }

    /// Whether it keeps a part of the differences only.
    pub fn has_density(self) -> bool {
        matches!(self, Self::Ties | Self::DareLinear | Self::DareTies)
    }

    /// Whether the choice of what it keeps is random.
    pub fn is_random(self) -> bool {
        matches!(self, Self::DareLinear | Self::DareTies)
    }

    /// Whether it divides by weights unless told otherwise.
    pub fn normalizes(self) -> bool {
        matches!(self, Self::Linear | Self::Ties)
    }

    /// Whether the sign of each element is elected.
    pub(super) fn elects(self) -> bool {
        matches!(self, Self::Ties | Self::DareTies)
    }
}

impl fmt::Display for BlendMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for BlendMethod {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|method| method.name() == text);
        found.ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            Error::new(ErrorKind::Unsupported, format!("no method is named {text:?}; known are {known}"))
        })
    }
}
