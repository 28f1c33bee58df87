//! What is known of a tensor when all its values have been read.

use serde::Serialize;
use weighbridge::Dtype;

/// The figures of one tensor. Extremes, mean, deviation and histogram are those of the finite values.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figures {
    /// So many numbers were looked at: a complex number is two.
    pub(crate) values: u64,
    pub(crate) min: Option<Number>,
    pub(crate) max: Option<Number>,
    pub(crate) mean: Option<f64>,
    /// The standard deviation, of all values and not of a sample.
    pub(crate) std: Option<f64>,
    pub(crate) zeros: u64,
    pub(crate) nans: u64,
    #[serde(rename = "positive_infinities")]
    pub(crate) infinities: u64,
    pub(crate) negative_infinities: u64,
    pub(crate) histogram: Option<Histogram>,
}

/// A value as its dtype has it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Number {
    Signed(i64),
    Unsigned(u64),
    Real(f64),
}

/// How many values are in each of [`BINS`] equal parts of the range from `low` to `high`, both included.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Histogram {
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) counts: Vec<u64>,
}

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
