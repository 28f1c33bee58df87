//! Panics of code that is not ours, as errors.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Error, ErrorKind, Result};

/// What `act` returns; if it panics, an error that says during `what`.
pub(crate) fn caught<T>(what: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(|text| &**text));
        let message = format!("a panic while {what}: {}", text.unwrap_or("no message"));
        Err(Error::new(ErrorKind::Internal, message))
    })
}
