//! Figures of several tensors as one, for a line of the tree that stands for them.

use crate::figures::{Figures, Number};

/// What a line has room for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Values {
    pub(super) min: Option<f64>,
    pub(super) max: Option<f64>,
    pub(super) nans: u64,
    pub(super) infinities: u64,
    sum: f64,
    finite: f64,
}

impl Values {
    pub(super) fn of<'f>(all: impl Iterator<Item = Option<&'f Figures>>) -> Self {
        all.flatten().fold(Self::default(), Self::and)
    }

    #[expect(clippy::cast_precision_loss, reason = "for people to read")]
    fn and(mut self, figures: &Figures) -> Self {
        let infinities = figures.infinities + figures.negative_infinities;
        if let (Some(min), Some(max), Some(mean)) = (figures.min, figures.max, figures.mean) {
            let (min, max) = (real(min), real(max));
            self.min = Some(self.min.map_or(min, |least| least.min(min)));
            self.max = Some(self.max.map_or(max, |most| most.max(max)));
            let finite = figures.values.saturating_sub(figures.nans + infinities) as f64;
            self.sum += mean * finite;
            self.finite += finite;
        }
        self.nans += figures.nans;
        self.infinities += infinities;
        self
    }

    pub(super) fn mean(&self) -> Option<f64> {
        (self.finite > 0.0).then(|| self.sum / self.finite)
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn real(number: Number) -> f64 {
    match number {
        Number::Signed(value) => value as f64,
        Number::Unsigned(value) => value as f64,
        Number::Real(value) => value,
    }
}
