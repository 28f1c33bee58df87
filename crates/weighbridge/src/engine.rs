//! Carries out a plan: positional reads on several threads, straight into the memory that becomes the tensors.

mod fetch;
mod job;
mod placement;
mod report;
mod session;
mod shared;
pub(crate) mod tile;

use std::fmt;
use std::num::NonZeroUsize;

pub use placement::{Device, HostBytes, Ring, Transfer};
use placement::{Fill, Lend, Stage};
pub use report::Report;
pub use session::{Session, StopHandle};

use crate::error::Result;
use crate::plan::Plan;
use crate::progress::Handler;
pub use crate::progress::{Progress, Verdict};

/// How a [`Session`] goes about its work; start it with [`start`](SessionBuilder::start).
#[must_use]
pub struct SessionBuilder {
    plan: Plan,
    settings: Settings,
}

struct Settings {
    threads: usize,
    read_ahead: u64,
    /// Bytes to read at a time; 0 leaves it to the sources.
    chunk: usize,
    order: Order,
    prefetch: Prefetch,
    progress: Option<Handler>,
}

/// Whether a session has sources fetch bytes before it reads them, so that a disk is never idle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Prefetch {
    /// Where they are not in memory already, as far as the source can say.
    #[default]
    Auto,
    /// In any case.
    Always,
    /// Never.
    Never,
}

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
            chunk: 0,
            order: Order::File,
            prefetch: Prefetch::Auto,
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

    /// Sets how many bytes may have been read that nobody has taken yet, [`u64::MAX`] for no limit: threads wait
    /// when there are as many. A tensor above it is read when it is asked for. On top of it, each thread has at most
    /// a few megabytes to convert in.
    pub fn read_ahead(mut self, bytes: u64) -> Self {
        self.settings.read_ahead = bytes;
        self
    }

    /// Sets how many bytes a thread reads at a time, from 4 KiB to 1 GiB; otherwise sources say
    /// [what they like](crate::Hints), which is 4 MiB for files. Whatever is set, the tensors are the same.
    pub fn chunk(mut self, bytes: usize) -> Self {
        self.settings.chunk = bytes;
        self
    }

    /// Sets in which order tensors are read ahead.
    pub fn order(mut self, order: Order) -> Self {
        self.settings.order = order;
        self
    }

    /// Sets whether sources fetch bytes before they are read: files have the kernel read ahead.
    pub fn prefetch(mut self, prefetch: Prefetch) -> Self {
        self.settings.prefetch = prefetch;
        self
    }

    /// Has `handler` called as bytes arrive.
    ///
    /// It is called from the threads that read, by one at a time, with figures that never fall; it should
    /// return at once, for they wait for it, and must not touch the session. Where it returns
    /// [`ControlFlow::Break`](std::ops::ControlFlow::Break), the session is [cancelled](Session::cancel).
    pub fn progress<V: Verdict>(mut self, handler: impl FnMut(Progress) -> V + Send + 'static) -> Self {
        self.settings.progress = Some(Handler::new(handler));
        self
    }

    /// Starts the threads, which begin to read ahead, each tensor into memory of its own.
    ///
    /// # Errors
    ///
    /// Fails when two entries of the plan have one name.
    pub fn start(self) -> Result<Session> {
        Session::start(self.plan, self.settings, Fill)
    }

    /// The same, but tensors whose bytes are in memory already just as they are wanted, because the checkpoint
    /// [is mapped](crate::OpenOptions::map) or [was given](crate::Checkpoint::from_bytes) as bytes, are lent and not
    /// copied.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_lending(self) -> Result<Session<HostBytes>> {
        Session::start(self.plan, self.settings, Lend)
    }

    /// The same, with tensors on a device, through the staging buffers of a ring. What is in the ring is above what
    /// is [read ahead](Self::read_ahead), which counts bytes on the device.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_on<D: Device>(self, device: D, ring: Ring) -> Result<Session<D::Tensor>> {
        Session::start(self.plan, self.settings, Stage::new(device, ring))
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
