//! Learning rates that change with the steps, and what they keep.

use std::f64::consts::PI;

use weighbridge::epochs::{Scalar, Scalars};
use weighbridge::{Error, ErrorKind, Result};

/// A learning rate that changes with the steps, and whose place is saved with the run.
///
/// A plain `f64` is one that never changes. [`Cosine`] and [`Linear`] go on where Burn's schedulers of these
/// names stopped, and the other way round.
pub trait Schedule {
    /// The rate of the next step.
    fn step(&mut self) -> f64;

    /// What has to be kept to go on from here.
    fn state(&self) -> Scalars;

    /// Goes on from there.
    ///
    /// # Errors
    ///
    /// Fails when it is the state of another kind of schedule; it is as it was then.
    fn load_state(&mut self, state: &Scalars) -> Result<()>;
}

impl Schedule for f64 {
    fn step(&mut self) -> f64 {
        *self
    }

    fn state(&self) -> Scalars {
        Scalars::new()
    }

    fn load_state(&mut self, state: &Scalars) -> Result<()> {
        match state.keys().next() {
            Some(name) => Err(other("a rate that never changes", name)),
            None => Ok(()),
        }
    }
}

/// A rate that falls from its first to its last value along a cosine, after a warm-up if there is one.
///
/// ```
/// use weighbridge_candle::{Cosine, Schedule};
///
/// let mut schedule = Cosine::new(0.1, 0.0, 2);
/// assert_eq!([schedule.step(), schedule.step(), schedule.step()], [0.1, 0.05, 0.0]);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Cosine {
    first: f64,
    last: f64,
    steps: u64,
    warmup: u64,
    /// Steps that were done.
    done: u64,
}

impl Cosine {
    /// From `first` to `last` in so many steps; later ones go on along the cosine.
    pub fn new(first: f64, last: f64, steps: u64) -> Self {
        Self { first, last, steps: steps.max(1), warmup: 0, done: 0 }
    }

    /// Rises to the first value in the first so many of the steps; the fall takes the rest. Burn has no such
    /// schedule of one piece.
    #[must_use]
    pub fn warmup(mut self, steps: u64) -> Self {
        self.warmup = steps.min(self.steps - 1);
        self
    }
}

/// Burn counts from the first step on, and the one before it is the largest number.
const CURRENT: &str = "current_iter";

impl Schedule for Cosine {
    fn step(&mut self) -> f64 {
        let step = self.done;
        self.done = self.done.wrapping_add(1);
        if step < self.warmup {
            return self.first * (step + 1) as f64 / self.warmup as f64;
        }
        let place = (step - self.warmup) as f64 / (self.steps - self.warmup) as f64;
        self.last + 0.5 * (self.first - self.last) * (1.0 + (place * PI).cos())
    }

    fn state(&self) -> Scalars {
        Scalars::from([(CURRENT.to_owned(), Scalar::UInt(self.done.wrapping_sub(1)))])
    }

    fn load_state(&mut self, state: &Scalars) -> Result<()> {
        self.done = only(state, CURRENT, "a cosine")?.wrapping_add(1);
        Ok(())
    }
}

/// A rate that goes from its first to its last value in equal steps, and stays there.
///
/// ```
/// use weighbridge_candle::{Linear, Schedule};
///
/// let mut schedule = Linear::new(1.0, 0.5, 2);
/// assert_eq!([schedule.step(), schedule.step(), schedule.step(), schedule.step()], [1.0, 0.75, 0.5, 0.5]);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    last: f64,
    change: f64,
    remaining: u64,
}

impl Linear {
    /// From `first` to `last` in so many steps.
    pub fn new(first: f64, last: f64, steps: u64) -> Self {
        let steps = steps.max(1);
        Self { last, change: (last - first) / steps as f64, remaining: steps.saturating_add(1) }
    }
}

const REMAINING: &str = "remaining_iters";

impl Schedule for Linear {
    fn step(&mut self) -> f64 {
        self.remaining = self.remaining.saturating_sub(1);
        self.last - self.change * self.remaining as f64
    }

    fn state(&self) -> Scalars {
        Scalars::from([(REMAINING.to_owned(), Scalar::UInt(self.remaining))])
    }

    fn load_state(&mut self, state: &Scalars) -> Result<()> {
        self.remaining = only(state, REMAINING, "a linear schedule")?;
        Ok(())
    }
}

/// The one number that a schedule keeps.
fn only(state: &Scalars, name: &str, kind: &str) -> Result<u64> {
    if let Some(unknown) = state.keys().find(|other| *other != name) {
        return Err(other(kind, unknown));
    }
    state.get(name).and_then(|scalar| scalar.as_u64()).ok_or_else(|| {
        let message = format!("it has no whole number {name:?}: it is not the state of {kind}");
        Error::new(ErrorKind::Value, message)
    })
}

fn other(kind: &str, name: &str) -> Error {
    Error::new(ErrorKind::Value, format!("it has {name:?}: it is not the state of {kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: &mut impl Schedule, count: usize) -> Vec<f64> {
        (0..count).map(|_| schedule.step()).collect()
    }

    #[test]
    fn a_schedule_goes_on_where_it_was() {
        fn check<S: Schedule + Clone>(new: S) {
            for done in 0..6 {
                let mut one = new.clone();
                rates(&mut one, done);
                let mut other = new.clone();
                other.load_state(&one.state()).unwrap();
                assert_eq!(rates(&mut one, 4), rates(&mut other, 4), "after {done}");
            }
        }
        check(Cosine::new(0.1, 0.01, 5));
        check(Cosine::new(0.1, 0.01, 5).warmup(2));
        check(Linear::new(0.1, 0.01, 4));
        check(0.25);
    }

    #[test]
    fn the_state_of_another_schedule_is_refused() {
        let (mut cosine, mut linear) = (Cosine::new(0.1, 0.0, 5), Linear::new(0.1, 0.0, 5));
        let before = cosine.clone();
        assert!(cosine.load_state(&linear.state()).is_err() && cosine.load_state(&0.1.state()).is_err());
        assert_eq!(cosine, before);
        assert!(linear.load_state(&cosine.state()).is_err());
        assert!(0.1.load_state(&cosine.state()).is_err());
    }

    #[test]
    fn it_warms_up_and_falls() {
        let rates = rates(&mut Cosine::new(1.0, 0.0, 6).warmup(2), 7);
        assert_eq!(rates[..3], [0.5, 1.0, 1.0]);
        assert!(rates[2..].is_sorted_by(|a, b| a > b) && rates[6].abs() < 1e-12, "{rates:?}");
    }
}
