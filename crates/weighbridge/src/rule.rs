//! The rules of the specification that the official crate does not enforce.

use std::fmt;

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
