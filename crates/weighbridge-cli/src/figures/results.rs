//! Figures as they come out of what was counted.

use weighbridge::Dtype;
pub(crate) use weighbridge_page::{Figures, Histogram, Number};

/// Parts of a histogram.
pub(crate) const BINS: usize = 64;

/// A histogram of values, each with how often it occurs.
pub(super) fn histogram(low: f64, high: f64, values: impl Iterator<Item = (f64, u64)>) -> Histogram {
    let mut counts = vec![0; BINS];
    // Halves, as the difference of two finite numbers may not be one.
    let width = high / 2.0 - low / 2.0;
    for (value, count) in values {
        let share = (value / 2.0 - low / 2.0) / width;
        // Of a range without width the share is no number, which is bin 0.
        let bin = (share * BINS as f64) as usize;
        counts[bin.min(BINS - 1)] += count;
    }
    Histogram { low, high, counts }
}

/// The number that a dtype has for a value which it can have.
pub(super) fn number(dtype: Dtype, value: f64) -> Number {
    match dtype.is_float() || dtype == Dtype::C64 {
        true => Number::Real(value),
        false => Number::Signed(value as i64),
    }
}
