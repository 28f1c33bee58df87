//! Patterns that match nothing: what is said of them.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, bail};
use weighbridge::{Checkpoint, Names, NearestNames};

use crate::show::{plural, safe};
use crate::term::Term;

/// A pattern for names, as it was given.
pub(crate) struct Pattern<'p> {
    /// With the option that it is of, for people: `--only "a.*"`.
    shown: String,
    names: Names,
    glob: Option<&'p str>,
}

impl<'p> Pattern<'p> {
    /// The globs that an option was given.
    pub(crate) fn globs(option: &str, globs: &'p [String]) -> Result<Vec<Self>> {
        globs.iter().map(|glob| Self::part(option, glob, glob)).collect()
    }

    pub(crate) fn regex(option: &str, regex: &'p str) -> Result<Self> {
        Ok(Self { shown: shown(option, regex), names: Names::regex(regex)?, glob: None })
    }

    /// A glob that is a part of the option's value.
    pub(crate) fn part(option: &str, value: &str, glob: &'p str) -> Result<Self> {
        Ok(Self { shown: shown(option, value), names: Names::glob(glob)?, glob: Some(glob) })
    }

    /// That none of the names matches, if that is so, and what may have been meant.
    fn missed<N: AsRef<str>>(&self, names: &[N], noun: &str) -> Option<String> {
        if names.iter().any(|name| self.names.contains(name.as_ref())) {
            return None;
        }
        // Several checkpoints have the same names.
        let names: BTreeSet<_> = names.iter().map(AsRef::as_ref).collect();
        let hint = self.glob.map_or_else(String::new, |glob| hint(glob, || names.iter().copied()));
        Some(format!("no {noun} has a name that matches {}{hint}", self.shown))
    }
}

fn shown(option: &str, value: &str) -> String {
    format!("{option} {:?}", safe(value))
}

/// What may have been meant by a glob that matches nothing.
pub(crate) fn hint<'n, I: Iterator<Item = &'n str>>(glob: &str, names: impl Fn() -> I) -> String {
    let near = NearestNames::of(glob, names());
    if !near.is_empty() {
        return near.hint();
    }
    let wider = format!("*{}*", glob.trim_matches('*'));
    let matching = Names::glob(&wider).map_or(0, |wider| names().filter(|name| wider.contains(name)).count());
    match matching {
        0 => String::new(),
        1 => format!("; a glob is for whole names, and {wider:?} matches 1"),
        many => format!("; a glob is for whole names, and {wider:?} matches {many}"),
    }
}

/// Names that a pattern may speak of: those of the tensors, and of the weights that quantised modules stand for.
pub(crate) fn names(checkpoint: &Checkpoint) -> Vec<Cow<'_, str>> {
    let stored = checkpoint.tensors().map(|tensor| Cow::from(tensor.name()));
    stored.chain(checkpoint.quantized().map(|module| Cow::from(module.weight()))).collect()
}

/// Fails at the first pattern that matches no name: what was asked for is not there. `noun` says what the names are of.
pub(crate) fn must_match<N: AsRef<str>>(
    noun: &str,
    location: &Path,
    patterns: &[Pattern<'_>],
    names: &[N],
) -> Result<()> {
    match patterns.iter().find_map(|pattern| pattern.missed(names, noun)) {
        Some(missed) => bail!("{}: {missed}", location.display()),
        None => Ok(()),
    }
}

/// Warns of patterns that match no name: of those which are a precaution, as a script may give them for many checkpoints.
pub(crate) fn should_match<N: AsRef<str>>(
    noun: &str,
    location: &Path,
    patterns: &[Pattern<'_>],
    names: &[N],
    term: &Term,
) {
    for missed in patterns.iter().filter_map(|pattern| pattern.missed(names, noun)) {
        term.warn(format_args!("{}: {missed}", location.display()));
    }
}

/// The error where all patterns match something, and still nothing is chosen.
pub(crate) fn nothing_left(location: &Path, all: usize) -> anyhow::Error {
    anyhow::anyhow!(
        "{}: none of its {} is chosen: --except leaves out what there is",
        location.display(),
        plural(all, "tensor")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] = ["model.layers.0.w", "model.layers.1.w", "model.norm.weight", "lm_head.weight"];

    fn missed(glob: &str) -> String {
        Pattern::part("--only", glob, glob).unwrap().missed(&NAMES, "tensor").unwrap_or_default()
    }

    #[test]
    fn what_matches_is_not_missed() {
        assert_eq!(missed("model.*"), "");
        assert_eq!(missed("lm_head.weight"), "");
        let regex = Pattern::regex("--regex", "norm").unwrap();
        assert_eq!(regex.missed(&NAMES, "tensor"), None);
    }

    #[test]
    fn what_may_have_been_meant_is_said() {
        let none = |glob: &str| format!("no tensor has a name that matches --only {glob:?}");
        assert_eq!(missed("xyz*"), none("xyz*"));
        assert_eq!(missed("norm.weight"), none("norm.weight") + "; did you mean \"model.norm.weight\"?");
        assert_eq!(
            missed("norm.*"),
            none("norm.*") + "; a glob is for whole names, and \"*norm.*\" matches 1"
        );
        assert_eq!(
            missed("layers.?.w"),
            none("layers.?.w") + "; a glob is for whole names, and \"*layers.?.w*\" matches 2"
        );
        let regex = Pattern::regex("--regex", "^norm").unwrap();
        let said = regex.missed(&NAMES, "tensor");
        assert_eq!(said.as_deref(), Some("no tensor has a name that matches --regex \"^norm\""));
    }
}
