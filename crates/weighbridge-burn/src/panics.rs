//! Panics of Burn as errors.

use std::panic::{AssertUnwindSafe, catch_unwind};

use weighbridge::{Error, ErrorKind, Result};

/// What `act` gives; a panic of Burn, of a device or of the caller's code as an error.
pub(crate) fn caught<T>(what: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(|text| &**text));
        let message = format!("a panic while {what}: {}", text.unwrap_or("without a message"));
        Err(Error::new(ErrorKind::Device, message))
    })
}
