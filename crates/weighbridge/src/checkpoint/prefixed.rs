//! Names with a prefix, for the parts of a union.

use crate::error::{Error, ErrorKind, Result};
use crate::header::Header;

/// The names of a shard's tensors behind a prefix, in the order of their data.
pub(super) struct PrefixedNames {
    prefix: Box<str>,
    /// One after the other.
    text: String,
    /// Where in `text` each name ends.
    ends: Vec<usize>,
}

impl PrefixedNames {
    /// # Errors
    ///
    /// Fails when there is no memory for the names.
    pub(super) fn new(prefix: String, header: &Header) -> Result<Self> {
        let lens = header.tensors().map(|tensor| tensor.name().len());
        let len = lens.fold(0_usize, |sum, len| sum.saturating_add(prefix.len()).saturating_add(len));
        let (mut text, mut ends) = (String::new(), Vec::new());
        text.try_reserve_exact(len).and_then(|()| ends.try_reserve_exact(header.len())).map_err(|error| {
            let message =
                format!("{len} bytes of prefixed names cannot be allocated; choose a shorter prefix");
            Error::new(ErrorKind::Memory, message).with_source(error)
        })?;
        for tensor in header.tensors() {
            text.push_str(&prefix);
            text.push_str(tensor.name());
            ends.push(text.len());
        }
        Ok(Self { prefix: prefix.into_boxed_str(), text, ends })
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn name(&self, tensor: usize) -> Option<&str> {
        let start = tensor.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied())?;
        self.text.get(start..*self.ends.get(tensor)?)
    }
}
