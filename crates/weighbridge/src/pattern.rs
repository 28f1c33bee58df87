//! Sets of tensor names, by glob, regular expression and prefix.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use globset::{GlobBuilder, GlobMatcher};
use regex::Regex;

use crate::error::{Error, ErrorKind, Result};

/// A set of tensor names, given by patterns.
///
/// ```
/// use weighbridge::Names;
///
/// # fn main() -> weighbridge::Result<()> {
/// let names = Names::glob("*.mlp.{up,gate}_proj.weight")?.or(Names::prefix("lm_head."));
/// assert!(names.contains("model.layers.11.mlp.up_proj.weight"));
/// assert!(!names.contains("model.layers.11.mlp.down_proj.weight"));
/// let first_layers = Names::regex(r"^model\.layers\.[0-3]\.")?.except(Names::glob("*norm*")?);
/// assert!(!first_layers.contains("model.layers.0.input_layernorm.weight"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Names(Arc<Rule>);

enum Rule {
    All,
    Exact(String),
    List(HashSet<String>),
    Prefix(String),
    Glob(GlobMatcher),
    Regex(Regex),
    Or(Names, Names),
    And(Names, Names),
    Except(Names, Names),
}

impl Names {
    /// Every name.
    pub fn all() -> Self {
        Self::of(Rule::All)
    }

    /// One name.
    pub fn exact(name: impl Into<String>) -> Self {
        Self::of(Rule::Exact(name.into()))
    }

    /// The names of a list.
    pub fn list(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::of(Rule::List(names.into_iter().map(Into::into).collect()))
    }

    /// Names that begin with `prefix`.
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self::of(Rule::Prefix(prefix.into()))
    }

    /// Names that match a glob as a whole: `*` stands for any text, dots included, `?` for one character, `[0-3]` for
    /// one of several, `{a,b}` for either.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Pattern`] when it is no glob.
    pub fn glob(glob: &str) -> Result<Self> {
        let built = GlobBuilder::new(glob).literal_separator(false).backslash_escape(true).build();
        let built = built.map_err(|error| Error::new(ErrorKind::Pattern, error.to_string()))?;
        Ok(Self::of(Rule::Glob(built.compile_matcher())))
    }

    /// Names in which a regular expression matches, anywhere unless it is anchored. The syntax is that of the `regex`
    /// crate, whose time is linear in the length of the name.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Pattern`] when it is no regular expression, or a too large one.
    pub fn regex(regex: &str) -> Result<Self> {
        Ok(Self::of(Rule::Regex(compile(regex)?)))
    }

    /// Names of this set or the other one.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self::of(Rule::Or(self, other))
    }

    /// Names of both sets.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self::of(Rule::And(self, other))
    }

    /// Names of this set that are not in the other one.
    #[must_use]
    pub fn except(self, other: Self) -> Self {
        Self::of(Rule::Except(self, other))
    }

    /// Whether the name is in the set.
    pub fn contains(&self, name: &str) -> bool {
        match &*self.0 {
            Rule::All => true,
            Rule::Exact(exact) => name == exact,
            Rule::List(names) => names.contains(name),
            Rule::Prefix(prefix) => name.starts_with(&**prefix),
            Rule::Glob(glob) => glob.is_match(name),
            Rule::Regex(regex) => regex.is_match(name),
            Rule::Or(a, b) => a.contains(name) || b.contains(name),
            Rule::And(a, b) => a.contains(name) && b.contains(name),
            Rule::Except(a, b) => a.contains(name) && !b.contains(name),
        }
    }

    fn of(rule: Rule) -> Self {
        Self(Arc::new(rule))
    }
}

/// A regular expression, or what is wrong with it in one line.
pub(crate) fn compile(regex: &str) -> Result<Regex> {
    Regex::new(regex).map_err(|error| {
        let text = error.to_string();
        let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        Error::new(ErrorKind::Pattern, format!("the regular expression {regex:?}: {last}"))
    })
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Rule::All => write!(f, "all"),
            Rule::Exact(name) => write!(f, "{name:?}"),
            Rule::List(names) => write!(f, "{} names", names.len()),
            Rule::Prefix(prefix) => write!(f, "prefix {prefix:?}"),
            Rule::Glob(glob) => write!(f, "glob {:?}", glob.glob().glob()),
            Rule::Regex(regex) => write!(f, "regex {:?}", regex.as_str()),
            Rule::Or(a, b) => write!(f, "({a:?} or {b:?})"),
            Rule::And(a, b) => write!(f, "({a:?} and {b:?})"),
            Rule::Except(a, b) => write!(f, "({a:?} except {b:?})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_cross_dots_and_match_as_a_whole() {
        let matches = |glob: &str, name| Names::glob(glob).unwrap().contains(name);
        assert!(matches("*norm*", "model.layers.0.input_layernorm.weight"));
        assert!(matches("model.*.weight", "model.a.b.weight"));
        assert!(matches("layers.?.w", "layers.1.w"));
        assert!(matches("a/*", "a/b/c"));
        assert!(!matches("layers.[0-3].w", "layers.4.w"));
        assert!(!matches("weight", "a.weight"));
        assert!(matches(r"a\*", "a*") && !matches(r"a\*", "ab"));
    }

    #[test]
    fn sets_combine() {
        let set = Names::prefix("a").or(Names::exact("b")).except(Names::regex("c$").unwrap());
        let has = |name| set.contains(name);
        assert!(has("a") && has("b") && !has("ac") && !has("bb") && !has(""));
        assert!(Names::all().and(Names::exact("x")).contains("x"));
        let list = Names::list(["a", "b"]);
        assert!(list.contains("a") && list.contains("b") && !list.contains("ab"));
        assert_eq!(format!("{set:?}"), r#"((prefix "a" or "b") except regex "c$")"#);
    }

    #[test]
    fn what_is_no_pattern_is_an_error_of_one_line() {
        for error in [Names::glob("[a").unwrap_err(), Names::regex("(a").unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Pattern);
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
}
