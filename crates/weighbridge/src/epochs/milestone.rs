//! When a checkpoint was taken.

use std::cmp::Ordering;
use std::fmt;

/// When a checkpoint was taken: at the end of an epoch, after a step inside one, or after a step where epochs
/// are not counted. They are ordered by time.
///
/// ```
/// use weighbridge::epochs::Milestone;
///
/// let middle = Milestone::epoch(3).step(1200);
/// assert_eq!(middle.to_string(), "epoch 3, step 1200");
/// assert!(middle < Milestone::epoch(3)); // which is its end
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Milestone {
    epoch: usize,
    step: Option<u64>,
}

impl Milestone {
    /// The end of an epoch.
    pub fn epoch(epoch: usize) -> Self {
        Self { epoch, step: None }
    }

    /// After so many steps where epochs are not counted: a step of epoch 0.
    pub fn at_step(step: u64) -> Self {
        Self::epoch(0).step(step)
    }

    /// After so many steps of this epoch.
    #[must_use]
    pub fn step(self, step: u64) -> Self {
        Self { step: Some(step), ..self }
    }

    /// The epoch; 0 where epochs are not counted.
    pub fn epoch_number(self) -> usize {
        self.epoch
    }

    /// The step, or nothing at the end of an epoch.
    pub fn step_number(self) -> Option<u64> {
        self.step
    }

    /// The name of the directory of its checkpoint.
    pub(super) fn directory(self) -> String {
        match self {
            Self { epoch, step: None } => format!("epoch-{epoch:05}"),
            Self { epoch: 0, step: Some(step) } => format!("step-{step:08}"),
            Self { epoch, step: Some(step) } => format!("epoch-{epoch:05}-step-{step:08}"),
        }
    }

    /// Whether a directory has the name of a checkpoint, with or without a number behind it.
    pub(super) fn is_directory(name: &str) -> bool {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let mut words = name.split('-').peekable();
        let mut found = false;
        for word in ["epoch", "step"] {
            if words.next_if_eq(&word).is_some() {
                found = words.next().is_some_and(digits);
                if !found {
                    return false;
                }
            }
        }
        found && words.next().is_none_or(digits) && words.next().is_none()
    }
}

impl fmt::Display for Milestone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self { epoch, step: None } => write!(f, "epoch {epoch}"),
            Self { epoch: 0, step: Some(step) } => write!(f, "step {step}"),
            Self { epoch, step: Some(step) } => write!(f, "epoch {epoch}, step {step}"),
        }
    }
}

impl Ord for Milestone {
    fn cmp(&self, other: &Self) -> Ordering {
        // The end of an epoch is behind its steps.
        let key = |milestone: &Self| (milestone.epoch, milestone.step.is_none(), milestone.step);
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Milestone {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_known_by_their_names() {
        let all = [Milestone::epoch(3), Milestone::epoch(3).step(7), Milestone::at_step(123_456_789)];
        for name in all.map(Milestone::directory) {
            assert!(
                Milestone::is_directory(&name) && Milestone::is_directory(&format!("{name}-2")),
                "{name}"
            );
        }
        for other in
            ["", "epoch", "epoch-", "epoch-best", "step-1-best", "epoch-1-step", "epoch-1-2-3", "-1", "7"]
        {
            assert!(!Milestone::is_directory(other), "{other}");
        }
    }

    #[test]
    fn the_end_of_an_epoch_is_behind_its_steps() {
        let sorted = [
            Milestone::at_step(9),
            Milestone::epoch(0),
            Milestone::epoch(1).step(2),
            Milestone::epoch(1).step(10),
            Milestone::epoch(1),
            Milestone::epoch(2).step(1),
        ];
        assert!(sorted.is_sorted());
    }
}
