//! Carries out a plan: positional reads on several threads, straight into the memory that becomes the tensors.

mod report;
mod session;
mod tile;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Mutex;

pub use report::{Progress, Report};
pub use session::Session;

use crate::error::Result;
use crate::plan::Plan;

/// How a [`Session`] goes about its work; start it with [`start`](SessionBuilder::start).
#[must_use]
pub struct SessionBuilder {
    plan: Plan,
    settings: Settings,
}

struct Settings {
    threads: usize,
    read_ahead: u64,
    order: Order,
    progress: Option<Mutex<Box<ProgressHandler>>>,
}

type ProgressHandler = dyn FnMut(Progress) + Send;

/// In which order a session reads ahead of what is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Order {
    /// As the data lies in the files: best when everything is taken.
    File,
    /// By name, numbers by value (`layers.2` before `layers.10`): near the order in which models are built.
    Natural,
}

/// More threads than this do not read faster on any machine that was measured.
const MOST_THREADS: usize = 8;

impl SessionBuilder {
    pub(crate) fn new(plan: Plan) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let settings = Settings {
            threads: threads.min(MOST_THREADS),
            read_ahead: Self::DEFAULT_READ_AHEAD,
            order: Order::File,
            progress: None,
        };
        Self { plan, settings }
    }

    /// 64 MiB.
    pub const DEFAULT_READ_AHEAD: u64 = 64 << 20;

    /// Sets the number of threads that read, the caller's own included while it waits; by default one a core,
    /// and 8 at most; more than 1024 count as 1024.
    pub fn threads(mut self, threads: usize) -> Self {
        self.settings.threads = threads.clamp(1, 1024);
        self
    }

    /// Sets how many bytes may have been read that nobody has taken yet, [`u64::MAX`] for no limit. A tensor
    /// above it is read when it is asked for.
    pub fn read_ahead(mut self, bytes: u64) -> Self {
        self.settings.read_ahead = bytes;
        self
    }

    /// Sets in which order tensors are read ahead.
    pub fn order(mut self, order: Order) -> Self {
        self.settings.order = order;
        self
    }

    /// Has `handler` called as bytes arrive.
    ///
    /// It is called from the threads that read, by one at a time, with figures that never fall; it should
    /// return at once, for they wait for it, and must not touch the session.
    pub fn progress(mut self, handler: impl FnMut(Progress) + Send + 'static) -> Self {
        self.settings.progress = Some(Mutex::new(Box::new(handler)));
        self
    }

    /// Starts the threads, which begin to read ahead.
    ///
    /// # Errors
    ///
    /// Fails when two entries of the plan have one name.
    pub fn start(self) -> Result<Session> {
        Session::start(self.plan, self.settings)
    }
}

impl Plan {
    /// A session that carries this plan out.
    pub fn session(self) -> SessionBuilder {
        SessionBuilder::new(self)
    }
}

impl fmt::Debug for SessionBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionBuilder")
            .field("plan", &self.plan)
            .field("threads", &self.settings.threads)
            .field("read_ahead", &self.settings.read_ahead)
            .field("order", &self.settings.order)
            .finish_non_exhaustive()
    }
}
