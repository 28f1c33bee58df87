//! Numbers that belong to a training state.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Numbers by their names.
pub type Scalars = BTreeMap<String, Scalar>;

/// A number with its kind. As text it is `int -3`, `uint 3`, `float 0.1` or `bool true`, which is read as
/// exactly the same number, whatever JSON's numbers hold.
///
/// ```
/// use weighbridge::epochs::Scalar;
///
/// let seed = Scalar::from(u64::MAX);
/// assert_eq!(seed.to_string().parse(), Ok(seed));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Scalar {
    /// A number that may be negative.
    Int(i64),
    /// A number that is not negative.
    UInt(u64),
    /// A float.
    Float(f64),
    /// Yes or no.
    Bool(bool),
}

impl Scalar {
    /// An integer that is not negative, whichever kind of integer it is.
    pub fn as_u64(self) -> Option<u64> {
        match self {
            Self::Int(value) => u64::try_from(value).ok(),
            Self::UInt(value) => Some(value),
            Self::Float(_) | Self::Bool(_) => None,
        }
    }

    /// A float.
    pub fn as_f64(self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(value),
            Self::Int(_) | Self::UInt(_) | Self::Bool(_) => None,
        }
    }
}

impl From<u64> for Scalar {
    fn from(value: u64) -> Self {
        Self::UInt(value)
    }
}

impl From<i64> for Scalar {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<f64> for Scalar {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<bool> for Scalar {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(value) => write!(f, "int {value}"),
            Self::UInt(value) => write!(f, "uint {value}"),
            // The shortest text that is read as the same float.
            Self::Float(value) => write!(f, "float {value:?}"),
            Self::Bool(value) => write!(f, "bool {value}"),
        }
    }
}

/// What a text is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAScalar;

impl fmt::Display for NotAScalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is not a number with its kind, as `int 3`, `uint 3`, `float 0.1` or `bool true`")
    }
}

impl std::error::Error for NotAScalar {}

impl FromStr for Scalar {
    type Err = NotAScalar;

    fn from_str(text: &str) -> Result<Self, NotAScalar> {
        let (kind, value) = text.split_once(' ').ok_or(NotAScalar)?;
        let read = match kind {
            "int" => value.parse().ok().map(Self::Int),
            "uint" => value.parse().ok().map(Self::UInt),
            "float" => value.parse().ok().map(Self::Float),
            "bool" => value.parse().ok().map(Self::Bool),
            _ => None,
        };
        read.ok_or(NotAScalar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_as_the_same_number() {
        let numbers = [
            Scalar::Int(i64::MIN),
            Scalar::UInt(u64::MAX),
            Scalar::Float(0.1),
            Scalar::Float(f64::MIN_POSITIVE / 2.0),
            Scalar::Float(f64::INFINITY),
            Scalar::Float(1e300),
            Scalar::Bool(false),
        ];
        for number in numbers {
            assert_eq!(number.to_string().parse(), Ok(number));
        }
        for other in ["", "3", "int", "int x", "uint -1", "float", "bool 1", "text a"] {
            assert_eq!(other.parse::<Scalar>(), Err(NotAScalar), "{other}");
        }
    }
}
