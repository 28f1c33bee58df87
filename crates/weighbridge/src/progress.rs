//! How far work has come, reported while it is done.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

/// How far a load or a save has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes of tensors that are done.
    pub bytes_done: u64,
    /// Bytes that all tensors have together.
    pub bytes_total: u64,
}

/// What a progress handler may return: nothing, or whether to go on.
pub trait IntoFlow {
    /// Whether to go on or to cancel.
    fn into_flow(self) -> ControlFlow<()>;
}

impl IntoFlow for () {
    fn into_flow(self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

impl IntoFlow for ControlFlow<()> {
    fn into_flow(self) -> ControlFlow<()> {
        self
    }
}

/// A function to tell, by one thread at a time.
#[derive(Clone)]
pub(crate) struct Handler(Arc<Mutex<Tell>>);

type Tell = dyn FnMut(Progress) -> ControlFlow<()> + Send;

impl Handler {
    pub(crate) fn new<F: IntoFlow>(mut handler: impl FnMut(Progress) -> F + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(move |progress| handler(progress).into_flow())))
    }

    /// Tells what `now` says, which is asked when it is this thread's turn, so that figures never fall.
    pub(crate) fn tell(&self, now: impl FnOnce() -> Progress) -> ControlFlow<()> {
        let mut handler = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        handler(now())
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handler")
    }
}
