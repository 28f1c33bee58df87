//! What the specification forbids and the official crate lets pass.

use std::borrow::Cow;
use std::fmt;

use crate::error::{Error, ErrorKind, Result};

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

/// A rule of the specification that the official crate does not enforce.
///
/// The sources are the "Format" and "Notes" sections of the official repository's README and its JSON schema
/// (`docs/safetensors.schema.json`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// "The header data MUST begin with a `{` character": white space stands before it.
    LeadingSpace,
    /// "The header data MAY be trailing padded with whitespace (0x20)": tabs or line ends stand there.
    Padding,
    /// "Duplicate keys are disallowed": two tensors have one name.
    DuplicateTensor,
    /// "Duplicate keys are disallowed": a metadata key stands twice.
    DuplicateMetadata,
    /// The schema knows `dtype`, `shape` and `data_offsets` only.
    UnknownField,
    /// The specification shows an object for each tensor; an array stands there.
    TensorAsArray,
    /// The specification has dtypes as strings; an object stands there.
    DtypeAsObject,
    /// "Special key `__metadata__` is allowed to contain a free form string-to-string map": it is `null`.
    NullMetadata,
    /// The key `__metadata__` is spelled with escapes, which readers that compare bytes take for a tensor.
    EscapedMetadataKey,
    /// The schema bounds the numbers of a shape and of `data_offsets` by 2^48-1.
    LargeNumber,
    /// A tensor's name holds a NUL, at which C readers end it.
    NulInName,
}

impl Rule {
    /// A stable name for reports: `duplicate-tensor`.
    pub fn name(self) -> &'static str {
        match self {
            Self::LeadingSpace => "leading-space",
            Self::Padding => "padding",
            Self::DuplicateTensor => "duplicate-tensor",
            Self::DuplicateMetadata => "duplicate-metadata",
            Self::UnknownField => "unknown-field",
            Self::TensorAsArray => "tensor-as-array",
            Self::DtypeAsObject => "dtype-as-object",
            Self::NullMetadata => "null-metadata",
            Self::EscapedMetadataKey => "escaped-metadata-key",
            Self::LargeNumber => "large-number",
            Self::NulInName => "nul-in-name",
        }
    }

    /// What is said of a place that breaks it.
    pub fn message(self) -> &'static str {
        match self {
            Self::LeadingSpace => "the header does not begin with '{'",
            Self::Padding => "the header is padded with something else than spaces",
            Self::DuplicateTensor => "the name stands twice in the header",
            Self::DuplicateMetadata => "a metadata key stands twice",
            Self::UnknownField => "its entry has a field besides dtype, shape and data_offsets",
            Self::TensorAsArray => "its entry is an array instead of an object",
            Self::DtypeAsObject => "its dtype is an object instead of a string",
            Self::NullMetadata => "__metadata__ is null",
            Self::EscapedMetadataKey => "the key __metadata__ is written with escapes",
            Self::LargeNumber => "its entry has a number above 2^48-1",
            Self::NulInName => "the name holds a NUL character",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
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
    pub const MOST: usize = 64;
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

/// The first characters of a name, which may be as long as the header.
pub(crate) fn start_of(name: &str) -> &str {
    const MOST: usize = 256;
    name.char_indices().nth(MOST).map_or(name, |(end, _)| &name[..end])
}
