//! The rules of the specification that the official crate does not enforce.

use std::fmt;

/// A rule of the specification that the official crate does not enforce.
///
/// The sources are the "Format" and "Notes" sections of the official repository's README and its JSON schema
/// (`docs/safetensors.schema.json`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// "The header data MUST begin with a `{` character": there is white space before it.
    LeadingSpace,
    /// "The header data MAY be trailing padded with whitespace (0x20)": there are tabs or line ends.
    Padding,
    /// "Duplicate keys are disallowed": two tensors have the same name.
    DuplicateTensor,
    /// "Duplicate keys are disallowed": a metadata key appears twice.
    DuplicateMetadata,
    /// The schema has no fields other than `dtype`, `shape` and `data_offsets`.
    UnknownField,
    /// The specification has an object for each tensor; this one is an array.
    TensorAsArray,
    /// The specification has dtypes as strings; this one is an object.
    DtypeAsObject,
    /// "Special key `__metadata__` is allowed to contain a free form string-to-string map": it is `null`.
    NullMetadata,
    /// The key `__metadata__` is spelled with escapes, so that readers that compare bytes take it for a
    /// tensor.
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

    /// The message for a header that breaks it.
    pub fn message(self) -> &'static str {
        match self {
            Self::LeadingSpace => "the header does not begin with '{'",
            Self::Padding => "the header is padded with characters other than spaces",
            Self::DuplicateTensor => "the name appears twice in the header",
            Self::DuplicateMetadata => "a metadata key appears twice",
            Self::UnknownField => "its entry has a field other than dtype, shape and data_offsets",
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
