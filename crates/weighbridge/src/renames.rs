//! Rules that give tensors other names.

use std::collections::HashMap;
use std::fmt;

use regex::{NoExpand, Regex};

use crate::error::{Error, ErrorKind, Result};
use crate::pattern;

/// Rules that rename tensors, applied one after the other: each sees what the ones before it made.
///
/// ```
/// use weighbridge::Renames;
///
/// # fn main() -> weighbridge::Result<()> {
/// let renames = Renames::new()
///     .prefix("bert.", "")
///     .glob("encoder.layer.*.output.LayerNorm.*", "blocks.*.norm.*")?
///     .regex(r"^(embeddings)\.(\w+)_embeddings\.", "$1.$2.")?;
/// assert_eq!(renames.apply("bert.encoder.layer.3.output.LayerNorm.bias"), "blocks.3.norm.bias");
/// assert_eq!(renames.apply("bert.embeddings.word_embeddings.weight"), "embeddings.word.weight");
/// assert_eq!(renames.apply("cls.bias"), "cls.bias");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Renames(Vec<Rule>);

#[derive(Clone)]
enum Rule {
    Exact(String, String),
    Map(HashMap<String, String>),
    Prefix(String, String),
    /// Every match is replaced; `$1` stands for a group.
    Regex(Regex, String),
}

impl Renames {
    /// No rules: every name stays.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Renames one tensor.
    #[must_use]
    pub fn exact(self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.with(Rule::Exact(from.into(), to.into()))
    }

    /// Renames the tensors of a list of old and new names, all at once: two names may be exchanged.
    #[must_use]
    pub fn map(self, names: impl IntoIterator<Item = (String, String)>) -> Self {
        self.with(Rule::Map(names.into_iter().collect()))
    }

    /// Replaces the beginning of the names that begin with `from`; with an empty `from`, `to` is put before every name.
    #[must_use]
    pub fn prefix(self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.with(Rule::Prefix(from.into(), to.into()))
    }

    /// Renames what matches a glob as a whole. In `from`, `*` stands for any text and `?` for one character; each `*`
    /// and `?` of `to` becomes what the one of the same number in `from` stood for.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Pattern`] when `to` has more of them than `from`, or others.
    pub fn glob(self, from: &str, to: &str) -> Result<Self> {
        let wild = |text: &str| text.chars().filter(|c| "*?".contains(*c)).collect::<String>();
        if !wild(from).starts_with(&wild(to)) {
            let message = format!("{to:?} does not have the wildcards of {from:?}, in their order");
            return Err(Error::new(ErrorKind::Pattern, message));
        }
        let mut regex = String::from("^");
        for c in from.chars() {
            match c {
                '*' => regex.push_str("(.*)"),
                '?' => regex.push_str("(.)"),
                other => regex.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
            }
        }
        regex.push('$');
        let mut replacement = String::new();
        let mut group = 0;
        for c in to.chars() {
            match c {
                '*' | '?' => {
                    group += 1;
                    replacement.push_str(&format!("${{{group}}}"));
                }
                '$' => replacement.push_str("$$"),
                other => replacement.push(other),
            }
        }
        self.regex(&regex, &replacement)
    }

    /// Replaces every match of a regular expression; `$1` or `${name}` in `to` is what a group of it matched, `$$` a
    /// dollar sign. The syntax is that of the `regex` crate.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Pattern`] when it is no regular expression.
    pub fn regex(self, from: &str, to: &str) -> Result<Self> {
        Ok(self.with(Rule::Regex(pattern::compile(from)?, to.to_owned())))
    }

    /// The name that a tensor gets.
    pub fn apply(&self, name: &str) -> String {
        self.0.iter().fold(name.to_owned(), |name, rule| match rule {
            Rule::Exact(from, to) if *from == name => to.clone(),
            Rule::Exact(..) => name,
            Rule::Map(names) => names.get(&name).cloned().unwrap_or(name),
            Rule::Prefix(from, to) => match name.strip_prefix(&**from) {
                Some(rest) => format!("{to}{rest}"),
                None => name,
            },
            Rule::Regex(regex, to) if to.contains('$') => regex.replace_all(&name, &**to).into_owned(),
            Rule::Regex(regex, to) => regex.replace_all(&name, NoExpand(to)).into_owned(),
        })
    }

    fn with(mut self, rule: Rule) -> Self {
        self.0.push(rule);
        self
    }
}

impl fmt::Debug for Renames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        for rule in &self.0 {
            let (kind, from, to) = match rule {
                Rule::Exact(from, to) => ("exact", &**from, to),
                Rule::Prefix(from, to) => ("prefix", &**from, to),
                Rule::Regex(from, to) => ("regex", from.as_str(), to),
                Rule::Map(names) => {
                    list.entry(&format_args!("{} names", names.len()));
                    continue;
                }
            };
            list.entry(&format_args!("{kind} {from:?} -> {to:?}"));
        }
        list.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_see_what_the_ones_before_them_made() {
        let renames = Renames::new().prefix("a.", "b.").prefix("b.", "c.").exact("c.x", "y");
        assert_eq!(renames.apply("a.x"), "y");
        assert_eq!(renames.apply("a.z"), "c.z");
        assert_eq!(Renames::new().prefix("", "model.").apply("w"), "model.w");
        let swap = Renames::new().map([("a".to_owned(), "b".to_owned()), ("b".to_owned(), "a".to_owned())]);
        assert_eq!((&*swap.apply("a"), &*swap.apply("b"), &*swap.apply("c")), ("b", "a", "c"));
    }

    #[test]
    fn globs_carry_what_they_matched() {
        let renames = Renames::new().glob("h.*.ln_?.w", "layers.*.norm?.$weight").unwrap();
        assert_eq!(renames.apply("h.12.ln_1.w"), "layers.12.norm1.$weight");
        assert_eq!(renames.apply("xh.12.ln_1.w"), "xh.12.ln_1.w");
        let dropped = Renames::new().glob("a(*).?", "b*").unwrap();
        assert_eq!(dropped.apply("a(q).1"), "bq");
        let error = Renames::new().glob("a.?", "b.*").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Pattern);
    }

    #[test]
    fn bad_expressions_are_errors() {
        assert_eq!(Renames::new().regex("(", "").unwrap_err().kind(), ErrorKind::Pattern);
    }
}
