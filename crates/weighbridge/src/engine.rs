//! Carries out a plan: positional reads on several threads, straight into the memory that becomes the tensors.

mod crew;
mod fetch;
mod job;
mod options;
mod placement;
mod planned;
mod readers;
mod report;
mod schedule;
mod session;
#[cfg(all(test, shuttle))]
mod shuttled;
mod spans;
mod stopping;
mod stream;
mod sync;
mod tile;

pub use options::{LoadOptions, PageCache, Prefetch, ReadOrder};
pub use placement::{Device, HostBytes, Lent, Ring, Transfer};
use placement::{Fill, Lend, Stage};
pub use report::Report;
pub use session::{Session, StopHandle};
pub use stream::Streamed;

use crate::error::Result;
use crate::plan::Plan;
pub use crate::progress::{IntoFlow, Progress};

/// Starts a [`Session`], on the host with [`start`](Self::start), on a device with [`start_on`](Self::start_on).
#[derive(Debug)]
#[must_use]
pub struct SessionBuilder {
    plan: Plan,
    options: LoadOptions,
}

impl SessionBuilder {
    /// Sets all that is set in `options`.
    pub fn options(mut self, options: LoadOptions) -> Self {
        self.options = options.or(self.options);
        self
    }

    /// See [`LoadOptions::threads`].
    pub fn threads(self, threads: usize) -> Self {
        self.options(LoadOptions::new().threads(threads))
    }

    /// See [`LoadOptions::read_ahead`].
    pub fn read_ahead(self, bytes: u64) -> Self {
        self.options(LoadOptions::new().read_ahead(bytes))
    }

    /// See [`LoadOptions::chunk`].
    pub fn chunk(self, bytes: usize) -> Self {
        self.options(LoadOptions::new().chunk(bytes))
    }

    /// See [`LoadOptions::order`].
    pub fn order(self, order: ReadOrder) -> Self {
        self.options(LoadOptions::new().order(order))
    }

    /// See [`LoadOptions::prefetch`].
    pub fn prefetch(self, prefetch: Prefetch) -> Self {
        self.options(LoadOptions::new().prefetch(prefetch))
    }

    /// See [`LoadOptions::page_cache`].
    pub fn page_cache(self, page_cache: PageCache) -> Self {
        self.options(LoadOptions::new().page_cache(page_cache))
    }

    /// See [`LoadOptions::progress`]; the handler must not touch the session.
    pub fn progress<F: IntoFlow>(self, handler: impl FnMut(Progress) -> F + Send + 'static) -> Self {
        self.options(LoadOptions::new().progress(handler))
    }

    /// Starts the threads, which begin to read ahead, each tensor into memory of its own.
    ///
    /// # Errors
    ///
    /// Fails when two entries of the plan have one name.
    pub fn start(self) -> Result<Session> {
        Session::start(&self.plan, self.options.settings(), Fill)
    }

    /// The same, but tensors whose bytes are in memory already just as they are wanted, because the checkpoint
    /// [is mapped](crate::OpenOptions::map) or [was given](crate::Checkpoint::from_bytes) as bytes, are lent and not
    /// copied.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_lending(self) -> Result<Session<HostBytes>> {
        Session::start(&self.plan, self.options.settings(), Lend)
    }

    /// The same, with tensors on a device, through the staging buffers of a ring. These are above what is
    /// [read ahead](LoadOptions::read_ahead), which counts bytes on the device, and has no limit unless one
    /// is set.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_on<D: Device>(self, device: D, ring: Ring) -> Result<Session<D::Tensor>> {
        let settings = self.options.settings_for_device();
        let stage = Stage::new(device, ring, settings.threads);
        Session::start(&self.plan, settings, stage)
    }
}

impl Plan {
    /// A session that carries this plan out.
    pub fn session(self) -> SessionBuilder {
        SessionBuilder { plan: self, options: LoadOptions::new() }
    }
}
