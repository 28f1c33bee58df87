//! What threads share: the standard library's, or, in the tests that try many schedules (`shuttled.rs`), shuttle's.

#[cfg(not(all(test, shuttle)))]
pub(super) use std::sync::{Condvar, Mutex, MutexGuard, atomic::AtomicBool};

#[cfg(all(test, shuttle))]
pub(super) use shuttle::sync::{Condvar, Mutex, MutexGuard, atomic::AtomicBool};
