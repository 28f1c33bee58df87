//! Bytes of cold sources, fetched before they are read.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::job::Run;
use super::options::{PageCache, Prefetch};
use crate::panics::caught;
use crate::source::Source;

/// Has sources fetch what will be read, in that order, on a thread of its own, which is started when a source turns out
/// to be cold.
pub(super) struct Fetcher {
    policy: Prefetch,
    page_cache: PageCache,
    cold: AtomicBool,
    thread: Mutex<Option<Running>>,
    stop: Arc<AtomicBool>,
}

struct Running {
    wants: Sender<Want>,
    thread: JoinHandle<()>,
}

type Want = (Arc<dyn Source>, Range<u64>);

/// Gaps up to this size are fetched with what is around them.
const GAP: u64 = 64 << 10;

/// The bytes that are looked at, and fetched, at a time.
const PIECE: u64 = 4 << 20;

impl Fetcher {
    pub(super) fn new(policy: Prefetch, page_cache: PageCache) -> Self {
        Self {
            policy,
            page_cache,
            cold: AtomicBool::new(policy == Prefetch::Always),
            thread: Mutex::new(None),
            stop: Arc::new(AtomicBool::new(false)),
        }
    }

    pub(super) fn is_off(&self) -> bool {
        self.policy == Prefetch::Never
    }

    /// Fetches no more.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether something had to be fetched so far.
    pub(super) fn is_cold(&self) -> bool {
        self.cold.load(Ordering::Relaxed)
    }

    /// Fetches bytes of shards that are not in memory already.
    pub(super) fn fetch(&self, mut runs: Vec<Run>) {
        // In the order in which they will be read; neighbours become one.
        runs.dedup_by(|Run { shard, bytes }, before| {
            let joins = Arc::ptr_eq(shard, &before.shard)
                && bytes.start >= before.bytes.start
                && bytes.start <= before.bytes.end + GAP;
            if joins {
                before.bytes.end = before.bytes.end.max(bytes.end);
            }
            joins
        });
        for Run { shard, bytes } in runs {
            let mut start = bytes.start;
            while start < bytes.end {
                let piece = start..bytes.end.min(start + PIECE);
                start = piece.end;
                self.fetch_piece(shard.source_for(self.page_cache), piece);
            }
        }
    }

    fn fetch_piece(&self, source: &Arc<dyn Source>, piece: Range<u64>) {
        if self.policy == Prefetch::Auto {
            // A source's panic is met again when it reads, and reported then.
            let cached = caught("it was looked for", || Ok(source.is_cached(piece.clone())));
            if cached.is_ok_and(|cached| cached == Some(true)) {
                return;
            }
        }
        self.cold.store(true, Ordering::Relaxed);
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let (wants, wanted) = mpsc::channel();
            let stop = Arc::clone(&self.stop);
            let builder = thread::Builder::new().name("weighbridge-fetch".to_owned());
            let started = builder.spawn(move || fetch_all(&wanted, &stop));
            *thread = started.ok().map(|thread| Running { wants, thread });
        }
        if let Some(running) = &*thread {
            // Without the thread bytes come when they are read.
            let _ = running.wants.send((Arc::clone(source), piece));
        }
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.stop();
        let running = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Running { wants, thread }) = running {
            drop(wants);
            let _ = thread.join();
        }
    }
}

fn fetch_all(wanted: &Receiver<Want>, stop: &AtomicBool) {
    while let Ok((source, range)) = wanted.recv() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let _ = caught("it was fetched", || {
            source.prefetch(range);
            Ok(())
        });
    }
}
