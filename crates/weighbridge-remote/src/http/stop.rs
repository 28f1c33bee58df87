//! Being interrupted: what sleeps and waits here looks for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::{Error, ErrorKind, Result};

/// Whether something is still wanted.
#[derive(Clone, Default)]
pub(crate) struct Switch(Arc<AtomicBool>);

impl Switch {
    pub(crate) fn is_off(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    pub(crate) fn turn_off(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Counts how often the readers of a file were interrupted.
#[derive(Clone, Default)]
pub(crate) struct Interrupts(Arc<AtomicU64>);

impl Interrupts {
    pub(crate) fn interrupt(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    /// For one read, from now on.
    pub(crate) fn watch(&self) -> Stop {
        Stop { interrupts: self.clone(), since: self.0.load(Ordering::Acquire) }
    }
}

/// Whether one read was interrupted.
#[derive(Clone)]
pub(crate) struct Stop {
    interrupts: Interrupts,
    since: u64,
}

/// How often a wait looks up. An interrupt is to be seen within 100 ms.
pub(crate) const TICK: Duration = Duration::from_millis(20);

impl Stop {
    /// Never interrupted.
    pub(crate) fn never() -> Self {
        Interrupts::default().watch()
    }

    pub(crate) fn check(&self) -> Result<()> {
        match self.interrupts.0.load(Ordering::Acquire) == self.since {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Cancelled, "interrupted")),
        }
    }

    /// Sleeps, unless it is interrupted.
    pub(crate) fn sleep(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(TICK));
        }
    }
}
