//! Panics of Burn as errors.

use weighbridge::{ErrorKind, Result, caught_as};

/// What `act` gives; a panic of Burn, of a device or of the caller's code as an error.
pub(crate) fn caught<T>(what: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
    caught_as(ErrorKind::Device, what, act)
}
