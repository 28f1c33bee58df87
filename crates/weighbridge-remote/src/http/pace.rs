//! How long a server takes to answer, and how fast one connection is: what a gap may cost follows from both.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Running means.
#[derive(Default)]
pub(crate) struct Pace(Mutex<Means>);

#[derive(Default)]
struct Means {
    answers: u32,
    latency: f64,
    rate: f64,
}

/// The part that one more answer has in the means.
const WEIGHT: f64 = 0.1;

impl Pace {
    /// An answer whose head came after `latency`, and whose bytes in `time` after that.
    pub(crate) fn record(&self, latency: Duration, bytes: u64, time: Duration) {
        // What fits into a socket's buffers says nothing of the rate.
        if bytes < 128 << 10 {
            return;
        }
        let (latency, rate) = (latency.as_secs_f64(), bytes as f64 / time.as_secs_f64().max(1e-6));
        let mut means = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let weight = WEIGHT.max(1.0 / f64::from(means.answers + 1));
        means.latency += weight * (latency - means.latency);
        means.rate += weight * (rate - means.rate);
        means.answers = means.answers.saturating_add(1);
    }

    /// The bytes that one connection receives while it would wait for another answer: 1 MiB while little is
    /// known.
    pub(crate) fn read_through(&self) -> usize {
        let means = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match means.answers {
            0..4 => 1 << 20,
            _ => (means.latency * means.rate).clamp(262_144.0, 4_194_304.0) as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_times_rate_within_limits() {
        let pace = Pace::default();
        assert_eq!(pace.read_through(), 1 << 20);
        let ms = Duration::from_millis;
        (0..8).for_each(|_| pace.record(ms(20), 5_000_000, ms(50)));
        assert!((1_990_000..2_010_000).contains(&pace.read_through()), "{}", pace.read_through());
        (0..100).for_each(|_| pace.record(ms(500), 50_000_000, ms(500)));
        assert_eq!(pace.read_through(), 4 << 20);
        (0..200).for_each(|_| pace.record(ms(0), 5_000_000, ms(50)));
        assert_eq!(pace.read_through(), 256 << 10);
    }
}
