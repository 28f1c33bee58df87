//! One error type: what went wrong, with which file.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation failed. It prints as one line, without the file's address where the caller knows it.
///
/// No message has a token, a query of a signed URL, or any other secret in it. Cloning is cheap.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    address: Option<Box<str>>,
    message: Box<str>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A connection or a local file failed, for longer than is worth trying again.
    Io,
    /// There is no such repository, revision, file, bucket or object.
    NotFound,
    /// It may not be read or written: no token, a wrong one, or terms that were not accepted.
    Denied,
    /// The network is switched off, and the cache has it not.
    Offline,
    /// It was changed while it was read or written.
    Changed,
    /// Its bytes are not those that its checksum is of.
    Checksum,
    /// Another process is at work on it.
    Busy,
    /// The server cannot do, or may not be asked, what is needed.
    Unsupported,
    /// The server's answer is not what it has to be.
    Malformed,
    /// The address is not one.
    Address,
    /// It was interrupted by whoever asked for it.
    Cancelled,
}

impl Error {
    /// An error of the given kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let message = message.into().into_boxed_str();
        Self(Arc::new(Inner { kind, address: None, message, source: None }))
    }

    /// Names the file or repository, where none is named yet.
    #[must_use]
    pub fn at(self, address: &str) -> Self {
        self.edit(|inner| {
            inner.address.get_or_insert_with(|| address.into());
        })
    }

    /// Adds what to know or do about it.
    #[must_use]
    pub(crate) fn advised(self, advice: &str) -> Self {
        self.edit(|inner| inner.message = format!("{}; {advice}", inner.message).into())
    }

    /// Adds the error behind this one.
    #[must_use]
    pub fn with_source(self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.edit(|inner| inner.source = Some(Arc::new(source)))
    }

    fn edit(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What went wrong, without the address.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The address of the file or repository, where it is known.
    pub fn address(&self) -> Option<&str> {
        self.0.address.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.address() {
            write!(f, "{address}: ")?;
        }
        f.write_str(self.message())
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
        self.0.source.as_ref().map(|source| source.as_ref() as _)
    }
}
