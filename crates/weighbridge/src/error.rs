//! One error type: what went wrong, in which file, with which tensor.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::rule::Rule;
use crate::text::start_of;

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation failed.
///
/// It prints as one line that names the file and the tensor where they are known:
/// `model-2.safetensors: tensor "h.3.w": shape [4, 8] of F32 needs 128 bytes, the header gives 120`.
/// Match on [`kind`](Error::kind) to react to it. Cloning is cheap.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    file: Option<PathBuf>,
    tensor: Option<Box<str>>,
    message: Box<str>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// What kind of thing went wrong. Stable: variants are added, never changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system or a source failed to read or write.
    Io,
    /// There is no such file, directory or cached repository, or nothing in it can be loaded.
    NotFound,
    /// Several checkpoints could be meant; the message lists them.
    Ambiguous,
    /// The file is shorter than the 8 bytes that give the header's length.
    HeaderTooSmall,
    /// The header's length is above the limit.
    HeaderTooLarge,
    /// The header is longer than the file.
    HeaderTruncated,
    /// The header is not UTF-8.
    HeaderEncoding,
    /// The header is not valid JSON, or not of the form that the format requires.
    HeaderSyntax,
    /// The data of tensors overlaps, leaves holes, or ends before it starts.
    Offsets,
    /// The size of a shape, in bits, exceeds 64 bits. (A value too large for a dtype is a
    /// [`Value`](Self::Value).)
    Overflow,
    /// A tensor of 4-bit or 6-bit values does not end on a byte boundary.
    SubByte,
    /// A tensor has another number of bytes than its dtype and shape need.
    TensorSize,
    /// The file is longer or shorter than its header says.
    DataLength,
    /// The [`Strict`](crate::Profile::Strict) profile refuses the header, which breaks this rule.
    Rule(Rule),
    /// The name is not one under which a tensor can be written.
    TensorName,
    /// The index is not valid JSON, or not of the form that the format requires.
    Index,
    /// The name of a shard leads outside the checkpoint's directory.
    ShardName,
    /// The index names a shard that does not exist.
    MissingShard,
    /// A tensor is missing, or one is left over that nothing takes.
    MissingTensor,
    /// Two tensors have the same name.
    DuplicateTensor,
    /// A slice does not fit the shape of its tensor.
    Slice,
    /// A size in bytes is invalid, or exceeds a limit of the format.
    Size,
    /// A shape is not the expected one, or not one that the operation can take.
    Shape,
    /// A dtype is not supported there; the message says which are.
    Dtype,
    /// A value does not fit the requested dtype (the source is a
    /// [`plan::OutOfRange`](crate::plan::OutOfRange) then), or is not one that can be used there.
    Value,
    /// Another process or thread is replacing the checkpoint.
    Busy,
    /// The journal of an interrupted save is invalid.
    Journal,
    /// The new header does not fit in place of the old one.
    NoRoom,
    /// Memory could not be allocated.
    Memory,
    /// The framework or the device reported an error.
    Device,
    /// A glob or a regular expression is invalid.
    Pattern,
    /// A file of another format is invalid.
    Malformed,
    /// A file is of a format, or contains something, that cannot be converted.
    Unsupported,
    /// A pickle calls something that is not known to be harmless.
    Unsafe,
    /// A server does not allow it: there is no token, or a wrong one, or terms were not accepted.
    Denied,
    /// It is not here, and the network is switched off.
    Offline,
    /// It was changed while it was read.
    Changed,
    /// Its bytes are not those that its checksum is of.
    Checksum,
    /// The operation was cancelled.
    Cancelled,
    /// A source, an operation or this crate has a bug.
    Internal,
}

