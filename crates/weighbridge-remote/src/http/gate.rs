//! How many requests a server gets at a time, and since when none: all who ask it agree on that here.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::stop::{Stop, TICK};
use crate::Result;

/// The gates of all servers.
#[derive(Clone)]
pub(crate) struct Gates {
    most: usize,
    gates: Arc<Mutex<HashMap<String, Gate>>>,
}

impl Gates {
    pub(crate) fn new(most: usize) -> Self {
        Self { most: most.max(1), gates: Arc::default() }
    }

    /// The gate of a server, by scheme, host and port.
    pub(crate) fn of(&self, origin: &str) -> Gate {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = gates.get(origin) {
            return gate.clone();
        }
        let gate = Gate::new(self.most);
        gates.insert(origin.to_owned(), gate.clone());
        gate
    }
}

/// The gate of one server.
#[derive(Clone)]
pub(crate) struct Gate(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    most: usize,
}

struct State {
    /// How many may be inside.
    permits: usize,
    inside: usize,
    /// Successes since the permits changed.
    successes: usize,
    /// Nobody enters before.
    closed_until: Option<Instant>,
    /// When the permits were last halved.
    halved: Option<Instant>,
}

/// Being inside.
pub(crate) struct Permit(Gate);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.state().inside -= 1;
        self.0.0.changed.notify_one();
    }
}

impl Gate {
    fn new(most: usize) -> Self {
        let state = State { permits: most, inside: 0, successes: 0, closed_until: None, halved: None };
        Self(Arc::new(Inner { state: Mutex::new(state), changed: Condvar::new(), most }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until one more request may be sent.
    pub(crate) fn enter(&self, stop: &Stop) -> Result<Permit> {
        let mut state = self.state();
        loop {
            stop.check()?;
            let now = Instant::now();
            let closed = state.closed_until.map(|until| until.saturating_duration_since(now));
            match closed.filter(|left| !left.is_zero()) {
                Some(left) => state = self.wait(state, left.min(TICK)),
                None if state.inside >= state.permits => state = self.wait(state, TICK),
                None => {
                    state.inside += 1;
                    return Ok(Permit(self.clone()));
                }
            }
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        let result = self.0.changed.wait_timeout(state, time);
        result.unwrap_or_else(PoisonError::into_inner).0
    }

    /// The server answered as it should.
    pub(crate) fn succeeded(&self) {
        let mut state = self.state();
        state.successes += 1;
        if state.successes >= 32 && state.permits < self.0.most {
            state.permits += 1;
            state.successes = 0;
            drop(state);
            self.0.changed.notify_one();
        }
    }

    /// The server had too much to do. Requests that were refused together halve the permits once.
    pub(crate) fn overloaded(&self, wait: Duration) {
        let mut state = self.state();
        let now = Instant::now();
        if state.halved.is_none_or(|at| now.duration_since(at) > Duration::from_secs(1)) {
            state.permits = (state.permits / 2).max(1);
            state.halved = Some(now);
        }
        state.successes = 0;
        let until = now + wait;
        if state.closed_until.is_none_or(|closed| closed < until) {
            state.closed_until = Some(until);
        }
    }

    #[cfg(test)]
    fn permits(&self) -> usize {
        self.state().permits
    }
}

#[cfg(test)]
mod tests {
    use super::super::stop::Interrupts;
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn halves_and_grows() {
        let gate = Gates::new(8).of("https://a");
        gate.overloaded(Duration::ZERO);
        gate.overloaded(Duration::ZERO);
        assert_eq!(gate.permits(), 4);
        (0..32).for_each(|_| gate.succeeded());
        assert_eq!(gate.permits(), 5);
        (0..32 * 20).for_each(|_| gate.succeeded());
        assert_eq!(gate.permits(), 8);
    }

    #[test]
    fn closed_for_a_time_and_full() {
        let gates = Gates::new(1);
        let gate = gates.of("https://a");
        let stop = Stop::never();
        gate.overloaded(Duration::from_millis(80));
        let start = Instant::now();
        let permit = gates.of("https://a").enter(&stop).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(80));
        // Another server's gate is open.
        drop(gates.of("https://b").enter(&stop).unwrap());
        let interrupts = Interrupts::default();
        let stop = interrupts.watch();
        let waiting = std::thread::spawn(move || gate.enter(&stop).map(|_| ()));
        std::thread::sleep(Duration::from_millis(30));
        assert!(!waiting.is_finished());
        interrupts.interrupt();
        assert_eq!(waiting.join().unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
        drop(permit);
    }
}
