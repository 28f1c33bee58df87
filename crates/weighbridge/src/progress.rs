//! How far work has come, told to whoever wants to know.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

/// How far a load or a save has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes of tensors that are there.
    pub bytes_done: u64,
    /// Bytes that all tensors have together.
    pub bytes_total: u64,
}

/// What a progress handler may return: nothing, or whether to go on.
pub trait Verdict {
    /// Whether to go on or to cancel.
    fn flow(self) -> ControlFlow<()>;
}

impl Verdict for () {
    fn flow(self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

impl Verdict for ControlFlow<()> {
    fn flow(self) -> ControlFlow<()> {
        self
    }
}

/// A function to tell, by one thread at a time.
#[derive(Clone)]
pub(crate) struct Handler(Arc<Mutex<Tell>>);

type Tell = dyn FnMut(Progress) -> ControlFlow<()> + Send;

impl Handler {
    pub(crate) fn new<V: Verdict>(mut handler: impl FnMut(Progress) -> V + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(move |progress| handler(progress).flow())))
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
