//! The fields of a `config.json`.

use anyhow::{Result, anyhow};
use serde_json::{Map, Value};

/// A JSON object whose values have expected types. A null counts as absent, as in transformers.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// A value of any type.
    pub fn get(self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// A size that has to be there.
    ///
    /// # Errors
    ///
    /// As all of these functions: one line that names the key and says what was expected and what was found.
    pub fn required_size(self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| anyhow!("there is no {key}"))
    }

    /// A whole number, above zero, and low enough that two of them can be multiplied.
    ///
    /// # Errors
    ///
    /// Fails for anything else.
    pub fn size(self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number from 1 to 16777216", |value| {
            let size = usize::try_from(value.as_u64()?).ok()?;
            (1..=1 << 24).contains(&size).then_some(size)
        })
    }

    /// A number.
    ///
    /// # Errors
    ///
    /// Fails for anything else.
    pub fn number(self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// A number above zero that is one in `f32`, too.
    ///
    /// # Errors
    ///
    /// Fails for anything else.
    pub fn positive(self, key: &str) -> Result<Option<f64>> {
        #[expect(clippy::cast_possible_truncation, reason = "models compute with f32")]
        let is_positive = |number: &f64| (*number as f32).is_finite() && (*number as f32) > 0.0;
        self.typed(key, "a number above zero", |value| value.as_f64().filter(is_positive))
    }

    /// True or false; false if it is absent.
    ///
    /// # Errors
    ///
    /// Fails for anything else.
    pub fn flag(self, key: &str) -> Result<bool> {
        Ok(self.typed(key, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    /// A string.
    ///
    /// # Errors
    ///
    /// Fails for anything else.
    pub fn text(self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }

    /// One token, or a list of tokens.
    ///
    /// # Errors
    ///
    /// Fails for anything else.
    pub fn tokens(self, key: &str) -> Result<Option<Vec<u32>>> {
        let token = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        self.typed(key, "a token id or a list of them", |value| match value {
            Value::Array(list) => list.iter().map(token).collect::<Option<Vec<_>>>(),
            one => Some(vec![token(one)?]),
        })
    }

    fn typed<T>(
        self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| mismatch(key, expected, value)),
        }
    }
}

/// The error for a value of another type.
pub fn mismatch(key: &str, expected: &str, value: &Value) -> anyhow::Error {
    let mut found = value.to_string();
    if found.chars().count() > 60 {
        found = found.chars().take(60).chain("...".chars()).collect();
    }
    anyhow!("{key}: expected {expected}, found {found}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_type_is_checked() {
        let config = json!({
            "size": 3, "zero": 0, "large": 1 << 25, "number": -0.5, "tiny": 1e-60, "flag": true, "null": null,
            "text": "silu", "token": 7, "tokens": [1, 2], "bad": [1, -1], "long": "x".repeat(100)
        });
        let fields = Fields(config.as_object().unwrap());
        assert_eq!(fields.size("size").unwrap(), Some(3));
        assert_eq!(fields.size("null").unwrap(), None);
        assert_eq!(fields.required_size("none").unwrap_err().to_string(), "there is no none");
        for key in ["zero", "large", "number", "text"] {
            assert!(
                fields.size(key).unwrap_err().to_string().starts_with(&format!("{key}: expected a whole"))
            );
        }
        assert_eq!(fields.number("number").unwrap(), Some(-0.5));
        assert!(fields.positive("number").is_err() && fields.positive("tiny").is_err());
        assert!(
            fields.flag("flag").unwrap() && !fields.flag("null").unwrap() && fields.flag("size").is_err()
        );
        assert_eq!(fields.text("text").unwrap(), Some("silu"));
        assert_eq!(fields.tokens("token").unwrap(), Some(vec![7]));
        assert_eq!(fields.tokens("tokens").unwrap(), Some(vec![1, 2]));
        assert!(fields.tokens("bad").is_err());
        assert!(fields.number("long").unwrap_err().to_string().ends_with("xxx..."));
    }
}
