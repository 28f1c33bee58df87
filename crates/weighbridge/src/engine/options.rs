//! How a load goes about its work: threads, budgets, order, progress.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::names::natural_order;
use crate::plan::Entry;
use crate::progress::{Handler, IntoFlow, Progress};

/// How a load goes about its work; for [sessions](super::SessionBuilder::options) and for the loaders of the adapters.
///
/// What is not set is left to whoever uses the options. Whatever is set, the tensors are the same.
///
/// ```
/// use weighbridge::engine::ReadOrder;
/// use weighbridge::{Checkpoint, LoadOptions, Plan};
///
/// # fn main() -> weighbridge::Result<()> {
/// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder");
/// let options = LoadOptions::new()
///     .threads(4)
///     .read_ahead(256 << 20)
///     .order(ReadOrder::Natural)
///     .progress(|progress| eprintln!("{} of {} bytes", progress.bytes_done, progress.bytes_total));
/// let session = Plan::of(&Checkpoint::open(dir)?).build()?.session().options(options).start()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct LoadOptions {
    threads: Option<usize>,
    read_ahead: Option<u64>,
    chunk: Option<usize>,
    order: Option<ReadOrder>,
    prefetch: Option<Prefetch>,
    page_cache: Option<PageCache>,
    progress: Option<Handler>,
}

/// Whether a session has sources fetch bytes before it reads them, so that a disk is never idle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Prefetch {
    /// Where they are not in memory already, as far as the source can tell.
    #[default]
    Auto,
    /// In any case.
    Always,
    /// Never.
    Never,
}

/// What is left of files in the page cache, the system's copy of them in memory, when they have been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PageCache {
    /// What the system keeps, so that the next load is fast.
    #[default]
    Keep,
    /// What was there before. Files that others use stay cached, and are read from the cache; the rest leaves
    /// nothing in it, which is worth most where memory is short or shared with a GPU, and in containers, whose limits
    /// count the page cache.
    ///
    /// On Linux, for files that are read: of those that are [mapped](crate::OpenOptions::map) the page cache *is* the
    /// memory, and it is left to the system. Other [sources](crate::Source::uncached) say how it is done, if they can.
    /// A file that was not cached is read directly, from the disk into memory, by 8 threads unless there
    /// [are to be others](LoadOptions::threads); one that is cached in part is read directly too, near the parts that
    /// are not. Where it cannot be seen what is cached, everything is read from the disk: before Linux 6.5, on overlayfs,
    /// and for files of other users on some systems. The headers of files that nothing is loaded from stay.
    Release,
}

/// In which order a session reads ahead of what is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadOrder {
    /// As the data lies in the files: best when everything is taken.
    File,
    /// By name, numbers by value (`layers.2` before `layers.10`): near the order in which models are built.
    Natural,
}

impl LoadOptions {
    /// 64 MiB, in memory of the host.
    pub const DEFAULT_READ_AHEAD: u64 = 64 << 20;

    /// Nothing set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the number of threads that read, the caller's own included while it waits; by default one a core,
    /// at most 8 where tensors stay in memory of the host, and 16 where they go to a device: a core reads a
    /// few gigabytes a second, and a bus moves fifty. There are more where [sources](crate::Hints::concurrency)
    /// are slow and like more requests at a time. More than 1024 count as 1024.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads.clamp(1, 1024));
        self
    }

    /// Sets how many bytes may have been read that nobody has taken yet, [`u64::MAX`] for no limit. Threads
    /// wait at the limit. A tensor above it is read when it is asked for. On top of it, each thread has at
    /// most a few megabytes to convert in.
    ///
    /// Otherwise it is 64 MiB in memory of the host, more where [sources](crate::Hints) are far away, so that as many
    /// requests are in flight as they like (128 MiB for those on a network, more for what becomes wider), and there is no limit where tensors go to a device:
    /// what is read ahead is in its place already. If memory of the device runs out when a tensor is asked for,
    /// those that were read ahead and that nobody has asked for are given up.
    pub fn read_ahead(mut self, bytes: u64) -> Self {
        self.read_ahead = Some(bytes);
        self
    }

    /// Sets how many bytes a thread reads at a time, from 4 KiB to 1 GiB; otherwise sources say
    /// [what they prefer](crate::Hints), which is 4 MiB for files.
    pub fn chunk(mut self, bytes: usize) -> Self {
        self.chunk = Some(bytes);
        self
    }

    /// Sets in which order tensors are read ahead.
    pub fn order(mut self, order: ReadOrder) -> Self {
        self.order = Some(order);
        self
    }

    /// Sets whether sources fetch bytes before they are read: files have the kernel read ahead.
    pub fn prefetch(mut self, prefetch: Prefetch) -> Self {
        self.prefetch = Some(prefetch);
        self
    }

    /// Sets what is left of files in the page cache; [`PageCache::Keep`] otherwise.
    pub fn page_cache(mut self, page_cache: PageCache) -> Self {
        self.page_cache = Some(page_cache);
        self
    }

    /// Has `handler` called as bytes arrive.
    ///
    /// It is called from the threads that read, by one at a time, with figures that never fall; it should
    /// return at once, for they wait for it, and must not touch what it reports on. Where it returns
    /// [`ControlFlow::Break`](std::ops::ControlFlow::Break), loading ends with
    /// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled).
    pub fn progress<F: IntoFlow>(mut self, handler: impl FnMut(Progress) -> F + Send + 'static) -> Self {
        self.progress = Some(Handler::new(handler));
        self
    }

    /// These options, and what they leave open as in `others`.
    pub fn or(self, others: Self) -> Self {
        Self {
            threads: self.threads.or(others.threads),
            read_ahead: self.read_ahead.or(others.read_ahead),
            chunk: self.chunk.or(others.chunk),
            order: self.order.or(others.order),
            prefetch: self.prefetch.or(others.prefetch),
            page_cache: self.page_cache.or(others.page_cache),
            progress: self.progress.or(others.progress),
        }
    }

    /// With what is left open as it is best where tensors stay in memory of the host. More threads do not
    /// read faster on any machine that was measured.
    pub(super) fn settings(self) -> Settings {
        self.settings_or(8, Self::DEFAULT_READ_AHEAD)
    }

    /// The same where they go to a device.
    pub(super) fn settings_for_device(self) -> Settings {
        self.settings_or(16, u64::MAX)
    }

    fn settings_or(self, most_threads: usize, read_ahead: u64) -> Settings {
        // Unknown where there are no threads, as in a browser.
        let cores = std::thread::available_parallelism().map(NonZeroUsize::get);
        Settings {
            threads: self
                .threads
                .unwrap_or_else(|| cores.as_ref().map_or(1, |&cores| cores.min(most_threads))),
            may_have_more_threads: self.threads.is_none() && cores.is_ok(),
            may_begin_alone: cores.is_ok(),
            may_read_further_ahead: self.read_ahead.is_none(),
            read_ahead: self.read_ahead.unwrap_or(read_ahead),
            chunk: self.chunk,
            order: self.order.unwrap_or(ReadOrder::File),
            prefetch: self.prefetch.unwrap_or_default(),
            page_cache: self.page_cache.unwrap_or_default(),
            progress: self.progress,
            begins_alone: false,
        }
    }
}

