//! A cap on what is received in a second, shared by all who read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::stop::Stop;
use crate::Result;

/// Bytes a second, or no limit.
#[derive(Clone, Default)]
pub(crate) struct Bandwidth(Option<Arc<Cap>>);

struct Cap {
    rate: f64,
    /// When all that was received so far may have been.
    due: Mutex<Instant>,
}

/// What may come at once after a pause.
const BURST: Duration = Duration::from_millis(50);

impl Bandwidth {
    pub(crate) fn limit(bytes_a_second: u64) -> Self {
        let rate = bytes_a_second.max(1) as f64;
        Self(Some(Arc::new(Cap { rate, due: Mutex::new(Instant::now()) })))
    }

    /// Sleeps for as long as these bytes, which were received, take.
    pub(crate) fn spend(&self, bytes: usize, stop: &Stop) -> Result<()> {
        let Some(cap) = &self.0 else { return Ok(()) };
        let now = Instant::now();
        let mut due = cap.due.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        *due = (*due).max(earliest) + Duration::from_secs_f64(bytes as f64 / cap.rate);
        let wait = due.saturating_duration_since(now);
        drop(due);
        stop.sleep(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_it() {
        let cap = Bandwidth::limit(10_000_000);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10).for_each(|_| cap.spend(100_000, &Stop::never()).unwrap()));
            }
        });
        let time = start.elapsed();
        assert!(time >= Duration::from_millis(330), "{time:?}");
        Bandwidth::default().spend(usize::MAX, &Stop::never()).unwrap();
    }
}
