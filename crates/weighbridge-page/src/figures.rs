//! What is known of a tensor when all its values have been read.

use serde::Serialize;

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
