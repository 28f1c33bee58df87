//! Pickles, PyTorch's above all: read by an interpreter that executes nothing.

use weighbridge::{Error, ErrorKind, Result};

use crate::contents::Contents;
use crate::format::Format;
use crate::input::Input;
use crate::options::Options;

/// Whether these are the first bytes of a file of PyTorch before 1.6: a pickle of its magic number.
pub(crate) fn is_legacy(head: &[u8]) -> bool {
    head.get(2..).is_some_and(|rest| rest.starts_with(b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"))
}

/// Reads a file that was recognised.
pub(crate) fn read(_: &Input, format: Format, _: &Options) -> Result<Contents> {
    Err(Error::new(ErrorKind::Unsupported, format!("{format} is not read yet")))
}
