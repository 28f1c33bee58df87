//! Whether and when to try again. Nothing is slept or sent here: times come in, decisions go out.

use std::time::Duration;

/// How much is tried before giving up. Only failures without any progress between them count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Failures in a row. The waits between twelve of them are 22 s at least: a server may be started again
    /// meanwhile.
    pub(crate) attempts: u32,
    /// Time since the last progress, what a server asked to wait not counted.
    pub(crate) time: Duration,
    /// What a server may ask to wait at a time. It may ask for twice as long in all.
    pub(crate) server_wait: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 12,
            time: Duration::from_secs(120),
            // The hub's windows are five minutes long.
            server_wait: Duration::from_secs(330),
        }
    }
}

impl Patience {
    /// For what has not begun: whoever waits for it would rather know.
    pub(crate) fn at_first(self) -> Self {
        Self { attempts: self.attempts.div_ceil(2), ..self }
    }
}

/// What is left of the patience with one read. Times are since any fixed moment.
#[derive(Debug)]
pub(crate) struct Budget {
    patience: Patience,
    failures: u32,
    since: Duration,
    /// How often, and for how long, the server asked to wait.
    refusals: u32,
    told: Duration,
}

/// What to do after a failure.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Try again after this time.
    Again(Duration),
    /// It was tried often enough.
    GiveUp,
}

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(8);

impl Budget {
    pub(crate) fn new(patience: Patience, now: Duration) -> Self {
        Self { patience, failures: 0, since: now, refusals: 0, told: Duration::ZERO }
    }

    /// Something was received: whatever failed before is forgotten.
    pub(crate) fn progressed(&mut self, now: Duration) {
        *self = Self::new(self.patience, now);
    }

    /// Failures in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// The time without progress.
    pub(crate) fn waited(&self, now: Duration) -> Duration {
        now.saturating_sub(self.since)
    }

    /// How often the server asked to wait.
    pub(crate) fn refusals(&self) -> u32 {
        self.refusals
    }

    /// It failed. `random` is anything from 0 to 1: waits are spread, so that what failed together does not
    /// return together.
    pub(crate) fn failed(&mut self, now: Duration, random: f64) -> Next {
        self.failures += 1;
        if self.failures >= self.patience.attempts || self.waited(now) >= self.patience.time {
            return Next::GiveUp;
        }
        Next::Again(back_off(self.failures, random))
    }

    /// The server refused, and said how long to wait. If that is no time at all, it is as if it had failed,
    /// but that it may do so more often.
    pub(crate) fn told_to_wait(&mut self, wait: Duration, random: f64) -> Next {
        self.refusals += 1;
        let wait = wait.max(back_off(self.refusals, random));
        self.told += wait;
        if wait > self.patience.server_wait || self.told > self.patience.server_wait * 2 {
            return Next::GiveUp;
        }
        self.since += wait;
        Next::Again(wait)
    }
}

/// 100 ms, twice as long each time, up to 8 s; of which half to all.
fn back_off(failures: u32, random: f64) -> Duration {
    let longest = (FIRST * (1 << failures.saturating_sub(1).min(16))).min(LONGEST);
    longest.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
}

/// Numbers from 0 to 1 that need not be good, only different in each thread.
pub(crate) fn random() -> f64 {
    (random_bits() >> 11) as f64 / (1_u64 << 53) as f64
}

/// The same as bits.
pub(crate) fn random_bits() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::time::Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const S: Duration = Duration::from_secs(1);

    #[test]
    fn waits_double_to_a_limit_and_end() {
        let mut budget = Budget::new(Patience { attempts: 10, ..Patience::default() }, Duration::ZERO);
        let waits: Vec<_> = (0..10).map(|_| budget.failed(S, 1.0)).collect();
        let again = [100, 200, 400, 800, 1600, 3200, 6400, 8000, 8000].map(|ms| Next::Again(ms * MS));
        assert_eq!(waits[..9], again);
        assert_eq!(waits[9], Next::GiveUp);
    }

    #[test]
    fn a_server_may_be_gone_for_twenty_seconds() {
        let mut budget = Budget::new(Patience::default(), Duration::ZERO);
        let mut now = Duration::ZERO;
        while let Next::Again(wait) = budget.failed(now, 0.0) {
            now += wait;
        }
        assert!((20 * S..30 * S).contains(&now), "{now:?}");
    }

    #[test]
    fn time_without_progress_ends_it_and_progress_starts_anew() {
        let mut budget = Budget::new(Patience::default(), Duration::ZERO);
        assert!(matches!(budget.failed(119 * S, 0.5), Next::Again(_)));
        budget.progressed(120 * S);
        assert_eq!(budget.failures(), 0);
        assert_eq!(budget.failed(239 * S, 0.5), Next::Again(75 * MS));
        assert_eq!(budget.failed(240 * S, 0.5), Next::GiveUp);
        assert_eq!(Patience { attempts: 1, ..Patience::default() }.at_first().attempts, 1);
    }

    #[test]
    fn a_servers_waits_are_kept_and_not_counted_as_time() {
        let mut budget = Budget::new(Patience::default(), Duration::ZERO);
        assert_eq!(budget.told_to_wait(300 * S, 0.5), Next::Again(300 * S));
        assert!(matches!(budget.failed(310 * S, 0.0), Next::Again(_)));
        assert_eq!(budget.told_to_wait(331 * S, 0.5), Next::GiveUp);
        // A storm of refusals that ask for no wait is waited for all the same, and has an end.
        let mut budget = Budget::new(Patience::default(), Duration::ZERO);
        let mut now = Duration::ZERO;
        while let Next::Again(wait) = budget.told_to_wait(Duration::ZERO, 1.0) {
            now += wait;
        }
        assert!((600 * S..660 * S).contains(&now), "{now:?}");
    }

    #[test]
    fn random_is_spread() {
        let numbers: Vec<_> = (0..100).map(|_| random()).collect();
        assert!(numbers.iter().all(|n| (0.0..1.0).contains(n)));
        assert!(numbers.iter().any(|n| *n < 0.3) && numbers.iter().any(|n| *n > 0.7));
    }
}
