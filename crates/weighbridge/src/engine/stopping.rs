//! The end of a session: no more reads are begun, and those that wait for something far away are ended.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::options::PageCache;
use super::sync::AtomicBool;
use crate::error::{Error, ErrorKind};
use crate::panics::caught;
use crate::plan::{Entry, Input};
use crate::source::Source;

/// Whether it is time to stop, and who still reads.
#[derive(Default)]
pub(super) struct Stopping {
    stopped: AtomicBool,
    /// Reads of far sources that are under way.
    reading: AtomicUsize,
    /// Sources of which a read may take so long that who stops cannot wait for its end.
    far: Vec<Arc<dyn Source>>,
}

impl Stopping {
    /// Of a session that reads these entries.
    pub(super) fn of(entries: &[Arc<Entry>], page_cache: PageCache) -> Self {
        let inputs = entries.iter().flat_map(|entry| entry.inputs());
        let mut shards: Vec<_> = inputs.map(Input::shard).filter(|shard| shard.hints().is_far()).collect();
        shards.sort_by_key(|shard| shard.number());
        shards.dedup_by_key(|shard| shard.number());
        let far = shards.into_iter().map(|shard| Arc::clone(shard.source_for(page_cache))).collect();
        Self { far, ..Self::default() }
    }

    /// Whether it is time to stop.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// No more is read.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    /// Ends reads of far sources.
    pub(super) fn interrupt(&self) {
        // A read that was about to begin is met the next time. Sources that cannot be interrupted are not waited for.
        const TIMES: usize = 50;
        const PAUSE: Duration = Duration::from_millis(2);
        for _ in 0..TIMES {
            if self.far.is_empty() || self.reading.load(Ordering::SeqCst) == 0 {
                return;
            }
            for source in &self.far {
                // A source's panic is its own affair; nobody waits for its bytes.
                let _ = caught("it was interrupted", || {
                    source.interrupt();
                    Ok(())
                });
            }
            thread::sleep(PAUSE);
        }
    }

    /// Carries out a read of a far source, once more if it ended because somebody else stopped.
    pub(super) fn read(&self, mut read: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        let _reading = Reading::of(self);
        loop {
            if self.stopped.load(Ordering::SeqCst) {
                return Err(io::Error::other(Error::new(ErrorKind::Cancelled, "loading was cancelled")));
            }
            match read() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

/// A read that is under way.
struct Reading<'s>(&'s AtomicUsize);

impl<'s> Reading<'s> {
    fn of(stopping: &'s Stopping) -> Self {
        stopping.reading.fetch_add(1, Ordering::SeqCst);
        Self(&stopping.reading)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