/// Options, all of them set.
pub(super) struct Settings {
    pub(super) threads: usize,
    /// Nobody has said how many threads there are to be.
    may_have_more_threads: bool,
    /// Whether there are threads to come later.
    may_begin_alone: bool,
    /// Nor how far is to be read ahead.
    may_read_further_ahead: bool,
    pub(super) read_ahead: u64,
    /// Bytes to read at a time; `None` leaves it to the sources.
    pub(super) chunk: Option<usize>,
    pub(super) order: ReadOrder,
    pub(super) prefetch: Prefetch,
    pub(super) page_cache: PageCache,
    pub(super) progress: Option<Handler>,
    /// One thread reads at first, and then more and more.
    pub(super) begins_alone: bool,
}

impl Settings {
    /// The same, with as many threads as sources that are slow and not cached like to have and, where they are far, enough
    /// to read ahead for all of them.
    pub(super) fn suited_to(mut self, entries: &[Arc<Entry>]) -> Self {
        const MOST: usize = 64;
        /// The bytes of each source that are looked at.
        const LOOK: u64 = 4 << 20;
        let sum =
            |bytes: fn(&Entry) -> u64| entries.iter().map(|entry| bytes(entry)).fold(0, u64::saturating_add);
        let wider = sum(Entry::byte_len).div_ceil(sum(Entry::stored_byte_len).max(1)).clamp(1, 4);
        let mut seen = HashSet::new();
        let mut last = None;
        for input in entries.iter().flat_map(|entry| entry.inputs()) {
            let shard = input.shard();
            if last == Some(shard.number()) || !seen.insert(shard.number()) {
                continue;
            }
            last = Some(shard.number());
            // Here, so that those are released that turn out not to be read.
            let source = shard.source_for(self.page_cache);
            let hints = source.hints();
            let wanted = hints.concurrency.min(MOST);
            // Of what becomes wider, more has to be held.
            let in_flight = (wanted as u64).saturating_mul(hints.chunk as u64).saturating_mul(wider);
            let more_threads = self.may_have_more_threads && wanted > self.threads;
            let further = self.may_read_further_ahead && hints.is_far() && in_flight > self.read_ahead;
            if more_threads || further || hints.is_far() {
                let start = input.range().start;
                let first = start..source.size().min(start.saturating_add(LOOK));
                if source.is_cached(first) != Some(true) {
                    self.threads = if more_threads { wanted } else { self.threads };
                    self.read_ahead = if further { in_flight } else { self.read_ahead };
                    self.begins_alone |= self.may_begin_alone && hints.is_far();
                }
            }
        }
        self
    }
}

impl ReadOrder {
    /// The indices of entries in this order, but of those that are [deferred](Entry::deferred).
    pub(super) fn of(self, entries: &[Arc<Entry>]) -> Vec<usize> {
        let is_ahead = |&index: &usize| !entries[index].is_deferred();
        let mut order: Vec<usize> = (0..entries.len()).filter(is_ahead).collect();
        match self {
            Self::File => {
                order.sort_by(|&a, &b| entries[a].inputs().first().cmp(&entries[b].inputs().first()));
            }
            Self::Natural => order.sort_by(|&a, &b| natural_order(entries[a].name(), entries[b].name())),
        }
        order
    }
}
