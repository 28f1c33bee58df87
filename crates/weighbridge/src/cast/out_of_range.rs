//! The error of a value that a dtype does not have.

use std::fmt;

use super::overflow::Overflow;
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind};

/// A value that a cast cannot represent in the new dtype.
///
/// Casts return it as the [source](std::error::Error::source) of an error of kind [`ErrorKind::Value`], so
/// that programs can offer the remedies in their own words.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct OutOfRange {
    /// The value, in decimal.
    pub value: String,
    /// The dtype that it is stored as.
    pub from: Dtype,
    /// The dtype that it was to be cast to.
    pub to: Dtype,
    /// The rules under which the cast would succeed; none where the target has nothing for the value, such as
    /// an integer for NaN.
    pub remedies: Vec<Overflow>,
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { value, from, to, .. } = self;
        write!(f, "{value} of {from} does not fit {to}")
    }
}

impl std::error::Error for OutOfRange {}

impl From<OutOfRange> for Error {
    fn from(refused: OutOfRange) -> Self {
        let remedies: Vec<_> = refused.remedies.iter().map(|rule| format!("`Overflow::{rule:?}`")).collect();
        let message = match &*remedies.join(" or ") {
            "" => refused.to_string(),
            remedies => format!("{refused}; {remedies} would take it"),
        };
        Self::new(ErrorKind::Value, message).with_source(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_the_remedies_and_keeps_them_as_data() {
        let refused = |remedies: &[Overflow]| OutOfRange {
            value: "1e6".to_owned(),
            from: Dtype::F32,
            to: Dtype::F16,
            remedies: remedies.to_vec(),
        };
        assert_eq!(Error::from(refused(&[])).to_string(), "1e6 of F32 does not fit F16");
        let value = refused(&[Overflow::Saturate, Overflow::Infinity]);
        let error = Error::from(value.clone());
        let message =
            "1e6 of F32 does not fit F16; `Overflow::Saturate` or `Overflow::Infinity` would take it";
        assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::Value, message));
        let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref());
        assert_eq!(source, Some(&value));
    }
}