impl ErrorKind {
    /// A stable name for reports: `header-too-small`; of a [rule](Self::Rule) the rule's own.
    pub fn name(self) -> &'static str {
        match self {
            Self::Io => "io",
            Self::NotFound => "not-found",
            Self::Ambiguous => "ambiguous",
            Self::HeaderTooSmall => "header-too-small",
            Self::HeaderTooLarge => "header-too-large",
            Self::HeaderTruncated => "header-truncated",
            Self::HeaderEncoding => "header-encoding",
            Self::HeaderSyntax => "header-syntax",
            Self::Offsets => "offsets",
            Self::Overflow => "overflow",
            Self::SubByte => "sub-byte",
            Self::TensorSize => "tensor-size",
            Self::DataLength => "data-length",
            Self::Rule(rule) => rule.name(),
            Self::TensorName => "tensor-name",
            Self::Index => "index",
            Self::ShardName => "shard-name",
            Self::MissingShard => "missing-shard",
            Self::MissingTensor => "missing-tensor",
            Self::DuplicateTensor => "duplicate-tensor",
            Self::Slice => "slice",
            Self::Size => "size",
            Self::Shape => "shape",
            Self::Dtype => "dtype",
            Self::Value => "value",
            Self::Busy => "busy",
            Self::Journal => "journal",
            Self::NoRoom => "no-room",
            Self::Memory => "memory",
            Self::Device => "device",
            Self::Pattern => "pattern",
            Self::Malformed => "malformed",
            Self::Unsupported => "unsupported",
            Self::Unsafe => "unsafe",
            Self::Denied => "denied",
            Self::Offline => "offline",
            Self::Changed => "changed",
            Self::Checksum => "checksum",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Error {
    /// An error of the given kind; implementers of [`Source`](crate::Source) and
    /// [`Operation`](crate::plan::Operation) make them too.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            kind,
            file: None,
            tensor: None,
            message: message.into().into_boxed_str(),
            source: None,
        }))
    }

    /// An error that the operating system reported: `what` says what failed, such as `"it cannot be read"`, and
    /// the system's own words follow. The kind is [`NotFound`](ErrorKind::NotFound) or [`Io`](ErrorKind::Io). An
    /// error of this crate that passed through [`io::Error`] is taken out again, and `what` ignored.
    pub fn io(what: &str, error: io::Error) -> Self {
        let error = match error.downcast::<Self>() {
            Ok(own) => return own,
            Err(error) => error,
        };
        let kind = match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Io,
        };
        Self::new(kind, format!("{what}: {error}")).with_source(error)
    }

    /// Names the file, where none is named yet.
    #[must_use]
    pub fn in_file(self, file: &Path) -> Self {
        self.edit(|inner| {
            inner.file.get_or_insert_with(|| file.to_owned());
        })
    }

    /// Names the tensor, where none is named yet.
    #[must_use]
    pub fn in_tensor(self, tensor: &str) -> Self {
        self.edit(|inner| {
            inner.tensor.get_or_insert_with(|| tensor.into());
        })
    }

    /// Adds the error behind this one.
    #[must_use]
    pub fn with_source(self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.edit(|inner| inner.source = Some(Arc::new(source)))
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn advised(self, advice: &str) -> Self {
        self.edit(|inner| inner.message = format!("{}; {advice}", inner.message).into_boxed_str())
    }

    fn edit(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What went wrong, without the names of file and tensor.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The file, where one is to blame.
    pub fn file(&self) -> Option<&Path> {
        self.0.file.as_deref()
    }

    /// The tensor, where one is to blame.
    pub fn tensor(&self) -> Option<&str> {
        self.0.tensor.as_deref()
    }

    /// The rule of the specification, where the strict profile refused.
    pub fn rule(&self) -> Option<Rule> {
        match self.0.kind {
            ErrorKind::Rule(rule) => Some(rule),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.0.file {
            // Control characters in names must not break the line.
            write!(f, "{}: ", file.display().to_string().escape_controls())?;
        }
        if let Some(tensor) = &self.0.tensor {
            // A hostile name may be as long as a header.
            let start = start_of(tensor);
            let more = if start.len() < tensor.len() { "..." } else { "" };
            write!(f, "tensor {start:?}{more}: ")?;
        }
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("message", &self.to_string())
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|s| s.as_ref() as _)
    }
}

trait EscapeControls {
    fn escape_controls(self) -> String;
}

impl EscapeControls for String {
    fn escape_controls(self) -> String {
        if !self.chars().any(char::is_control) {
            return self;
        }
        self.chars()
            .flat_map(|c| {
                let escaped = c.is_control().then(|| c.escape_default());
                let plain = escaped.is_none().then_some(c);
                escaped.into_iter().flatten().chain(plain)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_with_file_and_tensor() {
        let error = Error::new(ErrorKind::TensorSize, "too short")
            .in_tensor("h.\n3")
            .in_file(Path::new("a\nb.safetensors"))
            .in_file(Path::new("outer"));
        assert_eq!(error.to_string(), "a\\nb.safetensors: tensor \"h.\\n3\": too short");
        assert_eq!(error.tensor(), Some("h.\n3"));
    }
}
