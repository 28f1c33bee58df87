//! What the specification forbids and the official crate lets pass.

use std::borrow::Cow;
use std::fmt;

use crate::error::{Error, ErrorKind, Result};
use crate::rule::Rule;
use crate::text::start_of;

/// How strictly a header is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Profile {
    /// Accepts exactly what crate `safetensors` 0.8.0 accepts; departures from the specification become
    /// [findings](super::Header::findings).
    #[default]
    Compat,
    /// Refuses whatever the specification forbids.
    Strict,
}

/// A place where a header breaks a [`Rule`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// The tensor that it is about; of a long name the start.
    pub tensor: Option<Box<str>>,
    /// The byte of the header's JSON at which it was seen.
    pub position: usize,
}

impl Finding {
    /// So many findings are kept for a file; a hostile header could have millions.
    pub(super) const MOST: usize = 64;
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(tensor) = &self.tensor {
            write!(f, "tensor {tensor:?}: ")?;
        }
        write!(f, "{} ({})", self.rule.message(), self.rule)
    }
}

/// The findings of one header, as its profile wants them.
#[derive(Debug, Default)]
pub(super) struct Findings {
    profile: Profile,
    kept: Vec<Finding>,
}

impl Findings {
    pub(super) fn new(profile: Profile) -> Self {
        Self { profile, kept: Vec::new() }
    }

    /// Notes a departure from the specification, which is an error under `Strict`.
    ///
    /// `tensor` is asked for only where it is kept; what is kept of a long name is its start.
    pub(super) fn note<'n>(
        &mut self,
        rule: Rule,
        position: usize,
        tensor: impl FnOnce() -> Option<Cow<'n, str>>,
    ) -> Result<()> {
        if self.profile == Profile::Strict {
            let message = format!("{} (rule {rule}, byte {position} of the header)", rule.message());
            let error = Error::new(ErrorKind::Rule(rule), message);
            return Err(match tensor() {
                Some(tensor) => error.in_tensor(&tensor),
                None => error,
            });
        }
        if self.kept.len() < Finding::MOST {
            let tensor = tensor().map(|name| start_of(&name).into());
            self.kept.push(Finding { rule, tensor, position });
        }
        Ok(())
    }

    pub(super) fn as_slice(&self) -> &[Finding] {
        &self.kept
    }
}
