//! What is known of a tensor when all its values have been read.
//!
//! Of dtypes of up to 16 bits it is counted how often each code occurs, and every figure follows exactly from
//! that. Wider values are summed up block by block, and for the histogram counted by their sign, their
//! exponent and the first seven bits of their mantissa, so that a value may be counted one bin nearer to zero
//! than it is.

mod tally;
mod wide;

use serde::Serialize;
use weighbridge::{Dtype, Result};

use tally::Tally;
use wide::Wide;

/// The figures of one tensor. Extremes, mean, deviation and histogram are those of the finite values.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// So many numbers were looked at: a complex number is two.
    pub values: u64,
    /// The least.
    pub min: Option<Number>,
    /// The greatest.
    pub max: Option<Number>,
    /// Their sum divided by their number.
    pub mean: Option<f64>,
    /// The standard deviation, of all values and not of a sample.
    pub std: Option<f64>,
    /// How many are zero.
    pub zeros: u64,
    /// How many are not a number.
    pub nans: u64,
    /// How many are positive infinity.
    #[serde(rename = "positive_infinities")]
    pub infinities: u64,
    /// How many are negative infinity.
    pub negative_infinities: u64,
    /// `None` where there are no finite values.
    pub histogram: Option<Histogram>,
}

/// A value as its dtype has it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Number {
    /// Of an integer that has a sign.
    Signed(i64),
    /// Of an integer that has none.
    Unsigned(u64),
    /// Of a float.
    Real(f64),
}

/// How many values are in each of some equal parts of the range from `low` to `high`, both included.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Histogram {
    /// The least value.
    pub low: f64,
    /// The greatest value.
    pub high: f64,
    /// For each part how many.
    pub counts: Vec<u64>,
}

/// What is known of some of the values of a tensor. Pieces that are cut and merged in the same way give the same figures.
#[derive(Debug, Default)]
pub struct Count(Part);

#[derive(Debug, Default)]
enum Part {
    #[default]
    None,
    Codes(Tally),
    Wide(Wide),
}

impl Count {
    /// Whether the values of a dtype can be looked at: those of 6 bits have no agreed packing.
    pub fn can_read(dtype: Dtype) -> bool {
        !matches!(dtype, Dtype::F6_E2M3 | Dtype::F6_E3M2)
    }

    /// Looks at the bytes of values as a file has them.
    ///
    /// # Errors
    ///
    /// Fails for dtypes that cannot be read, and where a value is cut.
    pub fn of(dtype: Dtype, bytes: &[u8]) -> Result<Self> {
        Ok(Self(match dtype.bits() {
            4 => Part::Codes(tally::of_nibbles(bytes)),
            8 => Part::Codes(tally::of_bytes(bytes)),
            16 => Part::Codes(tally::of_pairs(bytes)),
            _ => Part::Wide(Wide::of(dtype, bytes)?),
        }))
    }

    /// With the values that come next.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        Self(match (self.0, other.0) {
            (Part::None, other) => other,
            (Part::Codes(these), Part::Codes(those)) => Part::Codes(tally::merge(&these, &those)),
            (Part::Wide(these), Part::Wide(those)) => Part::Wide(these.merge(those)),
            (this, _) => this,
        })
    }

    /// The figures of all of them.
    ///
    /// # Errors
    ///
    /// Fails for dtypes that cannot be read.
    pub fn figures(self, dtype: Dtype) -> Result<Figures> {
        match self.0 {
            Part::None => Ok(Wide::default().figures()),
            Part::Codes(tally) => tally::figures(dtype, &tally),
            Part::Wide(wide) => Ok(wide.figures()),
        }
    }
}

/// Parts of a histogram.
pub const BINS: usize = 64;

/// A histogram of values, each with how often it occurs.
fn histogram(low: f64, high: f64, values: impl Iterator<Item = (f64, u64)>) -> Histogram {
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
fn number(dtype: Dtype, value: f64) -> Number {
    match dtype.is_float() || dtype == Dtype::C64 {
        true => Number::Real(value),
        false => Number::Signed(value as i64),
    }
}
